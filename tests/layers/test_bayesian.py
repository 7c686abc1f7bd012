"""Kernels whose entries are drawn."""

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

from tf_robust_sparse import layers, models
from tf_robust_sparse.layers.bayesian import BayesianScale
from tf_robust_sparse.models.vgg import vgg16_dropout

INVERSE_OF_ONE = float(np.log(np.expm1(1.0)))


@pytest.mark.parametrize(("mean", "expected"), [(0.0, 0.0), (0.5, 0.125)])
def test_divergence_of_one_weight(mean, expected):
    layer = layers.BayesianDense(1, use_bias=False, prior_stddev=1.0, initial_rho=INVERSE_OF_ONE)
    layer.build((None, 1))
    layer.kernel.assign([[mean]])
    np.testing.assert_allclose(layer.kl_divergence(), expected, atol=1e-6)


@pytest.mark.parametrize("prior", [0.1, 1.0, 3.0])
def test_divergence_is_the_integral(prior):
    dense = layers.BayesianDense(3, prior_stddev=prior, initial_rho=-1.5)
    dense.build((None, 2))
    scale = BayesianScale(prior, -0.5)
    scale.build((None, 4))
    random = np.random.default_rng(0)
    for layer in (dense, scale):
        expected = 0.0
        for mean, rho in layer.posteriors():
            mean.assign(random.normal(0, 0.3, mean.shape))
            stddev = float(np.log1p(np.exp(rho.numpy().ravel()[0])))
            for each in mean.numpy().ravel():
                posterior, divisor = scipy.stats.norm(each, stddev), scipy.stats.norm(0, prior)
                expected += posterior.expect(lambda w, q=posterior, p=divisor: q.logpdf(w) - p.logpdf(w))
        np.testing.assert_allclose(layer.kl_divergence(), expected, rtol=1e-4)


@pytest.mark.parametrize("make", [lambda: layers.BayesianDense(300), lambda: BayesianScale(1.0, INVERSE_OF_ONE)])
def test_inference_takes_the_means_and_training_one_draw_for_the_batch(make):
    layer = make()
    x = tf.random.stateless_uniform((5, 300), [1, 2])
    np.testing.assert_array_equal(layer(x), layer(x, training=False))
    same = tf.tile(x[:1], [4, 1])
    drawn = layer(same, training=True).numpy()
    np.testing.assert_allclose(drawn, np.broadcast_to(drawn[:1], drawn.shape), rtol=1e-6)
    assert np.abs(drawn - layer(same, training=False)).max() > 1e-3
    assert np.abs(drawn - layer(same, training=True)).max() > 1e-3


def test_draws_have_mean_and_spread():
    layer = layers.BayesianDense(100_000, use_bias=False, initial_rho=INVERSE_OF_ONE)
    layer.build((None, 1))
    layer.kernel.assign(np.full((1, 100_000), 0.7, "float32"))
    drawn = layer(tf.ones((1, 1)), training=True).numpy()
    assert abs(drawn.mean() - 0.7) < 0.02 and abs(drawn.std() - 1) < 0.02


def test_gradients_reach_mean_and_spread():
    layer = layers.BayesianConv2D(4, 3)
    x = tf.random.stateless_uniform((2, 6, 6, 3), [1, 2])
    layer(x)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(x, training=True) ** 2)
    assert all(np.abs(each).max() > 0 for each in tape.gradient(loss, layer.trainable_variables))


@pytest.mark.parametrize(("build", "prior", "rho"), [(models.lenet_conv, 1.0, -3.0), (vgg16_dropout, 0.1, -5.0)])
def test_networks(build, prior, rho):
    network = build(kernel="bayesian", seed=1)
    drawn = [layer for layer in network.layers if hasattr(layer, "posteriors")]
    assert {(layer.prior_stddev, layer.initial_rho) for layer in drawn} == {(prior, rho)}
    assert all((spread.numpy() == rho).all() for layer in drawn for _, spread in layer.posteriors())
    plain = build(seed=1)
    assert not any(layer.name.startswith("gate") for layer in network.layers)
    # a mean and a spread for every weight
    assert sum(np.prod(v.shape) for v in network.trainable_variables) == 2 * sum(
        np.prod(v.shape) for v in plain.trainable_variables
    )
    x = tf.random.stateless_uniform((4, *network.input_shape[1:]), [1, 2])
    logits = network(x, training=False)
    np.testing.assert_array_equal(logits, network(x, training=False))
    assert np.min(logits) < 0  # no ReLU on them
    kernel = network.get_layer("conv1").kernel
    bound = 1 / np.sqrt(np.prod(kernel.shape[:3]))
    assert 0.9 * bound < np.abs(kernel).max() <= bound


@pytest.mark.parametrize("arguments", [{"prior_stddev": 0}, {"initial_rho": float("nan")}])
def test_numbers_out_of_range(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        layers.BayesianDense(3, **arguments)
