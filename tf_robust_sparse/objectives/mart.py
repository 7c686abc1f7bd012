"""MART: adversarial training with more weight on misclassified examples."""

from typing import Any

import keras
import tensorflow as tf

from tf_robust_sparse.attacks import GradientAttack, cross_entropy
from tf_robust_sparse.objectives.divergences import kl_divergence
from tf_robust_sparse.objectives.objective import AttackObjective, Losses, Seed, attacked_logits, training_logits
from tf_robust_sparse.objectives.trades import checked_beta

# Constants of the authors' code; they keep the logarithm finite and the weight above zero.
MARGIN_OFFSET = 1.0001
LOG_OFFSET = 1e-12
WEIGHT_OFFSET = 1.0000001


class MART(AttackObjective):
    """Boosted cross entropy on the attacked image, plus a divergence weighted by how wrong the clean prediction is.

    ```python
    attack = trs.attacks.LinfPGD(epsilon=8 / 255, step_size=2 / 255, num_steps=10)
    model = trs.RobustModel(network, trs.objectives.MART(attack, beta=6.0))
    ```

    With clean probabilities `p`, adversarial probabilities `q` and `k` the most likely wrong class under `q`, the loss
    is `-log q_y - log(1.0001 - q_k + 1e-12) + beta * KL(p || q) * (1.0000001 - p_y)`. The gradient flows through both
    predictions. Clean and attacked images pass through the network as two batches, clean first.

    Args:
        attack: Untargeted attack on the cross entropy. It starts at `x + 0.001 * N(0, 1)`; its own `random_start` is
            not used.
        beta: Weight of the divergence, at least 0.

    Raises:
        ValueError: if `attack` is not an untargeted attack, or `beta` is negative.

    Reference: [Wang et al., 2020](https://openreview.net/forum?id=rklOg6EFwS), section 3.
    """

    def __init__(self, attack: GradientAttack, beta: float = 6.0) -> None:
        super().__init__(attack)
        self.beta = checked_beta(beta)

    def perturb(self, network: keras.Model, x: tf.Tensor, y: tf.Tensor, seed: Seed = None) -> tf.Tensor:
        """Returns images that raise the cross entropy: `(batch, ...)`, float32."""
        return self.attack(network, x, y, seed=seed, start="gaussian")

    def loss(self, network: keras.Model, x: tf.Tensor, y: tf.Tensor, x_adv: tf.Tensor) -> Losses:
        """Returns losses `(batch,)`, clean logits and logits of the attacked images, `(batch, classes)` each."""
        logits = training_logits(network, x)
        logits_adv = attacked_logits(network, x_adv)
        boosted = cross_entropy(y, logits_adv) + margin_loss(y, logits_adv)
        p_true = tf.gather(tf.nn.softmax(logits), y, axis=-1, batch_dims=1)
        robust = kl_divergence(logits, logits_adv) * (WEIGHT_OFFSET - p_true)
        return Losses(boosted + self.beta * robust, logits, logits_adv)

    def describe(self) -> dict[str, Any]:
        """Returns everything that defines the objective, as plain values for a results file."""
        return {**super().describe(), "beta": self.beta}


def margin_loss(y: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Returns `-log(1.0001 - q_k + 1e-12)` with `k` the most likely class other than `y`.

    Args:
        y: `(batch,)`, integer labels.
        logits: `(batch, classes)`, float32, at least two classes.

    Returns:
        `(batch,)`, float32.
    """
    q = tf.nn.softmax(logits)
    wrong = tf.where(tf.one_hot(y, tf.shape(q)[-1], on_value=True, off_value=False), -1.0, q)
    q_wrong = tf.gather(q, tf.argmax(wrong, axis=-1), axis=-1, batch_dims=1)
    return -tf.math.log(MARGIN_OFFSET - q_wrong + LOG_OFFSET)
