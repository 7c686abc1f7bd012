"""Fast adaptive boundary attack: the smallest perturbation, found by projections onto linearized boundaries."""

from typing import Any

import tensorflow as tf

from tf_robust_sparse.attacks.gradient_attack import check_integer
from tf_robust_sparse.attacks.projections import distance, moves_to_hyperplane, norm_of, per_example, pixel_range
from tf_robust_sparse.attacks.staged_attack import AttackRun, StagedAttack, State, while_state
from tf_robust_sparse.layers.forward import Forward
from tf_robust_sparse.layers.noise import normal_like, uniform_like
from tf_robust_sparse.layers.selection import fast_where

FAR = 1e30  # longer than any distance, and finite: tf.debugging.enable_check_numerics stops at infinities
DUAL = {"Linf": "L1", "L2": "L2", "L1": "Linf"}


class FAB(StagedAttack):
    """FAB in three norms, toward the nearest boundary or toward one class after another.

    Each step linearizes the boundary at the current point, projects the point and the image onto it within [0, 1], and
    goes beyond it. Whenever the network is wrong, the point is drawn back toward the image.

    Args:
        epsilon: Radius in the norm, in pixels of [0, 1], above 0: adversarial examples further away do not count.
        norm: `"Linf"`, `"L2"` or `"L1"`.
        targeted: Whether to aim at single classes, from the runner-up downward; else at the nearest boundary, which
            costs a gradient for each class.
        num_steps: Number of steps, at least 1.
        restarts: Number of runs (for each target); the first starts at the image, later ones at random points.
        num_targets: How many classes are aimed at; never more than there are.
        alpha_max: Largest weight of the projection of the image, in [0, 1].
        eta: How far beyond the boundary a step goes, at least 1.
        beta: How much of the perturbation is left after drawing back, in (0, 1).
        seed: Integer, the seed of the starting points when a call passes none.

    Raises:
        ValueError: if an argument is out of its range.

    Reference: [Croce and Hein, 2020](https://arxiv.org/abs/1907.02044), algorithm 1.
    """

    def __init__(
        self,
        epsilon: float,
        norm: str = "Linf",
        targeted: bool = True,
        num_steps: int = 100,
        restarts: int = 1,
        num_targets: int = 9,
        alpha_max: float = 0.1,
        eta: float = 1.05,
        beta: float = 0.9,
        seed: int = 0,
    ) -> None:
        super().__init__(epsilon, norm, seed)
        for name, value in (("num_steps", num_steps), ("restarts", restarts), ("num_targets", num_targets)):
            check_integer(name, value, 1, f"pass, for example, {name}=1")
        for name, allowed, expected in (
            ("alpha_max", 0 <= alpha_max <= 1, f"in [0, 1]. Received: alpha_max={alpha_max!r}"),
            ("eta", eta >= 1, f"at least 1. Received: eta={eta!r}"),
            ("beta", 0 < beta < 1, f"in (0, 1). Received: beta={beta!r}"),
        ):
            if not allowed:
                raise ValueError(f"`{name}` is {expected}")
        self.targeted = bool(targeted)
        self.num_steps = int(num_steps)
        self.restarts = int(restarts)
        self.num_targets = int(num_targets)
        self.alpha_max = float(alpha_max)
        self.eta = float(eta)
        self.beta = float(beta)

    @property
    def name(self) -> str:  # type: ignore[override]
        """Name in logs: `fab-t` or `fab`."""
        return "fab-t" if self.targeted else "fab"

    def runs(self, num_classes: int) -> list[AttackRun]:
        """Returns one run per restart, or per target and restart."""
        ranks = range(2, 2 + min(self.num_targets, num_classes - 1)) if self.targeted else [0]
        return [
            AttackRun(restart, rank, (self.epsilon,), (self.num_steps,))
            for rank in ranks
            for restart in range(self.restarts)
        ]

    def stages(self, iterations: int) -> list[int]:
        """Returns 10, because the first steps break most images that break at all, then 30 and the end."""
        return sorted({min(end, iterations) for end in (10, 30, iterations)})

    def start(self, forward, x, y, seeds, target, epsilon):
        """See `StagedAttack`; starts at the image."""
        return {
            "iteration": tf.constant(0),
            "target": target,
            "x_current": x,
            "distance": tf.fill(tf.shape(y), FAR),
            "found": tf.zeros_like(y, tf.bool),
            "x_found": x,
        }

    def start_again(self, forward, x, y, seeds, target, epsilon):
        """See `StagedAttack`; starts at a random point at distance `epsilon / 2`."""
        noise = uniform_like(x, seeds, -1.0, 1.0) if self.norm == "Linf" else normal_like(x, seeds)
        noise /= per_example(distance(noise, tf.zeros_like(x), self.norm), x) + 1e-12
        state = self.start(forward, x, y, seeds, target, epsilon)
        return state | {"x_current": pixel_range(x + 0.5 * epsilon * noise)}

    def advance(self, forward, x, y, state, until, epsilon):
        """See `StagedAttack`."""
        return while_state(until, lambda now: self._step(forward, x, y, now, epsilon), state)

    def _step(self, forward: Forward, x: tf.Tensor, y: tf.Tensor, state: State, epsilon: tf.Tensor) -> State:
        x_current = state["x_current"]
        gap, normal = self._boundary(forward, x_current, y, state["target"])
        axes = list(range(1, x.shape.rank))
        # The same linearization, evaluated at the image instead of the current point.
        gap_of_image = gap - tf.reduce_sum(normal * (x_current - x), axis=axes)
        direction, from_current = moves_to_hyperplane(x_current, normal, gap, self.norm)
        direction_of_image, from_image = moves_to_hyperplane(x, normal, gap_of_image, self.norm)
        a_current = tf.maximum(norm_of(from_current, self.norm), 1e-8)
        a_image = tf.maximum(norm_of(from_image, self.norm), 1e-8)
        # The further the current point is from the hyperplane, the more the projection of the image counts.
        alpha = per_example(tf.minimum(a_current / (a_current + a_image), self.alpha_max), x)
        beyond_current = x_current + self.eta * direction * from_current
        beyond_image = x + self.eta * direction_of_image * from_image
        x_new = pixel_range((1 - alpha) * beyond_current + alpha * beyond_image)
        wrong = tf.argmax(forward(x_new), axis=-1) != y
        away = distance(x_new, x, self.norm)
        nearer = wrong & (away < state["distance"])
        shortest = tf.where(nearer, away, state["distance"])
        return {
            "iteration": state["iteration"] + 1,
            "target": state["target"],
            # Past the boundary: go back toward the image, to look for a nearer point of it.
            "x_current": fast_where(wrong, x + self.beta * (x_new - x), x_new),
            "distance": shortest,
            "found": shortest <= epsilon,
            "x_found": fast_where(nearer, x_new, state["x_found"]),
        }

    def _boundary(self, forward: Forward, x: tf.Tensor, y: tf.Tensor, target: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns how far the logit of another class is above that of the true class, and the gradient of this gap."""
        with tf.GradientTape(persistent=not self.targeted, watch_accessed_variables=False) as tape:
            tape.watch(x)
            logits = forward(x)
            gaps = logits - tf.gather(logits, y, batch_dims=1)[:, tf.newaxis]
            gap = tf.gather(gaps, target, batch_dims=1)
            columns = [] if self.targeted else tf.unstack(gaps, axis=1)
        if self.targeted:
            return gap, tape.gradient(gap, x)
        return nearest_boundary(tape, columns, x, self.norm, y)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor, as plain values."""
        return {
            **super().get_config(),
            "targeted": self.targeted,
            "num_steps": self.num_steps,
            "restarts": self.restarts,
            "num_targets": self.num_targets,
            "alpha_max": self.alpha_max,
            "eta": self.eta,
            "beta": self.beta,
        }


def nearest_boundary(
    tape: tf.GradientTape, gaps: list[tf.Tensor], x: tf.Tensor, norm: str, own: tf.Tensor | None = None
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns gap and gradient of the boundary that is nearest by linear approximation.

    Takes one gradient at a time, so that memory holds two instead of one for each class.

    Args:
        tape: Persistent; has recorded the gaps as functions of `x`.
        gaps: `(batch,)` each, the logit of a class minus that of the true class.
        x: `(batch, ...)`, float32.
        norm: Norm in which distances to boundaries are measured.
        own: `(batch,)`, integers: number of the gap that does not count, that of the true class; `None` if there is
            none.
    """
    shortest = tf.fill(tf.shape(gaps[0]), FAR)
    gap, normal = tf.zeros_like(shortest), tf.zeros_like(x)
    for number, one in enumerate(gaps):
        gradient = tape.gradient(one, x)
        # The distance to a hyperplane is the gap divided by the dual norm of the normal.
        length = distance(gradient, tf.zeros_like(x), DUAL[norm])
        away = tf.abs(one) / (1e-12 + length)
        away = away if own is None else tf.where(tf.equal(own, number), FAR, away)
        nearer = away < shortest
        shortest = tf.where(nearer, away, shortest)
        gap = tf.where(nearer, one, gap)
        normal = fast_where(nearer, gradient, normal)
    return gap, normal
