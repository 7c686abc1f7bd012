"""Turning networks that end in a softmax into networks that return logits."""

from collections.abc import Callable
from typing import Any

import keras

from tf_robust_sparse.evaluation.saved_model import SavedModelClassifier
from tf_robust_sparse.layers.protocols import RecordsGraph
from tf_robust_sparse.layers.topology import layer_graph, output_layer

_SOFTMAX = keras.activations.get("softmax")


def ends_in_softmax(network: keras.Model) -> bool:
    """Returns whether a functional or sequential network with one output ends in a softmax.

    The softmax may be a layer, an activation, an operation, or the end of a nested network.
    """
    last = output_layer(network)
    if isinstance(last, RecordsGraph):
        return ends_in_softmax(last)
    return type(last).__name__ == "Softmax" or getattr(last, "activation", None) is _SOFTMAX


def without_softmax(network: keras.Model | SavedModelClassifier) -> Callable[..., Any]:
    """Removes the softmax at the end of a network, because gradients of attacks vanish in a softmax.

    Args:
        network: A functional or sequential model whose last layer is a softmax, or has one as its activation; or the
            result of `load_saved_model`, if a softmax is its last operation. It is not changed.

    Returns:
        A model that returns logits. It shares all layers with `network`, except the last one, which is a copy.

    Raises:
        ValueError: if `network` is of another kind, does not end in a softmax, or calls its last layer elsewhere, too.
    """
    if isinstance(network, SavedModelClassifier):
        return network.without_softmax()
    if not (network.built if isinstance(network, keras.Sequential) else isinstance(network, RecordsGraph)):
        raise ValueError(
            "`network` must be a functional model, or a sequential model that is built. "
            f"Received: {type(network).__name__} {network.name}"
        )
    last = output_layer(network)
    if not isinstance(last, keras.layers.Softmax) and getattr(last, "activation", None) is not _SOFTMAX:
        raise ValueError(
            "The last layer of `network` must be a softmax, or have one as its activation; other networks "
            f"need no change. Received: {type(last).__name__} {last.name}"
        )
    calls = [node.layer for node in layer_graph(network)]
    if calls.count(last) > 1:
        raise ValueError(
            "The last layer of `network` must be called once; give its output a softmax layer of its own. "
            f"Received: {type(last).__name__} {last.name}, called {calls.count(last)} times"
        )

    def replaced(layer: keras.layers.Layer) -> keras.layers.Layer:
        if layer is not last:
            return layer
        if isinstance(layer, keras.layers.Softmax):
            return keras.layers.Lambda(keras.activations.linear, name=layer.name)  # takes a mask, like a softmax
        return type(layer).from_config({**layer.get_config(), "activation": "linear"})

    logits = keras.models.clone_model(network, clone_function=replaced)
    end = output_layer(logits)
    if isinstance(end, keras.layers.Lambda):
        return keras.Model(_only(logits.inputs), end.input, name=network.name)  # no exporter knows a Lambda
    end.set_weights(last.get_weights())
    return logits


def _only(tensors: list[Any]) -> Any:
    return tensors[0] if len(tensors) == 1 else tensors
