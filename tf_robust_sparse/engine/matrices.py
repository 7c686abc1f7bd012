"""Kernels as the rows that the engine multiplies: lists of offsets and values."""

import ctypes
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tf_robust_sparse.engine.library import Kernel, Matrix, address, library

BLOCK = 6
# A block of six filters loads each input once for all of them: from this density on that beats a list for each filter.
BLOCKED_FROM = 0.35
_ENTRIES_OF_A_PART = 12  # of a row: fewer are not worth it to store their sum and to load it again
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


class _Entries:
    """A kernel and where it is not 0."""

    def __init__(self, kernel: np.ndarray, group: int) -> None:
        height, width, channels, filters = kernel.shape
        self.values = np.ascontiguousarray(kernel, np.float32)
        self.layout = Kernel(height * width, channels, filters, group)
        self.count = int(library().trs_count(address(self.values), self.values.size))
        self.blocked = is_blocked(group, self.count, kernel.shape)
        self._found: dict[bool, np.ndarray] = {}

    def found(self, by_filter: bool) -> np.ndarray:
        """The entries, in the order of channels or filters: tap, channel, filter and value of each, four words."""
        if by_filter not in self._found:
            self._found[by_filter] = found = np.empty((self.count, 4), np.int32)
            layout = ctypes.byref(self.layout)
            if by_filter:
                before, places = self.found(False), np.empty(self.layout.filters + 1, np.int32)
                library().trs_sort(layout, address(before), self.count, address(places), address(found))
            else:
                library().trs_find(layout, address(self.values), address(found))
        return self._found[by_filter]

    def part(self, rows: Rows) -> int:
        """Input channels that are added before the next ones: some entries of each row."""
        parts = -(-self._inputs(rows) // rows.part) if rows.part else 1
        taps = sum(each >= 0 for each in rows.used) / max(len(rows.used), 1)
        parts = min(parts, int(self.count * taps / (rows.rows * _ENTRIES_OF_A_PART)))
        return -(-self._inputs(rows) // max(parts, 1))

    def parts(self, rows: Rows, part: int) -> int:
        """How many of them there are."""
        return -(-self._inputs(rows) // part)

    def _inputs(self, rows: Rows) -> int:
        layout = self.layout
        return int(layout.filters if rows.transposed else layout.filters // layout.group * layout.channels)


def pack(matrices: Sequence[Rows], weights: Mapping[str, Sequence[Any]]) -> np.ndarray:
    """Returns all matrices of a plan as one array of words, a directory first.

    Equal weights give equal words: whether a kernel becomes lists or blocks depends on the number of its entries alone.

    Args:
        matrices: Of the plan.
        weights: Kernel `(height, width, channels, filters)` and bias `(filters,)` or `None` of each convolution, scale
            and shift `(channels,)` of each node that scales; float32.
    """
    kernels = {
        rows.weights: _Entries(weights[rows.weights][0], rows.group) for rows in matrices if rows.kind == "kernel"
    }
    words = np.zeros(sum(_room(rows, kernels.get(rows.weights)) for rows in matrices), np.int32)
    end = DIRECTORY * len(matrices)
    for number, rows in enumerate(matrices):
        head = words[DIRECTORY * number : DIRECTORY * (number + 1)]
        first, second = weights[rows.weights]
        end += end % 2
        head[:] = (end, 0, 0, 0, 1)
        if rows.kind == "scale":
            end = _write(words, end, first)
            end = _write(words, end, second)
            continue
        kernel = kernels[rows.weights]
        scale, bias = folded(second, [weights[name] for name in rows.scaled])
        used, offset = (np.array(taps, np.int32) for taps in (rows.used, rows.offset))
        part = kernel.part(rows)
        matrix = Matrix(
            *(rows.rows, rows.transposed, rows.channel_offset, part, address(used), address(offset)),
            None if scale is None else address(scale),
        )
        given = (ctypes.byref(kernel.layout), ctypes.byref(matrix))
        if kernel.blocked:
            words[end], head[1] = _columns(rows, kernel), end + 1
            head[3] = end + 1 + _columns(rows, kernel)
            end = int(head[3]) + -(-rows.rows // BLOCK) * BLOCK * _columns(rows, kernel)
            places = address(kernel.values), address(words[head[1] :]), address(words[head[3] :])
            library().trs_pack_blocked(*given, *places)
        else:
            head[4] = kernel.parts(rows, part)
            head[1] = end + ((int(head[4]) * (rows.rows + 1) + 1) & ~1)
            found = kernel.found(rows.transposed)
            end += library().trs_pack_sparse(*given, address(found), len(found), address(words[end:]))
        if not rows.transposed and bias is not None:
            head[2] = end
            end = _write(words, end, bias)
    return words[:end]


def _columns(rows: Rows, kernel: _Entries) -> int:
    taps = sum(each >= 0 for each in rows.used)
    return taps * (kernel.layout.filters if rows.transposed else kernel.layout.channels)


def _room(rows: Rows, kernel: _Entries | None) -> int:
    """Words that a matrix needs at most."""
    room = DIRECTORY + 2 * rows.rows + 8
    if kernel is None:
        return room
    room += kernel.parts(rows, kernel.part(rows)) * (rows.rows + 1)
    blocks = -(-rows.rows // BLOCK)
    return room + ((blocks * BLOCK + 1) * _columns(rows, kernel) if kernel.blocked else 2 * kernel.count)


def is_blocked(group: int, count: int, shape: tuple[int, ...]) -> bool:
    """Returns whether a kernel becomes blocks of rows rather than a list for each.

    Args:
        group: Filters that read the same channels; several groups have no inputs in common for a block to load once.
        count: Entries that are not 0.
        shape: Of the kernel, filters last.
    """
    return group == shape[-1] and count >= BLOCKED_FROM * math.prod(shape)


def folded(bias: np.ndarray | None, scaled: Sequence[Any]) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Returns what a kernel is multiplied by, channel by channel, and the bias that remains."""
    scale = None
    for factor, shift in scaled:
        scale = np.asarray(factor if scale is None else scale * factor, np.float32)
        bias = shift if bias is None else np.asarray(bias * factor + shift, np.float32)
    return scale, bias


def _write(words: np.ndarray, start: int, values: np.ndarray | None) -> int:
    """Writes the bits of 32-bit values and returns where they end."""
    values = np.ascontiguousarray(values)
    if values.dtype != np.int32:
        values = values.astype(np.float32, copy=False).view(np.int32)
    words[start : start + values.size] = values
    return start + values.size
