"""Fractions of each kernel that are learned under a budget for the network (HARP)."""

import logging
from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from tf_robust_sparse.layers.learned_rates import FIRST_FRACTION, LearnedRateKernel
from tf_robust_sparse.sparsity.allocation import layer_counts
from tf_robust_sparse.sparsity.keep_fractions import keep_fractions, set_keep_fractions
from tf_robust_sparse.sparsity.sparsifier import Sparsifier

_LARGEST_FIRST = 0.99  # where a rate begins at most; at 1 it would have no gradient
_log = logging.getLogger(__name__)


def begin_rates(network: keras.Model, connectivity: float = FIRST_FRACTION, allocation: str = "uniform") -> None:
    """Sets the rates with which a network with learned rates begins.

    Args:
        network: A network with kernels `"learned_rate"`.
        connectivity: Fraction of all entries that stays at first, in (0, 1].
        allocation: How they are spread over the kernels, see `keep_fractions`; published are `"uniform"`, `"erk"` and
            `"lamp"`, whatever the budget with a connectivity of 0.1.

    Raises:
        ValueError: if an argument is out of its range or the network has no scores.
    """
    found = keep_fractions(network, connectivity, allocation)
    set_keep_fractions(network, {name: min(fraction, _LARGEST_FIRST) for name, fraction in found.items()})


class LearnedRates(Sparsifier):
    """Learns how many entries of each kernel stay, under a budget for all of them (HARP).

    The loss gets the penalty `g * max(0, kept / budget - 1)`, with `kept` the sum of what the rates of all kernels
    stand for. In epoch `e`, from 0, `g = (e + 1) * gamma`, until an epoch ends at the budget, up to 4 digits; from then
    on `g` is constant, and what is above the budget at the end of an epoch is cut off. Epochs before that do not count
    as best ones. Rates and scores train together; the weights are usually frozen:

        network = trs.models.vgg16(kernel="learned_rate", connectivity=0.01)
        trs.saving.copy_weights(dense_network, network)
        trs.sparsity.scaled_scores(network)
        trs.training.Phase("prune").begin(network)
        model = trs.RobustModel(network, trs.objectives.AT(attack), trs.sparsity.LearnedRates(0.01))

    Args:
        connectivity: The budget as a fraction of all kernel entries, in (0, 1].
        gamma: Weight of the penalty in the first epoch, at least 0; published: 0.01, and 0.1 on ImageNet.

    Raises:
        ValueError: if an argument is out of its range.

    Reference: [Zhao and Wressnegger, 2023](https://arxiv.org/abs/2412.14714), section 3.
    """

    parametrization = "learned_rate"
    penalty_name = "budget"

    def __init__(self, connectivity: float | None = None, gamma: float = 0.01) -> None:
        super().__init__(connectivity)
        if not 0 <= gamma < float("inf"):
            raise ValueError(f"`gamma` is the weight of the penalty, at least 0. Received: gamma={gamma!r}")
        self.gamma = float(gamma)
        self._weight: Any = None
        self._reached_at: Any = None

    def fits(self, layer: Any) -> bool:
        """Returns whether a layer has a rate."""
        return isinstance(layer, LearnedRateKernel)

    def attach(self, network: keras.Model) -> None:
        """Binds the sparsifier to the layers of `network` that have a rate and are not frozen.

        Raises:
            ValueError: as `Sparsifier.attach`, or if the kernels cannot keep as few entries as the budget, or the
                sparsifier belongs to another network.
        """
        if self.network is not None and self.network is not network:
            raise ValueError(
                f"This sparsifier holds the state of {self.network.name}; make a new LearnedRates for each network. "
                f"Received: {network.name}"
            )
        super().attach(network)
        least = sum(layer.least_fraction * size for layer, size in zip(self.layers, self.sizes, strict=True))
        if least >= self.budget:
            raise ValueError(
                f"The kernels keep at least {least / sum(self.sizes):.2g} of their entries, so they cannot reach the "
                "budget; build the network with its connectivity, or a smaller least_fraction. "
                f"Received: connectivity={self.connectivity}"
            )
        if self.network is None:
            self.network = network
            self._weight = self.add_state("weight", (), "float32", keras.initializers.Constant(self.gamma))
            self._reached_at = self.add_state("reached_at", (), "int64")

    @property
    def weight(self) -> float:
        """The present weight `g` of the penalty."""
        return float(tf.convert_to_tensor(self._weight))

    @property
    def reached_at(self) -> int:
        """The epoch, from 1, that ended at the budget first; 0 if none has yet."""
        return int(tf.convert_to_tensor(self._reached_at))

    def excess(self) -> tf.Tensor:
        """Returns by which part of the budget the rates exceed it, at least 0, float32, differentiably."""
        kept = [size * layer.compute_keep_fraction() for size, layer in zip(self.sizes, self.layers, strict=True)]
        return tf.cast(tf.nn.relu(tf.add_n(kept) / (self.connectivity * sum(self.sizes)) - 1), tf.float32)

    def penalty(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the weight and the excess."""
        return tf.convert_to_tensor(self._weight), self.excess()

    def end_epoch(self, epoch: int, logs: Mapping[str, float]) -> None:
        """Raises the weight of the penalty, or finds that the budget is reached."""
        del logs
        if not self.reached_at and round(float(self.excess()), 4) > 0:
            self._weight.assign(self.gamma * (epoch + 2))
            return
        if not self.reached_at:
            self._reached_at.assign(epoch + 1)
        self.settle()

    def settle(self) -> None:
        """Lowers the rates until at most as many entries stay as the budget allows."""
        counts = self.count()
        if sum(counts) <= self.budget:
            return
        if sum(counts) > 1.01 * self.budget and not self.reached_at:
            _log.warning(
                "The rates kept %d entries when training ended and %d are cut off to meet the budget; train for more "
                "epochs, or with a larger gamma.",
                *(sum(counts), sum(counts) - self.budget),
            )
        least = [layer.least_fraction for layer in self.layers]
        above = [layer.keep_fraction - each for layer, each in zip(self.layers, least, strict=True)]
        room = self.budget - sum(each * size for each, size in zip(least, self.sizes, strict=True))
        scale = min(room / sum(each * size for each, size in zip(above, self.sizes, strict=True)), 1.0)
        fractions = [each + scale * more for each, more in zip(least, above, strict=True)]
        for layer, count in zip(self.layers, layer_counts(fractions, self.sizes, self.budget), strict=True):
            layer.keep_at_most(count)
        while sum(counts := self.count()) > self.budget:  # kernels that cannot keep less than they do
            largest = max(range(len(counts)), key=counts.__getitem__)
            self.layers[largest].keep_at_most(counts[largest] + self.budget - sum(counts))

    def count(self) -> list[int]:
        """Returns the present number of entries of each kernel that stay."""
        return [layer.kept for layer in self.layers]

    def describe(self) -> dict[str, Any]:
        """Returns the name, the settings and when the budget was reached, ready for JSON."""
        reached = self.reached_at if self.network is not None else 0
        return {**super().describe(), "gamma": self.gamma, "budget_reached_in_epoch": reached or None}
