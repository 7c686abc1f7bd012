"""N-FGSM: a linear model by hand, its support, and RS-FGSM as a case of it."""

import numpy as np
import pytest
import tensorflow as tf

from tf_robust_sparse import attacks
from tf_robust_sparse.layers.noise import fold_in

X = np.random.default_rng(0).random((8, 3, 3, 1)).astype(np.float32)
Y = np.arange(8) % 2
WEIGHTS = np.random.default_rng(1).normal(size=(9, 2)).astype(np.float32)


def linear(x):
    return tf.reshape(x, (-1, 9)) @ WEIGHTS


def test_a_linear_model_by_hand():
    attack = attacks.NFGSM(0.1, noise=0.0)
    direction = np.sign((WEIGHTS[:, 1 - Y] - WEIGHTS[:, Y]).T.reshape(X.shape))
    np.testing.assert_allclose(attack(linear, X, Y), np.clip(X + 0.1 * direction, 0, 1), atol=1e-6)
    with_noise = attacks.NFGSM(0.1, noise=2.0)
    start = with_noise.uniform_start(tf.constant(X), fold_in(tf.constant([3, 4]), 0))
    expected = np.clip(start + 0.1 * direction, 0, 1)
    np.testing.assert_allclose(with_noise(linear, X, Y, seed=tf.constant([3, 4])), expected, atol=1e-6)


def test_the_result_may_leave_the_ball_by_its_noise_and_not_the_pixels():
    moved = np.concatenate([attacks.NFGSM(0.1, noise=2.0)(linear, X, Y, seed=seed) for seed in range(20)])
    distance = np.abs(moved - np.tile(X, (20, 1, 1, 1)))
    assert 0.25 < distance.max() <= 0.3 + 1e-6 and moved.min() >= 0 and moved.max() <= 1


def test_rs_fgsm_bit_by_bit():
    ours = attacks.NFGSM(0.1, noise=1.0, step_size=0.125, clip=True)
    theirs = attacks.LinfFGSM(0.1, random_start=True, step_size=0.125)
    np.testing.assert_array_equal(ours(linear, X, Y, seed=5), theirs(linear, X, Y, seed=5))


def test_bad_arguments():
    with pytest.raises(ValueError, match="noise=-1"):
        attacks.NFGSM(0.1, noise=-1)
