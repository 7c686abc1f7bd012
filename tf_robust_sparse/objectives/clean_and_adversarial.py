"""Training on clean and attacked images at once."""

from typing import Any

import keras
import tensorflow as tf

from tf_robust_sparse.attacks import GradientAttack
from tf_robust_sparse.objectives.label_smoothing import checked_smoothing, smoothed_cross_entropy
from tf_robust_sparse.objectives.objective import (
    AttackObjective,
    Losses,
    Seed,
    attacked_logits,
    joint_training_logits,
    training_logits,
)


class CleanAndAdversarial(AttackObjective):
    """`(1 - weight) * CE(f(x), y) + weight * CE(f(x_adv), y)` of every image.

    Both terms have the same, possibly smoothed, labels. No gradient flows
    through the attack. Clean and attacked images pass through the network as two batches, clean first, or as one.

    Args:
        attack: Untargeted attack; its own `random_start` decides where it starts.
        weight: Share of the attacked images in the loss, in [0, 1].
        label_smoothing: Share of each label that is spread evenly over all classes, in [0, 1).
        joint: Whether both pass as one batch; batch norm then takes its statistics over both.

    Raises:
        ValueError: if `attack` is not an untargeted attack, or a number is out of its range.

    Reference: [Goodfellow et al., 2015](https://arxiv.org/abs/1412.6572), section 6.
    """

    def __init__(
        self, attack: GradientAttack, weight: float = 0.5, label_smoothing: float = 0.0, joint: bool = False
    ) -> None:
        super().__init__(attack)
        if not 0 <= weight <= 1:
            raise ValueError(
                "`weight` is the share of the attacked images in the loss, in [0, 1]; pass 0.5 for equal shares. "
                f"Received: weight={weight!r}"
            )
        self.adversarial_weight = float(weight)
        self.label_smoothing = checked_smoothing(label_smoothing)
        self.joint = bool(joint)

    def perturb(self, network: keras.Model, x: tf.Tensor, y: tf.Tensor, seed: Seed = None) -> tf.Tensor:
        """Returns images that raise the cross entropy: `(batch, ...)`, float32."""
        return self.attack(network, x, y, seed=seed)

    def loss(self, network: keras.Model, x: tf.Tensor, y: tf.Tensor, x_adv: tf.Tensor) -> Losses:
        """Returns losses `(batch,)`, clean logits and logits of the attacked images, `(batch, classes)` each."""
        if self.joint:
            logits, logits_adv = joint_training_logits(network, x, x_adv)
        else:
            logits = training_logits(network, x)
            logits_adv = attacked_logits(network, x_adv)
        clean = smoothed_cross_entropy(y, logits, self.label_smoothing)
        attacked = smoothed_cross_entropy(y, logits_adv, self.label_smoothing)
        weight = self.adversarial_weight
        return Losses((1 - weight) * clean + weight * attacked, logits, logits_adv)

    def describe(self) -> dict[str, Any]:
        """Returns everything that defines the objective, as plain values for a results file."""
        settings = {"weight": self.adversarial_weight, "label_smoothing": self.label_smoothing, "joint": self.joint}
        return {**super().describe(), **settings}
