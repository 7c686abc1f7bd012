"""Damages bytes as transfers, disks and attackers do: each mutation is a function of its seed alone."""

import re

import numpy as np

_NUMBERS = (0, 1, -1, 2**31 - 1, -(2**31), 2**32 - 1, 2**40, 2**62, 2**63 - 1, -(2**63))
_WORDS = (b"1e999", b"nan", b"-1", b"99999999999999999999", b"[" * 300, b"\xff\xfe", b"null", b"", b"\n", b"\t")


def mutated(content, seed):
    """Returns `content` with one to four damages."""
    rng = np.random.default_rng(seed)
    data = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        _DAMAGES[rng.integers(len(_DAMAGES))](data, rng)
    return bytes(data)


def _place(data, rng):
    # Heads and ends hold what says how the rest is to be read.
    spread = rng.choice([16, 256, len(data) + 1])
    place = int(rng.integers(min(spread, len(data) + 1)))
    return len(data) - place if rng.random() < 0.3 else place


def _flip(data, rng):
    if data:
        data[_place(data, rng) % len(data)] ^= 1 << int(rng.integers(8))


def _byte(data, rng):
    if data:
        data[_place(data, rng) % len(data)] = int(rng.choice([0, 1, 0x7F, 0x80, 0xFF, int(rng.integers(256))]))


def _number(data, rng):
    width = int(rng.choice([2, 4, 8]))
    value = int(rng.choice(np.arange(len(_NUMBERS))))
    raw = (_NUMBERS[value] % (1 << 8 * width)).to_bytes(width, "little" if rng.random() < 0.5 else "big")
    place = _place(data, rng)
    data[place : place + width] = raw


def _text(data, rng):
    """Replaces a number written in digits."""
    found = list(re.finditer(rb"\d+", bytes(data[:4096])))
    if found:
        match = found[int(rng.integers(len(found)))]
        word = (
            _WORDS[int(rng.integers(len(_WORDS)))] if rng.random() < 0.5 else str(int(rng.integers(1 << 40))).encode()
        )
        data[match.start() : match.end()] = word


def _cut(data, rng):
    del data[_place(data, rng) :]


def _delete(data, rng):
    place = _place(data, rng)
    del data[place : place + int(rng.integers(1, 64))]


def _insert(data, rng):
    place = _place(data, rng)
    data[place:place] = rng.bytes(int(rng.integers(1, 64)))


def _repeat(data, rng):
    place = _place(data, rng)
    data[place:place] = data[place : place + int(rng.integers(1, 256))] * int(rng.choice([1, 2, 50]))


def _swap(data, rng):
    first, second = sorted((_place(data, rng), _place(data, rng)))
    size = int(rng.integers(1, 32))
    if first + size <= second and second + size <= len(data):
        data[first : first + size], data[second : second + size] = (
            data[second : second + size],
            data[first : first + size],
        )


_DAMAGES = (_flip, _flip, _byte, _byte, _number, _number, _text, _cut, _delete, _insert, _repeat, _swap)
