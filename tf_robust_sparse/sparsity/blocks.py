"""Block sparsity: a block of a kernel, which a processor reads in one load, stays or goes as a whole."""

import math
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_robust_sparse.sparsity import schedules
from tf_robust_sparse.sparsity.kernel_views import kernel_view, why_no_view
from tf_robust_sparse.sparsity.magnitude import MagnitudePruning
from tf_robust_sparse.sparsity.prunable import Prunable

POOLINGS = ("mean", "max")


class BlockPruning(MagnitudePruning):
    """Keeps the blocks of each kernel whose entries are largest, at once or gradually; a pruned block stays pruned.

    A block is `rows` consecutive inputs by `columns` consecutive outputs, at one position of a convolution; the entries
    of a `(1, 16)` block are adjacent in memory. `int(blocks * connectivity)` blocks stay, in each kernel or in all
    together. Ties go to the first block in memory order. Kernels whose sides are no multiples of the block stay dense.

    ```python
    report = trs.sparsify(model, connectivity=0.1, sparsifier=trs.sparsity.BlockPruning(block=(1, 16)))
    ```

    Args:
        connectivity: Fraction of the blocks kept at the end, in (0, 1]; `None` leaves it to `trs.sparsify`.
        block: Rows and columns, each at least 1.
        pooling: How blocks are ranked: by the `"mean"` of their absolute entries or by the largest one (`"max"`).
        schedule: See `MagnitudePruning`.
        allocation: See `MagnitudePruning`.

    Raises:
        ValueError: if an argument is out of its range.

    Reference: [Narang et al., 2017](https://arxiv.org/abs/1711.02782), section 3, which takes the largest entry;
        [Lee et al., 2023](https://arxiv.org/abs/2304.14082) for both poolings.
    """

    def __init__(
        self,
        connectivity: float | None = None,
        block: Sequence[int] = (1, 16),
        pooling: str = "mean",
        schedule: schedules.Schedule | None = None,
        allocation: str = "uniform",
    ) -> None:
        super().__init__(connectivity, schedule, allocation)
        sides = tuple(block) if isinstance(block, Sequence) else ()
        if len(sides) != 2 or not all(type(side) is int and side >= 1 for side in sides):
            raise ValueError(f"`block` must be a pair, such as (1, 16) for 16 outputs. Received: block={block!r}")
        if pooling not in POOLINGS:
            raise ValueError(f"`pooling` must be one of {', '.join(POOLINGS)}. Received: pooling={pooling!r}")
        self.block: tuple[int, int] = (sides[0], sides[1])
        self.pooling = pooling

    def misfit(self, kernel: Prunable) -> str | None:
        """Returns why blocks do not fit a kernel, or `None` if they do."""
        reason = why_no_view(kernel)
        if reason:
            return reason
        rows, columns = self.block
        _, inputs, outputs = kernel_view(kernel).shape
        if inputs % rows or outputs % columns:
            return f"its {inputs} inputs by {outputs} outputs are no multiple of blocks of {rows} by {columns}"
        return None

    def prepare(self, network: keras.Model) -> None:
        """Counts the blocks that stay.

        Raises:
            ValueError: if no block of a kernel stays.
        """
        area = math.prod(self.block)
        blocks = [size // area for size in self.sizes]
        names = [kernel.name for kernel in self.kernels]
        totals = dict(zip(names, blocks, strict=True)) if self.allocation == "uniform" else {"all kernels": sum(blocks)}
        counts = [int(total * self.connectivity) for total in totals.values()]
        if not all(counts):
            name, total = min(totals.items(), key=lambda item: item[1])
            raise ValueError(
                f"`connectivity` leaves none of the {total} blocks of {name}; pass at least {1 / total:.2g}. "
                f"Received: connectivity={self.connectivity}"
            )
        self.budget = area * sum(counts)

    def scores(self, kernel: Prunable) -> tf.Tensor:
        """Returns the score of each block, `(positions, blocks of inputs, blocks of outputs)`; the largest stay."""
        pool = tf.reduce_mean if self.pooling == "mean" else tf.reduce_max
        return pool(self._blocks(kernel, super().scores(kernel)), (2, 4))

    def spread(self, kernel: Prunable, mask: tf.Tensor) -> tf.Tensor:
        """Expands a mask of blocks to the mask of the kernel."""
        view = kernel_view(kernel)
        rows, columns = self.block
        entries = tf.repeat(tf.repeat(mask, rows, 1), columns, 2)
        return view.to_kernel(tf.reshape(entries, view.shape))

    def check(self, network: keras.Model) -> None:
        """Checks that blocks stay or go as a whole and that masked-out entries are 0.

        Raises:
            RuntimeError: if they do not.
        """
        super().check(network)
        for kernel in self.kernels:
            kept = self._blocks(kernel, tf.convert_to_tensor(kernel.mask))
            broken = tf.reduce_any(kept, (2, 4)) & ~tf.reduce_all(kept, (2, 4))
            if tf.reduce_any(broken):
                number = int(tf.math.count_nonzero(broken))
                raise RuntimeError(f"{number} blocks of {kernel.name} are neither kept nor pruned as a whole.")

    def describe(self) -> dict[str, Any]:
        """Returns the name and the settings, ready for JSON."""
        return {**super().describe(), "block": list(self.block), "pooling": self.pooling}

    def _blocks(self, kernel: Prunable, values: tf.Tensor) -> tf.Tensor:
        """Returns values of a kernel as `(positions, blocks of inputs, rows, blocks of outputs, columns)`."""
        view = kernel_view(kernel)
        rows, columns = self.block
        positions, inputs, outputs = view.shape
        shape = (positions, inputs // rows, rows, outputs // columns, columns)
        return tf.reshape(view.to_matrices(values), shape)
