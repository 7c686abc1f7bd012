"""Arrays of numbers in MATLAB 5 files.

A file consists of a header of 128 bytes and elements: type and size (4 bytes each), then the content, which nested
elements pad to 8 bytes. A size of up to 4 shares the first word with the type, and the content follows directly. A
variable is an element of elements: flags, sizes of the axes, name, and values in column-major order. It may be
compressed by zlib.

SciPy reads these files, too, but does not check the checksum and crashes the process on some damaged files.
"""

import math
import zlib
from collections.abc import Collection, Iterator
from typing import Literal

import numpy as np

_HEADER, _TAG = 128, 8
_MATRIX, _PACKED = 14, 15
_STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
_MOST_AXES = 32

Order = Literal["little", "big"]


def parse(data: bytes, names: Collection[str], most: int) -> dict[str, np.ndarray]:
    """Returns the named arrays of a file; other variables and those that are no numbers are ignored.

    Args:
        data: The file.
        names: Names of variables.
        most: Largest plausible number of bytes of all unpacked variables.

    Raises:
        ValueError: if the file is damaged, or no MATLAB 5 file.
        zlib.error: if a compressed variable is damaged.
    """
    marks: dict[bytes, Order] = {b"IM": "little", b"MI": "big"}
    order = marks.get(data[_HEADER - 2 : _HEADER])
    if order is None:
        raise ValueError("no MATLAB 5 file")
    found = {}
    for kind, content in _elements(data, order, _HEADER, is_padded=False):
        if kind == _PACKED:
            packed = zlib.decompressobj()
            content = packed.decompress(content, most)
            if not packed.eof or packed.unused_data:
                raise ValueError("a packed variable that is cut short or too long")
            most -= len(content)
            ((kind, content),) = _elements(content, order, 0, is_padded=False)
        if kind != _MATRIX:
            raise ValueError(f"an element of type {kind} where a variable should be")
        name, array = _variable(content, order)
        if name in names and array is not None:
            found[name] = array
    return found


def _elements(data: bytes, order: Order, place: int, is_padded: bool) -> Iterator[tuple[int, bytes]]:
    """Yields the type and content of each element."""
    while place < len(data):
        first = int.from_bytes(data[place : place + 4], order)
        kind, size, start = first, int.from_bytes(data[place + 4 : place + _TAG], order), place + _TAG
        if first >> 16:
            kind, size, start = first & 0xFFFF, first >> 16, place + 4
            if size > 4:
                raise ValueError(f"a small element of {size} bytes at {place}")
        if start + size > len(data):
            raise ValueError(f"an element of {size} bytes at {place}, beyond the end")
        yield kind, data[start : start + size]
        place = start + size
        if first >> 16:
            place = start + 4
        elif is_padded:
            place += -size % 8


def _variable(content: bytes, order: Order) -> tuple[str, np.ndarray | None]:
    """Returns the name of a variable and, if they are numbers, its values."""
    parts = _elements(content, order, 0, is_padded=True)
    try:
        (_, flags), (_, axes), (_, name), (stored, values) = (next(parts) for _ in range(4))
    except (StopIteration, RuntimeError) as error:
        raise ValueError("a variable without its parts") from error
    form = _CLASSES.get(int.from_bytes(flags[:4], order) & 0xFF)
    if form is None or stored not in _STORED:
        return name.decode("latin1"), None
    byte_order = "<" if order == "little" else ">"
    if len(axes) % 4 or len(axes) > 4 * _MOST_AXES:
        raise ValueError(f"axes of {len(axes)} bytes")
    shape = np.frombuffer(axes, f"{byte_order}i4").tolist()
    kind = np.dtype(f"{byte_order}{_STORED[stored]}")  # integers are stored in the fewest bytes
    if min(shape, default=0) < 0 or len(values) != math.prod(shape) * kind.itemsize:
        raise ValueError(f"{len(values)} bytes of type {kind} for shape {shape}")
    with np.errstate(all="ignore"):
        array = np.frombuffer(values, kind).astype(form)
    return name.decode("latin1"), array.reshape(shape, order="F")
