"""A network as one C file without dependencies: kernels, plan, and compactly stored weights."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tf_robust_sparse.engine.library import FOLDER
from tf_robust_sparse.engine.matrices import Packer, Rows, folded, is_blocked
from tf_robust_sparse.engine.plan import KINDS, OP, Plan

PRECISIONS = ("float32", "float16", "int8")
_MODES = ("float32", "float16", "int8", "signs")  # the last two have a scale per filter

_HEAD = """/* A network exported by tf_robust_sparse. Compile it with `cc -O2`; `-march=native` makes it faster.
   It reads images as float32 from standard input, and prints the outputs; with -DNO_MAIN it is a library, see
   `network_run`. */

#define ONE_IMAGE
#define ALWAYS __attribute__((always_inline))
#define TARGET
#define NAME(x) net_##x
#if defined(__AVX512F__)
#define VW 16
#elif defined(__AVX2__) && defined(__FMA__)
#define VW 8
#else
#define VW 4
#endif
"""
_TYPES = """
enum { VALUES_FLOAT32, VALUES_FLOAT16, VALUES_INT8, VALUES_SIGNS };
enum { MADE_SPARSE, MADE_BLOCKED, MADE_SCALE };
typedef struct {
  int kind, mode, rows, group, channels, channel_offset, taps, biased;
} made_t;
typedef struct {
  int place, positions, pitch, width;
} stencil_t;
"""


def c_source(plan: Plan, weights: Mapping[str, Sequence[Any]], precision: str = "float32") -> str:
    """Returns the C file of a network that computes one image at a time.

    Args:
        plan: A plan of one lane, without gradient.
        weights: See `engine.matrices.pack`.
        precision: Precision of the weights: `"float32"`, `"float16"` or `"int8"` (with a scale per filter). Kernels
            with a single magnitude per filter always take one bit per entry.
    """
    streams = _Streams(precision)
    for rows in plan.matrices:
        streams.add(rows, weights)
    height, width, channels = plan.shape
    sizes = {
        **{"HEIGHT": height, "WIDTH": width, "CHANNELS": channels, "CLASSES": plan.classes},
        **{"WORDS": len(Packer(plan.matrices, weights)(weights)) + 2, "SPACE": plan.space},
        **{"MATRICES": len(plan.matrices), "STENCILS": len(plan.stencils)},
    }
    used = {KINDS[int(op["kind"])] for op in plan.forward}
    has = {
        **{"BLOCKS": any(kind == 1 for kind, *_ in streams.made), "EACH": "each" in used},
        **{"POOLS": bool(used & {"max_pool", "mean_pool"}), "FLATTEN": "flatten" in used, "SPLIT": "split" in used},
    }
    parts = [
        _HEAD,
        "".join(f"#define HAS_{name} {int(wanted)}\n" for name, wanted in has.items()),
        *((FOLDER / name).read_text() for name in ("plan.h", "kernels.h", "operations.h")),
        "".join(f"#define {name} {value}\n" for name, value in sizes.items()),
        _TYPES,
        _table("op_t", "ops", (_record(op) for op in plan.forward)),
        _table("made_t", "made", streams.made),
        _table("stencil_t", "stencils", [tuple(each) for each in plan.stencils] or [(0, 0, 1, 0)]),
        _numbers("int", "offsets", streams.offsets),
        _numbers("unsigned short", "counts", streams.counts),
        _numbers("unsigned char", "gaps", streams.gaps),
        _numbers("unsigned char", "values", streams.values),
        _numbers(
            "float", "floats", (f"{float(value):.9g}f" for value in np.array(streams.floats, np.float32)), dot=True
        ),
        (Path(__file__).parent / "network.c").read_text(),
    ]
    return "\n".join(parts)


class _Streams:
    """The data that `unpack` of network.c reads, in its order."""

    def __init__(self, precision: str) -> None:
        self.precision = precision
        self.made: list[tuple[int, ...]] = []
        self.offsets: list[int] = []
        self.counts: list[int] = []
        self.gaps: list[int] = []
        self.values = bytearray()
        self.floats: list[float] = []

    def add(self, rows: Rows, weights: Mapping[str, Sequence[Any]]) -> None:
        """Adds one matrix."""
        first, second = weights[rows.weights]
        if rows.kind == "scale":
            self.made.append((2, 0, rows.rows, 1, 0, 0, 0, 0))
            self.floats += [*np.ravel(first), *np.ravel(second)]
            return
        scale, bias = folded(second, [weights[name] for name in rows.scaled])
        kernel = np.asarray(first, np.float32) * (1 if scale is None else scale)
        taps, (channels, filters) = len(rows.used), kernel.shape[2:]
        matrix = kernel.reshape(taps, channels, filters).transpose(2, 1, 0).reshape(filters, -1)
        blocked = is_blocked(rows.group, int(np.count_nonzero(first)), kernel.shape)
        mode = self._mode(matrix, blocked)
        layout = (rows.group, channels, rows.channel_offset, taps)
        self.made.append((int(blocked), _MODES.index(mode), filters, *layout, int(bias is not None)))
        signs: list[bool] = []
        for row in matrix:
            places = np.arange(row.size) if blocked else np.flatnonzero(row)
            entries = row[places]
            largest = float(np.abs(entries).max(initial=0))
            if not blocked:
                self.counts.append(len(places))
                for gap in np.diff(places, prepend=-1) - 1:
                    self.gaps += [255] * (gap // 255) + [int(gap % 255)]
            if mode == "signs":
                self.floats.append(largest)
                signs += list(entries > 0)
            elif mode == "int8":
                self.floats.append(largest / 127)
                self.values += np.rint(entries * (127 / largest if largest else 0)).astype(np.int8).tobytes()
            else:
                self.values += entries.astype(np.dtype(mode).newbyteorder("<")).tobytes()
        self.values += np.packbits(np.array(signs, bool), bitorder="little").tobytes()
        if bias is not None:
            self.floats += list(np.ravel(bias))
        self.offsets += rows.offset

    def _mode(self, matrix: np.ndarray, blocked: bool) -> str:
        sizes = np.abs(matrix)
        most = sizes.max(axis=1, keepdims=True, initial=0)
        if not blocked and matrix.any() and np.all((sizes == 0) | (np.abs(sizes - most) <= 1e-6 * most)):
            return "signs"
        return self.precision


def _record(op: np.void) -> tuple[Any, ...]:
    """Returns the fields of one operation; fields that are arrays in C are in braces."""
    fields: list[Any] = []
    for name in OP.names or ():
        value: Any = f"{float(op[name]):.9g}" if name in ("slope", "top") else int(op[name])
        first = name in ("window_y", "stride_y", "pad_y", "margin_top")
        last = name in ("window_x", "stride_x", "pad_x", "margin_right")
        fields.append(f"{'{' * first}{value}{'}' * last}")
    return tuple(fields)


def _table(kind: str, name: str, rows: Iterable[tuple[Any, ...]]) -> str:
    lines = ",\n".join("    {" + ", ".join(map(str, row)) + "}" for row in rows)
    return f"static const {kind} {name}[] = {{\n{lines}}};\n"


def _numbers(kind: str, name: str, values: Iterable[Any], dot: bool = False) -> str:
    written = [str(value) for value in values] or ["0"]
    if dot:
        written = [value if set(value) & set(".e") or value == "0" else value.replace("f", ".0f") for value in written]
    lines = ",\n".join(",".join(written[i : i + 24]) for i in range(0, len(written), 24))
    return f"static const {kind} {name}[] = {{\n{lines}}};\n"
