"""Stability training: its noise, its loss, and what it becomes without noise."""

import numpy as np
import pytest
import tensorflow as tf

from tests.networks import tiny_images, tiny_network
from tf_robust_sparse import objectives
from tf_robust_sparse.attacks import cross_entropy

X, Y = (tf.constant(part) for part in tiny_images(32))


def test_noise_is_fresh_gaussian_and_not_clipped():
    objective = objectives.Stability(0.25)
    first, again, other = (objective.perturb(None, X, Y, seed=seed) - X for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    assert np.std(first) == pytest.approx(0.25, rel=0.03) and abs(np.mean(first)) < 0.02
    assert not np.allclose(first[0], first[1])
    noisy = (X + first).numpy()
    assert noisy.min() < 0 and noisy.max() > 1


def test_without_noise_it_is_the_cross_entropy():
    network, objective = tiny_network("plain", batch_norm=False), objectives.Stability(0.0)
    x_adv = objective.perturb(network, X, Y, seed=3)
    losses, logits, *_ = objective.loss(network, X, Y, x_adv)
    np.testing.assert_allclose(losses, cross_entropy(Y, network(X)), rtol=1e-6)
    np.testing.assert_allclose(logits, network(X), rtol=1e-6)


def test_the_loss_is_the_formula():
    network, objective = tiny_network("plain", batch_norm=False), objectives.Stability(0.25, beta=3.0)
    x_adv = objective.perturb(network, X, Y, seed=3)
    losses, *_ = objective.loss(network, X, Y, x_adv)
    p, q = (tf.nn.softmax(network(images)).numpy().astype("float64") for images in (X, x_adv))
    expected = -np.log(p[np.arange(32), Y]) + 3 * (p * np.log(p / q)).sum(-1)
    np.testing.assert_allclose(losses, expected, rtol=1e-4, atol=1e-6)


def test_without_divergence_the_noisy_images_are_learned():
    network, objective = tiny_network("plain", batch_norm=False), objectives.Stability(0.25, beta=None)
    x_adv = objective.perturb(network, X, Y, seed=3)
    losses, logits, *_ = objective.loss(network, X, Y, x_adv)
    np.testing.assert_allclose(logits, network(x_adv), rtol=1e-6)
    np.testing.assert_allclose(losses, cross_entropy(Y, logits), rtol=1e-6)


def test_gradients_flow_through_both_predictions():
    network, objective = tiny_network("plain", batch_norm=False), objectives.Stability(0.25, beta=1.0)
    x_adv = objective.perturb(network, X, Y, seed=3)
    with tf.GradientTape() as tape:
        tape.watch([X, x_adv])
        loss = tf.reduce_mean(objective.loss(network, X, Y, x_adv)[0])
    assert all(np.abs(gradient).max() > 0 for gradient in tape.gradient(loss, [X, x_adv]))


@pytest.mark.parametrize("settings", [{"noise_std": -0.1}, {"noise_std": float("inf")}, {"beta": -1.0}])
def test_bad_settings(settings):
    with pytest.raises(ValueError, match=f"`{next(iter(settings))}` is"):
        objectives.Stability(**settings)


def test_description_is_plain():
    described = objectives.Stability(0.5, None).describe()
    assert described == {"objective": "Stability", "noise_std": 0.5, "beta": None}
