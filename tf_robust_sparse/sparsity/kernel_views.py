"""A kernel as matrices from inputs to outputs, whatever the layer."""

import math
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tf_robust_sparse.sparsity.prunable import DEPTHWISE, Prunable, einsum_letters

TRANSPOSED = (keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose, keras.layers.Conv3DTranspose)


class KernelView(NamedTuple):
    """How the axes of a kernel make up `(positions, inputs, outputs)`: one matrix per position of a convolution.

    Attributes:
        order: The axes of the kernel: first those of positions, then of inputs, then of outputs.
        sides: The sides of the kernel in this order.
        shape: Number of positions, inputs and outputs.
    """

    order: tuple[int, ...]
    sides: tuple[int, ...]
    shape: tuple[int, int, int]

    def to_matrices(self, values: tf.Tensor) -> tf.Tensor:
        """Returns values of the shape of the kernel as `(positions, inputs, outputs)`."""
        return tf.reshape(tf.transpose(values, self.order), self.shape)

    def to_kernel(self, matrices: tf.Tensor) -> tf.Tensor:
        """Returns values `(positions, inputs, outputs)` in the shape of the kernel."""
        back = [self.order.index(axis) for axis in range(len(self.order))]
        return tf.transpose(tf.reshape(matrices, self.sides), back)


def kernel_view(kernel: Prunable) -> KernelView:
    """Returns the view of a kernel for which `why_no_view` returns `None`."""
    shape = tuple(kernel.weight.shape)
    axes = list(range(len(shape)))
    kinds = [axes[:-2], [axes[-2]], [axes[-1]]]
    if isinstance(kernel.layer, TRANSPOSED):
        kinds = [axes[:-2], [axes[-1]], [axes[-2]]]
    elif isinstance(kernel.layer, keras.layers.EinsumDense):
        inputs, letters, outputs = einsum_letters(kernel.layer.equation)
        places = [(letter in inputs, letter in outputs) for letter in letters]
        wanted = [(True, True), (True, False), (False, True)]
        kinds = [[axis for axis in axes if places[axis] == kind] for kind in wanted]
    order = tuple(axis for kind in kinds for axis in kind)
    counts: Any = tuple(math.prod(shape[axis] for axis in kind) for kind in kinds)
    return KernelView(order, tuple(shape[axis] for axis in order), counts)


def why_no_view(kernel: Prunable) -> str | None:
    """Returns why a kernel does not consist of matrices from inputs to outputs, or `None` if it does."""
    if isinstance(kernel.layer, DEPTHWISE) or kernel.weight.name == "depthwise_kernel":
        return "a depthwise kernel, which has one input channel for each output"
    if kernel.weight.name == "embeddings":
        return "an embedding, whose rows are looked up, not summed"
    return None
