"""Losses that the layers of a user's network add: weight and activity regularizers, and `add_loss`."""

import contextlib
import functools
import threading
from collections.abc import Iterator

import keras
import tensorflow as tf


class LayerLosses:
    """Sums `network.losses` after each training forward pass of a step, and what a sparsifier adds.

    An attack calls the same layers many times, and Keras drops the losses of a call at the next one. So the losses are
    read after each pass that counts: each call of `training_logits`, or the last pass of an objective that calls the
    network directly.
    """

    def __init__(self, network: keras.Model) -> None:
        self._network = network
        self._before = network.losses  # may stem from an attack whose loop has ended
        self._added: list[tf.Tensor] = []
        self._passes = 0

    def add(self, loss: tf.Tensor) -> None:
        """Adds a loss of another origin, a scalar."""
        self._added.append(loss)

    def read(self) -> None:
        """Adds the losses of the pass that has just ended; weight regularizers count once a step."""
        self._passes += 1
        added = self._network.losses
        added = added[: len(added) - len(self._regularized())]
        self._added += [loss for loss in added if all(loss is not old for old in self._before)]

    @functools.cached_property
    def total(self) -> tf.Tensor | None:
        """The sum of all losses, float32, or `None` if no layer adds any. Read it before the weights change."""
        if not self._passes:
            self.read()
        losses = [*self._added, *(weight.regularizer(weight) for weight in self._regularized())]
        return tf.add_n([tf.reduce_sum(tf.cast(loss, tf.float32)) for loss in losses]) if losses else None

    def onto(self, per_example: tf.Tensor) -> tf.Tensor:
        """Returns the losses `(batch,)` of the examples plus the sum, so that their mean contains the sum once."""
        return per_example if self.total is None else per_example + self.total

    def _regularized(self) -> list[keras.Variable]:
        return [weight for weight in self._network.trainable_weights if weight.regularizer is not None]


class _Collector(threading.local):
    def __init__(self) -> None:
        self.active: LayerLosses | None = None


_collector = _Collector()


@contextlib.contextmanager
def collected_layer_losses(network: keras.Model) -> Iterator[LayerLosses]:
    """Collects the losses that the layers of `network` add in training forward passes inside the block."""
    before, _collector.active = _collector.active, LayerLosses(network)
    try:
        yield _collector.active
    finally:
        _collector.active = before


def training_pass_ended() -> None:
    """Records the end of a forward pass that counts for the loss."""
    if _collector.active is not None:
        _collector.active.read()
