import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

from tests.networks import tiny_network
from tf_robust_sparse import sparsity
from tf_robust_sparse.sparsity.allocation import draw_layers, global_budget
from tf_robust_sparse.sparsity.draws import draw_dormant
from tf_robust_sparse.sparsity.scores import subnet_layers


def seeds(n):
    return [tf.constant([n, i]) for i in range(n)]


def test_budget_is_the_truncated_product():
    assert global_budget([1_000, 528], 0.01) == 15
    assert global_budget([15_302_848], 0.1) == 1_530_284


@pytest.mark.parametrize("connectivity", [0, -0.1, 1.5, float("nan"), "0.1", True, None])
def test_connectivity_outside_its_range_is_named(connectivity):
    with pytest.raises(ValueError, match=r"`connectivity` is the fraction .* in \(0, 1\]"):
        global_budget([1_000], connectivity)


def test_budget_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r"leaves none of the 100 kernel entries; pass at least 0\.01"):
        global_budget([100], 0.001)


def test_layers_are_drawn_in_proportion_to_their_size():
    sizes = [1_000, 3_000, 6_000]
    counts = draw_layers(tf.constant(100_000, tf.int64), sizes, tf.constant([10**6] * 3, tf.int64), tf.constant([1, 2]))
    assert int(tf.reduce_sum(counts)) == 100_000
    expected = 100_000 * np.array(sizes) / sum(sizes)
    assert scipy.stats.chisquare(counts.numpy(), expected).pvalue > 0.001


def test_overflow_is_drawn_again_among_layers_with_room():
    for seed in seeds(20):
        counts = draw_layers(tf.constant(100, tf.int64), [0.5, 0.5], tf.constant([2, 1000], tf.int64), seed)
        np.testing.assert_array_equal(counts, [2, 98])


def test_drawing_stops_when_no_layer_has_room():
    counts = draw_layers(tf.constant(100, tf.int64), [1.0, 9.0], tf.constant([3, 4], tf.int64), tf.constant([0, 0]))
    np.testing.assert_array_equal(counts, [3, 4])


def test_pairs_of_layers_have_multinomial_probabilities():
    # The worked example of the method: N = (4, 12), two draws: (A, A) 1/16, one each 6/16, (B, B) 9/16.
    draw = tf.function(
        lambda s: draw_layers(tf.constant(2, tf.int64), [4.0, 12.0], tf.constant([9, 9], tf.int64), s), autograph=False
    )
    in_a = np.array([int(draw(seed)[0]) for seed in seeds(1_600)])
    observed = np.bincount(in_a, minlength=3)
    assert scipy.stats.chisquare(observed, 1_600 * np.array([9, 6, 1]) / 16).pvalue > 0.001


@pytest.mark.parametrize("count", [10, 70])
def test_dormant_positions_are_drawn_uniformly(count):
    random = np.random.default_rng(0)
    dormant = np.sort(random.choice(150, 100, replace=False))
    connected = tf.constant(np.setdiff1d(np.arange(150), dormant))
    full, empty = tf.range(20, dtype=tf.int64), tf.range(0, dtype=tf.int64)
    draw = tf.function(
        lambda seed: draw_dormant([full, connected, empty], [20, 150, 60], counts, seed), autograph=False
    )
    counts = tf.constant([0, count, 20], tf.int64)
    hits, others, firsts, differences = np.zeros(150), np.zeros(60), np.zeros(150), []
    for seed in seeds(1_000):
        nothing, positions, other = (tensor.numpy() for tensor in draw(seed))
        assert nothing.size == 0
        assert len(set(positions)) == len(positions) == count
        assert len(set(other)) == len(other) == 20
        hits[positions] += 1
        others[other] += 1
        firsts[positions[0]] += 1
        ranks = np.searchsorted(dormant, positions[:2])
        differences.append((ranks[1] - ranks[0]) % 100)
    assert hits[connected.numpy()].sum() == 0
    for seen, number, room in ((hits[dormant], count, 100), (others, 20, 60)):
        # Counts of draws without replacement have variance n p (1 - p); chi-square assumes n p.
        expected = 1_000 * number / room
        statistic = ((seen - expected) ** 2 / (expected * (1 - number / room))).sum() * (room - 1) / room
        assert scipy.stats.chi2.sf(statistic, room - 1) > 0.001
    assert scipy.stats.chisquare(firsts[dormant]).pvalue > 0.001
    assert scipy.stats.chisquare(np.bincount(differences, minlength=100)[1:]).pvalue > 0.001


@pytest.mark.parametrize("count", [0, 1, 5])
def test_a_layer_can_be_filled(count):
    connected, counts = tf.constant([0, 5], tf.int64), tf.constant([count], tf.int64)
    (positions,) = draw_dormant([connected], [7], counts, tf.constant([0, 1]))
    assert len(set(positions.numpy())) == count
    assert set(positions.numpy()) <= {1, 2, 3, 4, 6}


def test_large_kernels_can_be_filled():
    counts = tf.constant([300_000], tf.int64)
    (positions,) = draw_dormant([tf.range(0, dtype=tf.int64)], [300_000], counts, tf.constant([0, 1]))
    np.testing.assert_array_equal(np.sort(positions), np.arange(300_000))


@pytest.mark.parametrize("connectivity", [0.001, 0.05, 0.3, 0.7, 1.0])
def test_one_threshold_keeps_exactly_the_budget_despite_ties(connectivity):
    network = tiny_network("subnet")
    found = subnet_layers(network)
    budget = global_budget([int(np.prod(layer.scores.shape)) for layer in found], connectivity)

    def kept():
        sparsity.set_keep_fractions(network, sparsity.keep_fractions(network, connectivity, "global"))
        return [layer.kept for layer in found]

    for layer in found:
        layer.scores.assign(np.zeros(layer.scores.shape))
    # Nothing but ties: one connection of each kernel, then the last entries.
    numbers = kept()
    assert sum(numbers) == max(budget, len(found)) and min(numbers) >= 1
    assert numbers[-1] == min(budget - 2, found[-1].scores.shape.num_elements()) or budget < len(found)
    random = np.random.default_rng(0)
    for layer in found:
        layer.scores.assign(random.integers(-3, 4, layer.scores.shape))
    assert sum(kept()) == max(budget, len(found))
