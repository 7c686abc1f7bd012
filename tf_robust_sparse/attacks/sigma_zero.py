"""sigma-zero: a gradient attack in the L0 norm."""

from typing import Any

import tensorflow as tf

from tf_robust_sparse.attacks.gradient_attack import check_positive, loss_gradient
from tf_robust_sparse.attacks.losses import margin
from tf_robust_sparse.attacks.minimum_norm import MinimumNormAttack, cosine
from tf_robust_sparse.attacks.projections import per_example, pixel_range
from tf_robust_sparse.attacks.staged_attack import State
from tf_robust_sparse.layers.forward import Forward

FIRST, SECOND, TINY = 0.9, 0.999, 1e-8  # Adam


class SigmaZero(MinimumNormAttack):
    """Minimum-norm attack in the L0 norm: as few changed entries as possible (pixels times channels).

    The loss is the margin, where it is positive, and a smooth count of changes, `mean(d^2 / (d^2 + sigma))`. Adam
    follows its gradient. After each step, changes below a threshold are undone; the threshold rises while the point is
    adversarial, and falls while it is not.

    ```python
    found = trs.attacks.SigmaZero(num_steps=100).nearest(network, x, y)  # found.distance counts changed entries
    ```

    Args:
        num_steps: Number of steps, each one gradient; published: 100 and 1,000.
        learning_rate: Adam's, falling to a tenth on half a cosine.
        sigma: Of the smooth count, above 0.
        threshold: The first threshold, in pixels of [0, 1], below 1.
        threshold_step: How much it changes in a step, in units of the learning rate.
        seed: Not used: the attack draws nothing.

    Raises:
        ValueError: if an argument is out of its range.

    Reference: [Cinà et al., 2024](https://arxiv.org/abs/2402.01879), algorithm 1.
    """

    norms = ("L0",)

    def __init__(
        self,
        num_steps: int = 100,
        learning_rate: float = 1.0,
        sigma: float = 1e-3,
        threshold: float = 0.3,
        threshold_step: float = 0.01,
        seed: int = 0,
    ) -> None:
        super().__init__("L0", num_steps, seed)
        check_positive("learning_rate", learning_rate)
        check_positive("sigma", sigma)
        check_positive("threshold", threshold, 1)
        check_positive("threshold_step", threshold_step)
        self.learning_rate = float(learning_rate)
        self.sigma = float(sigma)
        self.threshold = float(threshold)
        self.threshold_step = float(threshold_step)

    def _start(self, forward: Forward, x: tf.Tensor, y: tf.Tensor, seeds: tf.Tensor) -> State:
        threshold = tf.fill(tf.shape(y), self.threshold)
        return {"threshold": threshold, "mean": tf.zeros_like(x), "square": tf.zeros_like(x)}

    def _step(self, forward: Forward, x: tf.Tensor, y: tf.Tensor, state: State) -> State:
        _, gradient, wrong = loss_gradient(forward, state["x_current"], y, _positive_margin)
        state, _ = self._kept(x, wrong, state)
        delta = state["x_current"] - x
        entries = tf.cast(tf.size(delta[0]), tf.float32)
        counted = 2 * self.sigma * delta / tf.square(tf.square(delta) + self.sigma) / entries
        gradient += counted
        largest = tf.reduce_max(tf.abs(gradient), axis=list(range(1, x.shape.rank)), keepdims=True)
        gradient /= tf.maximum(largest, 1e-12)
        number = tf.cast(state["iteration"] + 1, tf.float32)
        mean = FIRST * state["mean"] + (1 - FIRST) * gradient
        square = SECOND * state["square"] + (1 - SECOND) * tf.square(gradient)
        rate = cosine(state["iteration"], self.learning_rate, self.learning_rate / 10, self.num_steps)
        scale = tf.sqrt(square / (1 - SECOND**number)) + TINY
        x_new = pixel_range(state["x_current"] - rate * mean / (1 - FIRST**number) / scale)
        next_rate = cosine(state["iteration"] + 1, self.learning_rate, self.learning_rate / 10, self.num_steps)
        change = self.threshold_step * next_rate
        threshold = tf.clip_by_value(state["threshold"] + tf.where(wrong, change, -change), 0.0, 1.0)
        stays = tf.abs(x_new - x) >= per_example(threshold, x)
        return state | {
            "x_current": tf.where(stays, x_new, x),
            "threshold": threshold,
            "mean": mean,
            "square": square,
        }

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor, as plain values."""
        names = ("num_steps", "learning_rate", "sigma", "threshold", "threshold_step", "seed")
        return {name: getattr(self, name) for name in names}


def _positive_margin(y: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    return tf.nn.relu(margin(y, logits))
