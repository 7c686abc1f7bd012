"""FMN: the fast minimum-norm attack."""

import math
from typing import Any

import tensorflow as tf

from tf_robust_sparse.attacks.fab import DUAL
from tf_robust_sparse.attacks.gradient_attack import check_positive, loss_gradient
from tf_robust_sparse.attacks.losses import margin
from tf_robust_sparse.attacks.minimum_norm import MinimumNormAttack, cosine
from tf_robust_sparse.attacks.projections import distance, l0_ball, l1_ball, l2_ball, linf_ball, normalized, per_example
from tf_robust_sparse.attacks.staged_attack import State
from tf_robust_sparse.layers.forward import Forward


class FMN(MinimumNormAttack):
    """Fast minimum-norm attack in four norms.

    Each step follows the gradient of the margin, and projects onto a ball whose radius shrinks while the point is
    adversarial and grows while it is not. Before the first adversarial point, the radius is where a linear network
    would have its boundary.

    ```python
    attack = trs.attacks.FMN("Linf", num_steps=100)
    found = attack.nearest(network, x, y)
    robust_at_8 = tf.reduce_mean(tf.cast(found.distance > 8 / 255, tf.float32))
    ```

    Args:
        norm: `"Linf"`, `"L2"`, `"L1"` or `"L0"`; L0 counts pixels times channels.
        num_steps: Number of steps, each one gradient.
        step_size: Length of the first step, in the L2 norm, in pixels of [0, 1], above 0.
        final_step_size: Length of the last one; lengths follow half a cosine. `None` for a hundredth of `step_size`.
        decay: Share by which the radius changes in the first step, in (0, 1).
        final_decay: Share in the last step, in (0, 1).
        seed: Not used: the attack draws nothing.

    Raises:
        ValueError: if an argument is out of its range.

    Reference: [Pintor et al., 2021](https://arxiv.org/abs/2102.12827), algorithm 1.
    """

    def __init__(
        self,
        norm: str = "Linf",
        num_steps: int = 100,
        step_size: float = 1.0,
        final_step_size: float | None = None,
        decay: float = 0.05,
        final_decay: float = 0.001,
        seed: int = 0,
    ) -> None:
        super().__init__(norm, num_steps, seed)
        final_step_size = step_size / 100 if final_step_size is None else final_step_size
        for name, value, largest in (
            ("step_size", step_size, math.inf),
            ("final_step_size", final_step_size, math.inf),
            ("decay", decay, 1),
            ("final_decay", final_decay, 1),
        ):
            check_positive(name, value, largest)
        self.step_size = float(step_size)
        self.final_step_size = float(final_step_size)
        self.decay = float(decay)
        self.final_decay = float(final_decay)

    def _start(self, forward: Forward, x: tf.Tensor, y: tf.Tensor, seeds: tf.Tensor) -> State:
        # The first radius in L0 is one pixel; elsewhere the first step computes it.
        return {"radius": tf.ones_like(y, tf.float32), "crossed": tf.zeros_like(y, tf.bool)}

    def _step(self, forward: Forward, x: tf.Tensor, y: tf.Tensor, state: State) -> State:
        gap, gradient, wrong = loss_gradient(forward, state["x_current"], y, margin)
        state, away = self._kept(x, wrong, state)
        crossed = state["crossed"] | wrong
        length = cosine(state["iteration"], self.step_size, self.final_step_size, self.num_steps)
        decay = cosine(state["iteration"], self.decay, self.final_decay, self.num_steps)
        if self.norm == "L0":
            radius = _radius_of_counts(state["radius"], decay, wrong, state["best"])
        else:
            steepness = distance(gradient, tf.zeros_like(gradient), DUAL[self.norm])
            # A little beyond the boundary: of a linear network it would otherwise be approached but never crossed.
            boundary = (1 + self.final_decay) * (away + tf.abs(gap) / tf.maximum(steepness, 1e-12))
            radius = next_radius(state, decay, wrong, crossed, boundary)
        radius = tf.minimum(radius, self.farthest(x))
        moved = state["x_current"] - length * normalized(gradient)
        return state | {"radius": radius, "crossed": crossed, "x_current": self._projected(moved, x, radius)}

    def _projected(self, x_adv: tf.Tensor, x: tf.Tensor, radius: tf.Tensor) -> tf.Tensor:
        if self.norm == "L1":
            return l1_ball(x_adv, x, radius)
        if self.norm == "L0":
            return l0_ball(x_adv, x, radius)
        ball = l2_ball if self.norm == "L2" else linf_ball
        return ball(x_adv, x, per_example(radius, x))

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor, as plain values."""
        names = ("step_size", "final_step_size", "decay", "final_decay")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


def next_radius(state: State, decay: tf.Tensor, wrong: tf.Tensor, crossed: tf.Tensor, before: tf.Tensor) -> tf.Tensor:
    """Returns the radius of the next ball, `(batch,)`: smaller while the point is adversarial, larger while it is not.

    Args:
        state: With the last `radius`, and the `best` distance.
        decay: Share by which the radius changes.
        wrong: Which points are adversarial.
        crossed: Which images have had an adversarial point.
        before: The radius of images that have had none.
    """
    smaller = tf.minimum(state["radius"] * (1 - decay), state["best"])
    return tf.where(wrong, smaller, tf.where(crossed, state["radius"] * (1 + decay), before))


def _radius_of_counts(radius: tf.Tensor, decay: tf.Tensor, wrong: tf.Tensor, best: tf.Tensor) -> tf.Tensor:
    """Returns the next number of pixels, which changes by one at least."""
    fewer = tf.minimum(tf.minimum(radius - 1, tf.floor(radius * (1 - decay))), best)
    more = tf.maximum(radius + 1, tf.floor(radius * (1 + decay)))
    return tf.maximum(tf.where(wrong, fewer, more), 0.0)
