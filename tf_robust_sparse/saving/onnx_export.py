"""A network as an ONNX file for verifiers: channels first, all shapes known, no transpositions.

Keras writes ONNX, too (`model.export(path, format="onnx")`, through tf2onnx), but its files are less suitable. They
take channels last and transpose images at both ends, so the order of pixels differs from the published benchmarks and
bounds in patch form stop at the transposition. Strided convolutions with padding "same" get more zeros on one side,
which auto_LiRPA refuses. And tf2onnx runs with NumPy 2 only because Keras patches NumPy first. Here each layer becomes
one operator: the rows of a dense kernel after a flatten are reordered to channels first, zero padding becomes part of
the convolution, and a kernel gets rows of zeros where this makes the padding equal on both sides.
"""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np

from tf_robust_sparse.layers.topology import layer_graph
from tf_robust_sparse.paths import user_path
from tf_robust_sparse.saving.atomic import replace_file
from tf_robust_sparse.saving.strip import strip

_INPUT, _OUTPUT = "pixels", "logits"
_OPSET, _IR_VERSION = 13, 8  # old enough for the ONNX readers of verifiers
_Pads = tuple[tuple[int, int], tuple[int, int]]  # rows before and after, columns before and after
_NO_PADS: _Pads = ((0, 0), (0, 0))


class _Tensor(NamedTuple):
    """The output of a layer.

    Attributes:
        name: Its name in the file.
        shape: Its shape in Keras, without the batch: `(height, width, channels)` or `(features,)`.
        order: For a vector: entry i in the file is entry `order[i]` in Keras; `None` if the orders agree.
        pads: Zeros around an image that belong to its shape but are not yet written.
    """

    name: str
    shape: tuple[int, ...]
    order: np.ndarray | None = None
    pads: _Pads = _NO_PADS


def export_onnx(network: keras.Model, path: str | os.PathLike) -> Path:
    """Writes `network` as an ONNX file for verifiers such as alpha-beta-CROWN.

    The file maps `pixels`, float32 `(1, channels, height, width)` in [0, 1], or `(1, features)`, to `logits`
    `(1, classes)`. Kernels are the effective ones, batch norm uses its moving statistics. No operator fixes the batch
    size of 1.

    Args:
        network: A functional or sequential model of known image size: dense, convolution, batch norm, ReLU, pooling,
            padding, flatten, reshape, add, rescaling, normalization and dropout layers, in every parametrization.
        path: The file, ending in `.onnx`; it is written completely or not at all.

    Returns:
        The path.

    Raises:
        ImportError: if onnx is not installed.
        ValueError: if a layer is not supported; names it.
    """
    path = user_path(path)
    if path.suffix != ".onnx":
        raise ValueError(f"`path` must end in .onnx. Received: path={os.fspath(path)!r}")
    model = _Writer().model(strip(network))
    with replace_file(path) as temporary:
        temporary.write_bytes(model.SerializeToString())
    return path


class _Writer:
    """Collects operators and constants, layer by layer."""

    def __init__(self) -> None:
        try:
            import onnx
        except ImportError:
            raise ImportError(
                "Writing ONNX needs onnx: python -m pip install 'tf_robust_sparse[onnx]', or onnx itself"
            ) from None
        self._onnx = onnx
        self._operators: list[Any] = []
        self._constants: list[Any] = []

    def model(self, network: keras.Model) -> Any:
        """Returns the checked ONNX model of a network of plain layers."""
        if len(network.inputs) != 1 or len(network.outputs) != 1:
            raise ValueError(
                f"Only networks with one input and one output are exported. Received: {len(network.inputs)} inputs and "
                f"{len(network.outputs)} outputs"
            )
        pixels = _Tensor(_INPUT, _known_shape(network.inputs[0], "The input"))
        found: dict[str, _Tensor] = {}
        for node in layer_graph(network):
            if node.layer.name in found:
                raise ValueError(f"The layer {node.layer.name} is called twice; only layers called once are exported")
            inputs = [found[name] for name in node.inputs] or [pixels]
            found[node.layer.name] = self._layer(node.layer, inputs)
        last = node.layer.name if isinstance(network, keras.Sequential) else network.output_names[0]
        if len(found[last].shape) != 1:
            raise ValueError(f"The network must end in logits `(batch, classes)`. Received: {found[last].shape}")
        logits = self._ordered(last, found[last], None)
        for operator in self._operators:
            operator.input[:] = [_OUTPUT if name == logits.name else name for name in operator.input]
            operator.output[:] = [_OUTPUT if name == logits.name else name for name in operator.output]
        return self._checked(network.name, pixels, logits)

    def _checked(self, name: str, pixels: _Tensor, logits: _Tensor) -> Any:
        helper, real = self._onnx.helper, self._onnx.TensorProto.FLOAT
        height_and_width, channels = pixels.shape[:-1], pixels.shape[-1]
        graph = helper.make_graph(
            self._operators,
            name,
            [helper.make_tensor_value_info(_INPUT, real, (1, channels, *height_and_width))],
            [helper.make_tensor_value_info(_OUTPUT, real, (1, *logits.shape))],
            self._constants,
        )
        model = helper.make_model(
            graph,
            producer_name="tf_robust_sparse",
            opset_imports=[helper.make_opsetid("", _OPSET)],
            ir_version=_IR_VERSION,
        )
        self._onnx.checker.check_model(model, full_check=True)
        return model

    def _operator(self, kind: str, name: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Appends an operator; returns the name of its output."""
        output = f"{name}/{kind}"
        self._operators.append(self._onnx.helper.make_node(kind, list(inputs), [output], name=output, **attributes))
        return output

    def _constant(self, name: str, value: Any, dtype: type = np.float32) -> str:
        """Adds a constant; returns its name."""
        self._constants.append(self._onnx.numpy_helper.from_array(np.ascontiguousarray(value, dtype), name))
        return name

    def _layer(self, layer: Any, inputs: list[_Tensor]) -> _Tensor:
        """Appends the operators of a layer; returns its output."""
        if getattr(layer, "data_format", "channels_last") != "channels_last":
            raise ValueError(f"The layer {layer.name} has channels first; only channels last are exported")
        x = inputs[0]
        if isinstance(layer, (keras.layers.InputLayer, keras.layers.Dropout)):
            return x
        if isinstance(layer, keras.layers.ZeroPadding2D):
            return x._replace(shape=_known_shape(layer.output, layer.name), pads=_together(x.pads, layer.padding))
        if isinstance(layer, keras.layers.Conv2D):
            return self._activated(layer, self._convolution(layer, x))
        inputs = [self._padded(each) for each in inputs]
        x = inputs[0]
        if isinstance(layer, keras.layers.Dense):
            return self._activated(layer, self._dense(layer, x))
        if isinstance(layer, keras.layers.Activation):
            return self._activated(layer, x)
        if isinstance(layer, keras.layers.ReLU):
            if layer.max_value is not None or layer.negative_slope or layer.threshold:
                raise ValueError(f"The layer {layer.name} is no plain ReLU; only max(x, 0) is exported")
            return x._replace(name=self._operator("Relu", layer.name, [x.name]))
        if isinstance(layer, keras.layers.BatchNormalization):
            return self._batch_norm(layer, x)
        if isinstance(layer, (keras.layers.Rescaling, keras.layers.Normalization)):
            return self._affine(layer.name, x, *_scale_and_shift(layer))
        if isinstance(layer, (keras.layers.MaxPooling2D, keras.layers.AveragePooling2D)):
            return self._pooled(layer, x)
        if isinstance(layer, keras.layers.GlobalAveragePooling2D):
            mean = _Tensor(self._operator("GlobalAveragePool", layer.name, [x.name]), (1, 1, x.shape[-1]))
            return mean if layer.keepdims else self._flat(layer.name, mean)
        if isinstance(layer, keras.layers.Flatten):
            return self._flat(layer.name, x)
        if isinstance(layer, keras.layers.Reshape):
            return self._reshaped(layer.name, x, _known_shape(layer.output, layer.name))
        if isinstance(layer, keras.layers.Add):
            return self._sum(layer.name, inputs)
        raise ValueError(
            f"There is no ONNX operator here for the layer {layer.name} of type {type(layer).__name__}; replace it by "
            "dense, Conv2D, batch norm, ReLU, pooling, padding, flatten, reshape, add or rescaling layers"
        )

    def _activated(self, layer: Any, x: _Tensor) -> _Tensor:
        if layer.activation is keras.activations.linear:
            return x
        if layer.activation is keras.activations.relu:
            return x._replace(name=self._operator("Relu", layer.name, [x.name]))
        found = getattr(layer.activation, "__name__", type(layer.activation).__name__)
        raise ValueError(f"The activation {found} of {layer.name} is not exported; relu and linear are")

    def _dense(self, layer: Any, x: _Tensor) -> _Tensor:
        if len(x.shape) != 1:
            raise ValueError(f"The dense layer {layer.name} acts on the last of several axes; put a Flatten before it")
        kernel, *bias = layer.get_weights()
        if x.order is not None:
            kernel = kernel[x.order]
        weights = self._constant(f"{layer.name}/kernel", kernel.T)
        shift = self._constant(f"{layer.name}/bias", bias[0] if bias else np.zeros(layer.units))
        return _Tensor(self._operator("Gemm", layer.name, [x.name, weights, shift], transB=1), (layer.units,))

    def _convolution(self, layer: Any, x: _Tensor) -> _Tensor:
        kernel, *bias = layer.get_weights()
        pads = x.pads
        if layer.padding == "same":
            pads = _together(pads, _same_pads(x.shape, layer.kernel_size, layer.strides, layer.dilation_rate))
        if tuple(layer.dilation_rate) == (1, 1):
            kernel, pads = _with_equal_pads(kernel, pads)
        inputs = [x.name, self._constant(f"{layer.name}/kernel", kernel.transpose(3, 2, 0, 1))]
        if bias:
            inputs.append(self._constant(f"{layer.name}/bias", bias[0]))
        output = self._operator(
            *("Conv", layer.name, inputs),
            kernel_shape=kernel.shape[:2],
            strides=layer.strides,
            pads=_in_file(pads),
            dilations=layer.dilation_rate,
            group=layer.groups,
        )
        return _Tensor(output, _known_shape(layer.output, layer.name))

    def _batch_norm(self, layer: Any, x: _Tensor) -> _Tensor:
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
            self._constant(f"{layer.name}/{role}", _permuted(keras.ops.convert_to_numpy(value), x.order))
            for role, value in values.items()
        ]
        output = self._operator("BatchNormalization", layer.name, [x.name, *names], epsilon=layer.epsilon)
        return x._replace(name=output)

    def _affine(self, name: str, x: _Tensor, scale: np.ndarray, shift: np.ndarray) -> _Tensor:
        for kind, role, value, neutral in (("Mul", "scale", scale, 1), ("Add", "shift", shift, 0)):
            if value.size not in (1, x.shape[-1]):
                raise ValueError(
                    f"The layer {name} has {value.size} values of {role}; one, or one per channel, is exported"
                )
            if (value == neutral).all():
                continue
            value = value if value.size == 1 else _permuted(value, x.order)
            constant = self._constant(f"{name}/{role}", value.reshape(1, -1, *[1] * (len(x.shape) - 1)))
            x = x._replace(name=self._operator(kind, name, [x.name, constant]))
        return x

    def _pooled(self, layer: Any, x: _Tensor) -> _Tensor:
        pads = _NO_PADS  # padding of "same" does not count as zeros in pooling
        if layer.padding == "same":
            pads = _same_pads(x.shape, layer.pool_size, layer.strides, (1, 1))
        kind = "MaxPool" if isinstance(layer, keras.layers.MaxPooling2D) else "AveragePool"
        output = self._operator(
            *(kind, layer.name, [x.name]), kernel_shape=layer.pool_size, strides=layer.strides, pads=_in_file(pads)
        )
        return _Tensor(output, _known_shape(layer.output, layer.name))

    def _flat(self, name: str, x: _Tensor) -> _Tensor:
        if len(x.shape) == 1:
            return x
        order = _channels_first_order(x.shape)
        return _Tensor(self._operator("Flatten", name, [x.name], axis=1), order.shape, order)

    def _reshaped(self, name: str, x: _Tensor, shape: tuple[int, ...]) -> _Tensor:
        if shape == x.shape:
            return x
        x = self._flat(name, x)
        if len(shape) == 1:
            return x
        x = self._ordered(name, x, _channels_first_order(shape))
        height, width, channels = shape
        target = self._constant(f"{name}/shape", [-1, channels, height, width], np.int64)
        return _Tensor(self._operator("Reshape", name, [x.name, target]), shape)

    def _sum(self, name: str, inputs: list[_Tensor]) -> _Tensor:
        total = inputs[0]
        if any(x.shape != total.shape for x in inputs):
            raise ValueError(f"The layer {name} adds different shapes; only sums of one shape are exported")
        for number, x in enumerate(inputs[1:], start=1):
            part = self._ordered(f"{name}/{number}", x, total.order)
            total = total._replace(name=self._operator("Add", f"{name}/{number}", [total.name, part.name]))
        return total

    def _padded(self, x: _Tensor) -> _Tensor:
        """Adds the zeros that no convolution has taken over."""
        if x.pads == _NO_PADS:
            return x
        (top, bottom), (left, right) = x.pads
        name = f"{x.name}/{top}_{bottom}_{left}_{right}"
        if not any(operator.output[0] == f"{name}/Pad" for operator in self._operators):
            amounts = self._constant(f"{name}/pads", [0, 0, top, left, 0, 0, bottom, right], np.int64)
            self._operator("Pad", name, [x.name, amounts], mode="constant")
        return x._replace(name=f"{name}/Pad", pads=_NO_PADS)

    def _ordered(self, name: str, x: _Tensor, order: np.ndarray | None) -> _Tensor:
        """Reorders the entries of a vector; `None` is the order of Keras."""
        natural = np.arange(x.shape[0])
        found, wanted = (natural if each is None else each for each in (x.order, order))
        if (found == wanted).all():
            return x
        indices = self._constant(f"{name}/order", np.argsort(found)[wanted], np.int64)
        return _Tensor(self._operator("Gather", name, [x.name, indices], axis=1), x.shape, order)


def _known_shape(tensor: Any, name: str) -> tuple[int, ...]:
    shape = tuple(tensor.shape[1:])
    if None in shape or len(shape) not in (1, 3):
        raise ValueError(
            "Only images `(height, width, channels)` of known size and vectors are exported. Received: "
            f"{shape} of {name}"
        )
    return shape


def _channels_first_order(shape: tuple[int, ...]) -> np.ndarray:
    return np.arange(math.prod(shape)).reshape(shape).transpose(2, 0, 1).ravel()


def _permuted(values: np.ndarray, order: np.ndarray | None) -> np.ndarray:
    return values if order is None else values[order]


def _together(first: _Pads, second: _Pads) -> _Pads:
    (top, bottom), (left, right) = np.add(first, second).tolist()
    return (top, bottom), (left, right)


def _in_file(pads: _Pads) -> tuple[int, ...]:
    (top, bottom), (left, right) = pads
    return top, left, bottom, right


def _same_pads(shape: tuple[int, ...], window: Sequence[int], strides: Sequence[int], dilation: Sequence[int]) -> _Pads:
    """Returns the padding of TensorFlow's "same"; an odd row or column goes to the end."""
    pads = []
    for size, side, stride, step in zip(shape[:2], window, strides, dilation, strict=True):
        total = max((-(-size // stride) - 1) * stride + (side - 1) * step + 1 - size, 0)
        pads.append((total // 2, total - total // 2))
    return pads[0], pads[1]


def _with_equal_pads(kernel: np.ndarray, pads: _Pads) -> tuple[np.ndarray, _Pads]:
    """Returns an undilated kernel extended by zeros, and a padding, equal on both sides, that fits it.

    A row of zeros at the start of the kernel needs one more row of padding at the start of the image, one at the end
    one more at the end. The outputs do not change.
    """
    rows, columns = (max(side) for side in pads)
    equal = ((rows, rows), (columns, columns))
    return np.pad(kernel, [*np.subtract(equal, pads).tolist(), (0, 0), (0, 0)]), equal


def _scale_and_shift(layer: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns the factor and the summand of a Rescaling or Normalization layer."""
    if isinstance(layer, keras.layers.Rescaling):
        return np.asarray(layer.scale, np.float32), np.asarray(layer.offset, np.float32)
    if layer.invert:
        raise ValueError(f"The layer {layer.name} inverts a normalization, which is not exported")
    mean, variance = (keras.ops.convert_to_numpy(value).reshape(-1) for value in (layer.mean, layer.variance))
    deviation = np.maximum(np.sqrt(variance), 1e-7)
    return 1 / deviation, -mean / deviation
