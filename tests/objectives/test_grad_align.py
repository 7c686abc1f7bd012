"""Gradient alignment: cosines by hand and by finite differences, and the attacks it takes."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.networks import tiny_images
from tf_robust_sparse import attacks, objectives
from tf_robust_sparse.layers.noise import fold_in, uniform_like
from tf_robust_sparse.objectives import grad_align

X, Y = map(tf.constant, tiny_images(16))


def objective(strength=0.5):
    return objectives.GradAlign(objectives.AT(attacks.LinfFGSM(0.1)), strength).at_step(tf.constant(0), [1, 2])


def test_gradients_of_a_linear_loss_are_aligned():
    x = keras.Input((12, 12, 1))
    network = keras.Model(x, keras.layers.Dense(2, use_bias=False)(keras.layers.Flatten()(x)))
    found = objective().alignment(network, X, Y % 2)
    np.testing.assert_allclose(found, 1, atol=1e-5)  # of two classes the direction is that of the weights


def test_the_penalty_is_added_and_differentiates_as_finite_differences_do():
    """The first gradient counts as a constant."""
    x = keras.Input((12, 12, 1))
    hidden = keras.layers.Dense(8, activation="tanh")
    network = keras.Model(x, keras.layers.Dense(10)(hidden(keras.layers.Flatten()(x))))
    align = objective()
    plain = objectives.AT(attacks.LinfFGSM(0.1)).loss(network, X, Y, X).per_example
    with tf.GradientTape() as tape:
        value = 0.5 * (1 - tf.reduce_mean(align.alignment(network, X, Y)))
    np.testing.assert_allclose(align.loss(network, X, Y, X).per_example, plain + value, atol=1e-5)
    direction = np.random.default_rng(0).normal(size=hidden.kernel.shape).astype(np.float32)
    slope = float(tf.reduce_sum(tape.gradient(value, hidden.kernel.value) * direction))
    noise = uniform_like(X, fold_in(tf.constant([1, 2]), 0x6A), -0.1, 0.1)
    first, before, ends = np.reshape(grad_align._image_gradient(network, X, Y), (16, -1)), np.array(hidden.kernel), []
    for step in (1e-3, -1e-3):
        hidden.kernel.assign(before + step * direction)
        second = np.reshape(grad_align._image_gradient(network, X + noise, Y), (16, -1)).astype(np.float64)
        lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
        ends.append(0.5 * (1 - np.mean((first * second).sum(1) / lengths)))
    assert slope == pytest.approx((ends[0] - ends[1]) / 2e-3, rel=2e-2)


def test_bad_arguments():
    with pytest.raises(ValueError, match="l-infinity ball"):
        objectives.GradAlign(objectives.AT(attacks.L2PGD(0.5)))
    with pytest.raises(ValueError, match="strength=-1"):
        objectives.GradAlign(objectives.AT(attacks.LinfFGSM(0.1)), -1)
