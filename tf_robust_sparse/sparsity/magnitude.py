"""Magnitude pruning, at once or gradually: the baseline of every comparison."""

from typing import Any

import keras
import tensorflow as tf

from tf_robust_sparse import layers
from tf_robust_sparse.sparsity import schedules
from tf_robust_sparse.sparsity.masks import top_k_mask
from tf_robust_sparse.sparsity.optimizer_slots import assign_everywhere, slots
from tf_robust_sparse.sparsity.sparsifier import Sparsifier


class MagnitudePruning(Sparsifier):
    """Keeps the entries of largest magnitude of masked kernels; a pruned entry stays pruned.

    Pruned entries and their momentum are held at exactly 0, so that nothing but the mask can bring them back.

    Args:
        connectivity: Fraction of the kernel entries kept at the end, in (0, 1].
        schedule: A schedule of `tf_robust_sparse.sparsity.schedules`, or any function from the step (int64 scalar) to
            (whether to prune now, connectivity); `None` prunes once, before the first update.
        allocation: `"uniform"` keeps the same fraction of each kernel, `"global"` the largest entries of all kernels
            together.

    Raises:
        ValueError: if `connectivity` is outside (0, 1] or `allocation` unknown.

    Reference: [Han et al., 2015](https://arxiv.org/abs/1506.02626), section 3;
        [Zhu and Gupta, 2017](https://arxiv.org/abs/1710.01878) for gradual schedules.
    """

    needs = ("kernel", "kernel_mask")
    kernel_form = "masked"

    def __init__(
        self, connectivity: float, schedule: schedules.Schedule | None = None, allocation: str = "uniform"
    ) -> None:
        super().__init__(connectivity)
        if allocation not in ("uniform", "global"):
            raise ValueError(f'`allocation` must be "uniform" or "global". Received: allocation={allocation!r}')
        self.allocation = allocation
        self.schedule = schedule

    def scores(self, layer: Any) -> tf.Tensor:
        """Returns how much each entry of the layer's kernel is worth keeping."""
        return tf.abs(layer.compute_effective_kernel())

    def attach(self, network: keras.Model) -> None:
        """Binds the sparsifier to the masked layers of `network`; without a schedule, prunes them at once."""
        super().attach(network)
        self.prepare(network)
        if self.schedule is None:
            assign_everywhere(list(self._pruned(self._masks(tf.constant(self.connectivity, tf.float64)))))

    def prepare(self, network: keras.Model) -> None:
        """Reads what else is needed of `network`, before anything is pruned."""

    def after_update(self, state: Any, optimizer: keras.optimizers.Optimizer) -> None:
        """Prunes if it is time to, then holds pruned entries and their momentum at 0."""
        masks = [tf.convert_to_tensor(layer.kernel_mask) for layer in self.layers]
        if self.schedule is not None:
            # The optimizer has counted this update already; the schedule counts from 0.
            should_prune, connectivity = self.schedule(tf.cast(optimizer.iterations, tf.int64) - 1)
            masks = tf.cond(should_prune, lambda: self._masks(connectivity), lambda: masks)
        updates = list(self._pruned(masks))
        for layer, mask in zip(self.layers, masks, strict=True):
            updates += [
                (slot, layers.select(mask, tf.convert_to_tensor(slot), 0)) for slot in slots(optimizer, layer.kernel)
            ]
        assign_everywhere(updates)

    def check(self, network: keras.Model) -> None:
        """Checks that no kernel entry outside its mask is non-zero.

        Raises:
            RuntimeError: if one is.
        """
        for layer in self.layers:
            stray = int(tf.math.count_nonzero(tf.where(layer.kernel_mask, 0.0, layer.kernel)))
            if stray:
                raise RuntimeError(f"{stray} pruned entries of {layer.name} are not zero although the mask is off.")

    def describe(self) -> dict[str, Any]:
        """Returns the name and the settings, ready for JSON."""
        return {**super().describe(), "allocation": self.allocation, "gradual": self.schedule is not None}

    def _pruned(self, masks: list[tf.Tensor]) -> Any:
        for layer, mask in zip(self.layers, masks, strict=True):
            yield layer.kernel_mask, mask
            yield layer.kernel, layers.select(mask, tf.convert_to_tensor(layer.kernel), 0)

    def _masks(self, connectivity: tf.Tensor) -> list[tf.Tensor]:
        """Returns the masks that keep `int(entries * connectivity)` entries per kernel or in all."""
        scores = [self.scores(layer) for layer in self.layers]
        if self.allocation == "uniform":
            return [
                top_k_mask(score, self._number(size, connectivity))
                for score, size in zip(scores, self.sizes, strict=True)
            ]
        flat = tf.concat([tf.reshape(score, (-1,)) for score in scores], 0)
        mask = top_k_mask(flat, self._number(sum(self.sizes), connectivity))
        parts = tf.split(mask, self.sizes)
        return [tf.reshape(part, score.shape) for part, score in zip(parts, scores, strict=True)]

    def _number(self, size: int, connectivity: tf.Tensor) -> tf.Tensor:
        """Returns how many of `size` entries are kept, exactly `int(size * target)` once the target is reached."""
        # The library computes sparsity in float32: its 1 - 0.9 is off by 1e-8, which is many entries of a large kernel.
        at_target = tf.abs(connectivity - self.connectivity) < 1e-6
        kept = tf.cast(tf.math.floor(size * connectivity), tf.int64)
        return tf.where(at_target, tf.constant(int(size * self.connectivity), tf.int64), kept)
