"""What every attack promises."""

import json

import numpy as np
import pytest
import tensorflow as tf

import tf_robust_sparse as trs
from tests.conformance.cases import ATTACKS
from tests.networks import tiny_images, tiny_network

# x + delta is rounded to float32, as are 784 squares summed up.
ROUNDING = 1e-5
X, Y = tiny_images(9)


@pytest.fixture(scope="module")
def network():
    return tiny_network()


@pytest.fixture(scope="module")
def serve(network, tmp_path_factory):
    loaded = tf.saved_model.load(str(trs.export_network(network, tmp_path_factory.mktemp("export") / "serve")))
    yield loaded.serve
    del loaded


def distance(attack, x_adv):
    delta = (np.array(x_adv, np.float64) - X).reshape(len(X), -1)
    return np.abs(delta).max(1) if attack.norm == "linf" else np.sqrt((delta**2).sum(1))


@pytest.mark.parametrize("name", ATTACKS)
def test_the_ball_and_the_pixel_range_are_kept_for_every_kind_of_model(name, network, serve):
    attack = ATTACKS[name]()
    before = network.get_weights()
    models = {"keras": network, "function": lambda x: network(x, training=False), "SavedModel": serve}
    found = {kind: np.array(attack(model, X, Y)) for kind, model in models.items()}
    for x_adv in found.values():
        assert x_adv.shape == X.shape and x_adv.dtype == np.float32
        assert distance(attack, x_adv).max() <= attack.epsilon + ROUNDING
        assert x_adv.min() >= 0 and x_adv.max() <= 1
        assert (x_adv != X).any(axis=(1, 2, 3)).all()
    np.testing.assert_array_equal(found["keras"], found["function"])
    for a, b in zip(before, network.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", ATTACKS)
def test_seeds_decide_everything(name, network):
    attack = ATTACKS[name]()
    first = np.array(attack(network, X, Y, seed=5))
    np.testing.assert_array_equal(first, attack(network, X, Y, seed=5))
    np.testing.assert_array_equal(attack(network, X, Y), attack(network, X, Y, seed=attack.seed))
    differs = (first != np.array(attack(network, X, Y, seed=6))).any()
    assert differs == attack.random_start


@pytest.mark.parametrize("name", ATTACKS)
def test_it_runs_compiled_on_batches_of_any_size(name, network):
    attack = ATTACKS[name]()
    compiled = tf.function(
        lambda x, y: attack(network, x, y),
        input_signature=[tf.TensorSpec((None, *X.shape[1:])), tf.TensorSpec((None,), tf.int64)],
        autograph=False,
    )
    for count in (1, 9):
        assert compiled(X[:count], Y[:count]).shape == (count, *X.shape[1:])
    assert compiled.experimental_get_tracing_count() == 1


@pytest.mark.parametrize("name", ATTACKS)
def test_configuration_round_trip(name):
    attack = ATTACKS[name]()
    again = type(attack).from_config(json.loads(json.dumps(attack.get_config())))
    assert again.get_config() == attack.get_config() and again.describe() == attack.describe()
    assert json.loads(json.dumps(attack.describe()))["attack"] == type(attack).__name__
