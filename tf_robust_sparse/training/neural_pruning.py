"""Training of gates and weights at once, each for a loss of its own."""

from typing import Any

import keras
import tensorflow as tf

from tf_robust_sparse import layers
from tf_robust_sparse.attacks import cross_entropy
from tf_robust_sparse.objectives import Objective
from tf_robust_sparse.objectives.terms import collected_terms
from tf_robust_sparse.training.replica_part import replica_part
from tf_robust_sparse.training.robust_model import RobustModel


class NeuralPruningModel(RobustModel):
    """Trains the weights of a network with gates under `objective`, and its gates for what withstands the attack.

    Gates follow the gradient of the cross-entropy of the attacked images and of the divergence from their prior, all
    other weights that of `objective`, both taken at the same point. Where nothing is attacked, gates follow the
    objective too. The forward passes are shared. Compile with a `GatedAdam` for two learning
    rates.

    Args:
        network: `keras.Model` from images in [0, 1] to logits, with `BetaBernoulliDropout` layers.
        objective: An `Objective` of `tf_robust_sparse.objectives`.
        divergence_weight: Weight of the divergence of the gates, summed over all of them, beside the mean loss of an
            image: the published `beta / number of training images`.
        **kwargs: As of `RobustModel`.

    Raises:
        ValueError: if the network has no gates, or an argument is of the wrong kind or range.

    Reference: [Madaan et al., 2020](https://arxiv.org/abs/1908.04355), section 4.
    """

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

    def train_step(self, data):
        """Does one optimisation step; see the class."""
        part = replica_part(*self._batch(data))
        x, y = part.x, part.y
        seed = self._step_seed()
        objective = self.objective.at_step(tf.convert_to_tensor(self.optimizer.iterations), seed)
        with tf.GradientTape(persistent=True) as tape, layers.settled_kernels(self.network):
            with tape.stop_recording(), self._inference_kernels():
                x_adv = objective.perturb(self.network, x, y, seed=seed)
            with self._training_noise(seed), collected_terms() as terms, self._layer_losses() as added:
                results = objective.losses(self.network, x, y, x_adv)
            per_example, logits, logits_adv = (part.counted(each) for each in results)
            x, y = part.counted(x), part.counted(y)
            divergence = self.divergence_weight * layers.prior_divergence(self.network)
            of_gates = per_example if logits_adv is None else cross_entropy(y, logits_adv)
            gate_loss = self._scaled_loss(of_gates + divergence, added, part.total)
            loss = self._scaled_loss(per_example, added, part.total)  # without the divergence: no weight of it
            sources = self._dense_sources()
        gates = {id(variable) for layer in layers.gates(self.network) for variable in layer.trainable_variables}
        weights = self.network.trainable_variables
        gated = [variable for variable in weights if id(variable) in gates]
        others = [variable for variable in weights if id(variable) not in gates]
        gradients = {id(variable): each for variable, each in zip(gated, tape.gradient(gate_loss, gated), strict=True)}
        gradients |= {id(variable): each for variable, each in zip(others, tape.gradient(loss, others), strict=True)}
        found = [*(gradients[id(variable)] for variable in weights), *tape.gradient(loss, sources)]
        del tape
        self._update(found, weights, sources)
        terms |= self._terms_of(y, logits, logits_adv)
        per_example = added.onto(per_example + divergence)
        return self._training_logs(self._record_step(per_example, x, y, logits, logits_adv), terms)
