"""Networks that AutoAttack doubts: random ones, softmax, masked gradients, few classes."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.attacks.toy import toy_network
from tests.evaluation.auto_attacks import quick
from tf_robust_sparse.attacks import APGD, Square
from tf_robust_sparse.evaluation import AutoAttack, without_softmax
from tf_robust_sparse.evaluation.softmax_head import ends_in_softmax


def flags(model, some, **settings):
    return quick(model, **settings).run_standard_evaluation(*some)["flag_names"]


def test_a_randomized_network_is_flagged(some):
    noisy = lambda x: toy_network()(x + tf.random.normal(tf.shape(x), stddev=0.1))  # noqa: E731
    assert "randomised" in flags(noisy, some, attacks=[Square(0.01, num_queries=5)])


@pytest.mark.parametrize("version", ["rand", "standard"])
def test_randomness_alone_raises_no_other_doubt(version, some):
    """Two draws of one network differ: that says nothing about its batches, and nothing about the count."""
    noisy = lambda x: toy_network()(x + tf.random.normal(tf.shape(x), stddev=0.03))  # noqa: E731
    attack = AutoAttack(noisy, "Linf", 0.01, version, batch_size=30, verbose=False)
    attack.attacks = [APGD(0.01, num_steps=2, eot_samples=2)]
    found = attack.run_standard_evaluation(*some)["flag_names"]
    assert [name for name in found if name != "few_classes"] == ([] if version == "rand" else ["randomised"])


def test_a_softmax_is_flagged(some):
    short = [Square(0.01, num_queries=5)]
    assert "softmax" in flags(lambda x: tf.nn.softmax(toy_network()(x)), some, attacks=short)


@pytest.mark.parametrize("head", ["layer", "activation", "dense"])
def test_a_softmax_can_be_taken_off(head, some):
    x, _ = some
    keras.utils.set_random_seed(0)
    last = {
        "layer": [keras.layers.Dense(4), keras.layers.Softmax()],
        "activation": [keras.layers.Dense(4), keras.layers.Activation("softmax")],
        "dense": [keras.layers.Dense(4, activation="softmax")],
    }[head]
    sequential = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten(), *last])
    inputs = keras.Input((8, 8, 3))
    functional = keras.Model(inputs, sequential.layers[-1](keras.Sequential(sequential.layers[:-1])(inputs)))
    for network in (sequential, functional):
        found = without_softmax(network)
        assert not [layer for layer in found.layers if isinstance(layer, keras.layers.Lambda)]  # no exporter takes it
        logits = found(x)
        assert np.abs(np.sum(logits, -1) - 1).max() > 0.01
        np.testing.assert_allclose(tf.nn.softmax(logits), network(x), rtol=1e-5)
        with pytest.raises(ValueError, match="must be a softmax"):
            without_softmax(without_softmax(network))
    np.testing.assert_allclose(np.sum(sequential(x), -1), 1, rtol=1e-5)  # unchanged
    with pytest.raises(ValueError, match="a sequential model that is built"):
        without_softmax(keras.Sequential([keras.layers.Softmax()]))
    twice = keras.layers.Dense(4, activation="softmax") if head == "dense" else last[-1]
    shared = keras.Model(
        inputs, twice(keras.layers.Dense(4)(twice(keras.layers.Dense(4)(keras.layers.Flatten()(inputs)))))
    )
    assert ends_in_softmax(shared)
    with pytest.raises(ValueError, match=f"must be called once.*{twice.name}, called 2 times"):
        without_softmax(shared)


def test_the_version_plus_in_l1_is_flagged(some):
    x, y = some
    for version, norm, found in (("plus", "L1", True), ("plus", "Linf", False), ("standard", "L1", False)):
        attack = AutoAttack(toy_network(), norm, 1e-9, version, batch_size=32, verbose=False)
        flags = attack._prepare(x, y).flags
        assert ["plus_in_l1" in [flag.name for flag in flags], len(flags)] == [found, int(found)]


@pytest.mark.parametrize("classes", [4, 9, 10])
def test_more_targets_than_classes_are_flagged(classes, some):
    x, _ = some
    network = lambda v: toy_network()(v)[:, :classes]  # noqa: E731
    attack = AutoAttack(network, "Linf", 0.01, batch_size=32, verbose=False)
    flags = attack._prepare(x, np.argmax(network(x), -1)).flags
    assert [flag.name for flag in flags] == (["few_classes"] if classes < 10 else [])
    if flags:
        assert f"apgd-t has 9 targets and fab-t has 9 targets: {classes - 1} are aimed at." in flags[0].sentence


def test_a_network_whose_answers_depend_on_the_batch_is_flagged(some):
    def normalized(x):
        return toy_network()(x) - tf.reduce_mean(toy_network()(x), 0)

    assert "batch_dependent" in flags(normalized, some, attacks=[Square(0.01, num_queries=5)])


@tf.custom_gradient
def rounded(x):
    return tf.round(x * 64) / 64, tf.zeros_like


def test_zero_gradients_and_a_better_black_box_are_flagged(some):
    found = flags(
        lambda x: toy_network()(rounded(x)),
        some,
        attacks=[
            APGD(0.01, loss="ce", num_steps=5, random_start=False),
            APGD(0.01, loss="dlr", num_steps=5),
            Square(0.01, num_queries=400),
        ],
    )
    assert "zero_gradient" in found and "masked_gradients" in found


@pytest.mark.parametrize("classes", [2, pytest.param(3, marks=pytest.mark.full)])
def test_few_classes_are_adapted_to(classes, some):
    x = some[0][:30]
    network = lambda v: toy_network()(v)[:, :classes]  # noqa: E731
    y = np.argmax(network(x), -1)
    names = ["apgd-dlr", "apgd-t", "fab-t"][: 5 - classes]
    attack = AutoAttack(network, "Linf", 0.01, "custom", names, batch_size=30, verbose=False)
    for one in attack.attacks:
        one.num_steps = 10
    result = attack.run_standard_evaluation(x, y)
    assert 0 < result["robust_accuracy"] < 1 and result["flag_names"] == ["few_classes"]


def test_masked_cross_entropy_is_seen_through(some):
    """The trap of attacks on the cross-entropy alone: a network whose gradients vanish looks robust to them."""
    x, y = some
    both = AutoAttack(
        toy_network(1e5),
        "Linf",
        0.01,
        "custom",
        [APGD(0.01, num_steps=40), APGD(0.01, loss="targeted-dlr", num_steps=40, num_targets=3)],
        batch_size=60,
        verbose=False,
    )
    after = both.run_standard_evaluation(x, y)["attacks"]
    assert after["apgd-ce"]["robust_accuracy"] > 0.9 and after["apgd-t"]["robust_accuracy"] < 0.6
