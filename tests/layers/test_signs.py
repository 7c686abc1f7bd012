"""Kernels of signs: frozen ones chosen by scores, and trained ones."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.networks import mirrored, tiny_dataset, tiny_network
from tf_robust_sparse import layers, objectives, sparsity
from tf_robust_sparse.layers.subnet import kept_entries
from tf_robust_sparse.models.kernel_initialization import initialize_kernels
from tf_robust_sparse.training import Phase, RobustModel, coupled


@pytest.mark.parametrize("k", [1.0, 0.5, 0.1, 0.0031, 0.77])
@pytest.mark.parametrize("n", [1728, 5120, 36864, 2359296])
def test_the_mask_has_the_published_count_and_the_largest_scores(n, k):
    layer = layers.SignedDense(1, keep_fraction=k)
    layer.build((None, n))
    mask = np.asarray(layer.compute_kernel_mask()).ravel()
    assert mask.sum() == layer.kept == kept_entries(n, k) == n - int((1 - k) * n)
    scores = np.abs(np.asarray(layer.scores)).ravel()
    assert k == 1.0 or scores[mask].min() >= scores[~mask].max()


@pytest.mark.parametrize("magnitude", [1.0, 0.25])
def test_the_gradient_of_the_scores_passes_the_selection_by(magnitude):
    layer = layers.SignedConv2D(5, 3, keep_fraction=0.3, magnitude=magnitude, use_bias=False)
    x = tf.random.normal((4, 8, 8, 3))
    layer(x)
    scores = np.random.default_rng(0).normal(size=layer.scores.shape)
    scores[0, 0, 0, 0] = 0
    layer.scores.assign(scores)
    with tf.GradientTape() as tape:
        kernel = layer.compute_effective_kernel()
        tape.watch(kernel)
        loss = tf.reduce_sum(tf.nn.conv2d(x, kernel, 1, "VALID") ** 3)
    found, of_kernel = tape.gradient(loss, [layer.scores.value, kernel])
    whole = magnitude * np.asarray(layer.sign, "float32")
    np.testing.assert_allclose(found, np.sign(scores) * whole * of_kernel, rtol=1e-5)
    off = np.asarray(kernel) == 0
    assert (found.numpy()[off] != 0).any() and found.numpy()[0, 0, 0, 0] == 0
    assert [variable.name for variable in layer.trainable_variables] == ["scores"]
    np.testing.assert_array_equal(np.asarray(kernel)[~off], whole[~off])


@pytest.mark.parametrize("kernel", ["signed", "subnet"])
def test_frozen_kernels_are_the_same_after_fifty_steps(kernel):

    network = tiny_network(kernel)
    initialize_kernels(network, "binary", seed=5)
    sparsity.set_keep_fractions(network, 0.3)
    Phase("prune").begin(network)
    before = [_whole(layer).copy() for layer in layers.kernel_layers(network)]
    scores = [np.array(layer.scores) for layer in layers.kernel_layers(network)]
    model = RobustModel(network, objectives.Natural())
    model.compile(coupled("sgd", 0.1, 5e-4))
    model.fit(tiny_dataset(16 * 10), epochs=5, verbose=0)
    for old, learned, layer in zip(before, scores, layers.kernel_layers(network), strict=True):
        np.testing.assert_array_equal(_whole(layer), old)
        assert set(np.unique(old)) == {-1, 1}
        assert abs((old > 0).mean() - 0.5) < 5 / np.sqrt(old.size)
        assert (np.asarray(layer.scores) != learned).any()


def _whole(layer):
    return np.asarray(layer.sign, "float32") if hasattr(layer, "sign") else np.asarray(layer.kernel)


def test_phases_that_train_kernels_refuse_frozen_ones():
    with pytest.raises(ValueError, match=r"always frozen.*finetune.*SignedConv2D"):
        Phase("finetune").begin(tiny_network("signed"))


def test_bad_magnitude():
    for magnitude in (0, -1, float("inf"), "x", True):
        with pytest.raises(ValueError, match="`magnitude` must be the absolute value"):
            layers.SignedDense(3, magnitude=magnitude)


def test_trained_signs_are_those_of_the_kernel_and_pass_the_gradient():
    layer = layers.BinaryDense(1, use_bias=False)
    layer.build((None, 5))
    layer.kernel.assign([[0.3], [-0.2], [0.0], [1.0], [-1.0]])
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(layer(tf.constant([[1.0, 2.0, 3.0, 4.0, 5.0]])))
    np.testing.assert_array_equal(layer.effective_kernel[:, 0], [1, -1, 1, 1, -1])
    np.testing.assert_array_equal(tape.gradient(total, layer.kernel.value)[:, 0], [1, 2, 3, 4, 5])


def test_drawn_signs_pass_the_gradient_of_their_probability():
    layer = layers.BinaryDense(1, stochastic=True, use_bias=False)
    layer.build((None, 4))
    layer.kernel.assign([[0.3], [-0.2], [1.0], [-1.0]])
    layer.positive.assign([[False], [True], [True], [False]])
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(layer(tf.constant([[1.0, 2.0, 3.0, 4.0]])))
    np.testing.assert_array_equal(layer.effective_kernel[:, 0], [-1, 1, 1, -1])
    np.testing.assert_array_equal(tape.gradient(total, layer.kernel.value)[:, 0], [0.5, 1, 0, 0])


@pytest.mark.parametrize("strategy", ["one", "two"])
def test_the_real_kernel_stays_within_one(strategy):
    scope = mirrored().scope() if strategy == "two" else tf.name_scope("none")
    with scope:
        network = tiny_network("binary")
        model = RobustModel(network, objectives.Natural())
        model.compile(keras.optimizers.SGD(5.0))
    model.fit(tiny_dataset(), verbose=0)
    largest = [np.abs(np.asarray(layer.kernel)).max() for layer in layers.kernel_layers(network)]
    assert max(largest) == 1
    for layer in layers.kernel_layers(network):
        assert set(np.unique(layer.effective_kernel)) == {-1, 1}


def test_initial_kernels_are_clipped():
    layer = layers.BinaryDense(50, kernel_initializer=keras.initializers.RandomNormal(stddev=3.0))
    layer.build((None, 50))
    assert np.abs(np.asarray(layer.kernel)).max() == 1
