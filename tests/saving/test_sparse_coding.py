"""Packed arrays come back bit by bit, in about as few bytes as any code needs."""

import json
import math

import numpy as np
import pytest

from tf_robust_sparse.saving import sparse_coding

# The Golomb-Rice code of random gaps is within this of the best possible, and an array has a byte or two of ends.
RICE_OVERHEAD = 1.06
ENDS = 16


def random_array(shape, fraction, one_magnitude=False, seed=0):
    random = np.random.default_rng(seed)
    values = np.where(random.random(shape) < 0.5, -1, 1) * (0.25 if one_magnitude else random.random(shape))
    return np.where(random.random(shape) < fraction, values, 0).astype(np.float32)


def round_trip(array, half=False):
    head, content = sparse_coding.encode(array, half)
    head = json.loads(json.dumps(head))
    return sparse_coding.decode(head, array.shape, array.dtype.name, content), head, content


@pytest.mark.parametrize("one_magnitude", [False, True])
@pytest.mark.parametrize("fraction", [0, 0.001, 0.01, 0.1, 0.5, 0.9, 1])
@pytest.mark.parametrize("shape", [(3, 3, 16, 20), (1, 1), (5,), (0,), ()])
def test_round_trip_is_exact(shape, fraction, one_magnitude):
    array = random_array(shape, fraction, one_magnitude)
    again, _, _ = round_trip(array)
    assert again.dtype == array.dtype and again.shape == array.shape
    np.testing.assert_array_equal(again, array)


@pytest.mark.parametrize("dtype", ["bool", "int64", "uint8", "float64", "float16"])
def test_other_types_are_kept_as_they_are(dtype):
    array = np.random.default_rng(0).integers(0, 2, (3, 7)).astype(dtype)
    again, head, _ = round_trip(array)
    assert again.dtype == array.dtype and head["values"] == "raw"
    np.testing.assert_array_equal(again, array)


@pytest.mark.parametrize("fraction", [0.003, 0.01, 0.05, 0.2, 0.5, 0.95])
def test_length_is_near_the_entropy(fraction):
    array = random_array((64, 1000), fraction, one_magnitude=True)
    _, head, content = round_trip(array)
    bound = sparse_coding.entropy_bound(array) / 8
    assert bound <= len(content) <= max(RICE_OVERHEAD * bound, array.size / 8 + array[array != 0].size / 8) + ENDS
    assert head["positions"] == ("rice" if fraction < 0.4 else "mask") and head["values"] == "signs"


def test_entropy_bound_is_that_of_its_formula():
    array = np.zeros(20, np.float32)
    array[[3, 4, 15]] = 1, -1, 1
    assert sparse_coding.entropy_bound(array) == pytest.approx(math.log2(math.comb(20, 3)) + 3 + 32)
    array[3] = 2
    assert sparse_coding.entropy_bound(array) == pytest.approx(math.log2(math.comb(20, 3)) + 3 * 32)
    assert sparse_coding.entropy_bound(array, half=True) == pytest.approx(math.log2(math.comb(20, 3)) + 3 * 16)
    assert sparse_coding.entropy_bound(np.ones(5, bool)) == 5


def test_the_shortest_way_is_chosen():
    assert round_trip(random_array((100, 100), 1))[1]["positions"] == "all"
    dense = random_array((100, 100), 0.999)
    _, head, content = round_trip(dense)
    assert len(content) <= 4 * dense.size and head["positions"] == "all"  # a mask would cost more than the zeros
    assert round_trip(random_array((100, 100), 0.6))[1]["positions"] == "mask"


def test_half_precision_rounds_and_says_what_it_cannot_hold():
    array = random_array((30, 30), 0.2)
    again, head, content = round_trip(array, half=True)
    np.testing.assert_array_equal(again, array.astype(np.float16))
    assert head["values"] == "float16" and len(content) < len(round_trip(array)[2])
    with pytest.raises(ValueError, match="65504"):
        sparse_coding.encode(np.float32([1, 1e6]), half=True)


def test_damaged_bytes_are_an_error_or_an_array_of_the_shape():
    """Without the checksum of the file around them: nothing but a ValueError, nothing of another shape."""
    random = np.random.default_rng(0)
    for seed, fraction in enumerate((0.02, 0.3, 1.0)):
        array = random_array((40, 50), fraction, one_magnitude=seed % 2 == 0, seed=seed)
        head, content = sparse_coding.encode(array)
        for _ in range(150):
            damaged = bytearray(content)
            for place in random.integers(0, len(damaged), random.integers(1, 4)):
                damaged[place] = random.integers(256)
            if random.random() < 0.3:
                damaged = damaged[: random.integers(len(damaged))]
            changed = dict(head, kept=int(random.integers(-1, 2100))) if random.random() < 0.3 else head
            try:
                found = sparse_coding.decode(changed, array.shape, "float32", bytes(damaged))
            except ValueError:
                continue
            assert found.shape == array.shape and found.dtype == np.float32
