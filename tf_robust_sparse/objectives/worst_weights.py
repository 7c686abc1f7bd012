"""The base of objectives that take another objective at the worst weights nearby."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, Self

import keras
import tensorflow as tf

from tf_robust_sparse.layers.normalization import kept_statistics
from tf_robust_sparse.objectives.objective import Objective, ObjectiveAround, Seed

_TINY = 1e-20  # as in the published code


class AtWorstWeights(ObjectiveAround):
    """Another objective at weights that are moved, layer by layer, to where its loss is larger.

    A subclass says what moves (`targets`, `values`), how the loss depends on it (`sources`, `placed`), and may change
    the move.

    Args:
        objective: The other one.
        gamma: Length of each move as a share of the length of what is moved, at least 0.
        start_step: Training steps before the first move.

    Raises:
        ValueError: if `objective` is none or itself moves weights, or a number is negative.
    """

    def __init__(self, objective: Objective, gamma: float, start_step: int = 0) -> None:
        super().__init__(objective)
        while isinstance(objective, ObjectiveAround):
            if isinstance(objective, AtWorstWeights):
                raise ValueError(
                    f"Only one objective moves weights; pass {type(self).__name__} the one inside "
                    f"{type(objective).__name__}. Received: objective={type(self.objective).__name__}"
                )
            objective = objective.objective
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

    def targets(self, network: keras.Model) -> list[Any]:
        """Returns what moves: layers or variables.

        Raises:
            ValueError: if the network has none of them.
        """
        raise NotImplementedError

    def values(self, targets: Sequence[Any]) -> list[tf.Tensor]:
        """Returns the present value of each target, float32."""
        raise NotImplementedError

    def sources(self, targets: Sequence[Any], values: Sequence[tf.Tensor]) -> list[Any]:
        """Returns the tensors or variables by which the loss is differentiated, one for each target."""
        del targets
        return list(values)

    def placed(self, targets: Sequence[Any], sources: Sequence[Any]) -> contextlib.AbstractContextManager[None]:
        """Returns a context in which the loss depends on the sources."""
        raise NotImplementedError

    def move(self, target: Any, value: tf.Tensor, gradient: tf.Tensor) -> tf.Tensor:
        """Returns what is added to a value: `gamma * |value| * gradient / |gradient|`, or 0 without a gradient."""
        del target
        return self.gamma * tf.norm(value) * gradient / (tf.norm(gradient) + _TINY)

    def weight_offsets(self, network: keras.Model, loss: Callable[[], tf.Tensor]) -> Sequence[tuple[Any, tf.Tensor]]:
        """Targets with the moves that raise the loss most."""
        if not self.gamma:
            return []
        targets = self.targets(network)
        values = self.values(targets)
        if self._begun is None:
            offsets = self._offsets(network, loss, targets, values)
        elif _replicas() > 1:  # gradients are summed over them, which is not possible in a branch
            offsets = self._offsets(network, loss, targets, values)
            offsets = [tf.where(self._begun, each, tf.zeros_like(each)) for each in offsets]
        else:
            offsets = tf.cond(
                self._begun,
                lambda: self._offsets(network, loss, targets, values),
                lambda: [tf.zeros_like(value) for value in values],
            )
        return list(zip(targets, offsets, strict=True))

    def describe(self) -> dict[str, Any]:
        """Everything that defines the objective, as plain values for a results file."""
        return {**super().describe(), "gamma": self.gamma, "perturbed": self.objective.describe()}

    def _offsets(
        self, network: keras.Model, loss: Callable[[], tf.Tensor], targets: Sequence[Any], values: Sequence[tf.Tensor]
    ) -> list[tf.Tensor]:
        sources = self.sources(targets, values)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(sources)
            with kept_statistics(network), self.placed(targets, sources):
                value = loss()
        found = tape.gradient(value, sources, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        gradients = [tf.cast(tf.convert_to_tensor(each), tf.float32) for each in found]
        if _replicas() > 1:
            gradients = list(tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, gradients))
        return [self.move(*each) for each in zip(targets, values, gradients, strict=True)]


def _replicas() -> int:
    context = tf.distribute.get_replica_context()
    return 1 if context is None else context.num_replicas_in_sync
