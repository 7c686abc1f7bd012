"""Kernels as the rows that the engine multiplies: lists of offsets and values."""

import ctypes
import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from tf_robust_sparse.engine.library import Matrix, address, library

BLOCK = 6
DIRECTORY = 4  # words per matrix


@dataclasses.dataclass(frozen=True)
class Rows:
    """One matrix of a plan.

    Attributes:
        weights: Name of the node that the kernel, bias, scale and shift come from.
        kind: `sparse`, `blocked`, or `scale` of a node that scales channels.
        rows: Number of output channels.
        layout: Fields of `matrix_t`; of a `scale` empty.
        tap_at: Places of the taps in the kernel, floats.
        tap_offset: What they add to the place of an input.
        biased: Whether the rows are outputs of the forward pass, to which a bias is added.
        scaled: Names of the nodes whose scale and shift the kernel takes up.
    """

    weights: str
    kind: str
    rows: int
    layout: tuple[int, ...] = ()
    tap_at: tuple[int, ...] = ()
    tap_offset: tuple[int, ...] = ()
    biased: bool = False
    scaled: tuple[str, ...] = ()


def pack(matrices: Sequence[Rows], weights: Mapping[str, Sequence[np.ndarray | None]]) -> np.ndarray:
    """Returns all matrices of a plan as one array of words, a directory first.

    Args:
        matrices: Of the plan.
        weights: Kernel `(height, width, channels, filters)` and bias `(filters,)` or `None` of each convolution, scale
            and shift `(channels,)` of each node that scales; float32.
    """
    counts = {name: _count(arrays[0]) for name, arrays in weights.items() if np.ndim(arrays[0]) == 4}
    room = DIRECTORY * len(matrices) + 2
    for rows in matrices:
        if rows.kind == "sparse":
            room += rows.rows + 4 + 2 * counts[rows.weights]
        elif rows.kind == "blocked":
            columns = -(-rows.rows // BLOCK) * rows.layout[4] * rows.layout[7]
            room += rows.rows + 4 + columns * (BLOCK + 1)
        room += 2 * rows.rows + 2
    words = np.empty(room, np.int32)
    end = DIRECTORY * len(matrices)
    for number, rows in enumerate(matrices):
        head = words[DIRECTORY * number : DIRECTORY * (number + 1)]
        first, second = weights[rows.weights]
        head[:] = 0
        if rows.kind == "scale":
            head[0] = end
            end = _write(words, end, first)
            end = _write(words, end, second)
            continue
        end += end % 2
        head[0] = end
        kernel = np.ascontiguousarray(first, np.float32)
        scale, bias = _folded(second, [weights[name] for name in rows.scaled])
        matrix = Matrix(*rows.layout)
        if scale is not None:
            setattr(matrix, "row_scale" if rows.biased else "channel_scale", address(scale))
        at, offset = (np.array(taps, np.int32) for taps in (rows.tap_at, rows.tap_offset))
        given = (ctypes.byref(matrix), address(kernel), address(at), address(offset))
        if rows.kind == "sparse":
            head[1] = end + ((rows.rows + 2) & ~1)
            end += library().trs_pack_sparse(*given, address(words[end:]))
        else:
            blocks = -(-rows.rows // BLOCK)
            most = blocks * rows.layout[4] * rows.layout[7]
            columns, values = np.empty(most, np.int32), np.empty(most * BLOCK, np.float32)
            found = library().trs_pack_blocked(*given, address(words[end:]), address(columns), address(values))
            head[1] = end + blocks + 1
            end = _write(words, int(head[1]), columns[:found])
            head[3] = end
            end = _write(words, end, values[: found * BLOCK])
        if rows.biased and bias is not None:
            head[2] = end
            end = _write(words, end, bias)
    return words[:end]


def _folded(
    bias: np.ndarray | None, scaled: Sequence[Sequence[np.ndarray | None]]
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Returns what a kernel is multiplied by, channel by channel, and the bias that remains."""
    scale = None
    for factor, shift in scaled:
        scale = np.asarray(factor if scale is None else scale * factor, np.float32)
        bias = shift if bias is None else bias * factor + shift
    return scale, bias


def density(kernel: np.ndarray) -> float:
    """Returns the fraction of a kernel's entries that are not 0."""
    return _count(kernel) / max(kernel.size, 1)


def _count(kernel: np.ndarray | None) -> int:
    kernel = np.ascontiguousarray(kernel, np.float32)
    return int(library().trs_count(address(kernel), kernel.size))


def _write(words: np.ndarray, start: int, values: np.ndarray | None) -> int:
    """Writes the bits of 32-bit values and returns where they end."""
    values = np.ascontiguousarray(values)
    if values.dtype != np.int32:
        values = values.astype(np.float32, copy=False).view(np.int32)
    words[start : start + values.size] = values
    return start + values.size
