"""Learning rate schedules, and the optimizer of the connectivity-sampling paper."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_robust_sparse.schedules import cosine, per_epoch, progress


def tenfold_drops(initial: float, total_steps: int) -> keras.optimizers.schedules.PiecewiseConstantDecay:
    """Returns `initial`, a tenth of it after half of the steps, a hundredth after three quarters.

    The boundaries are `int(0.5 * total_steps)` and `int(0.75 * total_steps)`; the boundary step
    itself still has the earlier value.

    Args:
        initial: Learning rate of the first step, positive.
        total_steps: Number of optimization steps of the whole run.

    Raises:
        ValueError: if an argument is not positive.
    """
    if initial <= 0 or total_steps < 1:
        raise ValueError(
            "A learning rate schedule needs a positive initial value and at least one step. "
            f"Received: initial={initial}, total_steps={total_steps}"
        )
    boundaries = [int(total_steps * 0.5), int(total_steps * 0.75)]
    return keras.optimizers.schedules.PiecewiseConstantDecay(boundaries, [initial, initial / 10, initial / 100])


COURSES = ("drops", "constant", "cosine", "one_cycle", "triangular")
_FIRST, _LAST = 1 / 25, 1e-4 / 25  # of one_cycle, as shares of the highest rate


@keras.saving.register_keras_serializable(package="tf_robust_sparse")
class Course(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate that rises in a warm-up and falls after it, step by step.

    With the share `p` of the steps done and the share `w` of the warm-up, the rate is `initial` times

    - `"cosine"`: `p / w`, then half a cosine from 1 to 0;
    - `"one_cycle"`: half a cosine from 1/25 to 1, then half a cosine to 1/250,000;
    - `"triangular"`: `p / w`, then linearly to 0.

    Args:
        initial: Highest learning rate, positive.
        total_steps: Number of optimization steps of the whole run.
        course: One of the above.
        warmup: Share of the steps in which the rate rises, in [0, 1).

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(self, initial: float, total_steps: int, course: str = "cosine", warmup: float = 0.0) -> None:
        super().__init__()
        if not (initial > 0 and total_steps >= 1 and 0 <= warmup < 1 and course in COURSES[2:]):
            raise ValueError(
                f"A learning rate rises and falls as {', '.join(COURSES[2:])}, with a positive highest rate, at least "
                f"one step and a warm-up in [0, 1). Received: initial={initial}, total_steps={total_steps}, "
                f"course={course!r}, warmup={warmup}"
            )
        self.initial, self.total_steps = float(initial), int(total_steps)
        self.course, self.warmup = course, float(warmup)

    def __call__(self, step):
        """Returns the learning rate of an optimization step, counted from 0."""
        done = progress(step, 0, self.total_steps)
        rising = done / max(self.warmup, 1e-9)
        falling = (done - self.warmup) / (1 - self.warmup)
        if self.course == "one_cycle":
            rising, falling = _FIRST + (1 - _FIRST) * (1 - cosine(rising)), cosine(falling, floor=_LAST)
        else:
            falling = cosine(falling) if self.course == "cosine" else 1 - falling
        return self.initial * tf.where(done < self.warmup, rising, falling)

    def get_config(self):
        """Returns the constructor arguments."""
        names = ("initial", "total_steps", "course", "warmup")
        return {name: getattr(self, name) for name in names}


def sgdw(
    learning_rate: float,
    weight_decay: float,
    total_steps: int | None = None,
    momentum: float = 0.9,
    decay_bias_and_bn: bool = True,
    course: str = "drops",
    warmup: float = 0.0,
    nesterov: bool = False,
) -> keras.optimizers.SGD:
    """Returns SGD with momentum and decoupled weight decay; rate and decay drop tenfold at half and three quarters.

    One step is `v <- momentum * v - eta * g; theta <- theta - wd * theta + v`, where `wd` follows the same schedule as
    `eta`. Keras multiplies its `weight_decay` by the learning rate, so it is given the constant ratio
    `weight_decay / learning_rate`.

    Args:
        learning_rate: Initial `eta`, positive.
        weight_decay: Initial `wd`, at least 0, as a fraction of a weight per step (not multiplied by `eta`).
        total_steps: Steps of the whole run, for the schedule; `None` keeps both constant.
        momentum: In [0, 1).
        decay_bias_and_bn: Whether biases and batch norm parameters decay too, as in the code of connectivity sampling.
        course: `"drops"` as above, `"constant"`, or a course of `Course`, which the weight decay follows too.
        warmup: Share of the steps in which the rate of `Course` rises.
        nesterov: Whether the momentum is Nesterov's.

    Raises:
        ValueError: if a value is out of range.

    Reference: [Loshchilov and Hutter, 2019](https://arxiv.org/abs/1711.05101), algorithm 1.
    """
    for name, value, fits in (
        ("learning_rate", learning_rate, learning_rate > 0),
        ("weight_decay", weight_decay, weight_decay >= 0),
        ("momentum", momentum, 0 <= momentum < 1),
    ):
        if not fits:
            raise ValueError(f"`{name}` is out of range. Received: {name}={value!r}")
    if course not in COURSES:
        raise ValueError(f"`course` must be one of {', '.join(COURSES)}. Received: course={course!r}")
    schedule: Any = learning_rate
    if total_steps is not None and course == "drops":
        schedule = tenfold_drops(learning_rate, total_steps)
    elif total_steps is not None and course != "constant":
        schedule = Course(learning_rate, total_steps, course, warmup)
    decay = weight_decay / learning_rate if weight_decay else None
    optimizer = keras.optimizers.SGD(schedule, momentum=momentum, nesterov=nesterov, weight_decay=decay)
    if weight_decay and not decay_bias_and_bn:
        # Keras searches the pattern in names such as "classifier/bias" or, on this backend, "classifier/bias:0".
        optimizer.exclude_from_weight_decay(var_names=[r"(^|/)(bias|gamma|beta)(:\d+)?$"])
    return optimizer


@keras.saving.register_keras_serializable(package="tf_robust_sparse")
class PerEpoch(keras.optimizers.schedules.LearningRateSchedule):
    """One learning rate per epoch; epochs after the last one keep its rate.

    Args:
        rates: Learning rates, such as `epoch_rates` returns.
        steps_per_epoch: Optimization steps of an epoch, at least 1.

    Raises:
        ValueError: if there is no rate or no step.
    """

    def __init__(self, rates: Sequence[float], steps_per_epoch: int) -> None:
        super().__init__()
        if not rates or steps_per_epoch < 1:
            raise ValueError(
                "`rates` holds at least one learning rate, `steps_per_epoch` is at least 1. "
                f"Received: {len(rates)} rates, steps_per_epoch={steps_per_epoch}"
            )
        self.rates = [float(rate) for rate in rates]
        self.steps_per_epoch = int(steps_per_epoch)

    def __call__(self, step):
        """Returns the learning rate of an optimization step, counted from 0."""
        return per_epoch(step, self.rates, self.steps_per_epoch)

    def get_config(self):
        """Returns the constructor arguments."""
        return {"rates": self.rates, "steps_per_epoch": self.steps_per_epoch}
