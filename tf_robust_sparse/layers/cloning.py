"""Clones of models with some layers replaced."""

from collections.abc import Callable
from typing import Any

import keras

from tf_robust_sparse.layers.protocols import RecordsGraph
from tf_robust_sparse.layers.topology import layer_graph


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


def flattened(network: keras.Model) -> keras.Model:
    """Returns a copy of a model with weights, in which the layers of nested models stand in their place.

    The layer `conv` of a nested model `block` is `block_conv`. A model without nested ones is returned as it is, and so
    is one with nested models that are subclassed, or have several inputs or outputs, or are called twice.
    """
    if not _nested(network) or not _can_be_flat(network):
        return network
    pairs: dict[int, tuple[Any, Any]] = {}  # one copy of a layer that is called twice

    def copies(model: keras.Model, prefix: str, x: Any) -> Any:
        def copy(layer: Any) -> Any:
            if isinstance(layer, keras.Model):
                return lambda inner, **_: copies(layer, f"{prefix}{layer.name}_", inner)
            if id(layer) not in pairs:
                pairs[id(layer)] = layer, copy_of(layer)
                pairs[id(layer)][1].name = prefix + layer.name
            return pairs[id(layer)][1]

        if isinstance(model, keras.Sequential):
            for layer in model.layers:
                x = copy(layer)(x)
            return x
        return model._run_through_graph(x, operation_fn=copy)

    inputs = _inputs(network) if isinstance(network, RecordsGraph) else keras.Input(batch_shape=network.input_shape)
    flat = keras.Model(inputs, copies(network, "", inputs), name=network.name)
    for before, after in pairs.values():
        if isinstance(before, keras.layers.Layer) and before.weights:
            set_weights(after, before.get_weights())
    return flat


def _nested(network: keras.Model) -> list[Any]:
    return [layer for layer in network.layers if isinstance(layer, keras.Model)]


def _can_be_flat(model: Any) -> bool:
    """Whether a model and all inside it are functional or sequential, with one input and output, and called once."""
    if not isinstance(model, keras.Sequential) and not isinstance(model, RecordsGraph):
        return False
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        return False
    called = [node.layer for node in layer_graph(model) if isinstance(node.layer, keras.Model)]
    return len(called) == len(_nested(model)) and all(map(_can_be_flat, called))


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
