"""A network as a graph of steps for which bounds have rules: linear maps, ReLU, max-pooling and sums.

Each Keras layer becomes one step or, with an activation, two. A layer without a rule is refused by name.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tf_robust_sparse import layers
from tf_robust_sparse.layers.bayesian import BayesianScale
from tf_robust_sparse.layers.classifier import check_classifier
from tf_robust_sparse.layers.kernel_layer import KernelLayer
from tf_robust_sparse.layers.topology import layer_graph

_WITHOUT_NEGATIVE_COEFFICIENTS = (
    keras.layers.Flatten,
    keras.layers.Reshape,
    keras.layers.ZeroPadding2D,
    keras.layers.AveragePooling2D,
    keras.layers.GlobalAveragePooling2D,
)
Map = Callable[[tf.Tensor], tf.Tensor]


class Window(NamedTuple):
    """A linear map of images by windows: output `i` sees `size` inputs from `i * strides - before` on.

    Attributes:
        apply: The map of images that need no padding.
        size: Height and width.
        strides: Vertical and horizontal.
        before: Rows and columns of zeros above and to the left of the images.
    """

    apply: Map
    size: tuple[int, int] = (1, 1)
    strides: tuple[int, int] = (1, 1)
    before: tuple[int, int] = (0, 0)


class Linear(NamedTuple):
    """`x -> apply(x) + bias`; `absolute` is the same map with absolute coefficients.

    Attributes:
        apply: From `(batch, ...)` to `(batch, ...)`, linear.
        absolute: The map with the absolute values of the coefficients; `apply` itself if none is negative.
        bias: Bias that broadcasts to the output without its batch axis, or `None`.
        is_dense: Whether it is a matrix product over vectors.
        window: The map as a map of windows, or `None` if it is not known to be one.
        kernel: The kernel, inputs and outputs on its last axes; `None` of maps without one.
        terms: Of a map without a kernel, the largest number of products that an output sums, or an input is part of; 0
            if it rounds nothing.
        bias_size: What the bias is computed from, all terms positive; `None` for the absolute bias.
    """

    apply: Map
    absolute: Map
    bias: tf.Tensor | None
    is_dense: bool = False
    window: Window | None = None
    kernel: tf.Tensor | None = None
    terms: int = 0
    bias_size: tf.Tensor | None = None


class ReLU(NamedTuple):
    """`x -> max(x, 0)`."""


class MaxPool(NamedTuple):
    """Maxima over windows without padding; `window` is their height and width."""

    window: tuple[int, int]
    strides: tuple[int, int]


class Sum(NamedTuple):
    """The sum of several inputs."""


class Input(NamedTuple):
    """The images."""


class Step(NamedTuple):
    """One step: its rule, the names of its input steps, and the shape of its output without the batch axis."""

    name: str
    rule: Linear | ReLU | MaxPool | Sum | Input
    inputs: tuple[str, ...]
    shape: tuple[int, ...]


def bound_graph(network: keras.Model) -> list[Step]:
    """Returns the steps of a functional or sequential network of known image size, in order; the last gives logits.

    Effective kernels are read once and stay differentiable. Batch norm uses its moving statistics.

    Raises:
        ValueError: if a layer has no rule, is called twice or computes in another type, or the network does not end
            in logits of a dense layer.
    """
    check_classifier(network)
    steps: list[Step] = []
    outputs: dict[str, str] = {}  # layer -> its last step
    for node in layer_graph(network):
        layer = node.layer
        if layer.name in outputs:
            raise ValueError(f"The layer {layer.name} is called twice; bounds need a layer of its own for each call")
        if getattr(layer, "compute_dtype", "float32") != "float32":  # the operations here use the type of their inputs
            raise ValueError(
                f"The layer {layer.name} computes in {layer.compute_dtype}, but bounds hold for float32 only; "
                "build the network without mixed precision"
            )
        shape = _shape(layer)
        inputs = tuple(outputs[name] for name in node.inputs)
        if isinstance(network, keras.Sequential) and not steps:
            steps.append(Step("pixels", Input(), (), tuple(network.input_shape[1:])))
            inputs = ("pixels",)
        for rule, suffix in _rules(layer):
            name = f"{layer.name}{suffix}"
            steps.append(Step(name, rule, inputs, shape))
            inputs = (name,)
        outputs[layer.name] = inputs[0] if inputs else layer.name
    last = steps[-1]
    if not (isinstance(last.rule, Linear) and last.rule.is_dense and len(last.shape) == 1):
        raise ValueError(
            f"The network must end in a dense layer that gives logits, without softmax. Received: {last.name}"
        )
    return steps


def _shape(layer: Any) -> tuple[int, ...]:
    shape = layer.output.shape[1:]
    if None in shape:
        raise ValueError(f"Bounds need images of known size. Received: {layer.name} of shape {tuple(shape)}")
    return tuple(shape)


def _rules(layer: Any) -> list[tuple[Any, str]]:
    """Returns the rules of a layer's steps, each with the suffix of its name."""
    if isinstance(layer, keras.layers.InputLayer):
        return [(Input(), "")]
    known: Any = next(
        kind for kind in type(layer).__mro__ if kind.__module__.startswith(("keras.", "tf_robust_sparse."))
    )
    if type(layer).call is not known.call:
        raise ValueError(
            f"The layer {layer.name} of type {type(layer).__name__} overrides call() of {known.__name__}, and bounds "
            "have no rule for it; use layers of Keras or of this package"
        )
    if isinstance(layer, (KernelLayer, keras.layers.Dense, keras.layers.Conv2D)):
        return [(_kernel_rule(layer), ""), *_activation(layer.name, layer.activation, "/activation")]
    if isinstance(layer, layers.BetaBernoulliDropout | BayesianScale):
        return [(_affine(*layer.inference_scale_and_shift()), "")]
    if isinstance(layer, keras.layers.BatchNormalization):
        return [(_batch_norm(layer), "")]
    if isinstance(layer, keras.layers.ReLU):
        if layer.max_value is not None or layer.negative_slope or layer.threshold:
            raise ValueError(f"Bounds have a rule for max(x, 0) only, and the layer {layer.name} is another ReLU")
        return [(ReLU(), "")]
    if isinstance(layer, keras.layers.Activation):
        return _activation(layer.name, layer.activation, "") or [(_identity(), "")]
    if isinstance(layer, keras.layers.Dropout | layers.Dropout):
        return [(_identity(), "")]
    if isinstance(layer, _WITHOUT_NEGATIVE_COEFFICIENTS):
        return [(Linear(layer, layer, None, window=_window(layer), terms=_averaged(layer)), "")]
    if isinstance(layer, keras.layers.MaxPooling2D):
        return [(_max_pool(layer), "")]
    if isinstance(layer, keras.layers.Add):
        if any(part.shape != layer.output.shape for part in layer.input):
            raise ValueError(
                f"Bounds have a rule for sums of equal shapes; the layer {layer.name} repeats a smaller one"
            )
        return [(Sum(), "")]
    if isinstance(layer, keras.layers.Rescaling):
        return [(_affine(np.asarray(layer.scale, "float32"), np.asarray(layer.offset, "float32")), "")]
    if isinstance(layer, keras.layers.Normalization):
        mean, variance = (keras.ops.convert_to_numpy(v) for v in (layer.mean, layer.variance))
        if layer.invert:
            raise ValueError(f"The layer {layer.name} is a Normalization with invert=True; bounds have no rule for it")
        axes = len(layer.output.shape) - 1
        mean, variance = (v.reshape(v.shape[v.ndim - axes :] if v.ndim > axes else v.shape) for v in (mean, variance))
        deviation = np.maximum(np.sqrt(variance), 1e-7)
        return [(_affine(1 / deviation, -mean / deviation), "")]
    raise ValueError(
        f"Bounds have no rule for the layer {layer.name} of type {type(layer).__name__}; replace it by dense, Conv2D, "
        "batch norm, ReLU, pooling, padding, flatten, reshape, add or rescaling layers"
    )


def _activation(name: str, activation: Any, suffix: str) -> list[tuple[Any, str]]:
    if activation is keras.activations.linear:
        return []
    if activation is keras.activations.relu:
        return [(ReLU(), suffix)]
    found = getattr(activation, "__name__", type(activation).__name__)
    raise ValueError(f"Bounds have no rule for the activation {found} of {name}; use relu or linear")


def _kernel_rule(layer: Any) -> Linear:
    kernel = layer.effective_kernel if isinstance(layer, KernelLayer) else layer.kernel
    kernel = tf.cast(tf.convert_to_tensor(kernel), tf.float32)
    size = tf.abs(kernel)
    bias = None if layer.bias is None else tf.cast(tf.convert_to_tensor(layer.bias), tf.float32)
    if len(kernel.shape) == 2:
        if len(layer.input.shape) != 2:
            raise ValueError(f"The dense layer {layer.name} acts on the last of several axes; put a Flatten before it")
        return Linear(lambda x: tf.matmul(x, kernel), lambda x: tf.matmul(x, size), bias, is_dense=True, kernel=kernel)
    if getattr(layer, "groups", 1) != 1 or getattr(layer, "data_format", "channels_last") != "channels_last":
        raise ValueError(f"The convolution {layer.name} has groups or channels first; bounds have no rule for it")
    dilation = tuple(getattr(layer, "dilation_rate", (1, 1)))

    def convolution(weights: tf.Tensor) -> Map:
        if dilation == (1, 1):
            return lambda x: layers.convolve(x, weights, layer.strides, layer.padding)
        return lambda x: tf.nn.conv2d(x, weights, layer.strides, layer.padding.upper(), dilations=dilation)

    window = None
    if dilation == (1, 1):
        before = _before(layer, kernel.shape[:2]) if layer.padding == "same" else (0, 0)
        window = Window(
            lambda x: layers.convolve(x, kernel, layer.strides, "valid"),
            *(tuple(kernel.shape[:2]), tuple(layer.strides), before),
        )
    return Linear(convolution(kernel), convolution(size), bias, window=window, kernel=kernel)


def _before(layer: Any, window: Any) -> tuple[int, int]:
    """Returns the rows and columns that padding "same" adds above and to the left; an odd one goes to the end."""
    sides = zip(layer.input.shape[1:3], layer.output.shape[1:3], window, layer.strides, strict=True)
    top, left = (max((count - 1) * stride + side - size, 0) // 2 for size, count, side, stride in sides)
    return top, left


def _window(layer: Any) -> Window | None:
    """Returns zero padding or average pooling as a map of windows."""
    if isinstance(layer, keras.layers.ZeroPadding2D):
        (top, _), (left, _) = layer.padding
        return Window(tf.identity, before=(top, left))
    if isinstance(layer, keras.layers.AveragePooling2D) and layer.padding == "valid":
        return Window(layer, tuple(layer.pool_size), tuple(layer.strides))
    return None


def _averaged(layer: Any) -> int:
    """Returns the number of inputs that a layer averages, or 0 if it only moves them."""
    if isinstance(layer, keras.layers.GlobalAveragePooling2D):
        return math.prod(layer.input.shape[1:3])
    return math.prod(layer.pool_size) if isinstance(layer, keras.layers.AveragePooling2D) else 0


def _batch_norm(layer: Any) -> Linear:
    scale = tf.math.rsqrt(tf.convert_to_tensor(layer.moving_variance) + layer.epsilon)
    if layer.gamma is not None:
        scale *= tf.convert_to_tensor(layer.gamma)
    shift = -tf.convert_to_tensor(layer.moving_mean) * scale
    size = tf.abs(shift)
    if layer.beta is not None:
        shift += tf.convert_to_tensor(layer.beta)
        size += tf.abs(tf.convert_to_tensor(layer.beta))
    if layer.axis not in (-1, len(layer.output.shape) - 1):
        raise ValueError(
            f"The batch norm {layer.name} is over axis {layer.axis}; bounds have a rule for the last axis only"
        )
    return _affine(scale, shift)._replace(bias_size=tf.cast(size, tf.float32))


def _affine(scale: Any, shift: Any) -> Linear:
    scale, shift = tf.cast(scale, tf.float32), tf.cast(shift, tf.float32)
    size = tf.abs(scale)
    # A scale or shift that differs between positions is not a map of windows.
    alike = all(length == 1 for each in (scale, shift) for length in each.shape[:-1])
    window = Window(lambda x: x * scale) if alike else None
    return Linear(lambda x: x * scale, lambda x: x * size, shift, window=window, terms=1)


def _identity() -> Linear:
    return Linear(tf.identity, tf.identity, None, window=Window(tf.identity))


def _max_pool(layer: Any) -> MaxPool:
    if layer.padding != "valid":
        sizes = zip(layer.input.shape[1:3], layer.pool_size, layer.strides, strict=True)
        if any(size % stride or window != stride for size, window, stride in sizes):
            raise ValueError(f'The max-pooling {layer.name} pads; bounds have a rule for padding="valid" only')
    return MaxPool(tuple(layer.pool_size), tuple(layer.strides))
