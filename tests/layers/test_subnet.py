"""Kernels chosen by scores: what stays, and where gradients go."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_robust_sparse import layers
from tf_robust_sparse.layers import SubnetConv2D, SubnetDense
from tf_robust_sparse.layers.subnet import kept_entries


@pytest.mark.parametrize(
    ("entries", "keep_fraction", "kept"),
    [(864, 0.01, 9), (2560, 0.05, 128), (50, 0.01, 1), (10, 0.9, 10), (10, 0.8, 9), (4, 0.5, 2), (7, 1.0, 7)],
)
def test_published_numbers_of_entries_that_stay(entries, keep_fraction, kept):
    assert kept_entries(entries, keep_fraction) == kept
    layer = SubnetDense(entries, keep_fraction=keep_fraction)
    layer.build((None, 1))
    assert layer.kept == int(tf.math.count_nonzero(layer.compute_kernel_mask())) == kept


def test_mask_and_gradients_of_the_golden_kernel():
    layer = SubnetDense(4, keep_fraction=0.5, use_bias=False)
    layer.build((None, 1))
    layer.kernel.assign([[1.0, 2.0, 3.0, 4.0]])
    layer.scores.assign([[0.5, -2.0, 0.1, 1.5]])
    with tf.GradientTape() as tape:
        kernel = layer.effective_kernel
        loss = tf.reduce_sum(kernel)
    np.testing.assert_array_equal(kernel, [[0, 2, 0, 4]])
    to_kernel, to_scores = tape.gradient(loss, [layer.kernel, layer.scores])
    np.testing.assert_array_equal(to_kernel, [[0, 1, 0, 1]])
    np.testing.assert_array_equal(to_scores, [[1, -2, 3, 4]])


def test_a_score_of_zero_gets_no_gradient():
    layer = SubnetDense(2, keep_fraction=0.5, use_bias=False, scores_initializer="zeros", kernel_initializer="ones")
    layer.build((None, 1))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer.effective_kernel)
    np.testing.assert_array_equal(tape.gradient(loss, layer.scores), [[0, 0]])
    np.testing.assert_array_equal(layer.compute_kernel_mask(), [[False, True]])  # of equal scores the last stay


@pytest.mark.parametrize("make", [lambda **kw: SubnetDense(6, **kw), lambda **kw: SubnetConv2D(6, 3, **kw)])
def test_it_computes_what_a_masked_plain_kernel_does(make):
    layer = make(keep_fraction=0.3, activation="relu")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 5) if isinstance(layer, SubnetDense) else (2, 5, 5, 3)).astype("float32")
    y = layer(x)
    order = np.argsort(np.abs(layer.scores.numpy()).reshape(-1))
    mask = np.zeros(order.size)
    mask[order[order.size - layer.kept :]] = 1
    kernel = layer.kernel.numpy() * mask.reshape(layer.kernel.shape)
    plain = x @ kernel if kernel.ndim == 2 else tf.nn.conv2d(x, kernel, 1, "VALID")
    np.testing.assert_allclose(y, np.maximum(plain, 0), atol=1e-6)
    assert kernel.any() and (kernel == 0).sum() == order.size - layer.kept


def test_default_scores_are_those_of_pytorch():
    layer = SubnetConv2D(64, 3)
    layer.build((None, 8, 8, 64))
    scores = layer.scores.numpy()
    bound = (9 * 64) ** -0.5
    assert 0.99 * bound < np.abs(scores).max() <= bound
    assert scores.std() == pytest.approx(bound / 3**0.5, rel=0.02)


def test_the_fraction_may_change_and_is_saved(tmp_path):
    network = keras.Sequential([keras.Input((8,)), SubnetDense(8), SubnetDense(3)])
    assert layers.kernel_layers(network)[0].kept == 64
    network.layers[0].keep_fraction = 0.25
    path = tmp_path / "n.keras"
    network.save(path)
    again = keras.saving.load_model(path)
    assert again.layers[0].kept == 16 and again.layers[1].kept == 24
    x = np.random.default_rng(0).normal(size=(4, 8)).astype("float32")
    np.testing.assert_array_equal(network(x), again(x))


@pytest.mark.parametrize("keep_fraction", [0, -0.1, 1.1, True, "0.5", float("nan")])
def test_bad_fractions_are_named(keep_fraction):
    with pytest.raises(ValueError, match=r"for 99% sparsity pass 0.01. Received: keep_fraction="):
        SubnetDense(3, keep_fraction=keep_fraction)
