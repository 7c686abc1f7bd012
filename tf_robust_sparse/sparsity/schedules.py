"""Gradual pruning schedules, as in tensorflow-model-optimization, but expressed by connectivity."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tf_robust_sparse import schedules
from tf_robust_sparse.sparsity.allocation import check_connectivity
from tf_robust_sparse.sparsity.integers import check_integer

# A schedule maps the step, an int64 scalar, to (whether to prune now, the connectivity to prune to).
Schedule = Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


def polynomial(
    final_connectivity: float,
    end_step: int,
    initial_connectivity: float = 1.0,
    begin_step: int = 0,
    frequency: int = 100,
    power: float = 3.0,
) -> Schedule:
    """Returns a schedule that prunes every `frequency` steps and at `end_step`, fast at first and slowly at the end.

    The values equal those of `tfmot.sparsity.keras.PolynomialDecay`, to the last bit.

    Args:
        final_connectivity: Connectivity from `end_step` on, in (0, 1].
        end_step: Step at which the final connectivity is reached.
        initial_connectivity: Connectivity at `begin_step`, in (0, 1].
        begin_step: First step that prunes.
        frequency: Steps between two prunings, at least 1.
        power: Exponent of the decay.

    Raises:
        ValueError: if a connectivity is outside (0, 1] or `begin_step` is not before `end_step`.

    Reference: [Zhu and Gupta, 2017](https://arxiv.org/abs/1710.01878), section 3.
    """
    if end_step <= begin_step:
        raise ValueError(
            f"`begin_step` must be before `end_step`. Received: begin_step={begin_step}, end_step={end_step}"
        )
    initial, final = 1 - check_connectivity(initial_connectivity), 1 - check_connectivity(final_connectivity)

    def sparsity(step):
        left = schedules.polynomial(schedules.progress(step, begin_step, end_step), power)
        return schedules.linear(left, final, initial)

    return _every(frequency, begin_step, end_step, sparsity)


def constant(connectivity: float, begin_step: int = 0, end_step: int = -1, frequency: int = 100) -> Schedule:
    """Returns a schedule that prunes to one connectivity every `frequency` steps from `begin_step` to `end_step`.

    An `end_step` of -1 means no end.

    Raises:
        ValueError: if the connectivity is outside (0, 1] or `begin_step` is after `end_step`.
    """
    sparsity = 1 - check_connectivity(connectivity)
    return _every(frequency, begin_step, end_step, lambda step: tf.constant(sparsity))


def from_tfmot(schedule: Any) -> Schedule:
    """Converts a schedule of tensorflow-model-optimization; the result also prunes at its `end_step`.

    Args:
        schedule: A `tfmot.sparsity.keras.PruningSchedule`.

    Raises:
        TypeError: if `schedule` is no such schedule.
    """
    # Imported here because it sets TF_USE_LEGACY_KERAS; the caller, who made the schedule, has already imported it.
    import tensorflow_model_optimization as tfmot

    if not isinstance(schedule, tfmot.sparsity.keras.PruningSchedule):
        raise TypeError(f"`schedule` must be a tfmot.sparsity.keras.PruningSchedule. Received: schedule={schedule!r}")
    return _as_connectivity(schedule, getattr(schedule, "end_step", -1))


def _every(frequency: int, begin_step: int, end_step: int, sparsity: Callable[[tf.Tensor], tf.Tensor]) -> Schedule:
    check_integer("frequency", frequency, 1, "a number of steps")
    check_integer("begin_step", begin_step, 0, "a number of steps")
    check_integer("end_step", end_step, -1, "a number of steps")
    if end_step != -1 and end_step < begin_step:
        raise ValueError(
            "`begin_step` must not be after `end_step`. "
            f"Received: frequency={frequency}, begin_step={begin_step}, end_step={end_step}"
        )

    last = tf.int64.max if end_step == -1 else end_step

    def at(step):
        return (step >= begin_step) & (step <= last) & ((step - begin_step) % frequency == 0), sparsity(step)

    return _as_connectivity(at, end_step)


def _as_connectivity(schedule: Any, end_step: int) -> Schedule:
    def at(step):
        step = tf.cast(step, tf.int64)
        should_prune, sparsity = schedule(step)
        # The frequency alone may skip the step at which the schedule ends.
        return should_prune | (step == end_step), 1 - tf.cast(sparsity, tf.float64)

    return at
