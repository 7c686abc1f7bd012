"""Unpickling that rebuilds plain containers and NumPy arrays, and cannot call anything else.

A pickle is a program: it names functions and calls them. Here every name resolves to a stand-in of this file or raises
an error, so no function of NumPy runs with arguments chosen by the file. This is necessary, because
`ndarray(shape, dtype=object, buffer=...)` and a `dtype` with forged flags both turn bytes into pointers. The size of a
file limits the memory and time that it can use.
"""

import math
import os
import pickle
import re
from collections.abc import Mapping
from typing import Any, BinaryIO, Literal

import numpy as np

from tf_robust_sparse.data.pickle_opcodes import (
    DEEPEST,
    FROZENSET,
    ORDERED,
    SET,
    Budget,
    StandIn,
    Unfinished,
    execute,
    refuse,
    short,
)
from tf_robust_sparse.paths import user_path

_DTYPE_CODE = re.compile(r"[?biufcSUO]\d*")
_MOST_AXES = 64  # NumPy's limit
_CONTAINERS = (list, tuple, dict, set, frozenset)


def load(
    file: str | os.PathLike | bytes | BinaryIO,
    encoding: str = "ASCII",
    stand_ins: Mapping[tuple[str, str], StandIn] | None = None,
) -> Any:
    """Reads a pickle of plain containers, numbers, strings and NumPy arrays.

    Args:
        file: Path, bytes, or a binary file open for reading.
        encoding: How strings written by Python 2 are decoded: `"ASCII"`, `"bytes"` or `"latin1"`.
        stand_ins: Stand-ins of further names `(module, name)`; nothing is imported for them.

    Returns:
        The object. Arrays are independent, writable copies. Arrays of objects hold plain values again.

    Raises:
        pickle.UnpicklingError: if the pickle contains anything else, is damaged or truncated, nests more than 100
            containers, contains itself, or builds far more than its size.
    """
    if isinstance(file, (bytes, bytearray)):
        data = bytes(file)
    elif isinstance(file, (str, os.PathLike)):
        data = user_path(file).read_bytes()
    else:
        data = file.read()
    budget = Budget(len(data))
    try:
        value = execute(data, encoding, {**_ALLOWED, **(stand_ins or {})}, budget)
        return _Finish(budget.limit).finished(value)
    except pickle.UnpicklingError:
        raise
    except Exception as error:  # a damaged pickle can fail in any of its opcodes
        reason = " ".join(str(error).split())
        raise pickle.UnpicklingError(f"not a complete, plain pickle: {type(error).__name__}: {reason:.200}") from error


class _DType(Unfinished):
    """A dtype being read: the name comes first, its byte order in a second step."""

    def __init__(self, code, align=False, copy=False):
        code = _text(code)
        if not _DTYPE_CODE.fullmatch(code):
            refuse(f"this pickle holds an array of dtype {short(code)}")
        self.value = np.dtype(code)

    def fill(self, state: Any) -> None:
        # (version, byte order, subarray, names, fields, item size, alignment, flags): only the byte order is used.
        # Item sizes of text types are already part of the code.
        order, subarray, names, fields = state[1:5]
        if subarray is not None or names is not None or fields is not None:
            refuse("this pickle holds an array with named fields")
        order = _text(order)
        if order not in ("<", ">", "|", "="):
            raise ValueError(f"expected a byte order, received {short(order)}")
        if order in "<>":
            self.value = self.value.newbyteorder(order)


class _Array(Unfinished):
    """An array being read: created empty, filled in a second step, and at last replaced by `_Finish`."""

    def __init__(self, value=None):
        self.value = value

    def fill(self, state: Any) -> None:
        shape, dtype, fortran_order, data = state[-4:]
        if not isinstance(dtype, _DType):
            raise ValueError(f"expected a dtype, received {type(dtype).__name__}")
        self.value = _build_array(data, dtype.value, shape, "F" if fortran_order else "C")


def _build_array(data: Any, dtype: np.dtype, shape: Any, order: Literal["C", "F"]) -> np.ndarray:
    shape = tuple(shape)
    if len(shape) > _MOST_AXES or not all(type(size) is int and 0 <= size < 2**63 for size in shape):
        sizes = ", ".join(short(size) for size in shape[:4])
        raise ValueError(f"expected sizes of axes, received {len(shape)} of them, beginning with {sizes}")
    count = math.prod(shape)
    if dtype.hasobject:
        if not isinstance(data, list) or len(data) != count:
            raise ValueError("expected an array of objects to list as many objects as its shape holds")
        array = np.empty(count, dtype)
        for i, item in enumerate(data):  # one by one, because NumPy would unfold a list of lists
            array[i] = item
        return array.reshape(shape, order=order)
    if isinstance(data, str):  # from Python 2, read with encoding="latin1"
        data = data.encode("latin1")
    if len(data) != count * dtype.itemsize:
        raise ValueError(f"expected {count * dtype.itemsize} bytes for shape {shape}, {dtype}; received {len(data)}")
    if not count:
        return np.empty(shape, dtype)
    return np.frombuffer(data, dtype).reshape(shape, order=order).copy(order="K")


def _reconstruct(subtype, shape, typecode):
    if subtype is not _NDARRAY:
        refuse("this pickle tries to rebuild an array of its own class")
    return _Array()


def _scalar(dtype, data=None):
    if not isinstance(dtype, _DType) or dtype.value.hasobject:
        raise ValueError("expected a number or text type for a NumPy scalar")
    return _build_array(data, dtype.value, (), "C")[()]


def _frombuffer(data, dtype, shape, order, axis_order=None):
    if not isinstance(dtype, _DType) or dtype.value.hasobject or order not in ("C", "F"):
        raise ValueError("expected bytes, a number or text type, a shape and 'C' or 'F'")
    return _Array(_build_array(data, dtype.value, shape, order))


def _encode(text, encoding="latin1"):
    if encoding not in ("latin1", "latin-1"):  # Python writes bytes below protocol 3 only in this way
        raise ValueError(f"expected bytes written as latin1 text, received encoding {short(encoding)}")
    return text.encode("latin1")


def _empty_bytes(*args):
    if args:
        raise ValueError("expected empty bytes, the only ones that are written as a call")
    return b""


def _refuse_ndarray(*args):
    refuse("this pickle tries to call numpy.ndarray")


_NDARRAY = StandIn(_refuse_ndarray)
_ALLOWED = {
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): StandIn(_DType),
    ("_codecs", "encode"): StandIn(_encode),
    ("collections", "OrderedDict"): ORDERED,
}
for _module in ("builtins", "__builtin__"):
    _ALLOWED[_module, "bytes"] = StandIn(_empty_bytes)
    _ALLOWED[_module, "set"] = SET
    _ALLOWED[_module, "frozenset"] = FROZENSET
for _module in ("numpy.core", "numpy._core"):  # NumPy 2 changed the name
    _ALLOWED[_module + ".multiarray", "_reconstruct"] = StandIn(_reconstruct)
    _ALLOWED[_module + ".multiarray", "scalar"] = StandIn(_scalar)
    _ALLOWED[_module + ".numeric", "_frombuffer"] = StandIn(_frombuffer)


def _text(value: Any) -> str:
    return value.decode("ascii") if isinstance(value, bytes) else value


class _Finish:
    """Replaces unfinished values by finished arrays; containers are changed in place.

    Args:
        limit: Largest number of bytes of the result if every reference counts as a copy, as in an array.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        # By identity: the old value (kept alive, so its id is not reused), the new one, nested containers, bytes.
        # `None` while its items are visited.
        self._done: dict[int, tuple[Any, Any, int, int] | None] = {}

    def finished(self, value: Any) -> Any:
        """Returns the finished value."""
        return self._finish(value, 0)[0]

    def _finish(self, value: Any, depth: int) -> tuple[Any, int, int]:
        """Returns the finished value, how many containers it nests, and its size in bytes."""
        if isinstance(value, _Array):
            if value.value is None:
                raise ValueError("an array was named and never filled")
            value = value.value
        if isinstance(value, _DType):
            return value.value, 0, 8
        if isinstance(value, (StandIn, Unfinished)):
            refuse("this pickle keeps a constructor as data")
        is_array = isinstance(value, np.ndarray)
        if not isinstance(value, _CONTAINERS) and not (is_array and value.dtype.hasobject):
            return value, 0, 8 + (value.nbytes if is_array else 0)
        if depth > DEEPEST:
            refuse(f"this pickle nests more than {DEEPEST} containers")
        if id(value) in self._done:
            known = self._done[id(value)]
            if known is None:
                refuse("this pickle holds a container that contains itself")
            return known[1:]
        self._done[id(value)] = None
        items = value.values() if isinstance(value, dict) else value.flat if is_array else value
        found = [self._finish(item, depth + 1) for item in items]
        nested, size = 1 + max((each[1] for each in found), default=0), 8 + sum(each[2] for each in found)
        if depth + nested > DEEPEST or size > self._limit:
            refuse(f"this pickle nests more than {DEEPEST} containers, or repeats them beyond {self._limit} bytes")
        result = self._filled(value, [each[0] for each in found])
        self._done[id(value)] = (value, result, nested, size)
        return result, nested, size

    @staticmethod
    def _filled(value: Any, items: list[Any]) -> Any:
        if isinstance(value, tuple):
            return tuple(items)
        if isinstance(value, dict):
            for key, item in zip(value, items, strict=True):
                value[key] = item
        elif isinstance(value, list):
            value[:] = items
        elif isinstance(value, np.ndarray):
            for index, item in zip(np.ndindex(value.shape), items, strict=True):
                value[index] = item
        return value  # a set holds only plain values
