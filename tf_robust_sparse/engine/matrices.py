"""Kernels as the rows that the engine multiplies: lists of offsets and values."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tf_robust_sparse.engine.library import Matrix, address, library

BLOCK = 6
# A block of six filters loads each input once for all of them: from this density on that beats a list for each filter.
BLOCKED_FROM = 0.35
_WORTH_A_THREAD = 300_000  # weights
DIRECTORY = 5  # words per matrix


@dataclasses.dataclass(frozen=True)
class Rows:
    """One matrix of a plan.

    Attributes:
        weights: Name of the node that the kernel, bias, scale and shift come from.
        kind: `kernel` of a convolution, or `scale` of a node that scales channels.
        rows: Number of output channels.
        group: Filters of a kernel that read the same channels.
        transposed: Whether the rows are the channels of the kernel, for the gradient, rather than its filters.
        channel_offset: Floats from one input channel to the next.
        used: For each tap of the kernel 0, or -1 where the matrix leaves it out.
        offset: What each tap adds to the place of an input.
        scaled: Names of the nodes whose scale and shift the kernel takes up.
        part: Input channels of which a tile reads as much as the first-level cache holds; 0 for any number.
    """

    weights: str
    kind: str
    rows: int
    group: int = 1
    transposed: bool = False
    channel_offset: int = 0
    used: tuple[int, ...] = ()
    offset: tuple[int, ...] = ()
    scaled: tuple[str, ...] = ()
    part: int = 0


class Packer:
    """Packs weights, of the same shapes each time.

    Args:
        matrices: Of a plan.
        weights: Kernel `(height, width, channels, filters)` and bias `(filters,)` or `None` of each convolution, scale
            and shift `(channels,)` of each node that scales; here for their shapes alone.
    """

    def __init__(self, matrices: Sequence[Rows], weights: Mapping[str, Sequence[Any]]) -> None:
        self._names = list(dict.fromkeys(name for rows in matrices for name in (rows.weights, *rows.scaled)))
        numbers = {name: number for number, name in enumerate(self._names)}
        self._table = (Matrix * len(matrices))()
        self._parts: list[np.ndarray] = []  # what the table points to
        counts: dict[str, int] = {}  # where those of each kernel begin
        taps = 0
        for rows, matrix in zip(matrices, self._table, strict=True):
            matrix.node, matrix.rows = numbers[rows.weights], rows.rows
            if rows.kind == "scale":
                continue
            *window, matrix.channels, matrix.filters = weights[rows.weights][0].shape
            matrix.taps = math.prod(window)
            matrix.is_first = rows.weights not in counts
            matrix.counts = counts.setdefault(rows.weights, taps)
            taps += matrix.taps if matrix.is_first else 0
            matrix.group, matrix.transposed = rows.group, rows.transposed
            matrix.channel_offset, matrix.part, matrix.scaled = rows.channel_offset, rows.part, len(rows.scaled)
            parts = [np.array([numbers[name] for name in rows.scaled], np.int64)]
            parts += [np.array(each, np.int32) for each in (rows.used, rows.offset)]
            matrix.by, matrix.used, matrix.offset = map(address, parts)
            self._parts += parts
        self._counts = taps

    def __call__(self, weights: Mapping[str, Sequence[Any]], threads: int = 1) -> np.ndarray:
        """Returns all matrices as one array of words, a directory first.

        Equal weights give equal words: whether a kernel becomes lists or blocks depends on the number of its entries
        alone.

        Args:
            weights: As above, float32.
            threads: How many share the work.
        """
        arrays = [
            None if each is None else np.ascontiguousarray(each, np.float32)
            for name in self._names
            for each in weights[name]
        ]
        threads = min(threads, 1 + sum(each.size for each in arrays if each is not None) // _WORTH_A_THREAD)
        pointers = np.array([0 if each is None else address(each) for each in arrays], np.uintp)
        counts, directory = np.empty(self._counts, np.int64), np.empty(DIRECTORY * len(self._table), np.int32)
        given = (self._table, len(self._table), address(pointers), address(counts))
        words = np.zeros(library().trs_layout(*given, BLOCKED_FROM, threads, address(directory)), np.int32)
        words[: len(directory)] = directory
        if library().trs_pack(*given, threads, address(words)):
            raise MemoryError("There is not enough memory to pack the kernels of the network")
        return words


def is_blocked(group: int, count: int, shape: tuple[int, ...]) -> bool:
    """Returns whether a kernel becomes blocks of rows rather than a list for each; fewer filters do not fill a block.

    Args:
        group: Filters that read the same channels; several groups have no inputs in common for a block to load once.
        count: Entries that are not 0.
        shape: Of the kernel, filters last.
    """
    return BLOCK <= group == shape[-1] and count >= BLOCKED_FROM * math.prod(shape)


def folded(bias: np.ndarray | None, scaled: Sequence[Any]) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Returns what a kernel is multiplied by, channel by channel, and the bias that remains."""
    scale = None
    for factor, shift in scaled:
        scale = np.asarray(factor if scale is None else scale * factor, np.float32)
        bias = shift if bias is None else np.asarray(bias * factor + shift, np.float32)
    return scale, bias
