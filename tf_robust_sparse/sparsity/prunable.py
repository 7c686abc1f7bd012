"""Which layers of a network may be pruned: those of the right kernel form that the user has not frozen."""

import logging
from collections.abc import Sequence
from typing import Any

import keras

from tf_robust_sparse import layers

_log = logging.getLogger(__name__)


def prunable_layers(network: keras.Model, needs: Sequence[str], subject: str, form: str) -> list[Any]:
    """Returns the layers of `network` that hold the weights `needs` and are not frozen, in forward order.

    Args:
        network: A network of the toolkit's layers.
        needs: Attributes of the kernel form.
        subject: Subject and verb of the message: `"Scores need"`.
        form: The kernel form that a builder takes, for the message.

    Raises:
        ValueError: if there is none, or there are prunable kernels of another form.
    """
    kernels = layers.kernel_layers(network)
    fitting = [layer for layer in kernels if all(hasattr(layer, name) for name in needs)]
    others = [layer for layer in kernels if layer.prunable and not layer.frozen and layer not in fitting]
    found = [layer for layer in fitting if not layer.frozen]
    if fitting and not found and not others:
        raise ValueError(
            f"{subject} a layer that is not frozen; set layer.trainable = True where connections may change. Received "
            f"frozen layers: {', '.join(layer.name for layer in fitting)}"
        )
    if not found or others:
        raise ValueError(
            f'{subject} a network built with kernel="{form}". Received layers: '
            f"{sorted({type(layer).__name__ for layer in (others or kernels or network.layers)})}"
        )
    return found


def report_frozen(network: keras.Model, needs: Sequence[str] = ("scores",)) -> list[str]:
    """Returns the names of frozen layers that could be pruned or hold the weights `needs`, and warns of them."""
    names = [
        layer.name
        for layer in layers.kernel_layers(network)
        if layer.frozen and (layer.prunable or all(hasattr(layer, name) for name in needs))
    ]
    if names:
        _log.warning("Frozen layers keep the connections that they have: %s", ", ".join(names))
    return names
