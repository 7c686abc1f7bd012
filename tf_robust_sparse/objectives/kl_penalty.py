"""An objective with the divergence of variational weights or gates from their prior."""

from typing import Any

import keras
import tensorflow as tf

from tf_robust_sparse.layers.beta_bernoulli import prior_divergence
from tf_robust_sparse.objectives.objective import Losses, Objective, ObjectiveAround


class KLPenalty(ObjectiveAround):
    """`objective + strength * KL(posterior || prior)`, summed over all layers that have a `kl_divergence`.

    Args:
        objective: The objective that this one adds to.
        strength: At least 0; `1 / number of training images` makes the loss a bound on the evidence.

    Raises:
        ValueError: if `objective` is not an objective, or `strength` is negative; when used, if the network has no such
            layer.

    Reference: [Blundell et al., 2015](https://arxiv.org/abs/1505.05424), section 3.
    """

    def __init__(self, objective: Objective, strength: float) -> None:
        super().__init__(objective)
        if not 0 <= strength < float("inf"):
            raise ValueError(f"`strength` of the divergence must be at least 0. Received: strength={strength!r}")
        self.strength = float(strength)

    def loss(self, network: keras.Model, x: tf.Tensor, y: tf.Tensor, x_adv: tf.Tensor) -> Losses:
        """Returns losses `(batch,)` with the divergence added to each, and the logits of the objective."""
        per_example, logits, logits_adv = Losses(*self.objective.loss(network, x, y, x_adv))
        return Losses(per_example + self._own_penalty(network), logits, logits_adv)

    def penalty(self, network: keras.Model) -> tf.Tensor:
        """Returns this penalty plus that of the objective."""
        return super().penalty(network) + self._own_penalty(network)

    def _own_penalty(self, network: keras.Model) -> tf.Tensor:
        return self.strength * prior_divergence(network)

    def describe(self) -> dict[str, Any]:
        """Returns everything that defines the objective, as plain values for a results file."""
        return {**super().describe(), "strength": self.strength, "penalised": self.objective.describe()}
