"""Selecting the largest entries, against NumPy's stable sort."""

import time

import numpy as np
import pytest
import tensorflow as tf

from tf_robust_sparse.layers import largest_mask


def numpy_mask(values, k, last_wins):
    """The k largest by a stable sort: of equal values the last, or the first, in memory order."""
    flat = values.reshape(-1)
    chosen = np.argsort(flat, kind="stable")[len(flat) - k :] if last_wins else np.argsort(-flat, kind="stable")[:k]
    mask = np.zeros(flat.shape, bool)
    mask[chosen] = True
    return mask.reshape(values.shape)


@pytest.fixture(scope="module")
def compiled():
    return tf.function(largest_mask, reduce_retracing=True, autograph=False)


@pytest.mark.parametrize("last_wins", [False, True])
def test_random_tensors_with_ties(last_wins, compiled):
    rng = np.random.default_rng(0)
    for number in range(250):
        shape = tuple(rng.integers(1, 9, rng.integers(1, 5)))
        size = int(np.prod(shape))
        values = (rng.normal(size=shape) * 10.0 ** rng.integers(-6, 6)).astype("float32")
        if number % 2:  # many equal ones
            values = np.round(values / np.abs(values).max() * rng.integers(1, 5))
        k = int(rng.integers(0, size + 1))
        found = compiled(tf.constant(values), tf.constant(k), last_wins)
        np.testing.assert_array_equal(found, numpy_mask(values, k, last_wins))


@pytest.mark.parametrize("last_wins", [False, True])
@pytest.mark.parametrize("k", [0, 1, 3, 6])
def test_equal_values_are_taken_by_position(k, last_wins):
    expected = np.arange(6) >= 6 - k if last_wins else np.arange(6) < k
    np.testing.assert_array_equal(largest_mask(tf.fill([6], 0.5), k, last_wins), expected)


def test_zeros_of_both_signs_are_equal():
    values = tf.constant(np.array([-0.0, 0.0, -0.0, 0.0, -1.0], "float32"))
    np.testing.assert_array_equal(largest_mask(values, 2), [True, True, False, False, False])


def test_infinities_and_the_smallest_numbers_keep_their_order():
    values = np.array([np.inf, 3e38, 1e-38, 0, -1e-38, -3e38, -np.inf], "float32")
    for k in range(len(values) + 1):
        np.testing.assert_array_equal(largest_mask(tf.constant(values), k), np.arange(7) < k)


@pytest.mark.parametrize("last_wins", [False, True])
def test_xla_compiles_it_quickly_inside_a_condition(last_wins):
    values = np.round(np.random.default_rng(2).normal(size=50_000) * 50).astype("float32")  # many equal ones

    @tf.function(jit_compile=True, autograph=False)
    def found(values, k, wanted):
        return tf.cond(wanted, lambda: largest_mask(values, k, last_wins), lambda: values > 0)

    begin = time.process_time()
    mask = found(tf.constant(values), tf.constant(20_000), tf.constant(True))
    assert time.process_time() - begin < 60  # a begin of a slice that XLA tries to know takes minutes
    np.testing.assert_array_equal(mask, numpy_mask(values, 20_000, last_wins))


def test_large_tensors_are_cut_exactly():
    values = np.random.default_rng(1).normal(size=1_000_000).astype("float32")
    for k in (1, 10_000, 999_999):
        np.testing.assert_array_equal(largest_mask(tf.constant(values), k), numpy_mask(values, k, False))
