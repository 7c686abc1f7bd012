"""Pruning of whole channels and units by magnitude; `shrink` then makes a smaller network."""

from typing import Any

import keras
import tensorflow as tf

from tf_robust_sparse import layers
from tf_robust_sparse.layers.topology import chains, last_layers
from tf_robust_sparse.sparsity import schedules
from tf_robust_sparse.sparsity.kernel_views import TRANSPOSED, kernel_view, why_no_view
from tf_robust_sparse.sparsity.magnitude import MagnitudePruning
from tf_robust_sparse.sparsity.prunable import DEPTHWISE, Prunable, kernel_owners, sublayers

CRITERIA = ("kernel", "batch_norm")
_WITH_CHANNELS = (
    layers.KernelLayer,
    *(keras.layers.Dense, keras.layers.EinsumDense, *TRANSPOSED),
    *(keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D),
    *(keras.layers.SeparableConv1D, keras.layers.SeparableConv2D),
)


class ChannelMagnitudePruning(MagnitudePruning):
    """Keeps the channels and units with the largest kernels or batch norm scales; a pruned channel stays pruned.

    A pruned channel has no connections. Its bias or batch norm makes it a constant, which `shrink` moves into later
    layers. The last kernel keeps all its units, the logits; every other kernel keeps at least one. `trs.sparsify` takes
    the kernels of dense layers and convolutions of any model, but depthwise ones, whose channels go with their inputs.

    Args:
        connectivity: Fraction of the channels and units kept at the end, in (0, 1]; not of the kernel entries.
        schedule: See `MagnitudePruning`; `None` prunes once, before the first update.
        allocation: `"uniform"` keeps the same fraction of each kernel's channels, `"global"` the largest of all
            kernels together.
        criterion: `"kernel"` compares the mean absolute value of the entries of each channel; `"batch_norm"` compares
            the absolute scales of the batch norm that follows, and leaves kernels without one dense.

    Raises:
        ValueError: if `connectivity` is outside (0, 1], or `allocation` or `criterion` unknown.

    Reference: [Li et al., 2017](https://arxiv.org/abs/1608.08710), section 3;
        [Liu et al., 2017](https://arxiv.org/abs/1708.06519), section 3, for batch norm scales.
    """

    def __init__(
        self,
        connectivity: float | None = None,
        schedule: schedules.Schedule | None = None,
        allocation: str = "uniform",
        criterion: str = "kernel",
    ) -> None:
        super().__init__(connectivity, schedule, allocation)
        if criterion not in CRITERIA:
            raise ValueError(f"`criterion` must be one of {', '.join(CRITERIA)}. Received: criterion={criterion!r}")
        self.criterion = criterion
        self.units: list[int] = []
        self._last: set[int] = set()  # layers whose outputs are those of the model, by `id`
        self._scales: dict[int, Any] = {}  # by layer number

    def misfit(self, kernel: Prunable) -> str | None:
        """Returns why a kernel has no channels to prune, or `None` if it has."""
        if isinstance(kernel.layer, _WITH_CHANNELS):
            return why_no_view(kernel)
        return f"the outputs of a {type(kernel.layer).__name__} are not known to be channels"

    def prepare(self, network: keras.Model) -> None:
        """Finds the channels that may be pruned.

        Raises:
            ValueError: if there are none.
        """
        owners = {id(layer) for layer in kernel_owners(network) if not isinstance(layer, DEPTHWISE)}
        self._last = {id(layer) for layer in last_layers(network, owners)}
        models = [layer for layer in sublayers(network) if isinstance(layer, keras.Model)]
        followers = {id(layer): follower for model in models for layer, follower in chains(model)}
        self._scales = {
            number: follower.gamma
            for number, layer in enumerate(self.layers)
            if isinstance(follower := followers.get(id(layer)), keras.layers.BatchNormalization) and follower.scale
        }
        self.units = [kernel_view(each).shape[2] if self._is_pruned(n) else 0 for n, each in enumerate(self.kernels)]
        if not any(self.units):
            raise ValueError(
                'No kernel but the last is pruned, and with criterion="batch_norm" those alone that a batch norm with '
                f"a scale follows. Received: criterion={self.criterion!r} and the layers "
                f"{', '.join(layer.name for layer in self.layers)}"
            )
        # An upper bound of the entries that stay: how many depends on which channels the global ranking keeps.
        self.budget = sum(
            size // units * max(1, int(units * self.connectivity)) if units and self.allocation == "uniform" else size
            for size, units in zip(self.sizes, self.units, strict=True)
        )

    def scores(self, kernel: Prunable) -> tf.Tensor:
        """Returns the score of each channel of a kernel, `(channels,)`; below 0 for pruned channels."""
        view = kernel_view(kernel)
        scale = self._scales.get(self.kernels.index(kernel)) if self.criterion == "batch_norm" else None
        size = tf.reduce_mean(view.to_matrices(super().scores(kernel)), (0, 1)) if scale is None else tf.abs(scale)
        return tf.where(tf.reduce_any(view.to_matrices(tf.convert_to_tensor(kernel.mask)), (0, 1)), size, -1.0)

    def within_budget(self) -> bool:
        """Returns whether the network has at most the channels that the final connectivity allows."""
        left = [
            int(tf.reduce_sum(tf.cast(self.scores(kernel) >= 0, tf.int32)))
            for kernel, units in zip(self.kernels, self.units, strict=True)
            if units
        ]
        pruned = [units for units in self.units if units]
        if self.allocation == "global":
            return sum(left) <= max(len(pruned), int(sum(pruned) * self.connectivity))
        return all(a <= max(1, int(b * self.connectivity)) for a, b in zip(left, pruned, strict=True))

    def describe(self) -> dict[str, Any]:
        """Returns the name and the settings, ready for JSON."""
        return {**super().describe(), "criterion": self.criterion}

    def _is_pruned(self, number: int) -> bool:
        return id(self.layers[number]) not in self._last and (self.criterion == "kernel" or number in self._scales)

    def _masks(self, connectivity: tf.Tensor) -> list[tf.Tensor]:
        """Returns the masks that keep `int(units * connectivity)` channels, at least one, per kernel or in all."""
        scores = [self.scores(kernel) for kernel, units in zip(self.kernels, self.units, strict=True) if units]
        if self.allocation == "uniform":
            kept = [
                layers.largest_mask(each, tf.maximum(self._number(each.shape[0], connectivity), 1)) for each in scores
            ]
        else:
            # The best channel of each kernel ranks above all others, so no kernel becomes empty.
            best = [
                tf.where(tf.range(each.shape[0]) == tf.argmax(each, output_type=tf.int32), 1e30, each)
                for each in scores
            ]
            number = tf.maximum(self._number(sum(self.units), connectivity), len(best))
            kept = tf.split(layers.largest_mask(tf.concat(best, 0), number), [each.shape[0] for each in best])
        channels = iter(kept)
        return [
            _columns(kernel, next(channels)) if units else tf.convert_to_tensor(kernel.mask)
            for kernel, units in zip(self.kernels, self.units, strict=True)
        ]


def _columns(kernel: Prunable, channels: tf.Tensor) -> tf.Tensor:
    """Returns the mask of a kernel all of whose entries of some channels exist."""
    view = kernel_view(kernel)
    return view.to_kernel(tf.broadcast_to(channels, view.shape))
