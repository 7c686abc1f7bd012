"""Allocation by an exponent: published examples, a reference written from the rule, and its properties."""

import itertools
import math

import keras
import numpy as np
import pytest

from tests.networks import tiny_network
from tf_robust_sparse import layers, sparsity
from tf_robust_sparse.layers.subnet import kept_entries
from tf_robust_sparse.sparsity.allocation import adaptive_fractions
from tf_robust_sparse.sparsity.scores import subnet_layers


def reference(sizes, r, p):
    """The rule in NumPy, layer after layer."""
    sizes = np.asarray(sizes, np.float64)
    order = np.argsort(sizes, kind="stable")
    left = int(r * sizes.sum())
    c = r * sizes.sum() / (sizes**p).sum()
    fractions = np.zeros(len(sizes))
    for place, i in enumerate(order):
        fractions[i] = min(c * sizes[i] ** (p - 1), 1)
        left -= int(fractions[i] * sizes[i])
        rest = (sizes[order[place + 1 :]] ** p).sum()
        c = left / rest if rest else 0
    return fractions


@pytest.mark.parametrize(
    ("sizes", "r", "p", "fractions"),
    [
        ([100, 1000, 10000], 0.1, 0, [1, 0.505, 0.0505]),
        ([100, 1000, 10000], 0.1, 0.1, [1, 0.447115, 0.0563]),
        ([100, 1000, 10000], 0.1, 0.5, [0.783772, 0.247941, 0.0785]),
        ([100, 1000, 10000], 0.1, 1, [0.1, 0.1, 0.1]),
        ([10000, 100, 1000], 0.3, 0, [0.223, 1, 1]),
    ],
)
def test_published_examples(sizes, r, p, fractions):
    np.testing.assert_allclose(adaptive_fractions(sizes, r, p), fractions, atol=1e-6)


@pytest.mark.parametrize(
    ("p", "counts"), [(0, [100, 505, 505]), (0.1, [100, 448, 563]), (0.5, [79, 248, 785]), (1, [10, 100, 1000])]
)
def test_published_counts(p, counts):
    sizes = [100, 1000, 10000]
    fractions = adaptive_fractions(sizes, 0.1, p)
    assert [kept_entries(size, fraction) for size, fraction in zip(sizes, fractions, strict=True)] == counts


def test_it_is_the_reference_and_keeps_the_budget():
    random = np.random.default_rng(0)
    for _ in range(300):
        sizes = np.exp(random.uniform(3, 14, random.integers(1, 20))).astype(int).tolist()
        r, p = float(10 ** random.uniform(-1.5, 0)), float(random.choice([0, 0.1, 0.5, 0.9, 1, random.random()]))
        fractions = adaptive_fractions(sizes, r, p)
        expected = reference(sizes, r, p)
        served = expected * sizes >= 1  # of less than one connection ours makes one
        if served.all():
            np.testing.assert_allclose(fractions, expected, rtol=1e-9)
        assert all(0 < fraction <= 1 for fraction in fractions)
        kept = [kept_entries(size, fraction) for size, fraction in zip(sizes, fractions, strict=True)]
        if served.all():
            assert 0 <= sum(kept) - int(r * sum(sizes)) <= len(sizes) + 1
        # Larger layers keep no larger share, and for an exponent above 0 no fewer connections.
        by_size = sorted(zip(sizes, fractions, strict=True))
        if served.all():
            for (small, first), (large, second) in itertools.pairwise(by_size):
                # Rounding down leaves up to a connection of each smaller layer to the larger ones.
                assert second <= first * (1 + len(sizes) / (small * first))
                assert large * second >= min(small, small * first) - 2


def test_a_layer_that_the_budget_leaves_nothing_keeps_one():
    fractions = adaptive_fractions([10, 1000, 1000], 0.001, 1)
    assert kept_entries(10, fractions[0]) == 1


def test_allocation_of_a_network():
    network = tiny_network("subnet")
    found = sparsity.keep_fractions(network, 0.1, "adaptive", exponent=0.3)
    sizes = [math.prod(layer.scores.shape) for layer in subnet_layers(network)]
    assert list(found.values()) == adaptive_fractions(sizes, 0.1, 0.3)
    sparsity.set_keep_fractions(network, found)
    assert sparsity.statistics.nonzero(network) == sum(layer.kept for layer in subnet_layers(network))


@pytest.mark.parametrize("exponent", [-0.1, 1.1, "x", None, True])
def test_bad_exponent(exponent):
    with pytest.raises(ValueError, match=r"`exponent` must be in.*Received"):
        adaptive_fractions([10, 20], 0.5, exponent)


FAN_MODES = {"all": (True, True), "none": (False, False), "except_last": (True, False), "only_last": (False, True)}


@pytest.mark.parametrize("mode", FAN_MODES)
@pytest.mark.parametrize("kernel", ["subnet", "signed"])
def test_bounds_of_the_scores(kernel, mode):
    dense, conv = layers.KERNELS[kernel]
    x = keras.Input((4, 4, 64))
    h = keras.layers.Flatten()(conv(64, 3, padding="same", name="middle")(x))
    network = keras.Model(x, dense(10, name="last")(keras.layers.Dense(512)(h)))
    sparsity.uniform_scores(network, 0.01, mode, seed=1)
    middle, last = network.get_layer("middle"), network.get_layer("last")
    bounds = {middle: 4.1667e-4, last: 4.419e-4}
    for layer, divided in zip((middle, last), FAN_MODES[mode], strict=True):
        bound = bounds[layer] if divided else 0.01
        largest = np.abs(np.asarray(layer.scores)).max()
        assert largest <= bound * 1.0002
        assert largest >= (0.99 if layer is middle else 0.95) * bound
    first = np.array(middle.scores)
    sparsity.uniform_scores(network, 0.01, mode, seed=2)
    assert (first != np.asarray(middle.scores)).any()


def test_bad_scores():
    network = tiny_network("subnet")
    with pytest.raises(ValueError, match=r"`scale` must be .*Received: scale=0"):
        sparsity.uniform_scores(network, 0)
    with pytest.raises(ValueError, match="`fan_scaled` must be one of all, none"):
        sparsity.uniform_scores(network, 1, "some")
    with pytest.raises(ValueError, match="`mode` must be one of fan_in, fan_out"):
        sparsity.uniform_scores(network, 1, "all", mode="fan")


def test_signs_have_no_order():
    with pytest.raises(ValueError, match="has one magnitude, so its entries cannot be ranked"):
        sparsity.scaled_scores(tiny_network("signed"))
