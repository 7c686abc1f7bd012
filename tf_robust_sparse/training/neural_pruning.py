"""Joint training of gates and weights, each with a loss of its own."""

from typing import Any

import keras
import tensorflow as tf

from tf_robust_sparse import layers
from tf_robust_sparse.attacks import cross_entropy
from tf_robust_sparse.layers.beta_bernoulli import prior_divergence
from tf_robust_sparse.objectives import Losses, Objective
from tf_robust_sparse.training.robust_model import RobustModel
from tf_robust_sparse.training.step_data import Step


class NeuralPruningModel(RobustModel):
    """Trains the weights of a network under `objective`, and its gates on the attacked images.

    Gates follow the gradient of the cross entropy of the attacked images plus the divergence from their prior. All
    other weights follow the gradient of `objective`, at the same point and from the same forward passes. Without
    attacked images the gates follow the objective too. Compile with a `GatedAdam` for two learning rates.

    Args:
        network: `keras.Model` from images in [0, 1] to logits, with `BetaBernoulliDropout` layers.
        objective: An `Objective` of `tf_robust_sparse.objectives`.
        divergence_weight: Weight of the divergence, summed over all gates, relative to the mean loss of an image; the
            published `beta / number of training images`.
        **kwargs: See `RobustModel`.

    Raises:
        ValueError: if the network has no gates, or an argument is of the wrong kind or range.

    Reference: [Madaan et al., 2020](https://arxiv.org/abs/1908.04355), section 4.
    """

    _several_targets = True

    def __init__(self, network: keras.Model, objective: Objective, divergence_weight: float, **kwargs: Any) -> None:
        super().__init__(network, objective, **kwargs)
        if not 0 <= divergence_weight < float("inf"):
            raise ValueError(
                "`divergence_weight` is beta divided by the number of training images, at least 0. "
                f"Received: divergence_weight={divergence_weight!r}"
            )
        if not layers.gates(network):
            raise ValueError(
                "`network` must have gates; build it with gates=True, or put layers.BetaBernoulliDropout after its "
                f"layers. Received: {network.name}"
            )
        self.divergence_weight = float(divergence_weight)

    def _objective_losses(self, step: Step) -> Losses:
        """Returns the losses plus the divergence, without its gradient: it is only logged."""
        losses = super()._objective_losses(step)
        return losses._replace(per_example=losses.per_example + tf.stop_gradient(self._divergence()))

    def _targets(self, step: Step, losses: Losses) -> list[tuple[tf.Tensor, list[Any]]]:
        """Returns the loss for the weights, and the loss for the gates, each with its variables."""
        gated = {id(variable) for layer in layers.gates(self.network) for variable in layer.trainable_variables}
        weights = self.network.trainable_variables
        y = step.part.counted(step.part.y)
        of_gates = losses.per_example if losses.logits_adv is None else cross_entropy(y, losses.logits_adv)
        return [
            (losses.per_example, [variable for variable in weights if id(variable) not in gated]),
            (of_gates + self._divergence(), [variable for variable in weights if id(variable) in gated]),
        ]

    def _divergence(self) -> tf.Tensor:
        return self.divergence_weight * prior_divergence(self.network)
