"""Score-space sharpness: lengths, the loss at moved scores, and that the scores stay."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_robust_sparse as trs
from tests.networks import tiny_images, tiny_network
from tests.objectives.test_awp import mean_loss
from tf_robust_sparse import layers, objectives, sparsity, training
from tf_robust_sparse.training.weight_offsets import moved_weights

X, Y = tiny_images(64)


def pruned(kernel="subnet", fraction=0.2):
    network = tiny_network(kernel)
    sparsity.set_keep_fractions(network, fraction)
    sparsity.uniform_scores(network)
    training.Phase("prune").begin(network)
    return network


def offsets_of(network, gamma, loss=None):
    s2ap = objectives.S2AP(objectives.Natural(), gamma)
    with layers.cached_kernels(network):
        return s2ap.weight_offsets(network, loss or (lambda: mean_loss(network)))


def trained(objective, network, steps=3):
    model = trs.RobustModel(network, objective)
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9))
    logs = [model.train_on_batch(X[:16], Y[:16]) for _ in range(steps)]
    return logs, [np.array(each) for each in network.variables]


@pytest.mark.parametrize("kernel", ["subnet", "signed", "learned_rate"])
def test_moves_have_their_length_and_nothing_stays_moved(kernel):
    network = pruned(kernel)
    before = [np.array(each) for each in network.variables]
    found = offsets_of(network, 0.05)
    assert [id(scores) for scores, _ in found] == [id(layer.scores) for layer in layers.kernel_layers(network)]
    for scores, move in found:
        assert np.linalg.norm(move) / np.linalg.norm(scores) == pytest.approx(0.05, rel=1e-6)
    with layers.cached_kernels(network), moved_weights(network, found):
        for layer, (scores, move) in zip(layers.kernel_layers(network), found, strict=True):
            order = np.argsort(np.abs(np.array(scores) + move), axis=None, kind="stable")
            on = np.zeros(order.size, bool)
            on[order[order.size - layer.kept :]] = True
            np.testing.assert_array_equal(np.array(layer.effective_kernel).ravel() != 0, on)
    for a, b in zip(before, network.variables, strict=True):
        np.testing.assert_array_equal(a, b)


def test_without_a_gradient_nothing_moves():
    for _, move in offsets_of(pruned(), 0.05, lambda: tf.constant(1.0)):
        assert not np.any(move)


def test_without_a_length_training_is_that_of_the_objective():
    expected = trained(objectives.Natural(), pruned())
    found = trained(objectives.S2AP(objectives.Natural(), 0.0), pruned())
    assert expected[0] == found[0]
    for a, b in zip(expected[1], found[1], strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_gradient_is_that_of_the_moved_scores():
    """One step by hand: the scores move by the gradient of a network that holds `s + z`."""
    network, twin = pruned(), pruned()
    found = offsets_of(network, 0.2)
    for layer, (scores, move) in zip(layers.kernel_layers(twin), found, strict=True):
        layer.scores.assign(np.array(scores) + move)
    variables = [layer.scores for layer in layers.kernel_layers(twin)]
    with tf.GradientTape() as tape:
        loss = mean_loss(twin)
    expected = [
        np.array(layer.scores) - 0.1 * gradient
        for layer, gradient in zip(layers.kernel_layers(network), tape.gradient(loss, variables), strict=True)
    ]
    model = trs.RobustModel(network, objectives.S2AP(objectives.Natural(), 0.2))
    model.compile(keras.optimizers.SGD(0.1))
    assert model.train_on_batch(X[:16], Y[:16]) == pytest.approx(float(loss), rel=1e-5)
    for a, layer in zip(expected, layers.kernel_layers(network), strict=True):
        np.testing.assert_allclose(a, layer.scores, atol=1e-6)


def test_the_loss_grows_on_nearly_all_batches():
    network = pruned()
    sparsity.scaled_scores(network)
    trained(objectives.Natural(), network, 20)
    rng, grown = np.random.default_rng(0), 0
    for _ in range(20):
        some = rng.choice(64, 16, replace=False)
        loss = lambda some=some: mean_loss(network, X[some], Y[some])  # noqa: E731
        found = offsets_of(network, 0.1, loss)
        with layers.cached_kernels(network):
            before = float(loss())
            with moved_weights(network, found):
                grown += float(loss()) >= before
    assert grown >= 18


def test_networks_and_objectives_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="S2AP moves the scores of kernels, and the network has none"):
        offsets_of(tiny_network("masked"), 0.1)
    finetuned = pruned()
    training.Phase("finetune").begin(finetuned)
    with pytest.raises(ValueError, match="has none that are trained"):
        offsets_of(finetuned, 0.1)
    with pytest.raises(ValueError, match="Only one objective moves weights; pass S2AP the one inside AWP"):
        objectives.S2AP(objectives.AWP(objectives.Natural()), 0.1)
    with pytest.raises(ValueError, match=r"gamma=-0\.1"):
        objectives.S2AP(objectives.Natural(), -0.1)
