"""Unpickling that can rebuild plain containers and NumPy arrays, and can call nothing else.

A pickle is a program: it names functions and calls them. Here every name resolves to a stand-in of this file or
to an error, so no function of NumPy runs with arguments chosen by the file. That matters for NumPy too:
`ndarray(shape, dtype=object, buffer=...)` and a `dtype` with tampered flags both turn bytes into pointers.
"""

import collections
import io
import math
import os
import pickle
import pickletools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

_ONLY = "only plain containers and NumPy arrays are allowed, and the file may be malicious; save the data as .npz"

# An extension code may be cached by the process, and then never reaches `find_class`; the others call a class or
# ask the caller for an object, which no plain data needs.
_REFUSED_OPCODES = {
    "EXT1": "import from the extension registry",
    "EXT2": "import from the extension registry",
    "EXT4": "import from the extension registry",
    "PERSID": "load a persistent id",
    "BINPERSID": "load a persistent id",
    "INST": "make an instance of a class",
    "OBJ": "make an instance of a class",
    "NEWOBJ": "make an instance of a class",
    "NEWOBJ_EX": "make an instance of a class",
    "NEXT_BUFFER": "read an out-of-band buffer",
}
_DTYPE_CODE = re.compile(r"[?biufcSUO]\d*")


def load(
    file: str | os.PathLike | bytes | BinaryIO,
    encoding: str = "ASCII",
    stand_ins: Mapping[tuple[str, str], "StandIn"] | None = None,
) -> Any:
    """Reads a pickle of plain containers, numbers, strings and NumPy arrays.

    Args:
        file: Path, bytes, or a binary file open for reading.
        encoding: How strings written by Python 2 are decoded: `"ASCII"`, `"bytes"` or `"latin1"`.
        stand_ins: What further names, `(module, name)`, resolve to; nothing is imported for them.

    Returns:
        The object. Arrays are writable copies of their own. Arrays of objects hold such plain values again.

    Raises:
        pickle.UnpicklingError: if the pickle asks for anything else, or is damaged or cut short.
    """
    if isinstance(file, (bytes, bytearray)):
        data = bytes(file)
    elif isinstance(file, (str, os.PathLike)):
        data = Path(file).read_bytes()
    else:
        data = file.read()
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name in _REFUSED_OPCODES:
                what = f"{_REFUSED_OPCODES[opcode.name]} ({opcode.name} {argument!r:.60})"
                raise pickle.UnpicklingError(f"this pickle tries to {what}; {_ONLY}")
        return _resolve(_Unpickler(io.BytesIO(data), encoding, stand_ins or {}).load(), set())
    except pickle.UnpicklingError:
        raise
    except Exception as error:  # a damaged pickle can fail in any of its opcodes
        raise pickle.UnpicklingError(f"not a complete, plain pickle: {type(error).__name__}: {error}") from error


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO, encoding: str, stand_ins: Mapping[tuple[str, str], "StandIn"]) -> None:
        super().__init__(file, encoding=encoding)
        self._known = {**_ALLOWED, **stand_ins}

    def find_class(self, module, name):
        try:
            return self._known[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"this pickle tries to import {module}.{name}; {_ONLY}") from None


class StandIn:
    """What a pickle gets for a name: something it can call, and can neither change nor look into.

    Args:
        function: What a call does; its arguments come from the file and must be checked.
    """

    __slots__ = ("_function",)

    def __init__(self, function):
        object.__setattr__(self, "_function", function)

    def __call__(self, *args):
        """Does what stands behind the name."""
        return self._function(*args)

    def __setattr__(self, name, value):
        raise pickle.UnpicklingError(f"this pickle tries to change one of its constructors; {_ONLY}")

    def __setstate__(self, state):
        self.__setattr__("state", state)


class _DType:
    """A dtype being read: the name comes first, its byte order in a second step."""

    __slots__ = ("value",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, code, align=False, copy=False):
        code = _text(code)
        if not _DTYPE_CODE.fullmatch(code):
            raise pickle.UnpicklingError(f"this pickle holds an array of dtype {code!r:.40}; {_ONLY}")
        self.value = np.dtype(code)

    def __setstate__(self, state):
        # (version, byte order, subarray, names, fields, item size, alignment, flags): only the byte order is
        # taken from the file. Item sizes of text types are already part of the code.
        order, subarray, names, fields = state[1:5]
        if subarray is not None or names is not None or fields is not None:
            raise pickle.UnpicklingError(f"this pickle holds an array with named fields; {_ONLY}")
        order = _text(order)
        if order not in ("<", ">", "|", "="):
            raise ValueError(f"expected a byte order, received {order!r:.40}")
        if order in "<>":
            self.value = self.value.newbyteorder(order)


class _Array:
    """An array being read: made empty first, filled in a second step, replaced by `_resolve` in the end."""

    __slots__ = ("value",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, value=None):
        self.value = value

    def __setstate__(self, state):
        shape, dtype, fortran_order, data = state[-4:]
        if not isinstance(dtype, _DType):
            raise ValueError(f"expected a dtype, received {type(dtype).__name__}")
        self.value = _build_array(data, dtype.value, shape, "F" if fortran_order else "C")


def _build_array(data: Any, dtype: np.dtype, shape: Any, order: Literal["C", "F"]) -> np.ndarray:
    shape = tuple(shape)
    if not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError(f"expected sizes of axes, received {shape!r:.60}")
    count = math.prod(shape)
    if dtype.hasobject:
        if not isinstance(data, list) or len(data) != count:
            raise ValueError("expected an array of objects to list as many objects as its shape holds")
        array = np.empty(count, dtype)
        for i, item in enumerate(data):  # one by one: NumPy would unfold a list of lists
            array[i] = item
        return array.reshape(shape, order=order)
    if isinstance(data, str):  # Python 2 read with encoding="latin1"
        data = data.encode("latin1")
    if len(data) != count * dtype.itemsize:
        raise ValueError(f"expected {count * dtype.itemsize} bytes for shape {shape}, {dtype}; received {len(data)}")
    if not count:
        return np.empty(shape, dtype)
    return np.frombuffer(data, dtype).reshape(shape, order=order).copy(order="K")


def _reconstruct(subtype, shape, typecode):
    if subtype is not _NDARRAY:
        raise pickle.UnpicklingError(f"this pickle tries to rebuild an array of its own class; {_ONLY}")
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
    if encoding not in ("latin1", "latin-1"):  # the one way in which Python writes bytes below protocol 3
        raise ValueError(f"expected bytes written as latin1 text, received encoding {encoding!r:.40}")
    return text.encode("latin1")


def _empty_bytes(*args):
    if args:
        raise ValueError("expected empty bytes, the only ones that are written as a call")
    return b""


def _refuse_ndarray(*args):
    raise pickle.UnpicklingError(f"this pickle tries to call numpy.ndarray; {_ONLY}")


_NDARRAY = StandIn(_refuse_ndarray)
_ALLOWED = {
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): StandIn(_DType),
    ("_codecs", "encode"): StandIn(_encode),
    ("collections", "OrderedDict"): StandIn(collections.OrderedDict),
}
for _module in ("builtins", "__builtin__"):
    _ALLOWED[_module, "bytes"] = StandIn(_empty_bytes)
    _ALLOWED[_module, "set"] = StandIn(set)
    _ALLOWED[_module, "frozenset"] = StandIn(frozenset)
for _module in ("numpy.core", "numpy._core"):  # the spelling changed with NumPy 2
    _ALLOWED[_module + ".multiarray", "_reconstruct"] = StandIn(_reconstruct)
    _ALLOWED[_module + ".multiarray", "scalar"] = StandIn(_scalar)
    _ALLOWED[_module + ".numeric", "_frombuffer"] = StandIn(_frombuffer)


def _text(value: Any) -> str:
    return value.decode("ascii") if isinstance(value, bytes) else value


def _resolve(value: Any, seen: set[int]) -> Any:
    """Puts the finished arrays in the place of what stood for them. Containers are changed in place."""
    if isinstance(value, _Array):
        if value.value is None:
            raise ValueError("an array was named and never filled")
        value = value.value
    if isinstance(value, _DType):
        return value.value
    if isinstance(value, StandIn):
        raise pickle.UnpicklingError(f"this pickle keeps a constructor as data; {_ONLY}")
    if isinstance(value, tuple):
        items = [_resolve(item, seen) for item in value]
        return value if all(new is old for new, old in zip(items, value, strict=True)) else tuple(items)
    if id(value) in seen:
        return value
    if isinstance(value, dict):
        seen.add(id(value))
        for key in value:
            if _resolve(key, seen) is not key:
                raise ValueError("expected plain keys in a dictionary")
            value[key] = _resolve(value[key], seen)
    elif isinstance(value, list):
        seen.add(id(value))
        value[:] = [_resolve(item, seen) for item in value]
    elif isinstance(value, (set, frozenset)):
        for item in value:
            if _resolve(item, seen) is not item:
                raise ValueError("expected plain items in a set")
    elif isinstance(value, np.ndarray) and value.dtype.hasobject:
        seen.add(id(value))
        for index in np.ndindex(value.shape):
            value[index] = _resolve(value[index], seen)
    return value
