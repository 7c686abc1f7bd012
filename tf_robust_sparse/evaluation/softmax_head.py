"""Networks that end in a softmax, as networks that return logits."""

from collections.abc import Callable
from typing import Any

import keras

from tf_robust_sparse.evaluation.saved_model import SavedModelClassifier

_SOFTMAX = keras.activations.get("softmax")


def ends_in_softmax(network: keras.Model) -> bool:
    """Whether a functional or sequential network of one output ends in a softmax.

    It may be a layer, the activation of one, an operation, or the end of a network that comes last.
    """
    last = network.layers[-1] if isinstance(network, keras.Sequential) else network.operations[-1]
    if isinstance(last, keras.Model) and hasattr(last, "operations"):
        return ends_in_softmax(last)
    return type(last).__name__ == "Softmax" or getattr(last, "activation", None) is _SOFTMAX


def without_softmax(network: keras.Model | SavedModelClassifier) -> Callable[..., Any]:
    """Takes the softmax off the end of a network: attacks need logits, for gradients vanish in a softmax.

    Args:
        network: A functional or sequential model whose last layer is a softmax, or has one as its activation; or what
            `load_saved_model` returned, if a softmax is its last operation. It is not changed.

    Returns:
        A model that returns logits. It shares all layers with `network` but the last one, of which it has a copy.

    Raises:
        ValueError: if `network` is of another kind, or does not end in a softmax.
    """
    if isinstance(network, SavedModelClassifier):
        return network.without_softmax()
    if not (network.built if isinstance(network, keras.Sequential) else hasattr(network, "operations")):
        raise ValueError(
            "Expected a functional model, or a sequential one that is built. "
            f"Received: {type(network).__name__} {network.name}"
        )
    last = network.layers[-1]
    if not isinstance(last, keras.layers.Softmax) and getattr(last, "activation", None) is not _SOFTMAX:
        raise ValueError(
            "Expected a network whose last layer is a softmax, or has one as its activation; a network that returns "
            f"logits needs no change. Received: {type(last).__name__} {last.name}"
        )

    def replaced(layer: keras.layers.Layer) -> keras.layers.Layer:
        if layer is not last:
            return layer
        if isinstance(layer, keras.layers.Softmax):
            return keras.layers.Lambda(keras.activations.linear, name=layer.name)  # it takes a mask, as a softmax does
        return type(layer).from_config({**layer.get_config(), "activation": "linear"})

    logits = keras.models.clone_model(network, clone_function=replaced)
    logits.layers[-1].set_weights(last.get_weights())
    return logits
