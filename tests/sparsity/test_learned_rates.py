"""Learned rates: the published formulas, the budget, and that weights stay."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_robust_sparse as trs
from tests.networks import mirrored, tiny_dataset, tiny_images, tiny_network
from tf_robust_sparse import layers, objectives, sparsity, training

RATE = -2.2072749  # of a tenth, where at least a thousandth stays


def rated(connectivity=0.05, **kwargs):
    """A network of 2,664 entries that begins with a tenth of each kernel, in the prune phase."""
    network = tiny_network("learned_rate", **kwargs)
    for layer in layers.kernel_layers(network):
        layer.least_fraction = 0.1 * connectivity
    sparsity.scaled_scores(network)
    sparsity.begin_rates(network)
    training.Phase("prune").begin(network)
    return network


def learner(network, connectivity=0.05, gamma=0.3, optimizer=None, objective=None):
    rates = sparsity.LearnedRates(connectivity, gamma)
    model = trs.RobustModel(network, objective or objectives.Natural(), rates)
    model.compile(optimizer or keras.optimizers.SGD(0.1, momentum=0.9))
    return model


def test_the_published_rate_of_a_tenth():
    layer = layers.LearnedRateDense(10, keep_fraction=0.1, least_fraction=0.001)
    layer.build((None, 100))
    assert float(layer.rate) == pytest.approx(RATE, abs=2e-7)
    assert layer.keep_fraction == pytest.approx(0.1, abs=1e-7)
    assert layer.kept == int(tf.math.count_nonzero(layer.compute_kernel_mask())) == 100
    network = rated(0.01)
    rates = sparsity.LearnedRates(0.01)
    rates.attach(network)
    assert float(rates.excess()) == pytest.approx(9.0, abs=1e-5)


def test_gradients_of_six_entries():
    layer = layers.LearnedRateDense(6, keep_fraction=0.45, least_fraction=0.1, use_bias=False)
    layer.build((None, 1))
    kernel, scores = np.array([[1.0, -2.0, 3.0, 4.0, -5.0, 6.0]]), np.array([[0.6, -0.5, 0.1, -0.2, 0.4, 0.3]])
    upstream = np.array([[1.0, 0.5, -2.0, 1.0, 3.0, -1.0]])
    layer.kernel.assign(kernel)
    layer.scores.assign(scores)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer.effective_kernel * upstream.astype("float32"))
    np.testing.assert_array_equal(layer.effective_kernel, kernel * [[1, 1, 0, 0, 1, 0]])
    to_kernel, to_scores, to_rate = tape.gradient(loss, [layer.kernel, layer.scores, layer.rate])
    share = (0.45 - 0.1) / 0.9
    np.testing.assert_array_equal(to_kernel, upstream * [[1, 1, 0, 0, 1, 0]])
    np.testing.assert_allclose(to_scores, np.sign(scores) * kernel * upstream, rtol=1e-6)
    assert float(to_rate) == pytest.approx((kernel * upstream).sum() * 0.9 * share * (1 - share), rel=1e-5)


def test_rates_fall_under_the_penalty_alone_and_rest_below_the_budget():
    network = rated()
    rates = sparsity.LearnedRates(0.05)
    rates.attach(network)
    variables = [layer.rate for layer in layers.kernel_layers(network)]
    for fraction, falls in ((0.1, True), (0.04, False)):
        sparsity.set_keep_fractions(network, fraction)
        with tf.GradientTape() as tape:
            weight, excess = rates.penalty()
            penalty = weight * excess
        found = tape.gradient(penalty, variables)
        assert all((float(each) > 0) == falls for each in found)
        assert (float(excess) > 0) == falls


def test_training_ends_at_the_budget_and_leaves_the_weights():
    network = rated()
    model = learner(network, optimizer=keras.optimizers.SGD(0.1))
    weights = {v.path: np.array(v) for v in network.variables if v.name in ("kernel", "bias")}
    weighed = []
    watch = keras.callbacks.LambdaCallback(on_epoch_begin=lambda *_: weighed.append(model.sparsifier.weight))
    history = model.fit(tiny_dataset(96), epochs=6, verbose=0, callbacks=[watch, training.PhaseCheck(network)]).history
    reached = model.sparsifier.reached_at
    assert history["budget"][0] > history["budget"][-1] and 1 < reached < 6
    expected = [0.3 * min(epoch + 1, reached) for epoch in range(6)]
    np.testing.assert_allclose(weighed, expected, rtol=1e-6)
    assert 0.99 * 133 <= sum(model.sparsifier.count()) <= model.sparsifier.budget == 133
    assert model.sparsifier.within_budget()
    masks = [layer.compute_kernel_mask() for layer in layers.kernel_layers(network)]
    assert model.sparsifier.count() == [int(tf.math.count_nonzero(mask)) for mask in masks]
    for path, value in weights.items():
        np.testing.assert_array_equal(value, next(v for v in network.variables if v.path == path))


def test_a_budget_that_was_not_reached_is_met_at_the_end(caplog):
    model = learner(rated(), gamma=0.0)
    model.fit(tiny_dataset(32), epochs=1, verbose=0)
    assert not model.sparsifier.within_budget() and not model.sparsifier.reached_at
    model.sparsifier.settle()
    assert sum(model.sparsifier.count()) == model.sparsifier.budget
    assert "larger gamma" in caplog.text


def test_a_resumed_run_repeats_an_uninterrupted_one(tmp_path):
    whole = learner(rated())
    whole.fit(tiny_dataset(32), epochs=3, verbose=0)
    first = learner(rated())
    first.fit(tiny_dataset(32), epochs=2, verbose=0)
    trs.saving.save_checkpoint(tmp_path / "last.weights.h5", first, {})
    second = learner(rated())
    trs.saving.load_checkpoint(tmp_path / "last.weights.h5", second)
    second.fit(tiny_dataset(32), epochs=3, initial_epoch=2, verbose=0)
    assert second.sparsifier.weight == whole.sparsifier.weight != first.sparsifier.weight
    for a, b in zip(whole.network.variables, second.network.variables, strict=True):
        np.testing.assert_array_equal(a, b)


def test_replicas_agree():
    x, y = tiny_images(32)
    models = []
    for strategy in (tf.distribute.get_strategy(), mirrored()):
        with strategy.scope():
            objective = objectives.S2AP(objectives.Natural(), 0.1)
            models.append(learner(rated(batch_norm=False), optimizer=keras.optimizers.SGD(0.1), objective=objective))
        for _ in range(2):
            models[-1].train_on_batch(x, y)
    for a, b in zip(*(model.network.trainable_variables for model in models), strict=True):
        first, second = mirrored().experimental_local_results(b.value)
        np.testing.assert_array_equal(first, second)
        np.testing.assert_allclose(a, first, atol=1e-5)


def test_files_keep_the_counts(tmp_path):
    network = rated()
    for layer, count in zip(layers.kernel_layers(network), (7, 61, 100), strict=True):
        layer.keep_at_most(count)
    x, _ = tiny_images(4)
    for name in ("n.keras", "n.trs"):
        save = trs.save_network if name.endswith("keras") else trs.saving.save_compact
        save(network, tmp_path / name)
        loaded = trs.load_network(tmp_path / name)
        assert [layer.kept for layer in layers.kernel_layers(loaded)] == [7, 61, 100]
        np.testing.assert_array_equal(network(x), loaded(x))
    twin = rated()
    trs.saving.copy_weights(network, twin)
    assert [layer.kept for layer in layers.kernel_layers(twin)] == [7, 61, 100]
    fixed = tiny_network("subnet")
    trs.saving.copy_weights(network, fixed)
    sparsity.set_keep_fractions(fixed, {each.name: each.keep_fraction for each in layers.kernel_layers(network)})
    np.testing.assert_array_equal(network(x), fixed(x))


def test_counts_of_large_kernels_never_exceed_what_is_asked():
    layer = layers.LearnedRateDense(5000, keep_fraction=0.5, least_fraction=1e-5)
    layer.build((None, 4000))
    for count in (2000, 2001, 30_000, 1_234_567, 12_345_678):
        layer.keep_at_most(count)
        assert count - 1 - count * 3e-7 <= layer.kept <= count


def test_rates_begin_as_scores_say():
    network = rated()
    found = {}
    for allocation in ("uniform", "erk", "lamp"):
        sparsity.begin_rates(network, 0.1, allocation)
        found[allocation] = [layer.kept for layer in layers.kernel_layers(network)]
        assert sum(found[allocation]) == pytest.approx(266, abs=3)
    kernels = [np.square(np.array(layer.kernel).ravel()) for layer in layers.kernel_layers(network)]
    scores = [k / [k[k >= each].sum() for each in k] for k in kernels]
    threshold = np.sort(np.concatenate(scores))[-266]
    assert [int((each >= threshold).sum()) for each in scores] == pytest.approx(found["lamp"], abs=1)


def test_bad_arguments():
    with pytest.raises(ValueError, match="gamma=-1"):
        sparsity.LearnedRates(0.1, gamma=-1)
    with pytest.raises(ValueError, match='needs a network built with kernel="learned_rate"'):
        sparsity.LearnedRates(0.1).attach(tiny_network("subnet"))
    with pytest.raises(ValueError, match=r"cannot reach the budget.*connectivity=0\.004"):
        sparsity.LearnedRates(0.004).attach(rated(0.05))
    with pytest.raises(ValueError, match="`least_fraction` must be the fraction of kernel entries kept"):
        layers.LearnedRateDense(3, least_fraction=0)
