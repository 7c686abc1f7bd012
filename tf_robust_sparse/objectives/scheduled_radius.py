"""Objectives whose attack follows a schedule of the radius."""

from typing import Any

import keras
import tensorflow as tf

from tf_robust_sparse.objectives.epsilon_schedules import EpsilonSchedule
from tf_robust_sparse.objectives.objective import Objective, ObjectiveAround, Seed


class ScheduledRadius(ObjectiveAround):
    """Another objective whose attack follows a schedule of the radius, with steps in proportion to it.

    A step of `s` in the ball of the other objective's own radius `e` becomes `s * radius / e`. Put it
    inside `Reweighted`, not around it.

    Args:
        objective: An objective that attacks, such as `AT`, `TRADES` or `training.ATTA`.
        schedule: Function from the number of updates to the radius, such as `TabledEpsilon` or `LinearEpsilon`.

    Raises:
        ValueError: if an argument is of the wrong kind.

    Reference: [Liu et al., 2022](https://arxiv.org/abs/2202.01341), the published code of binary sub-networks.
    """

    def __init__(self, objective: Objective, schedule: EpsilonSchedule) -> None:
        super().__init__(objective)
        if not isinstance(schedule, EpsilonSchedule):
            raise ValueError(
                "`schedule` must be an EpsilonSchedule, such as LinearEpsilon(8 / 255, begin_step=0, end_step=1000). "
                f"Received: schedule={schedule!r}"
            )
        objective.at_radius(tf.constant(schedule.epsilon))  # raises unless it attacks in a ball
        self.schedule = schedule

    def at_step(self, step: tf.Tensor, seed: Seed = None) -> Any:
        """Returns the other objective with the radius of that step."""
        return self.objective.at_radius(self.schedule(step)).at_step(step, seed)

    def perturb(self, network: keras.Model, x: tf.Tensor, y: tf.Tensor, seed: Seed = None) -> tf.Tensor:
        """Returns the result of the other objective's `perturb` at the first step."""
        return self.at_step(tf.constant(0)).perturb(network, x, y, seed=seed)

    def describe(self) -> dict[str, Any]:
        """Returns everything that defines the objective, as plain values for a results file."""
        return {**super().describe(), "of": self.objective.describe(), "schedule": self.schedule.describe()}
