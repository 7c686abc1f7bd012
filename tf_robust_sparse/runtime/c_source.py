"""A network as one C file without dependencies: kernels, plan, and compactly stored weights."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tf_robust_sparse.engine.library import FOLDER
from tf_robust_sparse.engine.matrices import Packer, Rows, folded, is_blocked
from tf_robust_sparse.engine.nodes import ACTIVATIONS, Activation
from tf_robust_sparse.engine.plan import KINDS, OP, Plan

PRECISIONS = ("float32", "float16", "int8")
_MODES = ("float32", "float16", "int8", "signs")  # the last two have a scale per filter
_FINER = np.float32(0.9576)  # from one scale of int8 weights to the next

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
  int kind, mode, rows, group, channels, channel_offset, taps, biased, count, rest;
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
        **{"SMOOTH": any(Activation(ACTIVATIONS[int(op["act"])]).is_smooth for op in plan.forward)},
        **{mode.upper(): any(each[1] == number for each in streams.made) for number, mode in enumerate(_MODES)},
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
        _numbers("unsigned char", "gaps", _as_bytes(streams.gaps)),
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
        self.gaps: list[np.ndarray] = []
        self.values = bytearray()
        self.floats: list[float] = []

    def add(self, rows: Rows, weights: Mapping[str, Sequence[Any]]) -> None:
        """Adds one matrix."""
        first, second = weights[rows.weights]
        if rows.kind == "scale":
            self.made.append((2, 0, rows.rows, 1, 0, 0, 0, 0, 0, 0))
            self.floats += [*np.ravel(first), *np.ravel(second)]
            return
        scale, bias = folded(second, [weights[name] for name in rows.scaled])
        kernel = np.asarray(first, np.float32) * (1 if scale is None else scale)
        taps, (channels, filters) = len(rows.used), kernel.shape[2:]
        matrix = kernel.reshape(taps, channels, filters).transpose(2, 1, 0).reshape(filters, -1)
        blocked = is_blocked(rows.group, int(np.count_nonzero(first)), kernel.shape)
        mode = self._mode(matrix, blocked)
        kept = np.ones_like(matrix, bool) if blocked else matrix != 0
        rest = 0
        if not blocked:
            bits, rest = rice(np.diff(np.flatnonzero(kept), prepend=-1) - 1)
            self.gaps.append(bits)
        layout = (rows.group, channels, rows.channel_offset, taps)
        numbers = (int(bias is not None), int(kept.sum()), rest)
        self.made.append((int(blocked), _MODES.index(mode), filters, *layout, *numbers))
        largest = np.abs(matrix).max(axis=1, initial=0)
        if mode == "signs":
            self.floats += list(largest)
            self.values += _as_bytes([matrix[kept] > 0]).tobytes()
        elif mode == "int8":
            scales = self._scales(largest)[:, np.newaxis]
            self.values += np.clip(np.rint(matrix / scales), -127, 127).astype(np.int8)[kept].tobytes()
        else:
            self.values += matrix[kept].astype(np.dtype(mode).newbyteorder("<")).tobytes()
        if bias is not None and mode == "int8":  # 16 bits each
            most = np.float32(np.abs(bias).max() / 32767 or 1)
            self.floats.append(float(most))
            self.values += np.rint(bias / most).astype("<i2").tobytes()
        elif bias is not None:
            self.floats += list(np.ravel(bias))
        self.offsets += rows.offset

    def _scales(self, largest: np.ndarray) -> np.ndarray:
        """Writes the scale of each filter as a byte, how often the largest one is made finer, and returns them."""
        steps = np.cumprod(np.array([1, *[_FINER] * 255], np.float32), dtype=np.float32)
        most = np.float32(largest.max(initial=0) / 127 or 1)
        number = np.clip(np.searchsorted(-most * steps, -largest / 127, side="right") - 1, 0, 255)
        self.floats.append(float(most))
        self.values += number.astype(np.uint8).tobytes()
        return most * steps[number]

    def _mode(self, matrix: np.ndarray, blocked: bool) -> str:
        sizes = np.abs(matrix)
        most = sizes.max(axis=1, keepdims=True, initial=0)
        if not blocked and matrix.any() and np.all((sizes == 0) | (np.abs(sizes - most) <= 1e-6 * most)):
            return "signs"
        return self.precision


def rice(gaps: np.ndarray) -> tuple[np.ndarray, int]:
    """Returns numbers from 0 on as bits, and how many of each are its rest: ones, a zero, then the rest."""
    costs = [len(gaps) * (rest + 1) + int((gaps >> rest).sum()) for rest in range(24)]
    rest = int(np.argmin(costs))
    ones = gaps >> rest
    ends = np.cumsum(ones + 1 + rest)
    bits = np.zeros(costs[rest], bool)
    starts = ends - ones - 1 - rest
    bits[np.repeat(starts - (np.cumsum(ones) - ones), ones) + np.arange(ones.sum())] = True
    for place in range(rest):  # the lowest first
        bits[ends - rest + place] = gaps >> place & 1
    return bits, rest


def _as_bytes(bits: Sequence[np.ndarray]) -> np.ndarray:
    return np.packbits(np.concatenate([np.zeros(0, bool), *bits]), bitorder="little")


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
