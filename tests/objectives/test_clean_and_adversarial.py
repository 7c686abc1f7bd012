import numpy as np
import pytest
import tensorflow as tf

from tests.networks import tiny_images, tiny_network
from tf_robust_sparse import attacks, layers, objectives
from tf_robust_sparse.attacks import cross_entropy
from tf_robust_sparse.objectives import label_smoothing

X, Y = tiny_images(9)
ATTACK = attacks.LinfPGD(0.3, 0.05, 3, label="predicted")


def gradients(objective, network, x_adv):
    with tf.GradientTape() as tape:
        adversarial = objective.perturb(network, X, Y, seed=1) if x_adv is None else x_adv
        loss = tf.reduce_mean(objective.loss(network, X, Y, adversarial)[0])
    return tape.gradient(loss, network.trainable_variables)


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.5, 1.0])
def test_the_loss_is_the_weighted_mean_of_clean_and_attacked(weight):
    network, objective = tiny_network("masked", batch_norm=False), objectives.CleanAndAdversarial(ATTACK, weight)
    x_adv = objective.perturb(network, X, Y, seed=1)
    clean, attacked = (cross_entropy(Y, network(x, training=False)) for x in (X, x_adv))
    per_example, logits, logits_adv = objective.loss(network, X, Y, x_adv)
    np.testing.assert_allclose(per_example, (1 - weight) * clean + weight * attacked, atol=1e-6)
    np.testing.assert_array_equal(logits, network(X))
    np.testing.assert_array_equal(logits_adv, network(x_adv))


def test_no_gradient_flows_through_the_attack():
    network, objective = tiny_network("masked", batch_norm=False), objectives.CleanAndAdversarial(ATTACK)
    through, constant = (
        gradients(objective, network, x) for x in (None, tf.constant(objective.perturb(network, X, Y, seed=1)))
    )
    for a, b in zip(through, constant, strict=True):
        assert np.abs(a).max() > 0
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_labels_are_smoothed_as_published():
    labels = label_smoothing.smoothed_labels(tf.constant([3, 7]), 10, 0.1).numpy()
    np.testing.assert_allclose(labels.max(axis=1), 0.91, atol=1e-6)
    np.testing.assert_allclose(labels.min(axis=1), 0.01, atol=1e-6)
    np.testing.assert_allclose(labels.sum(axis=1), 1, atol=1e-6)
    assert labels.argmax(axis=1).tolist() == [3, 7]
    entropy = -(labels * np.log(labels)).sum(axis=1)
    np.testing.assert_allclose(entropy, 0.5002, atol=1e-3)
    least = label_smoothing.smoothed_cross_entropy(tf.constant([3, 7]), tf.math.log(labels), 0.1)
    np.testing.assert_allclose(least, entropy, atol=1e-5)


def test_smoothing_is_part_of_the_loss_and_of_its_description():
    network = tiny_network("masked", batch_norm=False)
    hard, smooth = objectives.Natural(), objectives.Natural(0.1)
    expected = label_smoothing.smoothed_cross_entropy(Y, network(X), 0.1)
    np.testing.assert_allclose(smooth.loss(network, X, Y, X)[0], expected, atol=1e-6)
    assert np.abs(hard.loss(network, X, Y, X)[0] - expected).max() > 0.01
    assert "label_smoothing" not in hard.describe() and smooth.describe()["label_smoothing"] == 0.1


def test_the_penalty_is_on_what_is_connected():
    network = tiny_network("masked", batch_norm=False)
    for layer in layers.kernel_layers(network):
        layer.kernel_mask.assign(np.random.default_rng(0).random(layer.kernel.shape) < 0.5)
    objective = objectives.L1Penalty(objectives.Natural(), 0.01)
    difference = objective.loss(network, X, Y, X)[0] - objectives.Natural().loss(network, X, Y, X)[0]
    left = sum(np.abs(np.array(layer.effective_kernel)).sum() for layer in layers.kernel_layers(network))
    np.testing.assert_allclose(difference, 0.01 * left, rtol=1e-4)
    layers_gradient = gradients(objective, network, X)[0]
    off = ~np.array(layers.kernel_layers(network)[0].kernel_mask)
    assert off.any() and not np.any(np.array(layers_gradient)[off])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: objectives.CleanAndAdversarial(ATTACK, weight=1.5), "`weight`"),
        (lambda: objectives.CleanAndAdversarial(ATTACK, label_smoothing=1.0), "`label_smoothing`"),
        (lambda: objectives.Natural(-0.1), "`label_smoothing`"),
        (lambda: objectives.L1Penalty(objectives.Natural(), -1), "`strength`"),
        (lambda: objectives.L1Penalty(ATTACK, 1), "`objective`"),
    ],
)
def test_bad_settings_are_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()
