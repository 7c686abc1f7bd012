"""Schedules of the radius of attacks and certificates in training, as functions of the step."""

import dataclasses
from typing import Any

import tensorflow as tf

from tf_robust_sparse.schedules import linear, per_epoch, progress

_POWER = 4  # exponent of the smooth beginning


@dataclasses.dataclass(frozen=True)
class EpsilonSchedule:
    """The same radius at every step.

    Args:
        epsilon: Radius at the end, in pixels of [0, 1], in (0, 1].

    Raises:
        ValueError: if an argument is out of its range.
    """

    epsilon: float

    def __post_init__(self) -> None:
        if not 0 < self.epsilon <= 1:
            raise ValueError(
                f"`epsilon` is a radius in pixels of [0, 1]; pass for example 2 / 255. Received: epsilon={self.epsilon}"
            )

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        """Returns the radius at a step: scalar, float32.

        Args:
            step: Number of updates so far, scalar, integer.
        """
        del step
        return tf.constant(self.epsilon, tf.float32)

    def describe(self) -> dict[str, Any]:
        """Returns name and settings, ready for JSON."""
        return {"schedule": type(self).__name__, **dataclasses.asdict(self)}


@dataclasses.dataclass(frozen=True)
class LinearEpsilon(EpsilonSchedule):
    """A radius that grows linearly from `start` at step `begin_step` to `epsilon` at step `end_step`.

    Args:
        epsilon: See `EpsilonSchedule`.
        begin_step: Last step at `start`, at least 0.
        end_step: First step at `epsilon`; if it is not above `begin_step`, every step is at `epsilon`.
        start: In [0, epsilon].

    Reference: [Zhang et al., 2019](https://arxiv.org/abs/1906.06316), section 4.
    """

    begin_step: int
    end_step: int
    start: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.begin_step < 0 or not 0 <= self.start <= self.epsilon:
            raise ValueError(
                "`begin_step` is at least 0 and `start` a radius in [0, epsilon]. "
                f"Received: begin_step={self.begin_step}, start={self.start}, epsilon={self.epsilon}"
            )

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        """Returns the radius at a step: scalar, float32."""
        if self.end_step <= self.begin_step:
            return super().__call__(step)
        return linear(self._share(progress(step, self.begin_step, self.end_step)), self.start, self.epsilon)

    def _share(self, position: tf.Tensor) -> tf.Tensor:
        """Returns the share of the increase that is reached after a share of the time."""
        return position


@dataclasses.dataclass(frozen=True)
class SmoothedEpsilon(LinearEpsilon):
    """As `LinearEpsilon`, but quartic during the first share `middle` of the time; the slopes agree where they meet.

    Args:
        epsilon, begin_step, end_step, start: See `LinearEpsilon`.
        middle: In (0, 1).
    """

    middle: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.middle < 1:
            raise ValueError(f"`middle` is a share of the time, in (0, 1); pass 0.25. Received: middle={self.middle}")

    def _share(self, position: tf.Tensor) -> tf.Tensor:
        at_middle = self.middle / ((1 - self.middle) * _POWER + self.middle)
        early = at_middle * (position / self.middle) ** _POWER
        late = at_middle * (1 + _POWER * (position - self.middle) / self.middle)
        return tf.where(position < self.middle, early, late)


@dataclasses.dataclass(frozen=True)
class EpochwiseEpsilon(EpsilonSchedule):
    """A radius that grows by equal increments from `start` in epoch 0 to `epsilon` in epoch `epochs`.

    Args:
        epsilon: See `EpsilonSchedule`.
        epochs: Number of epochs until `epsilon`; 0 for `epsilon` at once.
        steps_per_epoch: At least 1.
        start: In [0, epsilon].

    Reference: [Wang et al., 2018](https://arxiv.org/abs/1811.02625), as HYDRA trains with it.
    """

    epochs: int
    steps_per_epoch: int
    start: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epochs < 0 or self.steps_per_epoch < 1 or not 0 <= self.start <= self.epsilon:
            raise ValueError(
                "`epochs` is at least 0, `steps_per_epoch` at least 1 and `start` a radius in [0, epsilon]. "
                f"Received: epochs={self.epochs}, steps_per_epoch={self.steps_per_epoch}, start={self.start}"
            )

    def epoch(self, step: tf.Tensor) -> tf.Tensor:
        """Returns the epoch of a step, counted from 0: scalar, int32."""
        return tf.cast(step, tf.int32) // self.steps_per_epoch

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        """Returns the radius at a step: scalar, float32."""
        if self.epochs == 0:
            return super().__call__(step)
        return linear(progress(self.epoch(step), 0, self.epochs), self.start, self.epsilon)


@dataclasses.dataclass(frozen=True)
class TabledEpsilon(EpsilonSchedule):
    """A given radius for each epoch; later epochs keep the last one. `epsilon` is the largest.

    Args:
        radii: One per epoch, in pixels of [0, 1], each in [0, 1] and not all 0.
        steps_per_epoch: At least 1.
    """

    epsilon: float = dataclasses.field(init=False)
    radii: tuple[float, ...]
    steps_per_epoch: int

    def __post_init__(self) -> None:
        if not self.radii or not all(0 <= radius <= 1 for radius in self.radii) or self.steps_per_epoch < 1:
            raise ValueError(
                "`radii` are pixels of [0, 1], one per epoch, and `steps_per_epoch` is at least 1. "
                f"Received: radii={self.radii}, steps_per_epoch={self.steps_per_epoch}"
            )
        object.__setattr__(self, "epsilon", max(self.radii))
        super().__post_init__()

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        """Returns the radius at a step: scalar, float32."""
        return per_epoch(step, self.radii, self.steps_per_epoch)

    def describe(self) -> dict[str, Any]:
        """Returns name and settings, ready for JSON."""
        return {**super().describe(), "radii": list(self.radii)}
