"""Consistency regularization: two augmentations of an image are attacked to the same wrong prediction."""

from typing import Any, Self

import keras
import tensorflow as tf

from tf_robust_sparse.data import augment
from tf_robust_sparse.layers.noise import fold_in, uniform_like
from tf_robust_sparse.objectives.divergences import js_divergence
from tf_robust_sparse.objectives.objective import AttackObjective, Losses, Objective, ObjectiveAround, Seed

AUGMENTATIONS = {"crop": augment.crop_and_flip, "shift": augment.shift_and_flip}
_VIEWS = (0xA1, 0xA2)  # streams of random draws


class Consistency(ObjectiveAround):
    """Another objective on two augmentations of each image, and the divergence of their attacked predictions.

    `mean of the objective on both views + weight * JS(softmax(z1 / T), softmax(z2 / T))`, where `z1` and `z2` are the
    logits of the two attacked views. Both views are attacked, and pass through the network as one batch, so that a step
    takes twice the time. Give it images that are not augmented yet.

        objective = objectives.Consistency(objectives.AT(attack), weight=1.0)

    Args:
        objective: `AT`, `TRADES`, `MART` or another objective that computes logits of attacked images.
        weight: Weight of the divergence, at least 0.
        temperature: `T`, positive; below 1 it sharpens the predictions.
        augmentation: `"crop"` or `"shift"`, see `data.train_dataset`.
        flip: Whether the augmentation mirrors images; wrong for digits.
        seed: Of the augmentations where a step has no seed.

    Raises:
        ValueError: if `objective` does not attack, or another argument is out of its range.

    Reference: [Tack et al., 2022](https://arxiv.org/abs/2103.04623), section 3.2.
    """

    views = 2

    def __init__(
        self,
        objective: Objective,
        weight: float = 1.0,
        temperature: float = 0.5,
        augmentation: str = "crop",
        flip: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(objective)
        if not isinstance(objective, AttackObjective):
            raise ValueError(
                "`objective` must attack, as AT and TRADES do; put wrappers around Consistency. "
                f"Received: objective={objective!r}"
            )
        if not 0 <= weight < float("inf") or not 0 < temperature < float("inf"):
            raise ValueError(
                "`weight` is at least 0 and `temperature` positive, such as 1 and 0.5. "
                f"Received: weight={weight!r}, temperature={temperature!r}"
            )
        if augmentation not in AUGMENTATIONS:
            raise ValueError(
                f"`augmentation` must be one of {', '.join(AUGMENTATIONS)}. Received: augmentation={augmentation!r}"
            )
        self.weight = float(weight)
        self.temperature = float(temperature)
        self.augmentation = augmentation
        self.flip = bool(flip)
        self._seed: Seed = [seed, 0]

    def at_step(self, step: tf.Tensor, seed: Seed = None) -> Self:
        """Returns the objective with its schedules evaluated at `step`, and augmentations of its own."""
        now = super().at_step(step, seed)
        if seed is not None:
            now._seed = seed
        return now

    def perturb(self, network: keras.Model, x: tf.Tensor, y: tf.Tensor, seed: Seed = None) -> tf.Tensor:
        """Returns the attacked first views of all images, then the second ones: `(2 * batch, ...)`, float32."""
        seed = 0 if seed is None else seed
        attacked = [  # one by one: the draws of an attack then do not depend on the number of replicas
            self.objective.perturb(network, view, y, seed=fold_in(seed, stream))
            for view, stream in zip(self.augmented(x), _VIEWS, strict=True)
        ]
        return tf.concat(attacked, axis=0)

    def loss(self, network: keras.Model, x: tf.Tensor, y: tf.Tensor, x_adv: tf.Tensor) -> Losses:
        """Returns losses `(batch,)`, and the logits of the first views."""
        both = tf.concat(self.augmented(x), axis=0)
        losses = Losses(*self.objective.loss(network, both, tf.concat([y, y], axis=0), x_adv))
        if losses.logits_adv is None:
            raise ValueError(
                "Consistency compares logits of attacked images, which the objective does not compute; use AT or "
                f"TRADES. Received: {type(self.objective).__name__}"
            )
        views = tf.split(losses.logits_adv / self.temperature, 2)
        per_example = tf.add_n(tf.split(losses.per_example, 2)) / 2 + self.weight * js_divergence(*views)
        logits = tf.split(losses.logits, 2)[0]
        same = losses.logits is losses.logits_adv
        return Losses(per_example, logits, logits if same else tf.split(losses.logits_adv, 2)[0])

    def augmented(self, x: tf.Tensor) -> list[tf.Tensor]:
        """Returns the two views of the images, the same ones throughout a step."""
        augmentation = AUGMENTATIONS[self.augmentation]
        found = []
        for stream in _VIEWS:
            zeros = tf.zeros((tf.shape(x)[0], augment.NUM_UNIFORMS))
            draws = uniform_like(zeros, fold_in(self._seed, stream), 0.0, 1.0)
            found.append(augmentation(x, draws, flip=self.flip))
        return found

    def describe(self) -> dict[str, Any]:
        """Returns everything that defines the objective, as plain values for a results file."""
        names = ("weight", "temperature", "augmentation", "flip")
        return {**super().describe(), **{name: getattr(self, name) for name in names}, "of": self.objective.describe()}
