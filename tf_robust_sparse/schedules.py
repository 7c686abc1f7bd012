"""The shapes of every schedule: of learning rates, of radii, and of the fractions that are kept or that move.

Each is a pure function of the time `x`, in epochs or steps. A factor is 1 at first and multiplies the initial value.
What changes by epoch is computed from numbers and looked up by `per_epoch`; what changes by step, from tensors.
"""

import math
from collections.abc import Sequence
from typing import Any

import tensorflow as tf


def linear(x: Any, start: float, slope: float) -> Any:
    """Returns `start + slope * x`; with the other shapes as `x`, the way from `start` to `start + slope`."""
    return start + slope * x


def cosine(x: Any, length: float = 1.0, floor: float = 0.0) -> Any:
    """Returns the factor that is `floor` at `length`: `floor + (1 - floor) / 2 * (1 + cos(pi * x / length))`."""
    angle = math.pi * x / length
    return floor + (1 - floor) / 2 * (1 + (tf.cos if tf.is_tensor(angle) else math.cos)(angle))


def exponential(x: Any, power: float, interval: float = 1) -> Any:
    """Returns the factor `power ** (x / interval)`."""
    return power ** (x / interval)


def polynomial(x: Any, power: float) -> Any:
    """Returns the factor that is 0 at 1: `(1 - x) ** power`."""
    return (1 - x) ** power


def jumps(x: float, power: float, first: float, interval: float) -> float:
    """Returns the factor `power ** n` of a number `x`: `n` is 1 from `first` on, and one more after each `interval`."""
    return power ** (max(x - first + interval, 0) // interval)


def steps(x: float, power: float, milestones: Sequence[float]) -> float:
    """Returns the factor `power ** n` of a number `x`, after `n` milestones; one at `x` counts."""
    return power ** sum(x >= milestone for milestone in milestones)


def bounded(value: float, lowest: float | None, highest: float | None) -> float:
    """Returns the number within its bounds; `None` for none, and of two that cross the highest holds."""
    return min(max(value, -math.inf if lowest is None else lowest), math.inf if highest is None else highest)


def progress(step: Any, begin: int, end: int, dtype: tf.DType = tf.float32) -> tf.Tensor:
    """Returns which part of the steps from `begin` to `end` is done, in [0, 1]."""
    return tf.clip_by_value(tf.cast(step - begin, dtype) / (end - begin), 0, 1)


def per_epoch(step: Any, values: Sequence[float], steps_per_epoch: int) -> tf.Tensor:
    """Returns the value of the epoch that `step` lies in, float32; after the last epoch the last one stays."""
    epoch = tf.minimum(tf.cast(step, tf.int64) // steps_per_epoch, len(values) - 1)
    return tf.gather(tf.constant(values, tf.float32), epoch)
