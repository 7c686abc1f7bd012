"""DeepFool: steps to the nearest boundary of the linearized network."""

from typing import Any

import tensorflow as tf

from tf_robust_sparse.attacks.fab import DUAL, nearest_boundary
from tf_robust_sparse.attacks.gradient_attack import check_integer
from tf_robust_sparse.attacks.losses import FAR
from tf_robust_sparse.attacks.minimum_norm import MinimumNormAttack
from tf_robust_sparse.attacks.projections import distance, per_example, pixel_range
from tf_robust_sparse.attacks.staged_attack import State
from tf_robust_sparse.layers.forward import Forward

BEYOND = 1e-4  # is added to each step, as in the authors' code, so that it does not end on the boundary itself


class DeepFool(MinimumNormAttack):
    """Minimum-norm attack in the L2 or the l-infinity norm that takes few, long steps.

    Each step goes to the nearest boundary of the linearized network; an image is done once it is misclassified. The
    result is a first estimate: FMN and DDN find nearer examples.

    ```python
    found = trs.attacks.DeepFool("L2").nearest(network, x, y)
    ```

    Args:
        norm: `"L2"` or `"Linf"`.
        num_steps: Largest number of steps, each one gradient per candidate.
        num_candidates: How many other classes are looked at, those with the largest logits of the clean image.
        overshoot: Share by which the perturbation is longer than it must be, at least 0.
        seed: Not used: the attack draws nothing.

    Raises:
        ValueError: if an argument is out of its range.

    Reference: [Moosavi-Dezfooli et al., 2016](https://arxiv.org/abs/1511.04599), algorithm 2.
    """

    norms = ("L2", "Linf")

    def __init__(
        self, norm: str = "L2", num_steps: int = 50, num_candidates: int = 9, overshoot: float = 0.02, seed: int = 0
    ) -> None:
        super().__init__(norm, num_steps, seed)
        check_integer("num_candidates", num_candidates, 1, "pass, for example, num_candidates=9")
        if not 0 <= overshoot < float("inf"):
            raise ValueError(f"`overshoot` is a share of the perturbation, at least 0. Received: overshoot={overshoot}")
        self.num_candidates = self.gradients_per_step = int(num_candidates)
        self.overshoot = float(overshoot)

    def _start(self, forward: Forward, x: tf.Tensor, y: tf.Tensor, seeds: tf.Tensor) -> State:
        logits = forward(x)
        others = logits - FAR * tf.one_hot(y, logits.shape[-1])
        candidates = tf.math.top_k(others, min(self.num_candidates, logits.shape[-1] - 1)).indices
        return {"candidates": candidates, "total": tf.zeros_like(x)}

    def _step(self, forward: Forward, x: tf.Tensor, y: tf.Tensor, state: State) -> State:
        x_current = state["x_current"]
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
            tape.watch(x_current)
            logits = forward(x_current)
            own = tf.gather(logits, y, batch_dims=1)[:, tf.newaxis]
            gaps = tf.unstack(tf.gather(logits, state["candidates"], batch_dims=1) - own, axis=1)
        gap, normal = nearest_boundary(tape, gaps, x_current, self.norm)
        wrong = tf.argmax(logits, axis=-1) != y
        state, _ = self._kept(x, wrong, state)
        steepness = tf.maximum(distance(normal, tf.zeros_like(x), DUAL[self.norm]), 1e-12)
        direction = tf.sign(normal) if self.norm == "Linf" else normal / per_example(steepness, x)
        length = tf.where(wrong, 0.0, tf.abs(gap) / steepness + BEYOND)
        total = state["total"] + per_example(length, x) * direction
        return state | {"total": total, "x_current": pixel_range(x + (1 + self.overshoot) * total)}

    def _goes_on(self, state: State) -> tf.Tensor:
        return tf.reduce_any(state["best"] >= FAR)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor, as plain values."""
        return {**super().get_config(), "num_candidates": self.num_candidates, "overshoot": self.overshoot}
