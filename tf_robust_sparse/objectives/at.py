"""Adversarial training."""

import keras
import tensorflow as tf

from tf_robust_sparse.attacks import cross_entropy
from tf_robust_sparse.objectives.objective import AttackObjective, Seed, training_logits


class AT(AttackObjective):
    """Adversarial training, `CE(f(x_adv), y)`, on attacked images only.

    Args:
        attack: Untargeted attack; its own `random_start` decides where it starts.

    Raises:
        ValueError: if `attack` is not an untargeted attack.

    Reference: [Madry et al., 2018](https://arxiv.org/abs/1706.06083), section 2.1.
    """

    def perturb(self, network: keras.Model, x: tf.Tensor, y: tf.Tensor, seed: Seed = None) -> tf.Tensor:
        """Images that raise the cross entropy: `(batch, ...)`, float32."""
        return self.attack(network, x, y, seed=seed)

    def loss(self, network: keras.Model, x: tf.Tensor, y: tf.Tensor, x_adv: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Losses `(batch,)` and logits `(batch, classes)` on the attacked images."""
        del x
        logits = training_logits(network, x_adv)
        return cross_entropy(y, logits), logits
