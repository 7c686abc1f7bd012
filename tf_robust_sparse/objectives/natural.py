"""Natural training: the cross entropy on the images as they are."""

import keras
import tensorflow as tf

from tf_robust_sparse.attacks import cross_entropy
from tf_robust_sparse.objectives.objective import Objective, training_logits


class Natural(Objective):
    """`CE(f(x), y)`: no attack."""

    def loss(self, network: keras.Model, x: tf.Tensor, y: tf.Tensor, x_adv: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Losses `(batch,)` and clean logits `(batch, classes)`."""
        del x_adv
        logits = training_logits(network, x)
        return cross_entropy(y, logits), logits
