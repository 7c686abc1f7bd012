"""The inputs that a layer multiplies by its kernel, as rows of a matrix."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_robust_sparse.layers.kernel_layer import Conv2DOperation, DenseOperation
from tf_robust_sparse.sparsity.kernel_views import kernel_view
from tf_robust_sparse.sparsity.prunable import Prunable, einsum_letters

CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D, Conv2DOperation)
PRODUCTS = (keras.layers.Dense, keras.layers.EinsumDense, DenseOperation)


def why_no_rows(kernel: Prunable) -> str | None:
    """Returns why `kernel_rows` does not support a kernel, or `None` if it does."""
    layer = kernel.layer
    if kernel.weight.name != "kernel" or not isinstance(layer, (*PRODUCTS, *CONVOLUTIONS)):
        return f"a {kernel.weight.name} of {type(layer).__name__}, whose inputs cannot be read; Dense and Conv2D can"
    if isinstance(layer, keras.layers.EinsumDense):
        inputs, letters, outputs = einsum_letters(layer.equation)
        if kernel_view(kernel).shape[0] > 1 or not set(inputs) - set(outputs) <= set(letters):
            return f"its equation {layer.equation} is not a matrix product"
    if not isinstance(layer, (keras.layers.Conv1D, keras.layers.Conv2D)):
        return None
    odd = layer.groups > 1 or layer.data_format == "channels_first"
    return f"a convolution with groups={layer.groups} and data_format={layer.data_format}" if odd else None


def kernel_rows(kernel: Prunable, inputs: tf.Tensor) -> tf.Tensor:
    """Returns the inputs of a layer as `(rows, entries)`; their product with the kernel matrix is its outputs.

    Entries are in the memory order of the kernel. A row of a convolution is a patch, its entries by window row, window
    column, channel.
    """
    layer = kernel.layer
    if isinstance(layer, CONVOLUTIONS):
        return _patches(layer, inputs)
    if isinstance(layer, keras.layers.EinsumDense):
        inputs = tf.transpose(inputs, _einsum_order(layer.equation, inputs.shape.rank))
    return tf.reshape(inputs, (-1, kernel_view(kernel).shape[1]))


def _patches(layer: Any, inputs: tf.Tensor) -> tf.Tensor:
    sizes, strides, padding = layer.kernel_size, layer.strides, layer.padding
    rates = (1, 1) if isinstance(layer, Conv2DOperation) else layer.dilation_rate
    if isinstance(layer, keras.layers.Conv1D):
        if padding == "causal":
            inputs, padding = tf.pad(inputs, [[0, 0], [rates[0] * (sizes[0] - 1), 0], [0, 0]]), "valid"
        inputs = inputs[:, tf.newaxis]
        sizes, strides, rates = ((1, *each) for each in (sizes, strides, rates))
    patches = tf.image.extract_patches(
        inputs, (1, *sizes, 1), (1, *strides, 1), (1, *rates, 1), padding=padding.upper()
    )
    return tf.reshape(patches, (-1, patches.shape[-1]))


def _einsum_order(equation: str, rank: int) -> list[int]:
    """Returns the axes of the inputs; those that the equation sums over come last, in the order of the kernel."""
    inputs, letters, outputs = einsum_letters(equation)
    before, _, after = inputs.partition("...")
    axes = {letter: place for place, letter in enumerate(before)}
    axes |= {letter: rank - len(after) + place for place, letter in enumerate(after)}
    summed = [axes[letter] for letter in letters if letter in axes and letter not in outputs]
    return [axis for axis in range(rank) if axis not in summed] + summed


def call_order(network: keras.Model, kernels: list[Prunable], image: Any) -> list[Prunable]:
    """Returns the kernels in the order in which the network first calls their layers.

    Raises:
        ValueError: if it does not call a layer, or calls it inside a compiled function.
    """
    seen: dict[int, int] = {}
    strange = set()

    def note(layer: Any, inputs: Any) -> None:
        seen.setdefault(id(layer), len(seen))
        if tf.is_symbolic_tensor(inputs):
            strange.add(id(layer))

    with listening([kernel.layer for kernel in kernels], note):
        network(image, training=False)
    for kernel in kernels:
        if id(kernel.layer) not in seen or id(kernel.layer) in strange:
            how = "does not call it" if id(kernel.layer) not in seen else "calls it in a compiled function"
            raise ValueError(
                f"The inputs of {kernel.name} cannot be read, because {network.name} {how}; leave it out by `filters`. "
                f"Received: {type(kernel.layer).__name__} {kernel.layer.name}"
            )
    return sorted(kernels, key=lambda kernel: seen[id(kernel.layer)])


@contextmanager
def listening(called: list[Any], listener: Callable[[Any, Any], None]) -> Iterator[None]:
    """Calls `listener(layer, inputs)` before each call of one of the layers inside the block."""

    def heard(layer: Any, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(inputs: Any, *args: Any, **kwargs: Any) -> Any:
            listener(layer, inputs)
            return call(inputs, *args, **kwargs)

        return wrapped

    unique = list({id(layer): layer for layer in called}.values())
    for layer in unique:
        layer.call = heard(layer, layer.call)
    try:
        yield
    finally:
        for layer in unique:
            del layer.call


def second_moments(
    network: keras.Model, kernel: Prunable, images: np.ndarray, batch_size: int, positions: int, seed: int
) -> np.ndarray:
    """Returns the mean of `2 x x^T` over the input rows `x` of a kernel, float64 `(entries, entries)`.

    Args:
        network: The model.
        kernel: One of its kernels.
        images: `(n, ...)`, the inputs of the network.
        batch_size: Number of images per call.
        positions: Largest number of rows per image, on average; rows are drawn without replacement.
        seed: Seed of the draws.
    """
    moments: Any = 0.0
    number = 0

    def add(layer: Any, inputs: Any) -> None:
        nonlocal moments, number
        rows = kernel_rows(kernel, tf.convert_to_tensor(inputs))
        limit = positions * int(inputs.shape[0])
        if rows.shape[0] > limit:
            rows = tf.gather(rows, generator.choice(rows.shape[0], limit, replace=False))
        rows = tf.cast(rows, tf.float64)
        moments += 2 * tf.matmul(rows, rows, transpose_a=True)
        number += int(rows.shape[0])

    generator = np.random.default_rng(seed)
    with listening([kernel.layer], add):
        for begin in range(0, len(images), batch_size):
            network(images[begin : begin + batch_size], training=False)
    return np.asarray(moments) / number
