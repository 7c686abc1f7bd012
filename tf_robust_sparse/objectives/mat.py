"""Adversarial training on batches that are half attacked, half clean."""

import keras
import tensorflow as tf

from tf_robust_sparse.objectives.at import AT
from tf_robust_sparse.objectives.objective import Seed


class MAT(AT):
    """Mixed-batch adversarial training: the mean cross entropy over a batch that is half attacked, half clean.

    The first `floor(batch / 2)` images are attacked, the others are not, and both halves pass through the network as
    one batch. With several replicas each one attacks the first half of its own part.

    Args:
        attack: Untargeted attack; its own `random_start` decides where it starts.

    Raises:
        ValueError: if `attack` is not an untargeted attack.

    Reference: [Goodfellow et al., 2015](https://arxiv.org/abs/1412.6572), section 6, with PGD for FGSM, as the mixed
    batch of [Ozdenizci and Legenstein, 2021](https://proceedings.mlr.press/v139/ozdenizci21a.html).
    """

    takes_mixed_labels = False

    def perturb(self, network: keras.Model, x: tf.Tensor, y: tf.Tensor, seed: Seed = None) -> tf.Tensor:
        """Returns attacked and clean images in the order of `x`: `(batch, ...)`, float32."""
        x, y = tf.convert_to_tensor(x), tf.convert_to_tensor(y)
        attacked = tf.shape(x)[0] // 2
        # In a batch of one, none is attacked. Convolutions refuse empty batches, so the attack still runs on one image.
        some = tf.maximum(attacked, 1)
        x_adv = self.attack(network, x[:some], y[:some], seed=seed)
        return tf.ensure_shape(tf.concat([x_adv[:attacked], tf.cast(x[attacked:], tf.float32)], axis=0), x.shape)
