"""Gradient alignment: a penalty that keeps training by one step from collapsing."""

from typing import Any, Self

import keras
import tensorflow as tf

from tf_robust_sparse.attacks import cross_entropy
from tf_robust_sparse.layers.noise import fold_in, uniform_like
from tf_robust_sparse.layers.normalization import kept_statistics
from tf_robust_sparse.objectives.objective import Losses, Objective, ObjectiveAround, Seed
from tf_robust_sparse.objectives.terms import report_term

_TINY = 1e-12


class GradAlign(ObjectiveAround):
    """Another objective plus `strength * (1 - cos(gradient at x, gradient at x + u))`, `u` uniform in the ball.

    The gradients are those of the cross-entropy with respect to the images, with batch norm in training mode; the first
    one counts as a constant. It needs the second derivative of the network, about twice the time of a step of
    adversarial training by one step.

        objective = objectives.GradAlign(objectives.AT(attacks.LinfFGSM(8 / 255)), strength=0.2)

    Args:
        objective: One with an attack in the l-infinity ball, such as `AT(LinfFGSM(8 / 255))`.
        strength: At least 0; published: 0.2 for CIFAR-10 at 8/255.
        seed: Of the draws of `u` where a step has no seed.

    Raises:
        ValueError: if `objective` has no such attack, or `strength` is negative.

    Reference: [Andriushchenko and Flammarion, 2020](https://arxiv.org/abs/2007.02617), section 5.
    """

    def __init__(self, objective: Objective, strength: float = 0.2, seed: int = 0) -> None:
        super().__init__(objective)
        if objective.attack is None or objective.attack.norm != "linf":
            raise ValueError(
                "`objective` must have an attack in the l-infinity ball, such as AT(LinfFGSM(8 / 255)). "
                f"Received: objective={objective!r}"
            )
        if not 0 <= strength < float("inf"):
            raise ValueError(f"`strength` must be at least 0, such as 0.2. Received: strength={strength!r}")
        self.strength = float(strength)
        self.terms = (*objective.terms, "alignment")
        self._seed: Seed = [seed, 0]

    def at_step(self, step: tf.Tensor, seed: Seed = None) -> Self:
        """Returns the objective with its schedules evaluated at `step`, and draws of its own."""
        now = super().at_step(step, seed)
        if seed is not None:
            now._seed = seed
        return now

    def loss(self, network: keras.Model, x: tf.Tensor, y: tf.Tensor, x_adv: tf.Tensor) -> Losses:
        """Losses `(batch,)`, the penalty added to each, and the logits of the objective."""
        losses = Losses(*self.objective.loss(network, x, y, x_adv))
        alignment = self.alignment(network, x, y)
        report_term("alignment", alignment)
        return losses._replace(per_example=losses.per_example + self.strength * (1 - tf.reduce_mean(alignment)))

    def alignment(self, network: keras.Model, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        """Cosines `(batch,)` of the angles between the two gradients of each image."""
        radius = self.attack.epsilon
        noise = uniform_like(x, fold_in(self._seed, 0x6A), -radius, radius)
        with kept_statistics(network):
            first = tf.stop_gradient(_image_gradient(network, x, y))
            second = _image_gradient(network, x + noise, y)
        axes = list(range(1, x.shape.rank))
        lengths = [tf.sqrt(tf.reduce_sum(tf.square(each), axes) + _TINY**2) for each in (first, second)]
        return tf.reduce_sum(first * second, axes) / (lengths[0] * lengths[1] + _TINY)

    def describe(self) -> dict[str, Any]:
        """Everything that defines the objective, as plain values for a results file."""
        return {**super().describe(), "strength": self.strength, "aligned": self.objective.describe()}


def _image_gradient(network: keras.Model, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(x)
        loss = tf.reduce_sum(cross_entropy(y, tf.cast(network(x, training=True), tf.float32)))
    return tape.gradient(loss, x)
