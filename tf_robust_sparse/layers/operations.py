"""Layers of Keras in place of operations of `keras.ops`."""

from typing import Any

import keras
import numpy as np

from tf_robust_sparse.layers.topology import Node

_MERGES = {"Add": keras.layers.Add, "Subtract": keras.layers.Subtract, "Multiply": keras.layers.Multiply}
_ACTIVATIONS = {
    name.title().replace("_", ""): name
    for name in (
        *("relu", "relu6", "silu", "sigmoid", "tanh", "softplus", "softsign", "hard_silu", "hard_sigmoid"),
        "log_sigmoid",
    )
}


def as_layer(node: Node) -> Any:
    """Returns a layer that computes the same as the operation of `node`, of its name and not built.

    It knows sums, differences, and products of tensors, these and quotients with constants, and activations. Layers and
    other operations are returned as they are.
    """
    kind, name = type(node.layer).__name__, node.layer.name
    if isinstance(node.layer, keras.layers.Layer):
        return node.layer
    if kind in _ACTIVATIONS:
        return keras.layers.Activation(_ACTIVATIONS[kind], name=name)
    constants = [place for place, operand in enumerate(node.operands) if not isinstance(operand, str)]
    if kind in _MERGES and len(node.inputs) == 2:
        return _MERGES[kind](name=name)
    if len(node.operands) != 2 or len(constants) != 1:
        return node.layer
    (place,) = constants
    value, one = _per_channel(node.operands[place]), np.ones(())
    scale_and_offset = {
        "Add": (one, value),
        "Subtract": (one, -value) if place else (-one, value),
        "Multiply": (value, one * 0),
        **(dict.fromkeys(("Divide", "TrueDivide"), (1 / value, one * 0)) if place and value.all() else {}),
    }
    if kind not in scale_and_offset:
        return node.layer
    scale, offset = (each.tolist() for each in scale_and_offset[kind])
    return keras.layers.Rescaling(scale, offset, name=name)


def _per_channel(constant: Any) -> np.ndarray:
    """Returns a constant without leading axes of size 1."""
    value = np.asarray(constant, np.float64)
    while value.ndim and value.shape[0] == 1:
        value = value[0]
    return value
