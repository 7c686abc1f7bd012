"""Adversarial training."""

from typing import Any

import keras
import tensorflow as tf

from tf_robust_sparse.attacks import GradientAttack
from tf_robust_sparse.layers.kernel_seam import unfolded_kernels
from tf_robust_sparse.objectives.label_smoothing import aimed, checked_smoothing, smoothed_cross_entropy
from tf_robust_sparse.objectives.objective import AttackObjective, Losses, Seed, attacked_logits

BATCH_NORM_MODES = ("inference", "training")


class AT(AttackObjective):
    """Adversarial training, `CE(f(x_adv), y)`, on attacked images only.

    ```python
    attack = trs.attacks.LinfPGD(epsilon=8 / 255, step_size=2 / 255, num_steps=10)
    model = trs.RobustModel(network, trs.objectives.AT(attack))
    ```

    Args:
        attack: Untargeted attack; its own `random_start` decides where it starts.
        label_smoothing: Share `s` of the loss that is the mean cross entropy of all classes, in [0, 1):
            `(1 - s) * CE + s * mean(-log p)`. The attack climbs the same loss.
        batch_norm: `"inference"`, or `"training"`: during the attack too, batch norm normalizes by the batch and
            updates its moving statistics in each step, as the code of binary sub-networks does. On one replica only.

    Raises:
        ValueError: if `attack` is not an untargeted attack or another argument is out of its range.

    Reference: [Madry et al., 2018](https://arxiv.org/abs/1706.06083), section 2.1.
    """

    takes_mixed_labels = True

    def __init__(self, attack: GradientAttack, label_smoothing: float = 0.0, batch_norm: str = "inference") -> None:
        super().__init__(attack)
        if batch_norm not in BATCH_NORM_MODES:
            raise ValueError(
                f"`batch_norm` must be one of {', '.join(BATCH_NORM_MODES)}. Received: batch_norm={batch_norm!r}"
            )
        self.label_smoothing = checked_smoothing(label_smoothing)
        self.batch_norm = batch_norm

    def perturb(self, network: keras.Model, x: tf.Tensor, y: tf.Tensor, seed: Seed = None) -> tf.Tensor:
        """Returns images that raise the loss: `(batch, ...)`, float32."""
        y, loss_fn = aimed(y, self._loss)
        if self.batch_norm == "inference":
            return self.attack(network, x, y, loss_fn=loss_fn, seed=seed)
        if tf.distribute.get_strategy().num_replicas_in_sync > 1:
            raise ValueError('`batch_norm="training"` works on one replica only; pass batch_norm="inference"')
        with unfolded_kernels(network):
            return self.attack(lambda x: network(x, training=True), x, y, loss_fn=loss_fn, seed=seed)

    def loss(self, network: keras.Model, x: tf.Tensor, y: tf.Tensor, x_adv: tf.Tensor) -> Losses:
        """Returns losses `(batch,)` and, twice, the logits of the attacked images, because there are no others."""
        del x
        logits = attacked_logits(network, x_adv)
        return Losses(self._loss(y, logits), logits, logits)

    def _loss(self, y: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        return smoothed_cross_entropy(y, logits, self.label_smoothing)

    def describe(self) -> dict[str, Any]:
        """Returns everything that defines the objective, as plain values for a results file."""
        more = {"label_smoothing": self.label_smoothing} if self.label_smoothing else {}
        return {**super().describe(), **more, **({"batch_norm": "training"} if self.batch_norm == "training" else {})}
