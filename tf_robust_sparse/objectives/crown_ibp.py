"""Certified training by intervals and by linear bounds: IBP and CROWN-IBP."""

import copy
from typing import Any, Self

import keras
import tensorflow as tf

from tf_robust_sparse.attacks import cross_entropy
from tf_robust_sparse.certify.bounds import check_choices, mixed_margins, training_margins
from tf_robust_sparse.objectives.epsilon_schedules import EpsilonSchedule
from tf_robust_sparse.objectives.objective import Losses, Objective, Seed, bounded_logits, robust_cross_entropy


class CrownIBP(Objective):
    """`kappa * CE(f(x), y) + (1 - kappa) * CE(-L, y)` with `L = beta * L_crown + (1 - beta) * L_ibp`.

    `L` are lower bounds of the margins over the ball of the current radius. While the radius grows from 0 to `epsilon`,
    `beta` goes linearly from 1 to `final_beta` and `kappa` from 1 to `final_kappa`. Linear bounds come first because
    they are tight on networks where intervals are loose; intervals come last because they verify the network. If `beta`
    is below 1e-5, the backward pass of linear bounds is left out.

    Bounds use the moving statistics of batch norm, which this training does not update. Begin with a trained network,
    or use a network without batch norm.

    Args:
        epsilon: Radius of the l-infinity ball in pixels of [0, 1], or a schedule of it.
        final_beta: Weight of the linear bounds at the last radius, in [0, 1].
        final_kappa: Weight of the clean loss at the last radius, in [0, 1]; `None` leaves the clean loss out.
        slope: Lower line of undecided ReLUs, see `certify.margins`.

    Raises:
        ValueError: if an argument is out of its range.

    Reference: [Zhang et al., 2019](https://arxiv.org/abs/1906.06316), section 3.
    """

    def __init__(
        self,
        epsilon: float | EpsilonSchedule,
        final_beta: float = 0.0,
        final_kappa: float | None = None,
        slope: str = "adaptive",
    ) -> None:
        for name, value in (("final_beta", final_beta), ("final_kappa", final_kappa)):
            if not (0 <= value <= 1 if value is not None else name == "final_kappa"):
                raise ValueError(f"`{name}` is a weight in [0, 1]. Received: {name}={value!r}")
        check_choices("crown-ibp", slope, "Linf")
        self.schedule = epsilon if isinstance(epsilon, EpsilonSchedule) else EpsilonSchedule(epsilon)
        self.final_beta = float(final_beta)
        self.final_kappa = None if final_kappa is None else float(final_kappa)
        self.slope = slope
        self._epsilon: float | tf.Tensor = self.schedule.epsilon

    def at_step(self, step: tf.Tensor, seed: Seed = None) -> Self:
        """Returns the objective with the radius of this step."""
        del seed
        now = copy.copy(self)
        now._epsilon = self.schedule(step)
        return now

    def loss(self, network: keras.Model, x: tf.Tensor, y: tf.Tensor, x_adv: tf.Tensor) -> Losses:
        """Returns losses `(batch,)` and clean logits `(batch, classes)`, by default at the final radius."""
        logits = bounded_logits(network, x_adv)
        share = self._epsilon / self.schedule.epsilon  # of the final radius
        lower = self._lower_bounds(network, x, y, share)
        losses = robust_cross_entropy(lower)
        if self.final_kappa is not None:
            kappa = 1 - share * (1 - self.final_kappa)
            losses = kappa * cross_entropy(y, logits) + (1 - kappa) * losses
        return Losses(losses, logits)

    def _lower_bounds(self, network: keras.Model, x: tf.Tensor, y: tf.Tensor, share: Any) -> tf.Tensor:
        beta = 1 - share * (1 - self.final_beta)
        return mixed_margins(network, x, y, self._epsilon, beta, slope=self.slope)

    def describe(self) -> dict[str, Any]:
        """Returns everything that defines the objective, as plain values for a results file."""
        settings = {"final_beta": self.final_beta, "final_kappa": self.final_kappa, "slope": self.slope}
        return {**super().describe(), "epsilon": self.schedule.describe(), **settings}


class IBP(CrownIBP):
    """`kappa * CE(f(x), y) + (1 - kappa) * CE(-L, y)` with lower bounds `L` of the margins by intervals alone.

    Args:
        epsilon: Radius of the l-infinity ball in pixels of [0, 1], or a schedule of it.
        final_kappa: Weight of the clean loss at the last radius, in [0, 1]; it is 1 when the radius is 0. `None` leaves
            the clean loss out.

    Raises:
        ValueError: if an argument is out of its range.

    Reference: [Gowal et al., 2018](https://arxiv.org/abs/1810.12715), section 3.
    """

    def __init__(self, epsilon: float | EpsilonSchedule, final_kappa: float | None = 0.5) -> None:
        super().__init__(epsilon, final_kappa=final_kappa)

    def _lower_bounds(self, network: keras.Model, x: tf.Tensor, y: tf.Tensor, share: Any) -> tf.Tensor:
        del share
        return training_margins(network, x, y, self._epsilon, "ibp")

    def describe(self) -> dict[str, Any]:
        """Returns everything that defines the objective, as plain values for a results file."""
        return {"objective": "IBP", "epsilon": self.schedule.describe(), "final_kappa": self.final_kappa}
