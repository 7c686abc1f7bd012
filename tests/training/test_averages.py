"""Averages of weights: values by hand, connections, checkpoints, evaluation."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_robust_sparse as trs
from tests.networks import tiny_images, tiny_network

X, Y = tiny_images(64)


def model_of(average, kernel="rewiring", sparsifier=None, seed=0, rate=0.1):
    network = tiny_network(kernel, seed=seed)
    model = trs.RobustModel(network, trs.objectives.Natural(), sparsifier, seed=seed, average=average)
    model.compile(keras.optimizers.SGD(rate, momentum=0.9), metrics=["accuracy"])
    return model


def kernels(network):
    return [np.asarray(layer.compute_effective_kernel()) for layer in trs.layers.kernel_layers(network)]


def test_the_decay_grows_to_its_limit():
    found = [float(trs.training.EMA(0.995).decay_at(t)) for t in (0, 1, 10, 100, 1000, 1790, 10_000)]
    np.testing.assert_allclose(found, [0.1, 2 / 11, 0.55, 101 / 110, 1001 / 1010, 0.995, 0.995], rtol=1e-6)
    waits = trs.training.EMA(0.995, warmup_steps=5)
    assert [float(waits.decay_at(t)) for t in (0, 4)] == [0, 0] and float(waits.decay_at(5)) == pytest.approx(0.1)


def test_a_hundred_steps_by_hand():
    average = trs.training.EMA(0.9, warmup_steps=3)
    model = model_of(average, "plain")
    by_hand = [np.array(v, np.float64) for v in model.network.trainable_variables]
    for step in range(100):
        model.train_on_batch(X[:16], Y[:16])
        d = float(average.decay_at(step))
        by_hand = [
            d * a + (1 - d) * np.array(v) for a, v in zip(by_hand, model.network.trainable_variables, strict=True)
        ]
    raw = [np.array(v) for v in model.network.variables]
    with average.in_network():
        for expected, found in zip(by_hand, model.network.trainable_variables, strict=True):
            np.testing.assert_allclose(found, expected, atol=1e-5)
    for before, after in zip(raw, model.network.variables, strict=True):
        np.testing.assert_array_equal(before, after)


SPARSIFIERS = {
    "connectivity_sampling": lambda: ("rewiring", trs.sparsity.ConnectivitySampling(0.1, noise_scaling=1e-3)),
    "rigl": lambda: ("masked", trs.sparsity.RigL(0.1, interval=3, end_step=1000)),
}


@pytest.mark.parametrize("name", SPARSIFIERS)
def test_averages_have_the_connections_of_the_network(name):
    kernel, sparsifier = SPARSIFIERS[name]()
    average = trs.training.EMA(0.95)
    model = model_of(average, kernel, sparsifier)
    first = kernels(model.network)
    for _ in range(60):
        model.train_on_batch(X[:16], Y[:16])
    raw = kernels(model.network)
    assert any(((a != 0) != (b != 0)).any() for a, b in zip(first, raw, strict=True)), "connections should move"
    with average.in_network():
        averaged = kernels(model.network)
        assert sum(np.count_nonzero(each) for each in averaged) == sum(sparsifier.count())
    assert sum(np.count_nonzero(each) for each in averaged) == sum(np.count_nonzero(each) for each in raw)
    for a, b in zip(averaged, raw, strict=True):
        assert ((a == 0) == (b == 0)).all() and (a * b >= 0).all() and not np.array_equal(a, b)


def test_an_entry_that_was_born_late_counts_from_its_first_step_on():
    network = tiny_network("masked")
    layer = network.get_layer("conv2")
    sparsifier = trs.sparsity.SET(0.5, drop_fraction=0.0)
    sparsifier.attach(network)
    for late, expected in ((sparsifier, 1.0), (None, 1 - 0.995**50)):
        average = trs.training.EMA(0.995)
        average.attach(network, late)
        value = np.array(layer.kernel)
        at = tuple(np.argwhere(value != 0)[0])
        dead = value.copy()
        dead[at] = 0
        layer.kernel.assign(dead)
        for step in range(2000, 2010):
            average.after_update(tf.constant(step))
        layer.kernel.assign(value)
        for step in range(2010, 2060):
            average.after_update(tf.constant(step))
        average.load()
        share = np.array(layer.kernel)[at] / value[at]
        if late is None:  # ten steps of zeros took a little of what was there before
            assert share == pytest.approx(expected + 0.995**60, abs=1e-4)
        else:
            assert share == pytest.approx(expected, abs=1e-5)
        layer.kernel.assign(value)


def test_epochs_count_equally_from_the_first_one_that_counts():
    average = trs.training.SWA(start_epoch=1)
    model = model_of(average, "plain")
    ends = []

    class Keep(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            ends.append(np.array(model.network.trainable_variables[0]))

    model.fit(X, Y, 16, epochs=4, callbacks=[Keep()], validation_data=(X[:16], Y[:16]), verbose=0)
    np.testing.assert_allclose(average.values()[0], np.mean(ends[1:], 0), atol=1e-6)


def test_checkpoints_hold_both_and_training_goes_on_bit_by_bit(tmp_path):
    def made():
        kernel, sparsifier = SPARSIFIERS["rigl"]()
        objective = trs.objectives.AWP(trs.objectives.AT(trs.attacks.LinfPGD(0.1, 0.05, 1)), 0.01)
        network = tiny_network(kernel)
        model = trs.RobustModel(network, objective, sparsifier, average=trs.training.EMA(0.9))
        model.compile(keras.optimizers.SGD(0.05, momentum=0.9))
        return model

    whole = made()
    for _ in range(3):
        whole.train_on_batch(X[:16], Y[:16])
    trs.saving.save_checkpoint(tmp_path / "state.weights.h5", whole, {})
    for _ in range(3):
        whole.train_on_batch(X[16:32], Y[16:32])
    again = made()
    trs.saving.load_checkpoint(tmp_path / "state.weights.h5", again)
    for _ in range(3):
        again.train_on_batch(X[16:32], Y[16:32])
    for a, b in zip(whole.variables, again.variables, strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(whole.average.values(), again.average.values(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_evaluation_judges_the_average_and_leaves_the_weights():
    average = trs.training.EMA(0.0)
    model = model_of(average, "plain")
    model.fit(X, Y, 16, epochs=1, verbose=0)
    assert model.evaluate(X, Y, verbose=0) == pytest.approx(model_of_weights(model).evaluate(X, Y, verbose=0))
    for entry in average.holder.weights:
        entry.assign(tf.zeros_like(entry))
    loss, _ = model.evaluate(X, Y, verbose=0)
    assert loss == pytest.approx(np.log(10), rel=1e-5)
    assert any(np.count_nonzero(np.array(v)) for v in model.network.trainable_variables)


def model_of_weights(model):
    plain = trs.RobustModel(model.network, trs.objectives.Natural())
    plain.compile("sgd", metrics=["accuracy"])
    return plain


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: trs.training.EMA(1.0), "decay=1.0"),
        (lambda: trs.training.EMA(warmup_steps=-1), "warmup_steps=-1"),
        (lambda: trs.training.SWA(start_epoch=0.5), "start_epoch=0.5"),
        (lambda: trs.training.SWA(decay=2), "decay=2"),
        (lambda: trs.RobustModel(tiny_network(), trs.objectives.Natural(), average=0.9), "average=0.9"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
