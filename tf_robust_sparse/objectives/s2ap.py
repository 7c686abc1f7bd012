"""Score-space sharpness: the loss at the worst scores nearby."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_robust_sparse.layers.kernel_seam import replaced_kernels
from tf_robust_sparse.objectives.objective import Objective
from tf_robust_sparse.objectives.worst_weights import AtWorstWeights
from tf_robust_sparse.sparsity.scores import scored_layers


class S2AP(AtWorstWeights):
    """Another objective at scores that are moved, layer by layer, to where its loss is larger (S2AP).

    It is AWP for the scores that choose connections. After the attack, the scores `s` of each kernel with the gradient
    `g` of the loss are moved by `gamma * |s| * g / |g|`, both norms over the layer, and the mask follows. The gradient
    at that place updates `s` itself. So a mask is learned that depends less on small changes of the scores; it costs
    one forward and one backward pass. The scores themselves do not move, and the extra pass leaves the moving
    statistics of batch norm as they are.

        trs.training.Phase("prune").begin(network)
        model = trs.RobustModel(network, objectives.S2AP(objectives.TRADES(attack), gamma=0.05))

    Args:
        objective: The other one, such as `TRADES(attack)`.
        gamma: Length of the move as a share of the length of the scores, at least 0.

    Raises:
        ValueError: if `objective` is none or itself moves weights, or `gamma` is negative.

    Reference: [Piras et al., 2025](https://arxiv.org/abs/2510.18381), section 3.
    """

    def __init__(self, objective: Objective, gamma: float = 0.05) -> None:
        super().__init__(objective, gamma)

    def targets(self, network: keras.Model) -> list[Any]:
        """Returns the layers whose scores train."""
        found = [layer for layer in scored_layers(network) if layer.scores.trainable and not layer.frozen]
        if not found:
            raise ValueError(
                "S2AP moves the scores of kernels, and the network has none that are trained; leave S2AP out, or build "
                f'the network with kernel="subnet" and begin a prune phase. Received: {network.name}'
            )
        return found

    def values(self, targets: Sequence[Any]) -> list[tf.Tensor]:
        """Returns the scores."""
        return [tf.convert_to_tensor(layer.scores) for layer in targets]

    def placed(self, targets: Sequence[Any], sources: Sequence[Any]) -> contextlib.AbstractContextManager[None]:
        """Computes the effective kernels from the scores."""
        pairs = zip(targets, sources, strict=True)
        return replaced_kernels([(layer, layer.kernel_at(scores)) for layer, scores in pairs])

    def weight_offsets(self, network: keras.Model, loss: Callable[[], tf.Tensor]) -> Sequence[tuple[Any, tf.Tensor]]:
        """Scores with the moves that raise the loss most."""
        return [(layer.scores, move) for layer, move in super().weight_offsets(network, loss)]
