"""Natural training: the cross entropy on clean images."""

from typing import Any

import keras
import tensorflow as tf

from tf_robust_sparse.objectives.label_smoothing import checked_smoothing, smoothed_cross_entropy
from tf_robust_sparse.objectives.objective import Losses, Objective, training_logits


class Natural(Objective):
    """`CE(f(x), y)`: no attack.

    Args:
        label_smoothing: Share of each label that is spread evenly over all classes, in [0, 1).

    Raises:
        ValueError: if `label_smoothing` is out of its range.
    """

    takes_mixed_labels = True

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self.label_smoothing = checked_smoothing(label_smoothing)

    def loss(self, network: keras.Model, x: tf.Tensor, y: tf.Tensor, x_adv: tf.Tensor) -> Losses:
        """Returns losses `(batch,)` and clean logits `(batch, classes)`."""
        del x_adv
        logits = training_logits(network, x)
        return Losses(smoothed_cross_entropy(y, logits, self.label_smoothing), logits)

    def describe(self) -> dict[str, Any]:
        """Returns everything that defines the objective, as plain values for a results file."""
        return {**super().describe(), **({"label_smoothing": self.label_smoothing} if self.label_smoothing else {})}
