"""MixTrain: certified training on a few images of each batch, mixed with natural training on all of them."""

import copy
from typing import Any, Self

import keras
import tensorflow as tf

from tf_robust_sparse.attacks import cross_entropy
from tf_robust_sparse.certify.bounds import training_margins
from tf_robust_sparse.layers.noise import fold_in
from tf_robust_sparse.objectives.epsilon_schedules import EpochwiseEpsilon
from tf_robust_sparse.objectives.objective import Losses, Objective, Seed, bounded_logits, robust_cross_entropy

_GROWTH, _EVERY, _LARGEST = 2.5, 5, 50.0  # of the weight: factor, epochs between increases, limit


class MixTrain(Objective):
    """`CE(f(x), y) + w * mean CE(U, y)` over `num_images` images drawn from the batch, in most of the steps.

    `U` are upper bounds of the margins of the other classes over the ball, by symbolic intervals, and 0 for the class
    itself. Each step draws images with replacement; with probability `1 - probability` it draws none. The radius
    follows `epsilon`. From its last epoch on the weight `w` grows every five epochs by a factor of 2.5, up to 50.

    Bounds use the moving statistics of batch norm, which this training does not update.

    Args:
        epsilon: Schedule of the radius of the l-infinity ball, in pixels of [0, 1].
        num_images: Number of images bounded in a step, at least 1; published are 1 for large networks and 5 for small
            ones.
        weight: `w` until the radius reaches its last value, at least 0.
        probability: Probability that a step bounds any image, in [0, 1]; 0 is natural training.
        chunk: See `certify.margins`.

    Raises:
        ValueError: if an argument is out of its range.

    Reference: [Wang et al., 2018](https://arxiv.org/abs/1811.02625), section 4.
    """

    def __init__(
        self,
        epsilon: EpochwiseEpsilon,
        num_images: int = 1,
        weight: float = 0.1,
        probability: float = 0.8,
        chunk: int = 4096,
    ) -> None:
        if not isinstance(epsilon, EpochwiseEpsilon):
            raise ValueError(
                "`epsilon` is a schedule that counts epochs; pass EpochwiseEpsilon(2 / 255, epochs=10, "
                f"steps_per_epoch=...). Received: epsilon={epsilon!r}"
            )
        for name, value in (("num_images", num_images), ("chunk", chunk)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"`{name}` must be a positive integer. Received: {name}={value!r}")
        if not 0 <= weight < float("inf") or not 0 <= probability <= 1:
            raise ValueError(
                "`weight` is at least 0 and `probability` in [0, 1]. "
                f"Received: weight={weight}, probability={probability}"
            )
        self.schedule = epsilon
        self.num_images = num_images
        self.weight = float(weight)
        self.probability = float(probability)
        self.chunk = chunk
        self._step = tf.constant(epsilon.epochs * epsilon.steps_per_epoch)
        self._seed: Seed = 0

    def at_step(self, step: tf.Tensor, seed: Seed = None) -> Self:
        """Returns the objective with the radius, the weight and the random draws of this step."""
        now = copy.copy(self)
        now._step, now._seed = step, seed
        return now

    def weight_at(self, step: tf.Tensor) -> tf.Tensor:
        """Returns the weight of the bounds at a step: scalar, float32."""
        since = tf.maximum(self.schedule.epoch(step) - self.schedule.epochs, 0)
        return tf.minimum(self.weight * _GROWTH ** tf.cast(since // _EVERY, tf.float32), _LARGEST)

    def loss(self, network: keras.Model, x: tf.Tensor, y: tf.Tensor, x_adv: tf.Tensor) -> Losses:
        """Returns losses `(batch,)` and clean logits `(batch, classes)`; all images share the loss of the bounds."""
        logits = bounded_logits(network, x_adv)
        losses = cross_entropy(y, logits)
        if self.probability == 0:
            return Losses(losses, logits)
        seeds = [fold_in(_of_this_replica(self._seed), purpose) for purpose in range(2)]
        bounds = tf.random.stateless_uniform((), seeds[0]) < self.probability
        robust = tf.cond(bounds, lambda: self._robust_loss(network, x, y, seeds[1]), lambda: tf.constant(0.0))
        return Losses(losses + self.weight_at(self._step) * robust, logits)

    def _robust_loss(self, network: keras.Model, x: tf.Tensor, y: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        chosen = tf.random.stateless_uniform((self.num_images,), seed, maxval=tf.shape(x)[0], dtype=tf.int32)
        epsilon = self.schedule(self._step)
        x, y = tf.gather(x, chosen), tf.gather(y, chosen)
        lower = training_margins(network, x, y, epsilon, "zonotope", chunk=self.chunk)
        return tf.reduce_mean(robust_cross_entropy(lower))

    def describe(self) -> dict[str, Any]:
        """Returns everything that defines the objective, as plain values for a results file."""
        settings = {"num_images": self.num_images, "weight": self.weight, "probability": self.probability}
        return {**super().describe(), "epsilon": self.schedule.describe(), **settings}


def _of_this_replica(seed: Seed) -> tf.Tensor:
    """Returns a different seed on each replica, because each one draws from other images."""
    context = tf.distribute.get_replica_context()
    number = 0 if context is None else context.replica_id_in_sync_group
    return fold_in(0 if seed is None else seed, number)
