"""FAB against numbers of the public implementation, and against exact answers."""

import numpy as np
import pytest
import tensorflow as tf

from tests.attacks.toy import toy_images, toy_labels, toy_network
from tf_robust_sparse.attacks import APGD, FAB
from tf_robust_sparse.attacks.projections import distance


@pytest.fixture(scope="module")
def correct():
    x, y = toy_images(), toy_labels()
    right = np.argmax(toy_network()(x), axis=-1) == y
    return tf.constant(x[right]), tf.constant(y[right], tf.int64)


def distances(attack, network, x, y, rank):
    run = attack.runs(10)[0]._replace(rank=rank)
    state = tf.function(lambda: attack.run(network, x, y, tf.zeros((len(y), 2), tf.int64), run), autograph=False)()
    return np.array(state["distance"]), np.array(state["found"])


@pytest.mark.parametrize(
    ("settings", "rank", "mean", "median", "within"),
    [
        pytest.param({}, 2, 0.011523, 0.008920, 508, marks=pytest.mark.full),
        ({"num_steps": 10}, 2, 0.011736, 0.008999, 507),
        pytest.param({}, 3, 0.018415, None, 259, marks=pytest.mark.full),
        pytest.param({}, 10, 0.049921, None, 0, marks=pytest.mark.full),
        pytest.param({"targeted": False}, 0, 0.011188, None, 514, marks=pytest.mark.full),
        ({"norm": "L2", "epsilon": 0.1}, 2, 0.124314, 0.098599, 483),
        ({"norm": "L1", "epsilon": 1.0}, 2, 0.644046, 0.473847, 750),
    ],
)
def test_the_outcome_is_that_of_the_public_implementation(settings, rank, mean, median, within, correct):
    away, found = distances(FAB(**{"epsilon": 0.01, **settings}), toy_network(), *correct, rank)
    assert np.isfinite(away).all()
    assert away.mean() == pytest.approx(mean, rel=0.01)
    assert abs(int(found.sum()) - within) <= 3
    if median is not None:
        assert np.median(away) == pytest.approx(median, rel=0.01)


DUAL = {"Linf": 1, "L2": 2, "L1": np.inf}


@pytest.fixture(scope="module")
def linear():
    """A linear classifier, images in the middle of the range, and the weight differences of each image's classes."""
    random = np.random.default_rng(0)
    weights = random.normal(size=(48, 10)).astype("float32")
    x = random.uniform(0.48, 0.52, (200, 4, 4, 3)).astype("float32")

    def network(images):
        return tf.matmul(tf.reshape(images - 0.5, (-1, 48)), weights)

    y = np.argmax(network(x), -1)
    return network, weights, tf.constant(x), tf.constant(y, tf.int64)


def exact_distances(linear, norm):
    network, weights, x, y = linear
    logits, y = np.array(network(x), np.float64), np.array(y)
    gaps = np.take_along_axis(logits, y[:, None], 1) - logits
    lengths = np.linalg.norm(weights.T[y][:, None, :] - weights.T[None], ord=DUAL[norm], axis=2)
    return np.where(np.arange(10) == y[:, None], np.inf, gaps / np.maximum(lengths, 1e-30)).min(1)


@pytest.mark.parametrize("norm", ["Linf", "L1", pytest.param("L2", marks=pytest.mark.full)])
def test_linear_classifier_has_the_exact_answer(norm, linear):
    _network, _, _x, _y = linear
    exact = exact_distances(linear, norm)
    epsilon = float(np.median(exact))
    found = np.min(list(toward_each_class(FAB(epsilon, norm), linear, "distance")), axis=0)
    assert exact.max() < 0.45  # the range of pixels plays no part
    assert (found / exact).min() >= 1 - 1e-3 and (found / exact).max() <= 1.010
    clear = np.abs(exact / epsilon - 1) > 1e-2
    np.testing.assert_array_equal((found <= epsilon)[clear], (exact <= epsilon)[clear])
    if norm != "L1":  # whose radius shrinks in phases
        by_apgd = np.any(list(toward_each_class(APGD(epsilon, norm, "targeted-dlr"), linear, "found")), axis=0)
        clear = np.abs(exact / epsilon - 1) > 1e-3
        np.testing.assert_array_equal(by_apgd[clear], (exact <= epsilon)[clear])


def toward_each_class(attack, linear, name):
    """One entry of the state after the run toward each class."""
    network, _, x, y = linear
    seeds, radius = tf.zeros((len(y), 2), tf.int64), tf.constant(attack.epsilon)

    @tf.function(autograph=False)
    def toward(target):
        state = attack.start(network, x, y, seeds, target, radius)
        return attack.advance(network, x, y, state, tf.constant(100), radius)[name]

    ranks = attack.classes_by_rank(network, x, y)
    return [toward(tf.cast(ranks[:, run.rank - 1], tf.int64)).numpy() for run in attack.runs(10)]


@pytest.mark.full
def test_l1_apgd_has_the_exact_answer(linear):
    network, _, x, y = linear
    exact = exact_distances(linear, "L1")
    epsilon = float(np.median(exact))
    attack = tf.function(APGD(epsilon, "L1", "targeted-dlr"), autograph=False)
    by_apgd = distance(attack(network, x, y), x, "L1").numpy() > 0
    clear = np.abs(exact / epsilon - 1) > 1e-2
    np.testing.assert_array_equal(by_apgd[clear], (exact <= epsilon)[clear])


def test_later_restarts_start_elsewhere(correct):
    x, y = correct[0][:16], correct[1][:16]
    attack = FAB(0.01, restarts=2)
    first, second = attack.runs(10)[:2]
    assert (first.restart, second.restart) == (0, 1)
    seeds = tf.stack([tf.range(16, dtype=tf.int64)] * 2, 1)
    again = attack.start_again(toy_network(), x, y, seeds, tf.constant(2), tf.constant(0.01))["x_current"]
    np.testing.assert_allclose(distance(again, x, "Linf"), 0.005, rtol=0.05)
    np.testing.assert_array_equal(
        attack.start(toy_network(), x, y, seeds, tf.constant(2), tf.constant(0.01))["x_current"], x
    )


@pytest.mark.parametrize(("norm", "epsilon"), [("Linf", 0.02), ("L2", 0.2), ("L1", 1.0)])
def test_only_examples_in_the_ball_count(norm, epsilon, correct):
    x, y = correct[0][:60], correct[1][:60]
    x_adv = FAB(epsilon, norm, num_steps=5, num_targets=2)(toy_network(), x, y)
    away = np.array(distance(x_adv, x, norm))
    broken = np.argmax(toy_network()(x_adv), -1) != y.numpy()
    assert away.max() <= epsilon + (1e-6 if norm == "Linf" else 1e-4) and 0 < broken.sum() < 60
    np.testing.assert_array_equal(away > 0, broken)


@pytest.mark.parametrize(
    ("settings", "name"),
    [({"alpha_max": 2}, "alpha_max"), ({"eta": 0.5}, "eta"), ({"beta": 1}, "beta"), ({"num_steps": 0}, "num_steps")],
)
def test_settings_out_of_range_are_named(settings, name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        FAB(0.1, **settings)
