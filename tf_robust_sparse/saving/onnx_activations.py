"""What each activation of Keras becomes in an ONNX file: functions of the writer, a name and the name of the input."""

from collections.abc import Callable
from typing import Any

import keras

from tf_robust_sparse.saving.onnx_writer import Writer

Make = Callable[[Writer, str, str], str]


def _one(kind: str, **attributes: Any) -> Make:
    return lambda writer, name, x: writer.operator(kind, name, [x], **attributes)


def clipped(least: float, most: float) -> Make:
    """Values below `least` or above `most` become these."""

    def make(writer: Writer, name: str, x: str) -> str:
        ends = [writer.constant(f"{name}/{role}", value) for role, value in (("least", least), ("most", most))]
        return writer.operator("Clip", name, [x, *ends])

    return make


def _times(*factors: Make) -> Make:
    """The input times what further activations, one after the other, make of it."""

    def make(writer: Writer, name: str, x: str) -> str:
        y = x
        for factor in factors:
            y = factor(writer, name, y)
        return writer.operator("Mul", name, [x, y])

    return make


def _normal(writer: Writer, name: str, x: str) -> str:
    """The distribution function of the normal distribution."""
    y = writer.operator("Mul", f"{name}/scaled", [x, writer.constant(f"{name}/root", 0.5**0.5)])
    y = writer.operator("Erf", name, [y])
    y = writer.operator("Add", name, [y, writer.constant(f"{name}/one", 1)])
    return writer.operator("Mul", f"{name}/half", [y, writer.constant(f"{name}/a_half", 0.5)])


RELU = _one("Relu")
_HARD_SIGMOID = _one("HardSigmoid", alpha=1 / 6, beta=0.5)
ACTIVATIONS = {
    keras.activations.relu: RELU,
    keras.activations.relu6: clipped(0, 6),
    keras.activations.leaky_relu: _one("LeakyRelu", alpha=0.2),
    keras.activations.elu: _one("Elu", alpha=1.0),
    keras.activations.selu: _one("Selu"),
    keras.activations.gelu: _times(_normal),
    keras.activations.silu: _times(_one("Sigmoid")),
    keras.activations.mish: _times(_one("Softplus"), _one("Tanh")),
    keras.activations.tanh: _one("Tanh"),
    keras.activations.hard_tanh: clipped(-1, 1),
    keras.activations.sigmoid: _one("Sigmoid"),
    keras.activations.hard_sigmoid: _HARD_SIGMOID,
    keras.activations.hard_silu: _times(_HARD_SIGMOID),
    keras.activations.softplus: _one("Softplus"),
    keras.activations.softsign: _one("Softsign"),
    keras.activations.exponential: _one("Exp"),
    keras.activations.softmax: _one("Softmax", axis=1),
    keras.activations.log_softmax: _one("LogSoftmax", axis=1),
}
