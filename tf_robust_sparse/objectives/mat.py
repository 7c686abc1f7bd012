"""Adversarial training on a batch of which half is attacked."""

import keras
import tensorflow as tf

from tf_robust_sparse.objectives.at import AT
from tf_robust_sparse.objectives.objective import Seed


class MAT(AT):
    """Mixed-batch adversarial training: the mean cross entropy over a batch that is half attacked, half clean.

    The first `floor(batch / 2)` images are attacked, the rest stay as they are, and both halves pass through the
    network as one batch. With several replicas each attacks the first half of its own part.

    Args:
        attack: Untargeted attack; its own `random_start` decides where it starts.

    Raises:
        ValueError: if `attack` is not an untargeted attack.

    Reference: [Goodfellow et al., 2015](https://arxiv.org/abs/1412.6572), section 6, with PGD for FGSM, as the mixed
    batch of [Ozdenizci and Legenstein, 2021](https://proceedings.mlr.press/v139/ozdenizci21a.html).
    """

    def perturb(self, network: keras.Model, x: tf.Tensor, y: tf.Tensor, seed: Seed = None) -> tf.Tensor:
        """Attacked and clean images in the order of `x`: `(batch, ...)`, float32."""
        x, y = tf.convert_to_tensor(x), tf.convert_to_tensor(y)
        attacked = tf.shape(x)[0] // 2
        # Of a batch of one, none: an empty batch passes through no convolution, so one image is attacked in vain.
        some = tf.maximum(attacked, 1)
        x_adv = self.attack(network, x[:some], y[:some], seed=seed)
        return tf.ensure_shape(tf.concat([x_adv[:attacked], tf.cast(x[attacked:], tf.float32)], axis=0), x.shape)
