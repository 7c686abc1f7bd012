"""Shapes of schedules: of learning rates, of radii, and of the fractions that are kept or moved.

They are pure functions of the time `x`. A value that changes by epoch is a `course`, computed from numbers and looked
up by `per_epoch`. A value that changes by step is computed from tensors, as a shape of `progress`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf


def linear(x: Any, start: float, end: float) -> Any:
    """Returns `start` at 0 and `end` at 1, linearly between; if `x` is another shape, the result has that shape."""
    return start + (end - start) * x


def cosine(x: Any, length: float = 1.0, floor: float = 0.0) -> Any:
    """Returns a factor from 1 to `floor` at `length`: `floor + (1 - floor) / 2 * (1 + cos(pi * x / length))`."""
    angle = math.pi * x / length
    return floor + (1 - floor) / 2 * (1 + (tf.cos if tf.is_tensor(angle) else math.cos)(angle))


def polynomial(x: Any, power: float) -> Any:
    """Returns a factor that falls from 1 to 0 at 1: `(1 - x) ** power`."""
    return (1 - x) ** power


def course(
    shape: str,
    start: float,
    *,
    alpha: float = 0.0,
    circle: float = 1.0,
    slope: float = 0.0,
    power: float = 1.0,
    interval: float = 1,
    min_jump: float = 0,
    jump_interval: float = 1,
    gamma: float = 0.1,
    milestones: Sequence[float] = (),
    lowest: float | None = None,
    highest: float | None = None,
) -> Callable[[float], float]:
    """Returns a schedule as a function of the epoch `x`, by the names of published configurations.

    - `"constant"`: `start`.
    - `"cosine"`: `start * (alpha + (1 - alpha) / 2 * (1 + cos(pi * x / circle)))`.
    - `"linear"`: `start + slope * x`.
    - `"exponential"`: `start * power ** (x / interval)`.
    - `"jump"`: `start * power ** (max(x - min_jump + jump_interval, 0) // jump_interval)`.
    - `"multistep"`: `start * gamma ** (x // interval)`.
    - `"manual_multistep"`: `start * gamma ** (number of milestones at or before x)`.

    Args:
        shape: One of the above.
        start: Initial value, positive.
        alpha, circle, slope, power, interval, min_jump, jump_interval, gamma, milestones: See above.
        lowest, highest: Bounds of the values; `None` means no bound.

    Raises:
        ValueError: if `start`, `circle` or an interval is not positive.
    """
    if not min(start, circle, interval, jump_interval) > 0:
        raise ValueError(
            "A schedule needs a positive start and positive intervals. Received: "
            f"start={start}, circle={circle}, interval={interval}, jump_interval={jump_interval}"
        )
    value: Callable[[float], float] = {
        "constant": lambda x: start,
        "cosine": lambda x: start * cosine(x, circle, alpha),
        "linear": lambda x: start + slope * x,
        "exponential": lambda x: start * power ** (x / interval),
        "jump": lambda x: start * power ** (max(x - min_jump + jump_interval, 0) // jump_interval),
        "multistep": lambda x: start * gamma ** (x // interval),
        "manual_multistep": lambda x: start * gamma ** sum(x >= each for each in milestones),
    }[shape]
    low, high = -math.inf if lowest is None else lowest, math.inf if highest is None else highest
    return lambda x: float(min(max(value(x), low), high))


def progress(step: Any, begin: int, end: int, dtype: tf.DType = tf.float32) -> tf.Tensor:
    """Returns the fraction of the steps from `begin` to `end` that is done, in [0, 1]."""
    return tf.clip_by_value(tf.cast(step - begin, dtype) / (end - begin), 0, 1)


def per_epoch(step: Any, values: Sequence[float], steps_per_epoch: int) -> tf.Tensor:
    """Returns the value of the epoch of `step`, float32; after the last epoch, the last value stays."""
    epoch = tf.minimum(tf.cast(step, tf.int64) // steps_per_epoch, len(values) - 1)
    return tf.gather(tf.constant(values, tf.float32), epoch)
