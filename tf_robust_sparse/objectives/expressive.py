"""Certified training between attack and bounds: MTL-IBP, CC-IBP, Exp-IBP and SABR."""

import copy
from typing import Any, Self

import keras
import tensorflow as tf

from tf_robust_sparse.attacks import GradientAttack, cross_entropy
from tf_robust_sparse.certify.bounds import specification
from tf_robust_sparse.certify.boxes import BoxBounds, box_bounds
from tf_robust_sparse.objectives.epsilon_schedules import EpsilonSchedule
from tf_robust_sparse.objectives.interval_penalty import interval_penalty
from tf_robust_sparse.objectives.objective import AttackObjective, Losses, Seed, bounded_logits, robust_cross_entropy


class _BetweenAttackAndBounds(AttackObjective):
    """The base: attacks, bounds a box by intervals, and mixes both.

    While the radius grows, attack and box grow with it, and `regularizer` times `interval_penalty` is added with a
    weight that falls from 1 to 0. Bounds and attacked images use the moving statistics of batch norm, which this
    training does not update. Begin with a trained network, or use a network without batch norm.
    """

    relu_shrinkage = 1.0

    def __init__(self, attack: GradientAttack, epsilon: float | EpsilonSchedule, regularizer: float = 0.0) -> None:
        super().__init__(attack)
        if attack.norm != "linf":
            raise ValueError(f"`attack` must be one in l-infinity, as the bounds are. Received: attack={attack!r}")
        if not 0 <= regularizer < float("inf"):
            raise ValueError(f"`regularizer` is a weight, at least 0. Received: regularizer={regularizer}")
        self.schedule = epsilon if isinstance(epsilon, EpsilonSchedule) else EpsilonSchedule(epsilon)
        self.regularizer = float(regularizer)
        self._epsilon: float | tf.Tensor = self.schedule.epsilon

    def at_step(self, step: tf.Tensor, seed: Seed = None) -> Self:
        """Returns the objective with the radius of this step, of the box and of the attack."""
        del seed
        now = copy.copy(self)
        now._epsilon = self.schedule(step)
        now.attack = self.attack.at_radius(self.attack.epsilon * now._epsilon / self.schedule.epsilon)
        return now

    def perturb(self, network: keras.Model, x: tf.Tensor, y: tf.Tensor, seed: Seed = None) -> tf.Tensor:
        """Returns attacked images, `(batch, ...)`, float32."""
        return self.attack(network, x, y, seed=seed)

    def loss(self, network: keras.Model, x: tf.Tensor, y: tf.Tensor, x_adv: tf.Tensor) -> Losses:
        """Returns losses `(batch,)` and, twice, the logits of the attacked images."""
        logits = bounded_logits(network, x_adv)
        bounds = box_bounds(network, *self.box(x, x_adv), y, self.relu_shrinkage)
        losses = self.mixed(bounds.margins, y, logits)
        if self.regularizer:
            losses += self._penalty(bounds)
        return Losses(losses, logits, logits)

    def _penalty(self, bounds: BoxBounds) -> tf.Tensor:
        return self.regularizer * (1 - self._epsilon / self.schedule.epsilon) * interval_penalty(bounds)

    def box(self, x: tf.Tensor, x_adv: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the smallest and the largest pixels that the bounds are for; by default the ball around `x`."""
        del x_adv
        return tf.maximum(x - self._epsilon, 0.0), tf.minimum(x + self._epsilon, 1.0)

    def mixed(self, lower: tf.Tensor, y: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        """Returns the losses, `(batch,)`.

        Args:
            lower: `(batch, classes - 1)`, lower bounds of the margins.
            y: `(batch,)`, integer labels.
            logits: `(batch, classes)`, of the attacked images.
        """
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """Returns everything that defines the objective, as plain values for a results file."""
        return {**super().describe(), "epsilon": self.schedule.describe(), "regularizer": self.regularizer}


class _ByAlpha(_BetweenAttackAndBounds):
    def __init__(
        self, attack: GradientAttack, epsilon: float | EpsilonSchedule, alpha: float, regularizer: float = 0.0
    ) -> None:
        super().__init__(attack, epsilon, regularizer)
        if not 0 <= alpha <= 1:
            raise ValueError(f"`alpha` is the weight of the bounds, in [0, 1]. Received: alpha={alpha}")
        self.alpha = float(alpha)

    def describe(self) -> dict[str, Any]:
        """Returns everything that defines the objective, as plain values for a results file."""
        return {**super().describe(), "alpha": self.alpha}


class MTLIBP(_ByAlpha):
    """`alpha * L_ibp + (1 - alpha) * L_adv`: the loss of interval bounds mixed with that of attacked images.

    `L_ibp` is the cross entropy that lower bounds of the margins over the ball allow. `alpha` 0 is adversarial training
    and 1 is IBP. Networks trained this way verify more images, under stronger bounds, than by either.

    ```python
    attack = trs.attacks.LinfPGD(2.1 * 2 / 255, num_steps=8)  # published: a larger ball for the attack at 2/255
    objective = trs.objectives.MTLIBP(attack, epsilon=2 / 255, alpha=0.004)
    ```

    Args:
        attack: Untargeted attack in l-infinity; its radius, which may exceed `epsilon`, grows with the schedule.
        epsilon: Radius of the box in pixels of [0, 1], or a schedule of it.
        alpha: Weight of the bounds, in [0, 1]; published: 0.004 at 2/255, 0.5 at 8/255, 0.08 on MNIST at 0.3.
        regularizer: Weight of the penalty on wide and unbalanced intervals while the radius grows; published: 0.5.

    Raises:
        ValueError: if an argument is out of its range.

    Reference: [De Palma et al., 2024](https://arxiv.org/abs/2305.13991), section 4.3.
    """

    def mixed(self, lower: tf.Tensor, y: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        """Returns the mean of both losses, weighted by `alpha`."""
        return self.alpha * robust_cross_entropy(lower) + (1 - self.alpha) * cross_entropy(y, logits)


class CCIBP(_ByAlpha):
    """The cross entropy of margins `alpha * lower + (1 - alpha) * attacked`, mixed before the loss is taken.

    Args:
        attack, epsilon, alpha, regularizer: See `MTLIBP`; published `alpha`: 0.01 at 2/255, 0.5 at 8/255, 0.3 on MNIST.

    Raises:
        ValueError: if an argument is out of its range.

    Reference: [De Palma et al., 2024](https://arxiv.org/abs/2305.13991), section 4.2.
    """

    def mixed(self, lower: tf.Tensor, y: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        """Returns the cross entropy of the mixed margins."""
        attacked = tf.linalg.matvec(specification(y, logits.shape[-1]), logits)
        return robust_cross_entropy(self.alpha * lower + (1 - self.alpha) * attacked)


class ExpIBP(_ByAlpha):
    """`L_ibp ** alpha * L_adv ** (1 - alpha)`: the geometric mean of both losses.

    Args:
        attack, epsilon, alpha, regularizer: See `MTLIBP`.

    Raises:
        ValueError: if an argument is out of its range.

    Reference: [De Palma et al., 2024](https://arxiv.org/abs/2305.13991), section 4.4.
    """

    def mixed(self, lower: tf.Tensor, y: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        """Returns the weighted geometric mean of both losses."""
        by_bounds, attacked = robust_cross_entropy(lower), cross_entropy(y, logits)
        # The maximum keeps the gradient of a power finite at a loss of 0.
        return tf.pow(tf.maximum(by_bounds, 1e-30), self.alpha) * tf.pow(tf.maximum(attacked, 1e-30), 1 - self.alpha)


class SABR(_BetweenAttackAndBounds):
    """The loss of interval bounds over a small box around the attacked image, inside the ball.

    The box has radius `ratio * epsilon`, or half the width of the ball at pixels where [0, 1] leaves less. Its center
    is the attacked image, moved so that the box lies in the ball. `ratio` 1 is IBP.

    Args:
        attack, epsilon, regularizer: See `MTLIBP`.
        ratio: Radius of the box as a share of `epsilon`, in [0, 1]; published: 0.1 at 2/255, 0.7 at 8/255, 0.6 on MNIST
            at 0.3.
        relu_shrinkage: What the upper bound of every undecided ReLU is multiplied by, in (0, 1]; published: 0.8 at
            2/255, else 1. Below 1 the loss is no longer that of a bound over the box.

    Raises:
        ValueError: if an argument is out of its range.

    Reference: [Müller et al., 2023](https://arxiv.org/abs/2210.04871), section 3; shrinkage: appendix C.
    """

    def __init__(
        self,
        attack: GradientAttack,
        epsilon: float | EpsilonSchedule,
        ratio: float,
        regularizer: float = 0.0,
        relu_shrinkage: float = 1.0,
    ) -> None:
        super().__init__(attack, epsilon, regularizer)
        if not 0 <= ratio <= 1:
            raise ValueError(f"`ratio` is the box's share of the radius, in [0, 1]. Received: ratio={ratio}")
        if not 0 < relu_shrinkage <= 1:
            raise ValueError(f"`relu_shrinkage` is a factor in (0, 1]. Received: relu_shrinkage={relu_shrinkage}")
        self.ratio = float(ratio)
        self.relu_shrinkage = float(relu_shrinkage)

    def box(self, x: tf.Tensor, x_adv: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the smallest and the largest pixels of the small box."""
        low, high = super().box(x, x_adv)
        radius = tf.minimum(self.ratio * self._epsilon, (high - low) / 2)
        center = tf.clip_by_value(x_adv, low + radius, tf.maximum(high - radius, low + radius))
        return tf.maximum(center - radius, low), tf.minimum(center + radius, high)

    def mixed(self, lower: tf.Tensor, y: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        """Returns the cross entropy that the bounds allow."""
        del y, logits
        return robust_cross_entropy(lower)

    def describe(self) -> dict[str, Any]:
        """Returns everything that defines the objective, as plain values for a results file."""
        described = {**super().describe(), "ratio": self.ratio}
        return described if self.relu_shrinkage == 1 else {**described, "relu_shrinkage": self.relu_shrinkage}
