"""The attack of binary sub-networks: the worst point whose gradient was taken; and batch norm in training mode."""

import numpy as np
import pytest
import tensorflow as tf

from tests.networks import tiny_images, tiny_network
from tf_robust_sparse import layers, objectives
from tf_robust_sparse.attacks import L2PGD, LinfPGD, cross_entropy
from tf_robust_sparse.layers.kernel_seam import unfolded_kernels

X, Y = tiny_images(24)


def visited(attack, epsilon, step_size, num_steps, network, seed):
    """The points x_0 ... x_{T-1} of the ordinary attack, one after the other."""
    return [attack(epsilon, step_size, steps)(network, X, Y, seed=seed).numpy() for steps in range(num_steps)]


def test_in_l2_too_it_returns_the_highest_loss():
    network = tiny_network("plain")
    found = L2PGD(1.0, 1.5, 5, keep_best=True)(network, X, Y, seed=3).numpy()
    points = visited(L2PGD, 1.0, 1.5, 5, network, 3)
    losses = np.stack([cross_entropy(Y, network(point, training=False)) for point in points])
    np.testing.assert_allclose(found, np.stack(points)[losses.argmax(0), np.arange(len(X))], atol=1e-5)
    assert len(set(losses.argmax(0))) > 1 and np.linalg.norm((found - X).reshape(24, -1), axis=1).max() <= 1 + 1e-5


@pytest.mark.parametrize("step_size", [0.01, 0.3])
@pytest.mark.parametrize("num_steps", [1, 2, 6])
def test_it_returns_the_highest_loss_of_the_points_before_the_last(num_steps, step_size):
    network = tiny_network("plain")
    found = LinfPGD(0.1, step_size, num_steps, keep_best=True)(network, X, Y, seed=3).numpy()
    points = visited(LinfPGD, 0.1, step_size, num_steps, network, 3)
    losses = np.stack([cross_entropy(Y, network(point, training=False)) for point in points])
    best = np.stack(points)[losses.argmax(0), np.arange(len(X))]
    np.testing.assert_allclose(found, best, atol=1e-6)
    assert (cross_entropy(Y, network(found, training=False)) >= losses.max(0) - 1e-5).numpy().all()
    assert np.abs(found - X).max() <= 0.1 + 1e-6 and found.min() >= 0 and found.max() <= 1


def test_batch_norm_of_the_batch_moves_its_statistics_in_each_step():
    def statistics(**arguments):
        network = tiny_network("signed")
        objective = objectives.AT(LinfPGD(0.1, 0.03, 3, keep_best=True), **arguments)
        before = np.array(network.get_layer("bn1").moving_mean)
        with layers.cached_kernels(network), layers.folded_kernels(network):
            x_adv = tf.function(objective.perturb, autograph=False)(
                network, tf.constant(X), tf.constant(Y), seed=[0, 1]
            )
        return before, np.asarray(network.get_layer("bn1").moving_mean), x_adv

    before, after, x_adv = statistics(batch_norm="training")
    assert (before != after).all() and np.abs(x_adv - X).max() <= 0.1 + 1e-6
    before, after, _ = statistics()
    np.testing.assert_array_equal(before, after)


def test_unfolded_kernels_are_the_cached_ones():
    network = tiny_network("signed")
    expected = np.asarray(network(X, training=True))
    with layers.cached_kernels(network), layers.folded_kernels(network):
        with unfolded_kernels(network):
            np.testing.assert_allclose(network(X, training=True), expected, rtol=1e-6)
        with pytest.raises(RuntimeError, match="training=False"):
            network(X, training=True)


def test_label_smoothing_is_its_formula():
    network = tiny_network("plain", batch_norm=False)
    plain = objectives.AT(LinfPGD(0.1, 0.05, 1)).loss(network, X, Y, X)[0]
    logits = network(X)
    found, *_ = objectives.AT(LinfPGD(0.1, 0.05, 1), label_smoothing=0.1).loss(network, X, Y, X)
    of_all = -np.mean(tf.nn.log_softmax(logits), -1)
    np.testing.assert_allclose(found, 0.9 * np.asarray(plain) + 0.1 * of_all, rtol=1e-5)


def test_settings_name_the_choice_only_where_it_is_made():
    attack = LinfPGD(0.1, 0.05, 2, keep_best=True)
    assert LinfPGD.from_config(attack.get_config()).keep_best and attack.describe()["keep_best"]
    assert "keep_best" not in LinfPGD(0.1).get_config() and "keep_best" not in LinfPGD(0.1).describe()


def test_bad_input():
    with pytest.raises(ValueError, match="`label_smoothing` is the share"):
        objectives.AT(LinfPGD(0.1), label_smoothing=1.0)
    with pytest.raises(ValueError, match="`batch_norm` must be one of inference, training"):
        objectives.AT(LinfPGD(0.1), batch_norm="eval")
