"""Adversarial weight perturbation: lengths, dead entries, statistics, and by hand."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_robust_sparse as trs
from tests.networks import mirrored, tiny_images, tiny_network
from tf_robust_sparse.layers.kernel_seam import effective_kernel

X, Y = tiny_images(64)


def mean_loss(network, x=X[:16], y=Y[:16]):
    logits = network(x, training=True)
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits))


def offsets_of(network, gamma=0.01, loss=None):
    awp = trs.objectives.AWP(trs.objectives.Natural(), gamma)
    with trs.layers.cached_kernels(network):
        return awp.weight_offsets(network, loss or (lambda: mean_loss(network)))


@pytest.mark.parametrize("kernel", ["plain", "masked", "rewiring", "subnet"])
def test_moves_have_their_length_and_dead_entries_stay(kernel):
    network = tiny_network(kernel)
    if kernel == "masked":
        layer = network.get_layer("conv2")
        layer.kernel_mask.assign(np.random.default_rng(0).random(layer.kernel.shape) < 0.2)
    statistics = [np.array(each) for each in network.non_trainable_variables]
    found = offsets_of(network)
    assert [layer.name for layer, _ in found] == ["conv1", "conv2", "classifier"]
    for layer, offset in found:
        weight = np.asarray(effective_kernel(layer))
        moved = weight + offset
        assert np.all(np.asarray(offset)[weight == 0] == 0)
        if kernel == "rewiring":
            assert np.all(moved * weight >= 0)
        else:
            assert np.linalg.norm(offset) / np.linalg.norm(weight) == pytest.approx(0.01, rel=1e-5)
    for before, after in zip(statistics, network.non_trainable_variables, strict=True):
        np.testing.assert_array_equal(before, after)


def test_two_weights_by_hand():
    x = keras.Input((2,))
    network = keras.Model(x, keras.layers.Dense(2, use_bias=False)(x))
    weights = np.array([[3.0, 0.5], [4.0, -1.0]], np.float32)
    network.layers[-1].set_weights([weights])
    target = np.array([[1.0, 2.0], [2.0, 0.5]], np.float32)
    ((variable, offset),) = offsets_of(network, 0.1, lambda: tf.reduce_sum(network.layers[-1].kernel * target))
    assert variable is network.layers[-1].kernel
    expected = 0.1 * np.linalg.norm(weights) * target / np.linalg.norm(target)
    np.testing.assert_allclose(offset, expected, rtol=1e-6)


def trained(objective, network, steps=3):
    model = trs.RobustModel(network, objective)
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9))
    logs = [model.train_on_batch(X[:16], Y[:16]) for _ in range(steps)]
    return logs, [np.array(each) for each in network.variables]


def test_without_a_length_training_is_that_of_the_objective():
    plain = trs.objectives.Natural()
    expected = trained(plain, tiny_network())
    for awp in (trs.objectives.AWP(plain, 0.0), trs.objectives.AWP(plain, 0.1, start_step=100)):
        found = trained(awp, tiny_network())
        assert expected[0] == found[0]
        for a, b in zip(expected[1], found[1], strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("kernel", ["rewiring", "keras"])
def test_the_gradient_is_that_of_the_moved_weights(kernel):
    """One step of SGD by hand: the weights move by the gradient at `w + v`."""
    if kernel == "keras":
        network = keras.Sequential([keras.Input((12, 12, 1)), keras.layers.Flatten(), keras.layers.Dense(10)])
    else:
        network = tiny_network(kernel, batch_norm=False)
    variables = [np.array(v) for v in network.trainable_variables]
    found = offsets_of(network, 0.2)
    with tf.GradientTape() as tape, trs.layers.cached_kernels(network):
        if kernel == "keras":
            ((variable, offset),) = found
            variable.assign_add(offset)
            loss = mean_loss(network)
        else:
            from tf_robust_sparse.layers.kernel_seam import moved_kernels

            with moved_kernels(found):
                loss = mean_loss(network)
    gradients = tape.gradient(loss, [v.value for v in network.trainable_variables])
    expected = [v - 0.1 * g for v, g in zip(variables, gradients, strict=True)]
    for v, value in zip(network.trainable_variables, variables, strict=True):
        v.assign(value)
    model = trs.RobustModel(network, trs.objectives.AWP(trs.objectives.Natural(), 0.2))
    model.compile(keras.optimizers.SGD(0.1))
    logs = model.train_on_batch(X[:16], Y[:16])
    assert logs == pytest.approx(float(loss), rel=1e-5)
    for a, b in zip(expected, network.trainable_variables, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_the_loss_grows_on_nearly_all_batches():
    network = tiny_network("plain")
    trained(trs.objectives.Natural(), network, 20)
    rng, grown = np.random.default_rng(0), 0
    from tf_robust_sparse.layers.kernel_seam import moved_kernels

    for _ in range(40):
        some = rng.choice(64, 16, replace=False)
        loss = lambda some=some: mean_loss(network, X[some], Y[some])  # noqa: E731
        found = offsets_of(network, 0.01, loss)
        with trs.layers.cached_kernels(network):
            before = float(loss())
            with moved_kernels(found):
                grown += float(loss()) > before
    assert grown >= 38


def test_bad_arguments():
    for arguments, message in (((-0.1,), "gamma=-0.1"), ((0.1, 1.5), "start_step=1.5")):
        with pytest.raises(ValueError, match=message):
            trs.objectives.AWP(trs.objectives.Natural(), *arguments)
    network = tiny_network("plain")
    network.trainable = False
    with pytest.raises(ValueError, match="has none that are trained"):
        offsets_of(network)


def test_replicas_begin_to_move_weights_at_the_same_step():
    losses = []
    for strategy in (mirrored(), tf.distribute.get_strategy()):
        with strategy.scope():
            model = trs.RobustModel(
                tiny_network("masked", batch_norm=False),
                trs.objectives.AWP(trs.objectives.Natural(), 0.1, start_step=2),
            )
            model.compile(keras.optimizers.SGD(0.1))
        fit = model.fit(X, Y, batch_size=16, epochs=1, shuffle=False, verbose=0)
        losses.append([fit.history["loss"][0], *(float(tf.norm(each)) for each in model.network.trainable_variables)])
    np.testing.assert_allclose(*losses, rtol=1e-5)
