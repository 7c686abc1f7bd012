"""Magnitude pruning, at once or gradually: the baseline of every comparison."""

import math
from typing import Any

import keras
import tensorflow as tf

from tf_robust_sparse import layers
from tf_robust_sparse.layers.selection import fast_where
from tf_robust_sparse.sparsity import schedules
from tf_robust_sparse.sparsity.mask_sparsifier import MaskSparsifier
from tf_robust_sparse.sparsity.optimizer_slots import assign_everywhere
from tf_robust_sparse.sparsity.prunable import Prunable


class MagnitudePruning(MaskSparsifier):
    """Keeps the entries of masked kernels with the largest magnitude; a pruned entry stays pruned.

    Pruned entries and their momentum are held at exactly 0.

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

    def __init__(
        self, connectivity: float | None = None, schedule: schedules.Schedule | None = None, allocation: str = "uniform"
    ) -> None:
        super().__init__(connectivity)
        if allocation not in ("uniform", "global"):
            raise ValueError(f'`allocation` must be "uniform" or "global". Received: allocation={allocation!r}')
        self.allocation = allocation
        self.schedule = schedule

    def scores(self, kernel: Prunable) -> tf.Tensor:
        """Returns a score for each entry, or each part, of a kernel; the largest stay, pruned ones score lowest."""
        return fast_where(tf.convert_to_tensor(kernel.mask), tf.abs(tf.convert_to_tensor(kernel.weight)), 0)

    def spread(self, kernel: Prunable, mask: tf.Tensor) -> tf.Tensor:
        """Expands a mask of the scores to the mask of the kernel."""
        return mask

    def start(self) -> None:
        """Prunes at once if there is no schedule."""
        self.prepare(self.network)
        self.masks_change = self.schedule is not None
        if self.schedule is None:
            masks = self._masks(tf.constant(self.connectivity, tf.float64))
            assign_everywhere(list(self._new_masks(masks)))

    def prepare(self, network: keras.Model) -> None:
        """Prepares a subclass for `network`, before anything is pruned."""

    def masks_after(self, step: tf.Tensor, dense: Any) -> list[tf.Tensor]:
        """Returns the masks, pruned further if the schedule says so."""
        if self.schedule is None:
            return self.present_masks()
        should_prune, connectivity = self.schedule(step)
        return tf.cond(should_prune, lambda: self._masks(connectivity), self.present_masks)

    def describe(self) -> dict[str, Any]:
        """Returns the name and the settings, ready for JSON."""
        return {**super().describe(), "allocation": self.allocation, "gradual": self.schedule is not None}

    def _masks(self, connectivity: tf.Tensor) -> list[tf.Tensor]:
        """Returns the masks that keep `int(entries * connectivity)` entries, per kernel or in all."""
        scores = [self.scores(kernel) for kernel in self.kernels]
        sizes = [math.prod(score.shape) for score in scores]
        if self.allocation == "uniform":
            masks = [
                layers.largest_mask(score, self._number(size, connectivity))
                for score, size in zip(scores, sizes, strict=True)
            ]
        else:
            flat = tf.concat([tf.reshape(score, (-1,)) for score in scores], 0)
            parts = tf.split(layers.largest_mask(flat, self._number(sum(sizes), connectivity)), sizes)
            masks = [tf.reshape(part, score.shape) for part, score in zip(parts, scores, strict=True)]
        return [self.spread(kernel, mask) for kernel, mask in zip(self.kernels, masks, strict=True)]

    def _number(self, size: int, connectivity: tf.Tensor) -> tf.Tensor:
        """Returns how many of `size` entries are kept, exactly `int(size * target)` once the target is reached."""
        # Schedules compute sparsity in float32, where 1 - 0.9 is off by 1e-8: several entries of a large kernel.
        at_target = tf.abs(connectivity - self.connectivity) < 1e-6
        kept = tf.cast(tf.math.floor(size * connectivity), tf.int64)
        return tf.where(at_target, tf.constant(int(size * self.connectivity), tf.int64), kept)
