"""Signs drawn in every step."""

import keras
import numpy as np
import pytest

from tests.networks import mirrored, tiny_dataset, tiny_network
from tf_robust_sparse import layers, objectives
from tf_robust_sparse.sparsity.binarization import StochasticBinarization
from tf_robust_sparse.training import RobustModel


def stochastic_network():
    x = inputs = keras.Input((12, 12, 1))
    x = layers.BinaryConv2D(8, 3, strides=2, use_bias=False, stochastic=True, name="conv")(x)
    x = layers.BatchNormalization(name="bn")(x)
    x = keras.layers.ReLU()(x)
    x = keras.layers.Flatten()(x)
    return keras.Model(inputs, layers.BinaryDense(10, stochastic=True, name="out")(x))


def trained(epochs=1, seed=0, sparsifier=True):
    keras.utils.set_random_seed(3)
    network = stochastic_network()
    model = RobustModel(network, objectives.Natural(), StochasticBinarization(seed) if sparsifier else None)
    model.compile(keras.optimizers.Adam(0.01), run_eagerly=True)
    model.fit(tiny_dataset(), epochs=epochs, verbose=0)
    return network


def signs(network):
    return [np.asarray(layer.effective_kernel) for layer in layers.kernel_layers(network)]


def test_signs_are_drawn_anew_in_every_step_and_depend_on_the_seed():
    first, again, other = (signs(trained(seed=seed)) for seed in (0, 0, 1))
    for a, b, c in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(a, b)
        assert (a != c).any() and set(np.unique(a)) == {-1, 1}


def test_without_it_they_stay_as_they_are():
    keras.utils.set_random_seed(3)
    before = signs(stochastic_network())
    for a, b in zip(before, signs(trained(sparsifier=False)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_share_of_positive_signs_is_the_probability():
    layer = layers.BinaryDense(200, stochastic=True)
    x = keras.Input((300,))
    network = keras.Model(x, layer(x))
    layer.kernel.assign(np.full(layer.kernel.shape, 0.4))
    optimizer = keras.optimizers.SGD(0.0)
    optimizer.build(network.trainable_variables)
    sparsifier = StochasticBinarization()
    sparsifier.attach(network)
    sparsifier.after_update(None, optimizer)
    assert np.asarray(layer.positive).mean() == pytest.approx(0.7, abs=5 * 0.46 / np.sqrt(60_000))


def test_replicas_agree():
    with mirrored().scope():
        network = stochastic_network()
        model = RobustModel(network, objectives.Natural(), StochasticBinarization())
        model.compile(keras.optimizers.SGD(0.1))
    model.fit(tiny_dataset(), verbose=0)
    for variable in network.variables:
        first, second = mirrored().experimental_local_results(variable.value)
        np.testing.assert_array_equal(first, second, err_msg=variable.path)


def test_other_networks_are_refused():
    with pytest.raises(ValueError, match='needs a network built with kernel="binary"'):
        StochasticBinarization().attach(tiny_network("masked"))
