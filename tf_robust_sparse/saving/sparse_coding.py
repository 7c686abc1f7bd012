"""A sparse array as bytes: positions and values, each in the shortest of a few codes.

Positions are coded by one bit per entry (`mask`), or by the gaps between nonzero entries in Golomb-Rice code (`rice`),
which writes the lower bits of each gap literally and the rest in unary. If a fraction p of `n` random positions is
occupied, the best code takes `n * H(p)` bits, where H is the binary entropy. Rice code comes within about 5 % of it for
small p, the mask for p near a half. If all magnitudes are equal, values are one magnitude and a sign each (`signs`),
otherwise numbers.
"""

import math
from typing import Any

import numpy as np

POSITIONS = ("all", "mask", "rice")
VALUES = ("signs", "float32", "float16", "raw")
_SPARSE_TYPES = ("float32",)
_MOST_LOW_BITS = 31


def encode(array: np.ndarray, half: bool = False) -> tuple[dict[str, Any], bytes]:
    """Packs an array.

    Args:
        array: Booleans, integers or floats; zeros of float32 arrays are omitted if that is shorter.
        half: Whether float32 values are rounded to float16.

    Returns:
        The arguments of `decode`, ready for JSON, and the bytes.

    Raises:
        ValueError: if float16 cannot hold a value.
    """
    array = np.asarray(array)
    if array.dtype.name not in _SPARSE_TYPES:
        return {"positions": "all", "values": "raw", "kept": array.size}, _raw(array)
    flat = np.ascontiguousarray(array).reshape(-1)
    kind = "float16" if half else "float32"
    if half:
        with np.errstate(over="ignore"):
            rounded = flat.astype(np.float16).astype(np.float32)
        if not np.isfinite(rounded[np.isfinite(flat)]).all():
            raise ValueError(f"float16 holds values up to 65504. Received: {np.abs(flat).max():g}")
        flat = rounded
    kept = np.flatnonzero(flat)
    values = flat[kept]
    magnitudes = np.abs(values)
    # One magnitude, as in a kernel of frozen signs: the magnitude, then a bit for each sign.
    if values.size and (magnitudes == magnitudes[0]).all():
        packed = np.float32(magnitudes[0]).tobytes() + _bits(values > 0)
        head: dict[str, Any] = {"values": "signs"}
    else:
        packed, head = values.astype(kind).astype(np.dtype(kind).newbyteorder("<")).tobytes(), {"values": kind}
    # Both codes of positions are made and the shorter one is taken; this costs little compared with writing the file.
    low_bits = _best_low_bits(kept)
    choices = {"mask": _bits(flat != 0), "rice": _rice(kept, low_bits)}
    positions = min(choices, key=lambda name: len(choices[name]))
    width = np.dtype(kind).itemsize
    if len(kept) == flat.size:
        positions = "all"
    # A nearly dense array is shorter with its zeros written as numbers and no positions.
    elif head["values"] != "signs" and flat.size * width <= len(choices[positions]) + len(packed):
        everything = flat.astype(np.dtype(kind).newbyteorder("<")).tobytes()
        return {"positions": "all", "values": kind, "kept": flat.size}, everything
    head = {"positions": positions, **head, "kept": len(kept)}
    if positions == "rice":
        head["low_bits"] = low_bits
    return head, choices.get(positions, b"") + packed


def decode(head: dict[str, Any], shape: tuple[int, ...], dtype: str, content: bytes) -> np.ndarray:
    """Decodes an array that `encode` packed.

    Args:
        head: The description that `encode` returned with the bytes.
        shape: Shape of the array.
        dtype: Name of its type.
        content: The bytes, all of them.

    Raises:
        ValueError: if they do not fit together.
    """
    # The bytes may be damaged: every number is checked against the size of the array before memory is allocated for it.
    size, kept = math.prod(shape), head["kept"]
    if head["positions"] not in POSITIONS or head["values"] not in VALUES:
        raise ValueError(f"an unknown code, {head['positions']!r} with {head['values']!r}")
    if not isinstance(kept, int) or not 0 <= kept <= size:
        raise ValueError(f"{kept!r} of {size} entries")
    if head["values"] == "raw":
        return _from_raw(content, shape, dtype)
    if dtype not in _SPARSE_TYPES or (head["positions"] == "all" and kept != size):
        raise ValueError(f"{kept} of {size} entries of type {dtype}")
    reader = _Reader(content)
    if head["positions"] == "mask":
        places = np.flatnonzero(reader.bits(size))
    elif head["positions"] == "rice":
        places = _from_rice(reader, kept, head["low_bits"], size)
    else:
        places = np.arange(size)
    if len(places) != kept:
        raise ValueError(f"{len(places)} positions where there should be {kept}")
    if head["values"] == "signs":
        magnitude = np.frombuffer(reader.take(4), "<f4")[0]
        values = np.where(reader.bits(kept), magnitude, -magnitude)
    else:
        kind = np.dtype(head["values"]).newbyteorder("<")
        values = np.frombuffer(reader.take(kept * kind.itemsize), kind).astype(np.float32)
    reader.end()
    flat = np.zeros(size, np.float32)
    flat[places] = values
    return flat.reshape(shape)


def entropy_bound(array: np.ndarray, half: bool = False) -> float:
    """Returns a number of bits that no code can beat on average, if positions and signs are uniformly random.

    Positions take `log2(n choose k)` bits for `k` of `n` entries. Values take 32 bits for their magnitude and one for
    each sign if all magnitudes are equal, otherwise 32 or 16 bits each. Structured positions can be packed into fewer
    bits.
    """
    array = np.asarray(array)
    if array.dtype.name not in _SPARSE_TYPES:
        return float(array.size * (1 if array.dtype == bool else 8 * array.dtype.itemsize))
    values = array[array != 0]
    width = 16 if half else 32
    magnitudes = np.abs(values)
    of_values = values.size + 32 if values.size and (magnitudes == magnitudes[0]).all() else values.size * width
    positions = _log2_choose(array.size, values.size)
    return min(positions + of_values, float(array.size * width))


class _Reader:
    """Reads bytes, one part after the other."""

    def __init__(self, content: bytes) -> None:
        self._content, self._place = content, 0

    def take(self, count: int) -> bytes:
        """Returns the next bytes."""
        part = self._content[self._place : self._place + count]
        if len(part) != count:
            raise ValueError("too few bytes")
        self._place += count
        return part

    def bits(self, count: int) -> np.ndarray:
        """Returns the next bits; the rest of their last byte must be 0."""
        part = np.frombuffer(self.take(-(-count // 8)), np.uint8)
        bits = np.unpackbits(part)
        if bits[count:].any():
            raise ValueError("bits beyond the end")
        return bits[:count].astype(bool)

    def end(self) -> None:
        """Checks that no bytes are left."""
        if self._place != len(self._content):
            raise ValueError("too many bytes")


def _bits(values: np.ndarray) -> bytes:
    return np.packbits(values.astype(bool)).tobytes()


def _gaps(places: np.ndarray) -> np.ndarray:
    # The number of zeros before each nonzero entry; adjacent entries have gap 0.
    return np.diff(places, prepend=-1) - 1


def _best_low_bits(places: np.ndarray) -> int:
    # With b low bits, a gap takes (gap >> b) ones, an end bit and b bits: the sum is computed for each b.
    gaps = _gaps(places)
    longest = int(gaps.max(initial=0)).bit_length()
    lengths = [int((gaps >> low).sum()) + len(gaps) * (1 + low) for low in range(min(longest + 1, _MOST_LOW_BITS))]
    return int(np.argmin(lengths))


def _rice(places: np.ndarray, low_bits: int) -> bytes:
    """Returns the length of the unary part (8 bytes), the unary part and the low bits."""
    gaps = _gaps(places)
    # In the unary part, a number q is q zeros and a one; `ends` are the places of the ones.
    ends = np.cumsum((gaps >> low_bits) + 1) - 1
    unary = np.zeros(int(ends[-1]) + 1 if len(ends) else 0, bool)
    unary[ends] = True
    # The low bits of each gap, the highest first.
    low = (gaps[:, None] >> np.arange(low_bits)[::-1]) & 1
    return len(unary).to_bytes(8, "little") + _bits(unary) + _bits(low.reshape(-1))


def _from_rice(reader: _Reader, kept: int, low_bits: int, size: int) -> np.ndarray:
    if not isinstance(low_bits, int) or not 0 <= low_bits < _MOST_LOW_BITS:
        raise ValueError(f"{low_bits!r} low bits")
    length = int.from_bytes(reader.take(8), "little")
    if length > kept + size:
        raise ValueError("a unary part longer than the array")
    ends = np.flatnonzero(reader.bits(length))
    if len(ends) != kept or (kept and ends[-1] != length - 1):
        raise ValueError(f"{len(ends)} gaps where there should be {kept}")
    low = reader.bits(kept * low_bits).reshape(kept, low_bits) @ (1 << np.arange(low_bits, dtype=np.int64)[::-1])
    # The inverse of `_rice`: the distance between ones gives the upper part of each gap.
    gaps = ((np.diff(ends, prepend=-1) - 1) << low_bits) + low.astype(np.int64)
    places = np.cumsum(gaps + 1) - 1
    if kept and places[-1] >= size:
        raise ValueError("positions beyond the end")
    return places


def _raw(array: np.ndarray) -> bytes:
    if array.dtype == bool:
        return _bits(array.reshape(-1))
    return np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes()


def _from_raw(content: bytes, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    reader, size, kind = _Reader(content), math.prod(shape), np.dtype(dtype)
    if dtype == "bool":
        array = reader.bits(size)
    elif kind.kind in "iuf":
        array = np.frombuffer(reader.take(size * kind.itemsize), kind.newbyteorder("<")).astype(kind)
    else:
        raise ValueError(f"an array of type {dtype}")
    reader.end()
    return array.reshape(shape)


def _log2_choose(n: int, k: int) -> float:
    return (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)) / math.log(2)
