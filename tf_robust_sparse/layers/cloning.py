"""Clones of models with some layers replaced."""

from collections.abc import Callable
from typing import Any

import keras

from tf_robust_sparse.layers.protocols import RecordsGraph


def cloned(network: keras.Model, layer_of: Callable[[Any], Any], purpose: str) -> keras.Model:
    """Clones a functional or sequential model, nested models included; input tensors keep their names.

    Args:
        network: The model.
        layer_of: Maps a layer or operation to its replacement, which has no weights yet.
        purpose: What the caller does with the model, for the message, such as `"stripped"`.

    Raises:
        ValueError: if the model is subclassed.
    """
    if not isinstance(network, (keras.Sequential, RecordsGraph)):
        raise ValueError(
            f"Only a functional or sequential keras.Model can be {purpose}; pass the network itself, not the model "
            "that trains it, and turn a subclassed model into keras.Model(inputs, outputs). "
            f"Received: {type(network).__name__}"
        )
    inputs = None if isinstance(network, keras.Sequential) else _inputs(network)
    return keras.models.clone_model(network, input_tensors=inputs, clone_function=layer_of, recursive=True)


def copy_of(layer: Any, **changes: Any) -> Any:
    """Returns a copy of a layer or operation from its configuration, without weights.

    Args:
        layer: A Keras layer, or an operation such as `keras.ops.relu`.
        **changes: Entries of a layer's configuration to change; operations are copied unchanged.

    Raises:
        ValueError: if the layer cannot be copied.
    """
    # Safe mode would refuse a Lambda layer, but one that is in memory has already run its code.
    options = {"safe_mode": False} if isinstance(layer, keras.layers.Lambda) else {}
    try:
        config = layer.get_config()
        if isinstance(layer, keras.layers.Layer):  # an operation has no dtype
            config.update(changes)
        return type(layer).from_config(config, **options)
    # Keras raises NotImplementedError for arguments that it cannot serialize; code of the user may raise anything.
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"The layer {layer.name} of type {type(layer).__name__} cannot be copied from its configuration; give it a "
            f"`get_config` that returns the arguments of its constructor. Keras says: {reason}"
        ) from error


def set_weights(layer: Any, weights: list[Any]) -> None:
    """Sets the weights of a Keras layer, and what it computed from them when it was built."""
    layer.set_weights(weights)
    if isinstance(layer, keras.layers.Normalization):
        layer.finalize_state()


def _inputs(network: keras.Model) -> Any:
    """Returns new input tensors of the same names, in the same structure; Keras would rename unnamed ones."""
    names = {id(layer.output): layer.name for layer in network.layers if isinstance(layer, keras.layers.InputLayer)}
    return keras.tree.map_structure(
        lambda x: keras.Input(batch_shape=x.shape, dtype=x.dtype, name=names[id(x)]), network.input
    )
