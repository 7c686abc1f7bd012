"""Runs of AutoAttack: batches, halves side by side, an interruption, each attack alone, and bad input."""

import json
import os

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.attacks.toy import toy_network
from tests.evaluation.auto_attacks import evaluated, quick
from tf_robust_sparse.attacks import APGD, FAB, Square
from tf_robust_sparse.attacks.staged_attack import StagedAttack
from tf_robust_sparse.evaluation import AutoAttack
from tf_robust_sparse.evaluation.compaction import batch_sizes


def two_attacks():
    return [APGD(0.01, num_steps=10), Square(0.01, num_queries=100)]


@pytest.fixture(scope="module")
def whole_of_two(some, tmp_path_factory):
    """An attack by gradients and one without, on batches of 20."""
    return evaluated(some, tmp_path_factory.mktemp("whole"), two_attacks, batch_size=20)


def test_nothing_is_left_for_later_attacks_when_the_first_breaks_everything(some):
    x, y = some
    network = toy_network()
    y = np.argmax(network(x), -1)
    attack = AutoAttack(network, "Linf", 0.5, "custom", ["apgd-ce", "square"], batch_size=64, verbose=False)
    result = attack.run_standard_evaluation(x, y)
    assert result["robust_accuracy"] == 0 and list(attack.compiled) == ["apgd-ce"]
    assert result["attacks"]["square"]["broken"] == 0 == result["attacks"]["square"]["seconds"]


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core has no halves side by side")
def test_neither_the_batch_size_nor_halves_side_by_side_matter(some, whole_of_two, monkeypatch):
    side_by_side = quick(toy_network(), attacks=two_attacks(), batch_size=60)
    found = side_by_side.run_standard_evaluation(*some)
    assert all(compiled.halves == 2 and max(compiled.sizes) == 30 for compiled in side_by_side.compiled.values())
    assert max(max(compiled.traces().values()) for compiled in side_by_side.compiled.values()) == 1
    np.testing.assert_array_equal(found["broken_by"], whole_of_two.result["broken_by"])
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    alone = quick(toy_network(), attacks=two_attacks(), batch_size=60)
    expected = alone.run_standard_evaluation(*some)
    assert all(compiled.halves == 1 for compiled in alone.compiled.values())
    np.testing.assert_array_equal(found["broken_by"], expected["broken_by"])
    for name, row in found["attacks"].items():
        for count in ("iterations_per_image", "gradient_passes_per_image"):
            assert row[count] == expected["attacks"][name][count]


def test_a_randomised_network_is_attacked_in_one_thread(some):
    short = {"attacks": [Square(0.01, num_queries=5)], "batch_size": 60}
    attack = quick(keras_network(keras.layers.Activation("linear")), **short)
    attack.run_standard_evaluation(*some)
    drawn = quick(lambda x: toy_network()(x) + 1e-3 * tf.random.normal((1, 10)), **short)
    drawn.run_standard_evaluation(*some)
    assert [max(each.halves for each in run.compiled.values()) for run in (attack, drawn)] == [
        min(2, os.cpu_count() or 1),
        1,
    ]


@pytest.mark.parametrize("place", [0, -1])
def test_an_error_in_one_half_ends_both(place, some):
    x, y = some[0].copy(), some[1]
    x[np.flatnonzero(np.argmax(toy_network()(x), -1) == y)[place], 0, 0, 0] = mark = np.float32(0.123)

    class Failing(Square):
        def advance(self, forward, x, y, state, until, epsilon):
            after = super().advance(forward, x, y, state, until, epsilon)
            marked = tf.reduce_any(tf.equal(x[:, 0, 0, 0], mark))
            with tf.control_dependencies([tf.debugging.Assert(~marked, ["the end of the test"])]):
                return {name: tf.identity(value) for name, value in after.items()}

    attack = quick(toy_network(), attacks=[Failing(1e-6, num_queries=20_000)], batch_size=60)
    with pytest.raises(tf.errors.InvalidArgumentError, match="the end of the test"):
        attack.run_standard_evaluation(x, y)
    assert attack.compiled["square"].iterations < 20_000 * 10  # the other half has 28 images or so


class Stop(Exception):
    pass


@pytest.mark.parametrize("batches", [1, 3, pytest.param(4, marks=pytest.mark.full)])
def test_an_interrupted_run_goes_on_and_gives_the_same_answer(batches, some, whole_of_two, tmp_path):
    """In the first attack, between the two, and in the second one."""
    whole, calls, settings = whole_of_two.result, [], {"attacks": two_attacks(), "batch_size": 20}
    assert whole_of_two.calls[:5] == ["apgd-ce"] * 3 + ["square"] * 2

    def stop(name, standing):
        calls.append(name)
        if len(calls) == batches:
            raise Stop

    state = tmp_path / "state.json"
    with pytest.raises(Stop):
        quick(toy_network(), state_path=state, **settings).run_standard_evaluation(*some, callback=stop)
    again = []
    log = tmp_path / "log.txt"
    result = quick(toy_network(), state_path=state, log_path=log, **settings).run_standard_evaluation(
        *some, callback=lambda name, standing: again.append(name)
    )
    for name in ("broken_by", "x_adv", "y_adv"):
        np.testing.assert_array_equal(result[name], whole[name])
    assert result["robust_accuracy"] == whole["robust_accuracy"]
    for name, found in result["attacks"].items():
        for count in ("iterations_per_image", "gradient_passes_per_image", "broken", "robust_accuracy"):
            assert found[count] == whole["attacks"][name][count]
    assert calls + again == whole_of_two.calls
    assert "restored" in log.read_text()
    finished = json.loads(state.read_text())
    assert finished["run_attacks"] == ["apgd-ce", "square"]
    assert finished["robust_flags"] == (whole["broken_by"] == -1).tolist()


def test_each_attack_alone(some, whole_of_two):
    kept = {}
    alone = quick(toy_network(), attacks=two_attacks()).run_standard_evaluation_individual(*some, kept.__setitem__)
    assert kept == alone
    assert list(alone) == ["apgd-ce", "square"]
    for result in alone.values():
        assert whole_of_two.result["robust_accuracy"] <= result["robust_accuracy"] < result["clean_accuracy"] == 0.95


def test_channels_may_come_first(some, whole_of_two):
    x, y = some
    first = quick(
        lambda v: toy_network()(tf.transpose(v, (0, 2, 3, 1))),
        attacks=two_attacks(),
        batch_size=20,
        data_format="channels_first",
    )
    result = first.run_standard_evaluation(np.moveaxis(x, 3, 1), y)
    np.testing.assert_array_equal(result["broken_by"], whole_of_two.result["broken_by"])
    np.testing.assert_array_equal(result["x_adv"], np.moveaxis(whole_of_two.result["x_adv"], 3, 1))


def keras_network(*more):
    network = toy_network()
    inputs = keras.Input((8, 8, 3))
    return keras.Model(inputs, keras.Sequential(more)(keras.layers.Lambda(network, output_shape=(10,))(inputs)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"version": "fast"}, "`version` is one of"),
        ({"version": "custom"}, "`attacks` belongs to version"),
        ({"attacks": ["square"]}, "`attacks` belongs to version"),
        ({"version": "custom", "attacks": ["pgd"]}, "names among"),
        ({"version": "custom", "attacks": [Square(0.1, "L2")]}, "of the Linf norm"),
        ({"version": "custom", "attacks": ["square", "square"]}, "each attack once"),
        ({"epsilon": 0}, "`epsilon` is the radius"),
        ({"epsilon": -0.1}, "`epsilon` is the radius"),
        ({"norm": "L3"}, "`norm` is one of"),
        ({"batch_size": 0}, "`batch_size`"),
        ({"batch_size": 2.5}, "`batch_size` is an integer"),
        ({"batch_size": True}, "`batch_size` is an integer"),
        ({"batch_size": "2"}, "`batch_size` is an integer"),
        ({"data_format": "NCHW"}, "`data_format`"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        AutoAttack(toy_network(), **settings)


def test_bad_data_and_networks_are_named(some):
    x, y = some
    for model, images, labels, message in (
        (toy_network(), x * 2, y, r"Images must be floats in \[0, 1\]"),
        (toy_network(), x, y + 20, r"Labels must be integers in \[0, 10\)"),
        (lambda v: toy_network()(v) * np.nan, x, y, "NaN or infinite logits"),
        (lambda v: tf.reshape(toy_network()(v), (-1, 2, 5)), x, y, "logits of shape"),
        (lambda v: toy_network()(v)[:, :1], x, y, "at least two"),
        (toy_network(), x[..., 0], y, "a channel axis to gray ones"),
    ):
        with pytest.raises(ValueError, match=message):
            quick(model).run_standard_evaluation(images, labels)


def test_batch_sizes_fall_down_to_sixteen():
    assert batch_sizes(250) == [250, 219, 188, 157, 125, 94, 63, 32, 16]
    assert batch_sizes(64) == [64, 56, 48, 40, 32, 24, 16] and batch_sizes(32) == [32, 28, 24, 20, 16]
    assert batch_sizes(16) == [16] and batch_sizes(5) == [5] and batch_sizes(17) == [17]
    assert len(batch_sizes(1000)) <= 12 and min(batch_sizes(1000)) >= 16


def test_a_keras_network_is_attacked_with_cached_kernels(some, whole_of_two):
    network = keras_network(keras.layers.Activation("linear"))
    result = quick(network, attacks=two_attacks()).run_standard_evaluation(*some)
    np.testing.assert_array_equal(result["broken_by"], whole_of_two.result["broken_by"])


def test_a_model_of_fixed_batch_size_gets_no_other_batches(some, whole_of_two):
    network, sizes = toy_network(), set()

    class Fixed:
        input_shape = (16, *some[0].shape[1:])

        def __call__(self, images):
            sizes.add(images.shape[0])
            return network(images)

    result = quick(Fixed(), attacks=two_attacks()).run_standard_evaluation(*some)
    assert sizes == {16}
    np.testing.assert_array_equal(result["broken_by"], whole_of_two.result["broken_by"])


def test_attacks_share_one_interface():
    assert all(issubclass(one, StagedAttack) for one in (APGD, FAB, Square))
