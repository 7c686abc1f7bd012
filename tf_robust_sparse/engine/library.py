"""The compiled kernels, which `pip install` builds where a C compiler is found."""

import ctypes
import functools
import os
from pathlib import Path
from typing import Any

import numpy as np

_VERSION = 4  # of kernels.c
FOLDER = Path(__file__).parent
MISSING = (
    "the engine's kernels are not compiled, so that sparse networks run on TensorFlow; install a C compiler (gcc or "
    "clang, or `pip install ziglang`) and this package again with `pip install --force-reinstall --no-deps`"
)


class Matrix(ctypes.Structure):
    """`matrix_t` of pack.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("node", "is_first", "taps", "channels", "filters", "group", "rows")),
        *((name, ctypes.c_int64) for name in ("transposed", "channel_offset", "part", "counts", "scaled")),
        *((name, ctypes.c_void_p) for name in ("by", "used", "offset")),
    ]


class Batch(ctypes.Structure):
    """`batch_t` of kernels.c."""

    _fields_ = [
        *(("width", ctypes.c_int), ("ops", ctypes.c_void_p), ("count", ctypes.c_long), ("words", ctypes.c_void_p)),
        *(("spaces", ctypes.c_void_p), ("kept", ctypes.c_long), ("x", ctypes.c_void_p), ("pixels", ctypes.c_long)),
        *(("images", ctypes.c_long), ("lanes", ctypes.c_long), ("y", ctypes.c_void_p), ("outputs", ctypes.c_long)),
    ]


@functools.cache
def library() -> Any:
    """Returns the compiled kernels, `None` where there are none of this version."""
    found = sorted(each for each in FOLDER.glob("_kernels*") if each.suffix in (".so", ".dylib"))
    if not found:
        return None
    loaded = ctypes.CDLL(str(found[0]))
    version = getattr(loaded, "trs_version", None)
    if version is None or version() != _VERSION:
        return None
    pointer, long, number, matrices = ctypes.c_void_p, ctypes.c_long, ctypes.c_int, ctypes.POINTER(Matrix)
    loaded.trs_run.argtypes = [number, pointer, long, pointer, pointer, pointer, long, pointer]
    loaded.trs_run_batch.argtypes = [ctypes.POINTER(Batch), number]
    loaded.trs_run.restype = loaded.trs_run_batch.restype = None
    loaded.trs_layout.argtypes = [matrices, long, pointer, pointer, ctypes.c_double, number, pointer]
    loaded.trs_layout.restype = long
    loaded.trs_pack.argtypes = [matrices, long, pointer, pointer, number, pointer]
    return loaded


def available() -> bool:
    """Returns whether the kernels are compiled, and the environment variable TRS_ENGINE is not 0."""
    return os.environ.get("TRS_ENGINE") != "0" and library() is not None


def width() -> int:
    """Returns how many floats the widest vectors of this processor hold that may be used: 16, 8 or 4.

    The environment variable TRS_ENGINE_WIDTH sets a smaller one.
    """
    most = int(library().trs_width())
    return min(most, int(os.environ.get("TRS_ENGINE_WIDTH", most)))


def address(array: np.ndarray) -> int:
    """Returns where the data of an array begin."""
    return array.ctypes.data
