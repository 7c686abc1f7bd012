"""What each layer of Keras becomes in an ONNX file."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from tf_robust_sparse.saving.onnx_activations import ACTIVATIONS, RELU, clipped
from tf_robust_sparse.saving.onnx_writer import (
    NO_PADS,
    Dialect,
    Pads,
    Tensor,
    Writer,
    channels_first_order,
    known_shape,
)

_kl, _ka = keras.layers, keras.activations


def _identity(writer: Writer, layer: Any, inputs: list[Tensor]) -> Tensor:
    return inputs[0]


def _zero_padding(writer: Writer, layer: Any, inputs: list[Tensor]) -> Tensor:
    pads = _together(inputs[0].pads, layer.padding)
    return inputs[0]._replace(shape=known_shape(layer.output, layer.name), pads=pads)


def _dense(writer: Writer, layer: Any, inputs: list[Tensor]) -> Tensor:
    (x,) = inputs
    if len(x.shape) != 1:
        raise ValueError(f"The dense layer {layer.name} acts on the last of several axes; put a Flatten before it")
    kernel, *bias = layer.get_weights()
    if x.order is not None:
        kernel = kernel[x.order]
    weights = writer.constant(f"{layer.name}/kernel", kernel.T)
    shift = writer.constant(f"{layer.name}/bias", bias[0] if bias else np.zeros(layer.units))
    product = writer.operator("Gemm", layer.name, [x.name, weights, shift], transB=1)
    return writer.activated(layer.name, layer.activation, Tensor(product, (layer.units,)))


def _convolution(writer: Writer, layer: Any, inputs: list[Tensor]) -> Tensor:
    kernel, *bias = layer.get_weights()
    return writer.activated(
        layer.name, layer.activation, _convolved(writer, layer, inputs[0], kernel, bias, layer.groups)
    )


def _depthwise(writer: Writer, layer: Any, inputs: list[Tensor]) -> Tensor:
    kernel, *bias = layer.get_weights()
    x = _convolved(writer, layer, inputs[0], _by_channel(kernel), bias, kernel.shape[2])
    return writer.activated(layer.name, layer.activation, x)


def _separable(writer: Writer, layer: Any, inputs: list[Tensor]) -> Tensor:
    by_channel, pointwise, *bias = layer.get_weights()
    x = _convolved(writer, layer, inputs[0], _by_channel(by_channel), [], by_channel.shape[2], "/depthwise")
    names = [writer.constant(f"{layer.name}/kernel", pointwise.transpose(3, 2, 0, 1))]
    names += [writer.constant(f"{layer.name}/bias", each) for each in bias]
    x = x._replace(name=writer.operator("Conv", layer.name, [x.name, *names], kernel_shape=(1, 1)))
    return writer.activated(layer.name, layer.activation, x)


def _by_channel(kernel: np.ndarray) -> np.ndarray:
    """The kernel of a depthwise convolution as that of one with a group for each channel."""
    return kernel.reshape(*kernel.shape[:2], 1, -1)


def _convolved(
    writer: Writer, layer: Any, x: Tensor, kernel: np.ndarray, bias: list[np.ndarray], groups: int, part: str = ""
) -> Tensor:
    pads = x.pads
    if layer.padding == "same":
        pads = _together(pads, _same_pads(x.shape, layer.kernel_size, layer.strides, layer.dilation_rate))
    if writer.dialect.equal_pads and tuple(layer.dilation_rate) == (1, 1):
        kernel, pads = _with_equal_pads(kernel, pads)
    name = f"{layer.name}{part}"
    inputs = [x.name, writer.constant(f"{name}/kernel", kernel.transpose(3, 2, 0, 1))]
    inputs += [writer.constant(f"{name}/bias", each) for each in bias]
    output = writer.operator(
        *("Conv", name, inputs),
        kernel_shape=kernel.shape[:2],
        strides=layer.strides,
        pads=_in_file(pads),
        dilations=layer.dilation_rate,
        group=groups,
    )
    return Tensor(output, known_shape(layer.output, layer.name))


def _batch_norm(writer: Writer, layer: Any, inputs: list[Tensor]) -> Tensor:
    (x,) = inputs
    if layer.axis not in (-1, len(x.shape)):
        raise ValueError(f"The batch norm {layer.name} is over axis {layer.axis}; only the last one is exported")
    channels = x.shape[-1]
    values = {
        "gamma": np.ones(channels) if layer.gamma is None else layer.gamma,
        "beta": np.zeros(channels) if layer.beta is None else layer.beta,
        "moving_mean": layer.moving_mean,
        "moving_variance": layer.moving_variance,
    }
    names = [
        writer.constant(f"{layer.name}/{role}", _permuted(keras.ops.convert_to_numpy(value), x.order))
        for role, value in values.items()
    ]
    output = writer.operator("BatchNormalization", layer.name, [x.name, *names], epsilon=layer.epsilon)
    return x._replace(name=output)


def _affine(writer: Writer, layer: Any, inputs: list[Tensor]) -> Tensor:
    (x,), name = inputs, layer.name
    scale, shift = _scale_and_shift(layer)
    for kind, role, value, neutral in (("Mul", "scale", scale, 1), ("Add", "shift", shift, 0)):
        if value.size not in (1, x.shape[-1]):
            raise ValueError(
                f"The layer {name} has {value.size} values of {role}; one, or one per channel, is exported"
            )
        if (value == neutral).all():
            continue
        value = value if value.size == 1 else _permuted(value, x.order)
        constant = writer.constant(f"{name}/{role}", value.reshape(1, -1, *[1] * (len(x.shape) - 1)))
        x = x._replace(name=writer.operator(kind, name, [x.name, constant]))
    return x


def _scale_and_shift(layer: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns the factor and the summand of a Rescaling or Normalization layer."""
    if isinstance(layer, keras.layers.Rescaling):
        return np.asarray(layer.scale, np.float32), np.asarray(layer.offset, np.float32)
    if layer.invert:
        raise ValueError(f"The layer {layer.name} inverts a normalization, which is not exported")
    mean, variance = (keras.ops.convert_to_numpy(value).reshape(-1) for value in (layer.mean, layer.variance))
    deviation = np.maximum(np.sqrt(variance), 1e-7)
    return 1 / deviation, -mean / deviation


def _pooled(writer: Writer, layer: Any, inputs: list[Tensor]) -> Tensor:
    (x,), pads = inputs, NO_PADS  # padding of "same" does not count as zeros in pooling
    if layer.padding == "same":
        pads = _same_pads(x.shape, layer.pool_size, layer.strides, (1, 1))
    kind = "MaxPool" if isinstance(layer, keras.layers.MaxPooling2D) else "AveragePool"
    output = writer.operator(
        *(kind, layer.name, [x.name]), kernel_shape=layer.pool_size, strides=layer.strides, pads=_in_file(pads)
    )
    return Tensor(output, known_shape(layer.output, layer.name))


def _global(writer: Writer, layer: Any, inputs: list[Tensor]) -> Tensor:
    (x,) = inputs
    kind = "GlobalMaxPool" if isinstance(layer, keras.layers.GlobalMaxPooling2D) else "GlobalAveragePool"
    x = Tensor(writer.operator(kind, layer.name, [x.name]), (1, 1, x.shape[-1]))
    return x if layer.keepdims else writer.flat(layer.name, x)


def _flatten(writer: Writer, layer: Any, inputs: list[Tensor]) -> Tensor:
    return writer.flat(layer.name, inputs[0])


def _reshaped(writer: Writer, layer: Any, inputs: list[Tensor]) -> Tensor:
    (x,), name, shape = inputs, layer.name, known_shape(layer.output, layer.name)
    if shape == x.shape:
        return x
    x = writer.flat(name, x)
    if len(shape) == 1:
        return x
    x = writer.ordered(name, x, channels_first_order(shape))
    height, width, channels = shape
    target = writer.constant(f"{name}/shape", [-1, channels, height, width], np.int64)
    return Tensor(writer.operator("Reshape", name, [x.name, target]), shape)


def _sum(writer: Writer, layer: Any, inputs: list[Tensor]) -> Tensor:
    if any(x.shape != inputs[0].shape for x in inputs):
        raise ValueError(f"The layer {layer.name} adds different shapes; only sums of one shape are exported")
    return _merged("Add")(writer, layer, inputs)


def _merged(kind: str) -> Any:
    def make(writer: Writer, layer: Any, inputs: list[Tensor]) -> Tensor:
        name, total = layer.name, inputs[0]
        if len(inputs) < 2 or len({len(x.shape) for x in inputs}) > 1:
            raise ValueError(
                f"The layer {name} is exported for two or more images, or two or more vectors. Received: "
                f"{len(inputs)} of shapes {', '.join(str(x.shape) for x in inputs)}"
            )
        if len(total.shape) == 1 and any(x.shape != total.shape for x in inputs):
            raise ValueError(f"The layer {name} merges vectors of different lengths; only equal ones are exported")
        for number, x in enumerate(inputs[1:], start=1):
            part = x if len(x.shape) == 3 else writer.ordered(f"{name}/{number}", x, total.order)
            total = total._replace(name=writer.operator(kind, f"{name}/{number}", [total.name, part.name]))
        return total._replace(shape=tuple(np.broadcast_shapes(*(x.shape for x in inputs))))

    return make


def _combined(kind: str) -> Any:
    """An operation on two tensors, or on a tensor and a constant, which broadcasts and stands on either side."""
    of_tensors = _merged(kind)

    def make(writer: Writer, layer: Any, inputs: list[Any]) -> Tensor:
        name, tensors = layer.name, [each for each in inputs if isinstance(each, Tensor)]
        if len(tensors) == len(inputs):
            return of_tensors(writer, layer, inputs)
        (x,), shape = tensors, known_shape(layer.output, name)
        names = [
            each.name if isinstance(each, Tensor) else writer.constant(f"{name}/constant", _laid_out(each, x, name))
            for each in inputs
        ]
        order = x.order if shape == x.shape else None  # a vector of one entry has no order
        return Tensor(writer.operator(kind, name, names), shape, order)

    return make


def _laid_out(constant: Any, x: Tensor, name: str) -> np.ndarray:
    """Returns a constant that Keras broadcasts with `x` as ONNX broadcasts it with `x` as it is in the file."""
    value = np.asarray(constant)
    if value.ndim == len(x.shape) + 1 and len(value) == 1:  # an axis for the batch
        value = value[0]
    if value.ndim > len(x.shape) or np.iscomplexobj(value):
        raise ValueError(
            f"The layer {name} combines its input with a constant of shape {np.shape(constant)} and type "
            f"{value.dtype}; only real ones that broadcast to a single example are exported"
        )
    if value.size == 1:
        return value.reshape(())
    if len(x.shape) == 3:
        return value.reshape((1,) * (3 - value.ndim) + value.shape).transpose(2, 0, 1)[np.newaxis]
    return (_permuted(value, x.order) if value.shape == x.shape else value)[np.newaxis]


def _average(writer: Writer, layer: Any, inputs: list[Tensor]) -> Tensor:
    total = _merged("Add")(writer, layer, inputs)
    number = writer.constant(f"{layer.name}/number", len(inputs))
    return total._replace(name=writer.operator("Div", layer.name, [total.name, number]))


def _concatenated(writer: Writer, layer: Any, inputs: list[Tensor]) -> Tensor:
    rank = len(inputs[0].shape)
    axis = 1
    if rank == 3:
        axis = (2, 3, 1)[layer.axis - 1 if layer.axis > 0 else layer.axis]
    else:
        inputs = [writer.ordered(f"{layer.name}/{number}", x, None) for number, x in enumerate(inputs)]
    output = writer.operator("Concat", layer.name, [x.name for x in inputs], axis=axis)
    return Tensor(output, known_shape(layer.output, layer.name))


def _activation(writer: Writer, layer: Any, inputs: list[Tensor]) -> Tensor:
    return writer.activated(layer.name, layer.activation, inputs[0])


def _softmax(writer: Writer, layer: Any, inputs: list[Tensor]) -> Tensor:
    if layer.axis != -1:
        raise ValueError(f"The softmax {layer.name} is over axis {layer.axis}; only the last one is exported")
    return writer.activated(layer.name, _ka.softmax, inputs[0])


def _plain_relu(writer: Writer, layer: Any, inputs: list[Tensor]) -> Tensor:
    if layer.max_value is not None or layer.negative_slope or layer.threshold:
        raise ValueError(f"The layer {layer.name} is no plain ReLU; only max(x, 0) is exported")
    return writer.activated(layer.name, _ka.relu, inputs[0])


def _relu(writer: Writer, layer: Any, inputs: list[Tensor]) -> Tensor:
    """ReLU and LeakyReLU, as layers and as operations."""
    (x,), slope, top = inputs, float(getattr(layer, "negative_slope", 0) or 0), getattr(layer, "max_value", None)
    if getattr(layer, "threshold", 0) or (slope and top is not None):
        raise ValueError(f"ReLU is exported with a slope below 0, or with a greatest value. Received: {layer.name}")
    if slope:
        return x._replace(name=writer.operator("LeakyRelu", layer.name, [x.name], alpha=slope))
    return x._replace(
        name=RELU(writer, layer.name, x.name) if top is None else clipped(0, top)(writer, layer.name, x.name)
    )


def _elu(writer: Writer, layer: Any, inputs: list[Tensor]) -> Tensor:
    return inputs[0]._replace(name=writer.operator("Elu", layer.name, [inputs[0].name], alpha=float(layer.alpha)))


def _by_name(activation: Any) -> Any:
    return lambda writer, layer, inputs: writer.activated(layer.name, activation, inputs[0])


# What the ONNX readers of verifiers know.
_FOR_VERIFIERS = {
    **dict.fromkeys((_kl.InputLayer, _kl.Dropout), _identity),
    _kl.ZeroPadding2D: _zero_padding,
    _kl.Conv2D: _convolution,
    _kl.Dense: _dense,
    _kl.Activation: _activation,
    _kl.ReLU: _plain_relu,
    _kl.BatchNormalization: _batch_norm,
    **dict.fromkeys((_kl.Rescaling, _kl.Normalization), _affine),
    **dict.fromkeys((_kl.MaxPooling2D, _kl.AveragePooling2D), _pooled),
    _kl.GlobalAveragePooling2D: _global,
    _kl.Flatten: _flatten,
    _kl.Reshape: _reshaped,
    _kl.Add: _sum,
}
_IDENTITIES = (
    *(_kl.InputLayer, _kl.Dropout, _kl.SpatialDropout2D, _kl.AlphaDropout, _kl.GaussianNoise, _kl.GaussianDropout),
    *(_kl.Identity, _kl.ActivityRegularization),
)
_LAYERS: dict[Any, Any] = {
    **_FOR_VERIFIERS,
    **dict.fromkeys(_IDENTITIES, _identity),
    _kl.DepthwiseConv2D: _depthwise,
    _kl.SeparableConv2D: _separable,
    **dict.fromkeys((_kl.ReLU, _kl.LeakyReLU), _relu),
    _kl.ELU: _elu,
    _kl.Softmax: _softmax,
    _kl.GlobalMaxPooling2D: _global,
    _kl.Add: _merged("Add"),
    _kl.Subtract: _merged("Sub"),
    _kl.Multiply: _merged("Mul"),
    _kl.Maximum: _merged("Max"),
    _kl.Minimum: _merged("Min"),
    _kl.Average: _average,
    _kl.Concatenate: _concatenated,
    # Of `keras.ops`, whose classes are not public:
    **{"Relu": _relu, "Relu6": _by_name(_ka.relu6), "Silu": _by_name(_ka.silu), "Sigmoid": _by_name(_ka.sigmoid)},
    **{"Add": _combined("Add"), "Subtract": _combined("Sub"), "Multiply": _combined("Mul")},
    **dict.fromkeys(("Divide", "TrueDivide"), _combined("Div")),
}
_TAKES_PADS = (*_IDENTITIES, _kl.ZeroPadding2D, _kl.Conv2D, _kl.DepthwiseConv2D, _kl.SeparableConv2D)

VERIFIERS = Dialect(
    layers=_FOR_VERIFIERS,
    activations={_ka.relu: RELU},
    takes_pads=_TAKES_PADS,
    known="dense, Conv2D, batch norm, ReLU, pooling, padding, flatten, reshape, add or rescaling",
    batch=1,
    channels_first=True,
    equal_pads=True,
)
DEPLOYMENT = Dialect(
    layers=_LAYERS,
    activations=ACTIVATIONS,
    takes_pads=_TAKES_PADS,
    known="dense, convolution, batch norm, activation, pooling, padding, flatten, reshape, merging or rescaling",
)


def _permuted(values: np.ndarray, order: np.ndarray | None) -> np.ndarray:
    return values if order is None else values[order]


def _together(first: Pads, second: Pads) -> Pads:
    (top, bottom), (left, right) = np.add(first, second).tolist()
    return (top, bottom), (left, right)


def _in_file(pads: Pads) -> tuple[int, ...]:
    (top, bottom), (left, right) = pads
    return top, left, bottom, right


def _same_pads(shape: tuple[int, ...], window: Sequence[int], strides: Sequence[int], dilation: Sequence[int]) -> Pads:
    """Returns the padding of TensorFlow's "same"; an odd row or column goes to the end."""
    pads = []
    for size, side, stride, step in zip(shape[:2], window, strides, dilation, strict=True):
        total = max((-(-size // stride) - 1) * stride + (side - 1) * step + 1 - size, 0)
        pads.append((total // 2, total - total // 2))
    return pads[0], pads[1]


def _with_equal_pads(kernel: np.ndarray, pads: Pads) -> tuple[np.ndarray, Pads]:
    """Returns an undilated kernel extended by zeros, and a padding, equal on both sides, that fits it.

    A row of zeros at the start of the kernel needs one more row of padding at the start of the image, one at the end
    one more at the end. The outputs do not change.
    """
    rows, columns = (max(side) for side in pads)
    equal = ((rows, rows), (columns, columns))
    return np.pad(kernel, [*np.subtract(equal, pads).tolist(), (0, 0), (0, 0)]), equal
