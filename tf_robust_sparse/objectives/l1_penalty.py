"""An objective with a penalty on the weights that are connected."""

from typing import Any

import keras
import tensorflow as tf

from tf_robust_sparse import layers
from tf_robust_sparse.layers.kernel_seam import kernel_l1
from tf_robust_sparse.objectives.objective import Losses, Objective, ObjectiveAround


class L1Penalty(ObjectiveAround):
    """`objective + strength * sum(abs(effective kernel))` over all kernels.

    The penalty is on the effective kernel, so a pruned entry neither counts nor gets a gradient.

    Args:
        objective: The objective that the penalty is added to.
        strength: At least 0.

    Raises:
        ValueError: if `objective` is not an objective, or `strength` is negative.
    """

    def __init__(self, objective: Objective, strength: float) -> None:
        super().__init__(objective)
        if not 0 <= strength < float("inf"):
            raise ValueError(f"`strength` of the penalty must be at least 0. Received: strength={strength!r}")
        self.strength = float(strength)

    def loss(self, network: keras.Model, x: tf.Tensor, y: tf.Tensor, x_adv: tf.Tensor) -> Losses:
        """Returns losses `(batch,)` with the penalty added to each, and the logits of the objective."""
        per_example, logits, logits_adv = Losses(*self.objective.loss(network, x, y, x_adv))
        penalty = self._own_penalty(network)
        if penalty.shape.rank:  # several networks in a stack: each has its own part of the batch
            penalty = tf.repeat(penalty, tf.shape(per_example)[0] // penalty.shape[0])
        return Losses(per_example + penalty, logits, logits_adv)

    def penalty(self, network: keras.Model) -> tf.Tensor:
        """Returns this penalty plus that of the objective: a scalar, or one number for each network of a stack."""
        return super().penalty(network) + self._own_penalty(network)

    def _own_penalty(self, network: keras.Model) -> tf.Tensor:
        return self.strength * tf.add_n([kernel_l1(layer) for layer in layers.kernel_layers(network)])

    def describe(self) -> dict[str, Any]:
        """Returns everything that defines the objective, as plain values for a results file."""
        return {**super().describe(), "strength": self.strength, "penalised": self.objective.describe()}
