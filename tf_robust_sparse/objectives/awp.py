"""Adversarial weight perturbation: the loss at the worst weights nearby."""

import contextlib
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_robust_sparse import layers
from tf_robust_sparse.layers.kernel_seam import effective_kernel, moved_kernels
from tf_robust_sparse.layers.selection import fast_where
from tf_robust_sparse.objectives.objective import Objective
from tf_robust_sparse.objectives.worst_weights import AtWorstWeights


class AWP(AtWorstWeights):
    """Another objective at weights that are moved, layer by layer, to where its loss is larger (AWP).

    After the attack, each kernel `w` with the gradient `g` of the loss is moved by `gamma * |w| * g / |g|`, both norms
    over the layer. The gradient at that place updates `w` itself. This flattens the loss around the weights and nearly
    closes the gap between the best and the last epoch; it costs one forward and one backward pass.

    Only connections move: `g` counts where the kernel is not 0, so that pruned entries stay 0. Where signs are fixed
    (connectivity sampling), a connection that would cross zero is moved to 0. Biases and batch norm do not move, and
    the extra pass leaves the moving statistics of batch norm as they are. Kernels of this package are moved in the
    cache, other kernels in their variables, which get their exact values back.

        model = trs.RobustModel(network, objectives.AWP(objectives.AT(attack), gamma=0.01))

    Args:
        objective: The other one, such as `AT(attack)`.
        gamma: Length of the move as a share of the length of the kernel, at least 0; published: 0.01 with AT, 0.005
            with TRADES.
        start_step: Training steps before the first move; published: 0 with AT, those of ten epochs with TRADES.

    Raises:
        ValueError: if `objective` is none or a number is negative.

    Reference: [Wu et al., 2020](https://arxiv.org/abs/2004.05884), section 4.
    """

    def __init__(self, objective: Objective, gamma: float = 0.01, start_step: int = 0) -> None:
        super().__init__(objective, gamma, start_step)

    def targets(self, network: keras.Model) -> list[Any]:
        """Returns the kernel layers, and the variables of several axes that other layers train."""
        held = [layer for layer in layers.kernel_layers(network) if not layer.frozen]
        own = {id(each) for layer in layers.kernel_layers(network) for each in layer.weights}
        others = [each for each in network.trainable_variables if len(each.shape) > 1 and id(each) not in own]
        if not held and not others:
            raise ValueError(
                "AWP moves kernels, and the network has none that are trained; leave AWP out, or unfreeze a layer. "
                f"Received: {network.name}"
            )
        return [*held, *others]

    def values(self, targets: Sequence[Any]) -> list[tf.Tensor]:
        """Returns the effective kernels, and the values of other variables."""
        return [effective_kernel(each) if _is_layer(each) else tf.convert_to_tensor(each) for each in targets]

    def sources(self, targets: Sequence[Any], values: Sequence[tf.Tensor]) -> list[Any]:
        """Returns zeros to add to the effective kernels, and the other variables."""
        pairs = zip(targets, values, strict=True)
        return [tf.zeros_like(value) if _is_layer(each) else each.value for each, value in pairs]

    def placed(self, targets: Sequence[Any], sources: Sequence[Any]) -> contextlib.AbstractContextManager[None]:
        """Adds the zeros to the effective kernels."""
        return moved_kernels([pair for pair in zip(targets, sources, strict=True) if _is_layer(pair[0])])

    def move(self, target: Any, value: tf.Tensor, gradient: tf.Tensor) -> tf.Tensor:
        """Returns the move of the connections of a kernel."""
        move = super().move(target, value, fast_where(value != 0, gradient, 0))
        fixed = _is_layer(target) and target.signs_are_fixed
        return fast_where((value + move) * value < 0, -value, move) if fixed else move

    def describe(self) -> dict[str, Any]:
        """Everything that defines the objective, as plain values for a results file."""
        return {**super().describe(), "start_step": self.start_step}


def _is_layer(target: Any) -> bool:
    return isinstance(target, layers.KernelLayer)
