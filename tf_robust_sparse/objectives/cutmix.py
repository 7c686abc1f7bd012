"""CutMix: training on images with boxes of other images."""

from typing import Any, Self

import keras
import tensorflow as tf

from tf_robust_sparse.layers.noise import fold_in
from tf_robust_sparse.objectives.mixing import clipped_boxes, mixed, mixed_labels
from tf_robust_sparse.objectives.objective import Losses, Objective, ObjectiveAround, Seed

_BOXES = 0xC07  # a stream of random draws


class CutMix(ObjectiveAround):
    """Another objective on images with boxes of other images of the batch, and on the mixed labels.

    The batch is divided into `groups` consecutive parts. All images of a part get the same box, each from another image
    of the part, and their labels give each class the share of the pixels that its image contributes. The attack aims
    away from the mixed label, in TRADES too, whose attack aims away from the clean prediction otherwise. Training
    accuracy counts the label of the image, not that of its box.

        objective = objectives.CutMix(objectives.TRADES(attack, beta=5, start="uniform"))

    Published recipes combine it with averaged weights (`training.EMA`).

    Args:
        objective: `Natural`, `AT`, `TRADES` or `DKL`. Put other wrappers, such as `AWP`, around CutMix.
        groups: Number of different boxes in a batch; published: 4. On several replicas each has its part of the
            groups, at least one.
        seed: Of the boxes where a step has no seed.

    Raises:
        ValueError: if `objective` does not take mixed labels, or `groups` is not a positive integer.

    Reference: [Yun et al., 2019](https://arxiv.org/abs/1905.04899), section 3.1;
        [Rebuffi et al., 2021](https://arxiv.org/abs/2103.01946), section 4.
    """

    def __init__(self, objective: Objective, groups: int = 4, seed: int = 0) -> None:
        super().__init__(objective)
        if not objective.takes_mixed_labels:
            raise ValueError(
                "`objective` must take mixed labels, as Natural, AT, TRADES and DKL do; put other wrappers around "
                f"CutMix. Received: objective={objective!r}"
            )
        if isinstance(groups, bool) or not isinstance(groups, int) or groups < 1:
            raise ValueError(f"`groups` is a number of boxes, at least 1, such as 4. Received: groups={groups!r}")
        self.groups = groups
        self._seed: Seed = [seed, 0]

    def at_step(self, step: tf.Tensor, seed: Seed = None) -> Self:
        """Returns the objective with its schedules evaluated at `step`, and boxes of its own."""
        now = super().at_step(step, seed)
        if seed is not None:
            now._seed = seed
        return now

    def perturb(self, network: keras.Model, x: tf.Tensor, y: tf.Tensor, seed: Seed = None) -> tf.Tensor:
        """Returns the result of the other objective's `perturb` for the mixed images."""
        return self.objective.perturb(network, *self.mixed(network, x, y), seed=seed)

    def loss(self, network: keras.Model, x: tf.Tensor, y: tf.Tensor, x_adv: tf.Tensor) -> Losses:
        """Returns the losses of the other objective for the mixed images."""
        return Losses(*self.objective.loss(network, *self.mixed(network, x, y), x_adv))

    def mixed(self, network: keras.Model, x: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns mixed images `(batch, height, width, channels)` and labels `(batch, classes)`; the same in a step."""
        x = tf.cast(x, tf.float32)
        pairs = clipped_boxes(tf.shape(x)[0], fold_in(self._seed, _BOXES), x.shape[1:3], self.groups)
        return tf.ensure_shape(mixed(x, *pairs), x.shape), mixed_labels(y, network.output_shape[-1], *pairs)

    def describe(self) -> dict[str, Any]:
        """Returns everything that defines the objective, as plain values for a results file."""
        return {**super().describe(), "groups": self.groups, "of": self.objective.describe()}
