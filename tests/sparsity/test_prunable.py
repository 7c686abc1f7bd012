"""A frozen kernel keeps its connections, whatever prunes the others."""

import logging

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.networks import tiny_images, tiny_network
from tf_robust_sparse import RobustModel, layers, objectives, sparsity, training
from tf_robust_sparse.models.stacked import can_be_stacked
from tf_robust_sparse.models.unbiased_dense import unbiased_dense_300_100
from tf_robust_sparse.sparsity import masked_kernels, statistics
from tf_robust_sparse.sparsity.binarization import StochasticBinarization
from tf_robust_sparse.sparsity.scores import random_scores, rescale_kernels

FROZEN = "conv2"


def frozen_network(kernel):
    network = tiny_network(kernel)
    network.get_layer(FROZEN).trainable = False
    return network


@pytest.mark.parametrize(
    ("kernel", "sparsifier"),
    [
        ("masked", lambda: sparsity.MagnitudePruning(0.1)),
        (
            "masked",
            lambda: sparsity.MagnitudePruning(
                0.1, lambda step: (tf.constant(True), tf.constant(0.1, tf.float64)), "global"
            ),
        ),
        ("masked", lambda: sparsity.ChannelMagnitudePruning(0.5)),
        ("rewiring", lambda: sparsity.ConnectivitySampling(0.5, noise_scaling=0.1, init_policy="exact")),
        ("binary", lambda: StochasticBinarization()),
    ],
)
def test_sparsifiers_leave_it_alone(kernel, sparsifier, caplog):
    if kernel == "binary":
        flat = keras.layers.Flatten()(pixels := keras.Input((12, 12, 1)))
        hidden = layers.BinaryDense(8, stochastic=True, name="hidden")(flat)
        network = keras.Model(pixels, layers.BinaryDense(10, stochastic=True, name="classifier")(hidden))
        first, frozen = layers.kernel_layers(network)[0], layers.kernel_layers(network)[1]
        frozen.trainable = False
    else:
        network = frozen_network(kernel)
        first, frozen = network.get_layer("conv1"), network.get_layer(FROZEN)
    before = [layer.effective_kernel.numpy() for layer in (first, frozen)]
    with caplog.at_level(logging.WARNING):
        model = RobustModel(network, objectives.Natural(), sparsifier())
    assert caplog.messages == [f"Frozen layers keep their connections: {frozen.name}"]
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9))
    x, y = tiny_images(16)
    model.fit(x, y, epochs=2, batch_size=8, verbose=0)
    model.sparsifier.check(network)
    np.testing.assert_array_equal(frozen.effective_kernel, before[1])
    assert (np.asarray(first.effective_kernel) != before[0]).any()
    assert frozen not in model.sparsifier.layers and model.sparsifier.describe()["frozen"] == [frozen.name]


def test_channels_of_the_last_kernel_stay_though_it_is_frozen():
    network = tiny_network("masked")
    network.get_layer("classifier").trainable = False
    sparsity.ChannelMagnitudePruning(0.5).attach(network)
    masks = [np.asarray(layer.kernel_mask) for layer in layers.kernel_layers(network)]
    assert [mask.any(tuple(range(mask.ndim - 1))).sum() for mask in masks] == [4, 8, 10]


def test_scores_and_phases_leave_it_alone(caplog):
    network = frozen_network("subnet")
    layer = network.get_layer(FROZEN)
    before = layer.get_weights()
    sparsity.scaled_scores(network)
    random_scores(network)
    sparsity.snip_scores(network, [tiny_images(4)])
    sparsity.set_keep_fractions(network, 0.1)
    rescale_kernels(network)
    with caplog.at_level(logging.WARNING):
        for phase in ("pretrain", "prune", "finetune"):
            training.Phase(phase).begin(network)
            assert not layer.trainable_variables
    assert f"Frozen layers keep their connections: {FROZEN}" in caplog.messages
    assert layer.keep_fraction == 1.0 and network.get_layer("conv1").keep_fraction == 0.1
    for weight, value in zip(layer.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, value)


def test_rounds_leave_it_alone():
    network = tiny_network("masked")
    network.get_layer(FROZEN).kernel.trainable = False
    assert set(masked_kernels.get_masks(network)) == {"conv1", "classifier"}
    dense = unbiased_dense_300_100()
    assert can_be_stacked(dense)
    dense.get_layer("hidden_1").trainable = False
    assert not can_be_stacked(dense)


def test_frozen_layers_alone_are_refused():
    network = tiny_network("masked")
    network.trainable = False
    with pytest.raises(ValueError, match=r"needs a layer that is not frozen.*conv1, conv2, classifier"):
        sparsity.MagnitudePruning(0.1).attach(network)


def test_all_weights_are_counted_beside_kernels():
    network = tiny_network("masked")
    x = keras.layers.Conv2D(2, 3, name="other")(network.inputs[0])
    outputs = network(network.inputs[0]) + keras.layers.Dense(10)(keras.layers.Flatten()(x))
    sparsity.MagnitudePruning(0.1).attach(network)
    whole = statistics.summary(keras.Model(network.inputs[0], outputs))
    kernels = 9 * 8 + 9 * 8 * 16 + 144 * 10
    others = 4 * 8 + 16 + 10 + (9 * 2 + 2) + (200 * 10 + 10)  # batch norm, biases, the two layers of Keras
    assert whole["total_weights"] == kernels + others
    assert whole["remaining_weights"] == whole["nonzero"] + others
    assert whole["connectivity"] == pytest.approx(0.1, abs=0.001)
