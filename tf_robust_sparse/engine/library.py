"""The compiled kernels, which `pip install` builds where a C compiler is found."""

import ctypes
import functools
import os
from pathlib import Path
from typing import Any

import numpy as np

_VERSION = 2  # of kernels.c
FOLDER = Path(__file__).parent
MISSING = (
    "the engine's kernels are not compiled, so that sparse networks run on TensorFlow; install a C compiler (gcc or "
    "clang, or `pip install ziglang`) and this package again with `pip install --force-reinstall --no-deps`"
)


class Kernel(ctypes.Structure):
    """`kernel_t` of kernels.c."""

    _fields_ = [(name, ctypes.c_int64) for name in ("taps", "channels", "filters", "group")]


class Matrix(ctypes.Structure):
    """`matrix_t` of kernels.c."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("rows", "transposed", "channel_offset", "part")),
        *((name, ctypes.c_void_p) for name in ("used", "offset", "scale")),
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
    pointer, long = ctypes.c_void_p, ctypes.c_long
    loaded.trs_run.argtypes = [ctypes.c_int, pointer, long, pointer, pointer, pointer, long, pointer]
    loaded.trs_run.restype = None
    kernel, matrix = ctypes.POINTER(Kernel), ctypes.POINTER(Matrix)
    loaded.trs_find.argtypes = [kernel, pointer, pointer]
    loaded.trs_sort.argtypes = [kernel, pointer, long, pointer, pointer]
    loaded.trs_sort.restype = None
    loaded.trs_pack_sparse.argtypes = [kernel, matrix, pointer, long, pointer]
    loaded.trs_pack_blocked.argtypes = [kernel, matrix, pointer, pointer, pointer]
    for function in (loaded.trs_find, loaded.trs_pack_sparse, loaded.trs_pack_blocked):
        function.restype = long
    loaded.trs_count.argtypes = [pointer, long]
    loaded.trs_count.restype = long
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
