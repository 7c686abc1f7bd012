"""Averages of weights over training steps or epochs that keep the connections of a sparse network."""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tf_robust_sparse import layers
from tf_robust_sparse.layers.kernel_seam import all_layers
from tf_robust_sparse.layers.selection import fast_where
from tf_robust_sparse.sparsity import Sparsifier

_SAME: dict[str, Any] = {"autocast": False, "aggregation": "only_first_replica"}  # on all replicas


class _Entry(NamedTuple):
    """One averaged quantity.

    Attributes:
        source: The variable that is averaged, or a kernel layer with fixed signs, whose effective kernel is.
        average: Its average, of the same shape.
        weight_left: Share of the average that its start at 0 still has, per entry; `None` where no entry is born.
    """

    source: Any
    average: Any
    weight_left: Any


class Average:
    """Base class: keeps averages of the weights of a network while it trains.

    Averaged are all trained variables and the moving statistics of batch norm; of kernels with fixed signs
    (connectivity sampling) the effective kernel, because magnitudes alone would not tell where a sign has changed.
    An entry that is not connected has the average 0, as many are connected as in the network itself. An entry that has
    just been connected counts from its first step on: the average is divided by what it would be of ones.

    Averages are variables of the `RobustModel`, so that checkpoints hold them in addition to the weights.
    """

    def __init__(self) -> None:
        self.holder = keras.layers.Layer(name="averages", dtype="float32")  # of the variables; part of checkpoints
        self._entries: list[_Entry] = []
        self._network: Any = None

    def attach(self, network: keras.Model, sparsifier: Sparsifier | None = None) -> None:
        """Creates the averages of a network, equal to its weights.

        Args:
            network: Built network.
            sparsifier: What decides its connections, or `None`.
        """
        signed = [layer for layer in layers.kernel_layers(network) if layer.signs_are_fixed]
        of_signed = {id(each) for layer in signed for each in (layer.theta, layer.positive)}
        moving = [
            value
            for layer in all_layers(network)
            if isinstance(layer, keras.layers.BatchNormalization)
            for value in (layer.moving_mean, layer.moving_variance)
        ]
        variables = [each for each in [*network.trainable_variables, *moving] if id(each) not in of_signed]
        pruned = [] if sparsifier is None else [kernel.weight for kernel in sparsifier.kernels]
        born = {id(each) for each in pruned}
        self._network = network
        self.holder.built = True
        with network.distribute_strategy.scope():
            self._entries = [
                _Entry(source, self._variable(source, f"average_{number}"), self._left(source, number, born))
                for number, source in enumerate([*signed, *variables])
            ]
            self.count = self.holder.add_weight(
                name="count", shape=(), dtype="int64", initializer="zeros", trainable=False, **_SAME
            )
        for entry in self._entries:
            entry.average.assign(_present(entry.source))

    def after_update(self, iterations: tf.Tensor) -> None:
        """Moves the averages after an optimizer step, inside the compiled training step.

        Args:
            iterations: Number of steps so far, this one included.
        """

    def end_epoch(self, epoch: int) -> None:
        """Moves the averages after an epoch, outside of the compiled step.

        Args:
            epoch: Its number, from 0.
        """

    def _move(self, decay: tf.Tensor) -> None:
        """Sets each average to `decay * average + (1 - decay) * weight`."""
        decay = tf.cast(decay, tf.float32)
        for source, average, left in self._entries:
            value = tf.cast(_present(source), tf.float32)
            new = decay * average + (1 - decay) * value
            if left is not None:
                lives = value != 0
                new = fast_where(lives, new, 0)
                left.assign(fast_where(lives, decay * left, tf.ones_like(value)))
            average.assign(new)

    def values(self) -> list[np.ndarray]:
        """Returns the averages, in the order of what is averaged; of dead entries exactly 0."""
        found = []
        for entry in self._entries:
            value = np.asarray(entry.average)
            if entry.weight_left is not None:
                share = 1 - np.asarray(entry.weight_left)
                value = np.divide(value, share, out=np.zeros_like(value), where=share > 0)
            found.append(value)
        return found

    def load(self) -> None:
        """Gives the network the averages in place of its weights."""
        for entry, value in zip(self._entries, self.values(), strict=True):
            if isinstance(entry.source, layers.KernelLayer):
                entry.source.hold_kernel(value)
            else:
                entry.source.assign(value)

    @contextlib.contextmanager
    def in_network(self) -> Iterator[None]:
        """Gives the network the averages inside the block, and its own weights back after it, bit by bit."""
        before = [np.array(variable) for variable in self._network.variables]
        self.load()
        try:
            yield
        finally:
            for variable, value in zip(self._network.variables, before, strict=True):
                variable.assign(value)

    def describe(self) -> dict[str, Any]:
        """Returns the name and the settings, ready for JSON."""
        return {"average": type(self).__name__}

    def _variable(self, source: Any, name: str) -> Any:
        shape = tuple(_present(source).shape)
        return self.holder.add_weight(name=name, shape=shape, dtype="float32", trainable=False, **_SAME)

    def _left(self, source: Any, number: int, born: set[int]) -> Any:
        if not isinstance(source, layers.KernelLayer) and id(source) not in born:
            return None
        return self.holder.add_weight(
            name=f"left_{number}",
            shape=tuple(_present(source).shape),
            dtype="float32",
            initializer="zeros",
            trainable=False,
            **_SAME,
        )


class EMA(Average):
    """Exponential moving average of weights over training steps.

    `average = d * average + (1 - d) * weight` with `d = min(decay, (1 + t) / (10 + t))` in step `t` after the warm-up,
    and `d = 0` before.

        model = trs.RobustModel(network, objective, sparsifier, average=trs.training.EMA(0.995))
        model.fit(...)           # validation judges the averaged network
        model.average.load()     # the network has the averages now

    Args:
        decay: In [0, 1).
        warmup_steps: Steps in which the average follows the weights; published: 2.5 % of all.

    Raises:
        ValueError: if an argument is out of its range.

    Reference: [Gowal et al., 2020](https://arxiv.org/abs/2010.03593), section 4.3.
    """

    def __init__(self, decay: float = 0.995, warmup_steps: int = 0) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"`decay` must be in [0, 1), such as 0.995. Received: decay={decay!r}")
        if not (isinstance(warmup_steps, int) and warmup_steps >= 0):
            raise ValueError(
                f"`warmup_steps` is a number of steps, at least 0. Received: warmup_steps={warmup_steps!r}"
            )
        self.decay = float(decay)
        self.warmup_steps = warmup_steps

    def decay_at(self, step: Any) -> tf.Tensor:
        """Returns `d` of a step, counted from 0."""
        t = tf.cast(step, tf.float32) - self.warmup_steps
        return tf.where(t < 0, 0.0, tf.minimum(self.decay, (1 + t) / (10 + t)))

    def after_update(self, iterations: tf.Tensor) -> None:
        """Moves the averages."""
        self._move(self.decay_at(iterations - 1))

    def describe(self) -> dict[str, Any]:
        """Returns the name and the settings, ready for JSON."""
        return {**super().describe(), "decay": self.decay, "warmup_steps": self.warmup_steps}


class SWA(Average):
    """Stochastic weight averaging: the mean of the weights at the ends of epochs.

    Args:
        start_epoch: First epoch that counts, from 0; before it the average is the weights. Usual: two thirds of all.
        decay: `None` for equal weights, or the share of the average that an epoch leaves, in [0, 1).

    Raises:
        ValueError: if an argument is out of its range.

    Reference: [Izmailov et al., 2018](https://arxiv.org/abs/1803.05407), algorithm 1.
    """

    def __init__(self, start_epoch: int = 0, decay: float | None = None) -> None:
        super().__init__()
        if not (isinstance(start_epoch, int) and start_epoch >= 0):
            raise ValueError(f"`start_epoch` is the number of an epoch, from 0. Received: start_epoch={start_epoch!r}")
        if decay is not None and not 0 <= decay < 1:
            raise ValueError(f"`decay` must be in [0, 1), or None for equal weights. Received: decay={decay!r}")
        self.start_epoch = start_epoch
        self.decay = decay

    def end_epoch(self, epoch: int) -> None:
        """Moves the averages."""
        if epoch < self.start_epoch:
            self._move(tf.constant(0.0))
            return
        counted = int(self.count)
        equal = counted / (counted + 1)
        self._move(tf.constant(equal if self.decay is None or not counted else self.decay))
        self.count.assign(counted + 1)

    def describe(self) -> dict[str, Any]:
        """Returns the name and the settings, ready for JSON."""
        return {**super().describe(), "start_epoch": self.start_epoch, "decay": self.decay}


class AverageOverEpochs(keras.callbacks.Callback):
    """Tells an average of the end of each epoch, before validation reads it and before anything is recorded."""

    def __init__(self, average: Average) -> None:
        super().__init__()
        self._average = average
        self._epoch: int | None = None

    def on_epoch_begin(self, epoch, logs=None):
        """Notes the epoch."""
        self._epoch = epoch

    def on_epoch_end(self, epoch, logs=None):
        """Ends the epoch, if validation has not."""
        self.finish()

    def finish(self) -> None:
        """Ends the epoch that has begun, once."""
        if self._epoch is not None:
            self._average.end_epoch(self._epoch)
        self._epoch = None


def _present(source: Any) -> tf.Tensor:
    if isinstance(source, layers.KernelLayer):
        return source.compute_effective_kernel()
    return tf.convert_to_tensor(source)
