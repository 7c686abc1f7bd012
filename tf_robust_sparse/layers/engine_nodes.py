"""The layers of a network as the operations of the engine."""

from collections.abc import Callable, Sequence
from typing import Any

import keras

from tf_robust_sparse.engine.nodes import LINEAR, Activation, Node
from tf_robust_sparse.layers.protocols import plain_class_of

_Size = tuple[int, int]
_RELU = Activation("relu")
_SILU = Activation("silu")
_IDENTITIES = (
    *(keras.layers.Dropout, keras.layers.SpatialDropout2D, keras.layers.AlphaDropout, keras.layers.Identity),
    *(keras.layers.GaussianNoise, keras.layers.GaussianDropout, keras.layers.ActivityRegularization),
)


def engine_nodes(calls: Sequence[Any], output: str) -> list[Node]:
    """Returns the operations of a network whose layers the engine knows.

    Args:
        calls: The calls of its layers, as `topology.layer_graph` returns them.
        output: Name of the layer that makes the output.

    Raises:
        ValueError: naming the layer, if one is unknown, is called twice or is set up in an unknown way, or if there is
            not one input of known size.
    """
    nodes: list[Node] = []
    seen: set[str] = set()
    for layer, inputs, _ in calls:
        if layer.name in seen:
            raise ValueError(f"The engine computes layers that are called once. Received: {layer.name}, called twice")
        if not inputs and not isinstance(layer, keras.layers.InputLayer):  # the first layer of a sequential model
            pixels = f"{layer.name}/input"
            nodes.append(Node("input", pixels, (), _shape(layer, layer.input)))
            inputs = (pixels,)
        seen.add(layer.name)
        kind = plain_class_of(layer)
        make = _MAKERS.get(kind) or _OPERATIONS.get(type(layer).__name__)
        if make is None:
            raise ValueError(
                f"The engine does not know the layer {layer.name}, of type {type(layer).__name__}; it knows dense, "
                "convolution, batch norm, ReLU, SiLU, pooling, padding, flatten, adding and dropout layers"
            )
        nodes += make(layer, tuple(inputs))
    if sum(node.kind == "input" for node in nodes) != 1:
        raise ValueError("The engine computes networks with one input")
    return [*(node for node in nodes if node.name != output), *(node for node in nodes if node.name == output)]


def _shape(layer: Any, tensor: Any) -> tuple[int, int, int]:
    shape = tuple(tensor.shape[1:])
    if None in shape or len(shape) not in (1, 3):
        raise ValueError(
            "The engine computes images (height, width, channels) of known size, and vectors. "
            f"Received: {shape} at the layer {layer.name}"
        )
    return shape if len(shape) == 3 else (1, 1, shape[0])


def _activation(layer: Any) -> Activation:
    function = layer.activation
    known = {
        keras.activations.linear: LINEAR,
        keras.activations.relu: _RELU,
        keras.activations.relu6: Activation("clip", top=6.0),
        keras.activations.leaky_relu: Activation("leaky", slope=0.2),
        keras.activations.silu: _SILU,
    }
    if function not in known:
        name = getattr(function, "__name__", type(function).__name__)
        raise ValueError(
            f"The engine knows the activations linear, relu, relu6, leaky_relu and silu; end the network in logits. "
            f"Received: {name} of the layer {layer.name}"
        )
    return known[function]


def _kernel_node(layer: Any, inputs: tuple[str, ...], groups: int, padding: _Size) -> list[Node]:
    activation = _activation(layer)
    size, stride, dilation = (
        tuple(layer.kernel_size),
        tuple(layer.strides),
        tuple(getattr(layer, "dilation_rate", (1, 1))),
    )
    node = Node(
        *("convolution", layer.name, inputs, _shape(layer, layer.output), size, stride, dilation, padding, groups),
        activation=activation,
    )
    return [node]


def _convolution(layer: Any, inputs: tuple[str, ...]) -> list[Node]:
    return _kernel_node(layer, inputs, getattr(layer, "groups", 1), _padding(layer, layer.kernel_size))


def _depthwise(layer: Any, inputs: tuple[str, ...]) -> list[Node]:
    return _kernel_node(layer, inputs, _shape(layer, layer.input)[2], _padding(layer, layer.kernel_size))


def _separable(layer: Any, inputs: tuple[str, ...]) -> list[Node]:
    height, width, _ = _shape(layer, layer.output)
    groups = _shape(layer, layer.input)[2]
    first = Node(
        *("convolution", f"{layer.name}/depthwise", inputs, (height, width, groups * layer.depth_multiplier)),
        *(tuple(layer.kernel_size), tuple(layer.strides), tuple(layer.dilation_rate)),
        *(_padding(layer, layer.kernel_size), groups),
    )
    shape = _shape(layer, layer.output)
    return [first, Node("convolution", layer.name, (first.name,), shape, activation=_activation(layer))]


def layer_name(node: str) -> str:
    """Returns the name of the layer that a node belongs to, from the name of the node."""
    return node.partition("/")[0]


def _padding(layer: Any, window: Sequence[int]) -> _Size:
    """Rows above and columns to the left of the image that the first window covers."""
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        raise ValueError(f"The layer {layer.name} has channels first; build the network with channels last")
    if layer.padding == "valid":
        return 0, 0
    sizes, results = _shape(layer, layer.input), _shape(layer, layer.output)
    dilation = getattr(layer, "dilation_rate", (1, 1))
    before = [
        max((result - 1) * stride + (side - 1) * apart + 1 - size, 0) // 2
        for size, result, stride, side, apart in zip(
            sizes[:2], results[:2], layer.strides, window, dilation, strict=True
        )
    ]
    return before[0], before[1]


def _dense(layer: Any, inputs: tuple[str, ...]) -> list[Node]:
    if len(layer.input.shape) != 2:
        raise ValueError(f"The dense layer {layer.name} acts on the last of several axes; put a Flatten before it")
    shape = _shape(layer, layer.output)
    return [Node("convolution", layer.name, inputs, shape, activation=_activation(layer))]


def _affine(layer: Any, inputs: tuple[str, ...]) -> list[Node]:
    shape = _shape(layer, layer.output)
    rank = len(layer.output.shape)
    if getattr(layer, "axis", -1) not in (-1, rank - 1, (rank - 1,), (-1,), [rank - 1]):
        raise ValueError(f"The layer {layer.name} is over axis {layer.axis}, not over the channels, which are the last")
    return [Node("affine", layer.name, inputs, shape)]


def _relu(layer: Any, inputs: tuple[str, ...]) -> list[Node]:
    slope = float(getattr(layer, "negative_slope", 0) or 0)
    top, threshold = getattr(layer, "max_value", None), float(getattr(layer, "threshold", 0) or 0)
    if threshold or (slope and top is not None):
        raise ValueError(
            f"The engine knows ReLU with a slope below 0, or with a greatest value. Received: {layer.name}"
        )
    activation = Activation("leaky", slope=slope) if slope else _RELU
    if top is not None:
        activation = Activation("clip", top=float(top))
    return [Node("activation", layer.name, inputs, _shape(layer, layer.output), activation=activation)]


def _activated(layer: Any, inputs: tuple[str, ...]) -> list[Node]:
    activation = _activation(layer)
    kind = "identity" if activation == LINEAR else "activation"
    return [Node(kind, layer.name, inputs, _shape(layer, layer.output), activation=activation)]


def _pooling(kind: str) -> Callable[[Any, tuple[str, ...]], list[Node]]:
    def make(layer: Any, inputs: tuple[str, ...]) -> list[Node]:
        window = tuple(layer.pool_size)
        padding = _padding(layer, window)
        shape = _shape(layer, layer.output)
        return [Node(kind, layer.name, inputs, shape, window, tuple(layer.strides), padding=padding)]

    return make


def _global(kind: str) -> Callable[[Any, tuple[str, ...]], list[Node]]:
    def make(layer: Any, inputs: tuple[str, ...]) -> list[Node]:
        height, width, channels = _shape(layer, layer.input)
        if layer.data_format != "channels_last":
            raise ValueError(f"The layer {layer.name} has channels first; build the network with channels last")
        return [Node(kind, layer.name, inputs, (1, 1, channels), (height, width), (height, width))]

    return make


def _pad(layer: Any, inputs: tuple[str, ...]) -> list[Node]:
    (top, bottom), (left, right) = layer.padding
    return [Node("pad", layer.name, inputs, _shape(layer, layer.output), padding=(top, left, bottom, right))]


def _sum(layer: Any, inputs: tuple[str, ...]) -> list[Node]:
    if len(inputs) < 2 or any(part.shape != layer.output.shape for part in layer.input):
        raise ValueError(
            f"The engine adds tensors of one shape; the layer {layer.name} adds a constant or one of another shape"
        )
    return [Node("add", layer.name, inputs, _shape(layer, layer.output))]


def _silu(layer: Any, inputs: tuple[str, ...]) -> list[Node]:
    return [Node("activation", layer.name, inputs, _shape(layer, layer.output), activation=_SILU)]


def _reshape(layer: Any, inputs: tuple[str, ...]) -> list[Node]:
    before, after = _shape(layer, layer.input), _shape(layer, layer.output)
    if before != after and len(layer.output.shape) != 2:
        raise ValueError(f"The engine reshapes images to vectors. Received: {layer.name}")
    return [Node("identity" if before == after else "flatten", layer.name, inputs, after)]


def _simple(kind: str) -> Callable[[Any, tuple[str, ...]], list[Node]]:
    return lambda layer, inputs: [Node(kind, layer.name, inputs, _shape(layer, layer.output))]


_MAKERS: dict[Any, Callable[[Any, tuple[str, ...]], list[Node]]] = {
    keras.layers.InputLayer: _simple("input"),
    keras.layers.Conv2D: _convolution,
    keras.layers.DepthwiseConv2D: _depthwise,
    keras.layers.SeparableConv2D: _separable,
    keras.layers.Dense: _dense,
    **dict.fromkeys((keras.layers.BatchNormalization, keras.layers.Rescaling, keras.layers.Normalization), _affine),
    **dict.fromkeys((keras.layers.ReLU, keras.layers.LeakyReLU), _relu),
    keras.layers.Activation: _activated,
    **dict.fromkeys(_IDENTITIES, _simple("identity")),
    keras.layers.MaxPooling2D: _pooling("max_pool"),
    keras.layers.AveragePooling2D: _pooling("mean_pool"),
    keras.layers.GlobalMaxPooling2D: _global("max_pool"),
    keras.layers.GlobalAveragePooling2D: _global("mean_pool"),
    keras.layers.ZeroPadding2D: _pad,
    keras.layers.Flatten: _simple("flatten"),
    keras.layers.Reshape: _reshape,
    keras.layers.Add: _sum,
}
# Of `keras.ops`, whose classes are not public.
_OPERATIONS: dict[str, Callable[[Any, tuple[str, ...]], list[Node]]] = {"Relu": _relu, "Silu": _silu, "Add": _sum}
