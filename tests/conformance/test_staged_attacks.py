"""What every attack of AutoAttack promises."""

import functools
import json

import numpy as np
import pytest
import tensorflow as tf

from tests.conformance.cases import STAGED_ATTACKS
from tests.networks import tiny_images, tiny_network
from tf_robust_sparse.attacks.projections import distance

X, Y = tiny_images(9)
# Other sides of a class that has a row by default.
MORE = {"FAB, untargeted L2", "Square, L2"}
ROWS = [pytest.param(name, marks=pytest.mark.full if name in MORE else ()) for name in STAGED_ATTACKS]


@pytest.fixture(scope="module")
def network():
    return tiny_network()


@pytest.fixture(scope="module")
def labels(network):
    """What the network says of the images, so that there is something to break."""
    return np.argmax(network(X, training=False), -1).astype("int64")


@pytest.fixture(scope="module")
def compiled(network):
    """From a row to its attack and the function that runs it on a batch of any size, traced when first called."""

    @functools.cache
    def of_row(name):
        attack = STAGED_ATTACKS[name]()
        images, labels = tf.TensorSpec((None, *X.shape[1:])), tf.TensorSpec((None,), tf.int64)
        return attack, tf.function(
            lambda x, y, seed: attack(network, x, y, seed=seed),
            input_signature=[images, labels, tf.TensorSpec((2,), tf.int32)],
            autograph=False,
        )

    return of_row


@pytest.mark.parametrize("name", ROWS)
def test_the_ball_and_the_pixel_range_are_kept_and_only_examples_differ(name, network, labels, compiled):
    attack, call = compiled(name)
    before = network.get_weights()
    x_adv = np.array(call(X, labels, [attack.seed, 0]))
    assert x_adv.shape == X.shape and x_adv.dtype == np.float32
    away = distance(tf.constant(x_adv), tf.constant(X), attack.norm).numpy()
    assert away.max() <= attack.epsilon + (1e-6 if attack.norm == "Linf" else 1e-4)
    assert x_adv.min() >= 0 and x_adv.max() <= 1
    np.testing.assert_array_equal(away > 0, np.argmax(network(x_adv, training=False), -1) != labels)
    for a, b in zip(before, network.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", ROWS)
def test_equal_seeds_give_equal_answers(name, labels, compiled):
    _, call = compiled(name)
    np.testing.assert_array_equal(call(X, labels, [5, 0]), call(X, labels, [5, 0]))


@pytest.mark.parametrize("name", ROWS)
def test_one_trace_serves_batches_of_any_size(name, labels, compiled):
    _, call = compiled(name)
    for count in (1, 9):
        assert call(X[:count], labels[:count], [0, 0]).shape == (count, *X.shape[1:])
    assert call.experimental_get_tracing_count() == 1


@pytest.mark.parametrize("name", ROWS)
def test_images_that_are_wrong_already_are_left_alone(name, labels, compiled):
    _, call = compiled(name)
    np.testing.assert_array_equal(call(X, (labels + 1) % 10, [0, 0]), X)


@pytest.mark.parametrize("name", ROWS)
def test_stages_cut_a_run_without_changing_it(name, network, labels):
    attack = STAGED_ATTACKS[name]()
    run = attack.runs(10)[0]
    seeds = tf.stack([tf.range(9, dtype=tf.int64)] * 2, 1)
    x, y, forward = tf.constant(X), tf.constant(labels), lambda x: network(x, training=False)
    whole = attack.run(forward, x, y, seeds, run)
    stages = attack.stages(run.iterations[-1])
    assert stages == sorted(set(stages)) and stages[-1] == run.iterations[-1]
    if len(run.epsilons) > 1:
        return
    radius = tf.constant(run.epsilons[0])
    target = tf.cast(attack.classes_by_rank(forward, x, y)[:, run.rank - 1], tf.int64) if run.rank else y
    state = attack.start(forward, x, y, seeds, target, radius)
    for end in (2, 3, run.iterations[0]):
        state = attack.advance(forward, x, y, state, tf.constant(end), radius)
    np.testing.assert_array_equal(state["found"], whole["found"])
    np.testing.assert_allclose(state["x_found"], whole["x_found"], atol=1e-6)


@pytest.mark.parametrize("name", ROWS)
def test_configuration_round_trip(name):
    attack = STAGED_ATTACKS[name]()
    again = type(attack).from_config(json.loads(json.dumps(attack.get_config())))
    assert again.get_config() == attack.get_config() and repr(again) == repr(attack)
    assert json.loads(json.dumps(attack.describe()))["attack"] == type(attack).__name__


def test_seeds_of_the_start_differ(network, compiled):
    _, call = compiled("APGD")
    assert (np.array(call(X, Y, [5, 0])) != np.array(call(X, Y, [6, 0]))).any() or (
        np.argmax(network(X, training=False), -1) != Y
    ).all()


def test_images_without_channels_are_refused(network):
    for model, shape in ((network, "12, 12, 1"), (network.__call__, "any, any, any")):
        with pytest.raises(ValueError, match=rf"shape \(n, {shape}\)"):
            STAGED_ATTACKS["APGD"]()(model, X[..., 0], Y)
