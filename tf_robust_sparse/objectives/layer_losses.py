"""What layers of the user add to the loss: regularizers of weights and of activities, and `add_loss`."""

import contextlib
import functools
import threading
from collections.abc import Iterator

import keras
import tensorflow as tf


class LayerLosses:
    """Adds up what `network.losses` holds after each training forward pass of a step.

    An attack asks the same layers again and again; what they add then is dropped with the next forward pass, as Keras
    does. So the losses are read after each pass that counts: each of `training_logits`, or, of an objective that calls
    the network by itself, the last one.
    """

    def __init__(self, network: keras.Model) -> None:
        self._network = network
        self._before = network.losses  # of an attack, maybe, whose loop is over
        self._added: list[tf.Tensor] = []
        self._passes = 0

    def read(self) -> None:
        """Takes in what the pass that has just ended added; the regularizers of weights count once a step."""
        self._passes += 1
        added = self._network.losses
        added = added[: len(added) - len(self._regularized())]
        self._added += [loss for loss in added if all(loss is not old for old in self._before)]

    @functools.cached_property
    def total(self) -> tf.Tensor | None:
        """The sum of everything, a float32 scalar; `None` if no layer adds anything. To be read before weights move."""
        if not self._passes:
            self.read()
        losses = [*self._added, *(weight.regularizer(weight) for weight in self._regularized())]
        return tf.add_n([tf.reduce_sum(tf.cast(loss, tf.float32)) for loss in losses]) if losses else None

    def onto(self, per_example: tf.Tensor) -> tf.Tensor:
        """The losses `(batch,)` of the examples with the sum on each, which then is part of their mean."""
        return per_example if self.total is None else per_example + self.total

    def _regularized(self) -> list[keras.Variable]:
        return [weight for weight in self._network.trainable_weights if weight.regularizer is not None]


class _Collector(threading.local):
    def __init__(self) -> None:
        self.active: LayerLosses | None = None


_collector = _Collector()


@contextlib.contextmanager
def collected_layer_losses(network: keras.Model) -> Iterator[LayerLosses]:
    """Collects what the layers of `network` add in the training forward passes inside the block."""
    before, _collector.active = _collector.active, LayerLosses(network)
    try:
        yield _collector.active
    finally:
        _collector.active = before


def training_pass_ended() -> None:
    """Says that a forward pass which counts for the loss has ended."""
    if _collector.active is not None:
        _collector.active.read()
