"""Objectives whose attack follows a schedule of the radius."""

from typing import Any

import keras
import tensorflow as tf

from tf_robust_sparse.objectives.epsilon_schedules import EpsilonSchedule
from tf_robust_sparse.objectives.objective import Losses, Objective, ObjectiveAround, Seed


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
        if not hasattr(objective, "at_radius") or not isinstance(schedule, EpsilonSchedule):
            raise ValueError(
                "`objective` must attack in a ball, as AT or TRADES do, and `schedule` be an EpsilonSchedule. "
                f"Received: objective={objective!r}, schedule={schedule!r}"
            )
        self.schedule = schedule

    def at_step(self, step: tf.Tensor, seed: Seed = None) -> Any:
        """Returns the other objective with the radius of that step."""
        inner: Any = self.objective
        return inner.at_radius(self.schedule(step)).at_step(step, seed)

    def perturb(self, network: keras.Model, x: tf.Tensor, y: tf.Tensor, seed: Seed = None) -> tf.Tensor:
        """Returns the result of the other objective's `perturb` at the first step."""
        return self.at_step(tf.constant(0)).perturb(network, x, y, seed=seed)

    def loss(self, network: keras.Model, x: tf.Tensor, y: tf.Tensor, x_adv: tf.Tensor) -> Losses:
        """Returns losses `(batch,)` and logits `(batch, classes)` of the other objective."""
        return Losses(*self.objective.loss(network, x, y, x_adv))

    def describe(self) -> dict[str, Any]:
        """Returns everything that defines the objective, as plain values for a results file."""
        return {**super().describe(), "of": self.objective.describe(), "schedule": self.schedule.describe()}
