"""Adversarial weight perturbation: the loss at the worst weights nearby."""

from collections.abc import Callable, Sequence
from typing import Any, Self

import keras
import tensorflow as tf

from tf_robust_sparse import layers
from tf_robust_sparse.layers.kernel_seam import effective_kernel, moved_kernels
from tf_robust_sparse.layers.normalization import kept_statistics
from tf_robust_sparse.layers.selection import fast_where
from tf_robust_sparse.objectives.objective import Objective, ObjectiveAround, Seed

_TINY = 1e-20  # as in the published code


class AWP(ObjectiveAround):
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
        super().__init__(objective)
        if not 0 <= gamma < float("inf"):
            raise ValueError(f"`gamma` must be at least 0, such as 0.01. Received: gamma={gamma!r}")
        if not (isinstance(start_step, int) and start_step >= 0):
            raise ValueError(f"`start_step` is a number of training steps. Received: start_step={start_step!r}")
        self.gamma = float(gamma)
        self.start_step = start_step
        self._begun: tf.Tensor | None = None

    def at_step(self, step: tf.Tensor, seed: Seed = None) -> Self:
        """Returns the objective with its schedules evaluated at `step`."""
        now = super().at_step(step, seed)
        now._begun = step >= self.start_step if self.start_step else None
        return now

    def weight_offsets(self, network: keras.Model, loss: Callable[[], tf.Tensor]) -> Sequence[tuple[Any, tf.Tensor]]:
        """Kernel layers and variables with the moves that raise the loss most."""
        if not self.gamma:
            return []
        held = [layer for layer in layers.kernel_layers(network) if not layer.frozen]
        own = {id(each) for layer in layers.kernel_layers(network) for each in layer.weights}
        others = [each for each in network.trainable_variables if len(each.shape) > 1 and id(each) not in own]
        moved = [*held, *others]
        if not moved:
            raise ValueError(
                "AWP moves kernels, and the network has none that are trained; leave AWP out, or unfreeze a layer. "
                f"Received: {network.name}"
            )
        weights = [*map(effective_kernel, held), *map(tf.convert_to_tensor, others)]
        if self._begun is None:
            offsets = self._offsets(network, loss, held, others, weights)
        else:
            offsets = tf.cond(
                self._begun,
                lambda: self._offsets(network, loss, held, others, weights),
                lambda: [tf.zeros_like(weight) for weight in weights],
            )
        return list(zip(moved, offsets, strict=True))

    def _offsets(
        self,
        network: keras.Model,
        loss: Callable[[], tf.Tensor],
        held: Sequence[Any],
        others: Sequence[Any],
        weights: Sequence[tf.Tensor],
    ) -> list[tf.Tensor]:
        zeros = [tf.zeros_like(weight) for weight in weights[: len(held)]]
        sources = [*zeros, *(each.value for each in others)]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(sources)
            with kept_statistics(network), moved_kernels(zip(held, zeros, strict=True)):
                value = loss()
        found = tape.gradient(value, sources, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        gradients = [tf.cast(tf.convert_to_tensor(each), tf.float32) for each in found]
        context = tf.distribute.get_replica_context()
        if context is not None and context.num_replicas_in_sync > 1:
            gradients = list(context.all_reduce(tf.distribute.ReduceOp.SUM, gradients))
        signs = [layer.signs_are_fixed for layer in held] + [False] * len(others)
        return [self._move(*each) for each in zip(weights, gradients, signs, strict=True)]

    def _move(self, weight: tf.Tensor, gradient: tf.Tensor, sign_is_fixed: bool) -> tf.Tensor:
        gradient = fast_where(weight != 0, gradient, 0)
        move = self.gamma * tf.norm(weight) * gradient / (tf.norm(gradient) + _TINY)
        return fast_where((weight + move) * weight < 0, -weight, move) if sign_is_fixed else move

    def describe(self) -> dict[str, Any]:
        """Everything that defines the objective, as plain values for a results file."""
        settings = {"gamma": self.gamma, "start_step": self.start_step}
        return {**super().describe(), **settings, "perturbed": self.objective.describe()}
