"""The hidden features of a network, and how far an attack moves them."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf


def feature_names(network: keras.Model) -> tuple[str, ...]:
    """Returns the names of the layers whose outputs are features, in forward order: all that end in a ReLU."""
    return tuple(layer.name for layer in network.layers if _ends_in_relu(layer))


def with_features(network: keras.Model, names: Sequence[str] | None = None) -> keras.Model:
    """Returns a model of the same layers that returns the logits and the features.

    Args:
        network: A functional or sequential model.
        names: Names of its layers; `None` for `feature_names(network)`.

    Returns:
        A model from `(batch, ...)` images to `[logits, *features]`, one tensor for each name.

    Raises:
        ValueError: if there is no such layer, no name at all, or a layer's output is not one tensor.
    """
    names = feature_names(network) if names is None else tuple(names)
    if not names:
        raise ValueError(
            f"`names` must name at least one layer of {network.name} whose output is a feature; by default these are "
            f"all layers that end in a ReLU. Received: names={names!r}"
        )
    known = {layer.name: layer for layer in network.layers}
    outputs = []
    for name in names:
        if name not in known:
            raise ValueError(f"`names` must be names of layers, of {', '.join(known)}. Received: {name!r}")
        try:
            output = known[name].output
        except (AttributeError, ValueError):
            output = None
        if not isinstance(output, keras.KerasTensor):
            raise ValueError(f"The layer {name} is called more than once, or gives several outputs; name another one")
        outputs.append(output)
    return keras.Model(network.input, [network.outputs[0], *outputs], name=f"{network.name}_with_features")


def distortions(feature: tf.Tensor, attacked: tf.Tensor) -> tf.Tensor:
    """Returns how far a feature moved in each example: `(batch,)`, float32, the mean over positions and channels."""
    moved = tf.abs(tf.cast(feature, tf.float32) - tf.cast(attacked, tf.float32))
    return tf.reduce_mean(moved, axis=tuple(range(1, moved.shape.rank)))


class FeatureRecorder:
    """Replaces a network in a training step and keeps the features of every batch that passes through it.

    Args:
        network: The network; it serves every attribute that the recorder lacks.
        model: The result of `with_features(network)`.
    """

    def __init__(self, network: keras.Model, model: keras.Model) -> None:
        self._network = network
        self._model = model
        self._seen: dict[int, tuple[Any, list[tf.Tensor]]] = {}

    def __call__(self, x: Any, training: Any = None) -> tf.Tensor:
        """Returns the logits of a batch."""
        logits, *features = self._model(x, training=training)
        self._seen[id(x)] = (x, features)  # keeps x alive, so that no other tensor gets its id
        return logits

    def __getattr__(self, name: str) -> Any:
        """Returns an attribute of the network."""
        return getattr(self._network, name)

    def split(self, joined: Any, parts: Sequence[Any]) -> None:
        """Splits the recorded features of a batch among its equal parts."""
        features = [tf.split(feature, len(parts)) for feature in self._seen[id(joined)][1]]
        for number, part in enumerate(parts):
            self._seen[id(part)] = (part, [pieces[number] for pieces in features])

    def features(self, x: Any) -> list[tf.Tensor]:
        """Returns the features of a batch, after one more forward pass if it has not passed yet."""
        if id(x) not in self._seen:
            self(x, training=True)
        return self._seen[id(x)][1]


def _ends_in_relu(layer: Any) -> bool:
    return isinstance(layer, keras.layers.ReLU) or getattr(layer, "activation", None) is keras.activations.relu
