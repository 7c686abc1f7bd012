"""Weights of examples by the confidence of the network."""

from typing import Any

import keras
import tensorflow as tf

from tf_robust_sparse.attacks import cross_entropy
from tf_robust_sparse.objectives.divergences import kl_divergence
from tf_robust_sparse.objectives.objective import Losses, Objective, ObjectiveAround, training_logits
from tf_robust_sparse.objectives.trades import TRADES

REWEIGHTINGS = (
    *("prob", "comp_prob", "max_prob", "comp_max_prob"),
    *("nat_prob", "comp_nat_prob", "nat_max_prob", "comp_nat_max_prob"),
)


class Reweighted(ObjectiveAround):
    """Another objective with weighted examples: `sum(w * loss) / sum(w)` over the global batch.

    `w` is the probability of the true class on the attacked images (`"prob"`) or on the clean ones (`"nat_prob"`), the
    probability of the most likely class (`"max_prob"`, `"nat_max_prob"`), or 1 minus that (`"comp_..."`). No gradient
    flows through the weights. While `active` is `False` all weights are 1; a callback switches it on after some epochs.

    Args:
        objective: `TRADES`, or an objective that is the cross entropy of the attacked images, such as `AT`.
        mode: One of `REWEIGHTINGS`.

    Raises:
        ValueError: if an argument is of the wrong kind.

    Reference: [Liu et al., 2022](https://arxiv.org/abs/2202.01341), the published code of binary sub-networks.
    """

    def __init__(self, objective: Objective, mode: str) -> None:
        super().__init__(objective)
        if mode not in REWEIGHTINGS:
            raise ValueError(f"`mode` must be one of {', '.join(REWEIGHTINGS)}. Received: mode={mode!r}")
        self.mode = mode
        self.active = keras.Variable(True, dtype="bool", trainable=False, aggregation="only_first_replica")

    def loss(self, network: keras.Model, x: tf.Tensor, y: tf.Tensor, x_adv: tf.Tensor) -> Losses:
        """Returns losses `(batch,)`, scaled so that their mean is the weighted one, and the logits of the objective."""
        clean = None
        if isinstance(self.objective, TRADES):
            clean, attacked = training_logits(network, x), training_logits(network, x_adv)
            losses, logits = cross_entropy(y, clean) + self.objective.beta * kl_divergence(clean, attacked), clean
        else:
            losses, logits, _ = Losses(*self.objective.loss(network, x, y, x_adv))
            attacked = logits
            if "nat" in self.mode:
                clean = training_logits(network, x)
        weights = tf.stop_gradient(self.weights(y, attacked if clean is None or "nat" not in self.mode else clean))
        return Losses(losses * weights, logits, attacked)

    def weights(self, y: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        """Returns weights `(batch,)` of mean 1 over the global batch."""
        probabilities = tf.nn.softmax(logits)
        of_true = tf.gather(probabilities, y, batch_dims=1)
        weights = tf.reduce_max(probabilities, -1) if "max" in self.mode else of_true
        if self.mode.startswith("comp"):
            weights = 1 - weights
        weights = tf.where(self.active, weights, tf.ones_like(weights))
        total, number = tf.reduce_sum(weights), tf.cast(tf.size(weights), tf.float32)
        context = tf.distribute.get_replica_context()
        if context is not None and context.num_replicas_in_sync > 1:
            total, number = context.all_reduce("SUM", [total, number])
        return weights * number / tf.maximum(total, 1e-12)

    def describe(self) -> dict[str, Any]:
        """Returns everything that defines the objective, as plain values for a results file."""
        return {**super().describe(), "mode": self.mode, "of": self.objective.describe()}
