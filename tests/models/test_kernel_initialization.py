"""Kernels drawn anew have the distributions they should."""

import math

import keras
import numpy as np
import pytest

from tf_robust_sparse import layers, models
from tf_robust_sparse.models.kernel_initialization import initialize_kernels

# name -> bound or deviation of convolutions and dense kernels, in roots of 2 / fan_out, 2 / fan_in, 1 / 3 fan_in, or a
# number, and the dimensions of kernels whose biases are drawn.
HYDRAS = {
    "pytorch": ("default", "default", (2, 4)),
    "kaiming_normal_fan_out": ("fan_out", "default", (2,)),
    "kaiming_normal_fan_out_wrn": ("fan_out", "default", ()),
    "kaiming_normal_fan_out_vgg": ("fan_out", 0.01, ()),
    "kaiming_uniform_fan_out_vgg": ("fan_out", 0.01, ()),
}


@pytest.mark.parametrize("kernel", ["plain", "subnet"])
@pytest.mark.parametrize("distribution", HYDRAS)
def test_initializations_of_hydras_networks(distribution, kernel):
    network = models.large_cnn(kernel=kernel)
    initialize_kernels(network, distribution, seed=1)
    *kinds, with_bias = HYDRAS[distribution]
    for layer in layers.kernel_layers(network):
        a = layer.kernel.numpy()
        fan_in, fan_out = math.prod(a.shape[:-1]), math.prod(a.shape) // a.shape[-2]
        kind = kinds[0 if a.ndim == 4 else 1]
        variance = {"fan_out": 2 / fan_out, "default": 1 / (3 * fan_in)}.get(kind, 1e-4)
        assert a.std() == pytest.approx(math.sqrt(variance), rel=6 / math.sqrt(a.size))
        if kind == "default" or (distribution.startswith("kaiming_uniform") and kind == "fan_out"):
            assert np.abs(a).max() <= math.sqrt(3 * variance)
        bias = np.abs(layer.bias.numpy())
        assert bias.any() == (a.ndim in with_bias) and bias.max() <= 1 / math.sqrt(fan_in)


def test_intervals_neither_grow_nor_shrink():
    network = models.large_cnn(kernel="masked")
    initialize_kernels(network, "ibp", seed=1)
    for layer in layers.kernel_layers(network):
        # A linear layer doubles the widths of intervals, and ReLU halves them where half of the units are active.
        growth = np.abs(layer.kernel.numpy()).sum(axis=tuple(range(layer.kernel.ndim - 1)))
        assert growth.mean() == pytest.approx(2, rel=6 / math.sqrt(layer.kernel.numpy().size))


@pytest.mark.parametrize("distribution", ["kaiming_normal", "kaiming_uniform", "signed_const"])
def test_deviation_and_seeds(distribution):
    network = models.large_cnn(kernel="masked")

    def drawn(seed):
        initialize_kernels(network, distribution, seed)
        return [layer.kernel.numpy() for layer in layers.kernel_layers(network)]

    first, again, other = drawn(1), drawn(1), drawn(2)
    for layer, a, b, c in zip(layers.kernel_layers(network), first, again, other, strict=True):
        np.testing.assert_array_equal(a, b)
        assert (a != c).any()
        fan_in = math.prod(a.shape[:-1])
        deviation = math.sqrt(2 / fan_in)
        assert a.std() == pytest.approx(deviation, rel=6 / math.sqrt(a.size))
        if distribution == "signed_const":
            np.testing.assert_allclose(np.abs(a), deviation, rtol=1e-6)
        if distribution == "kaiming_uniform":
            assert np.abs(a).max() <= math.sqrt(6 / fan_in)
        assert not layer.bias.numpy().any()


# Of a convolution from 64 to 64 channels, 3x3, of which 1 % stays: name -> (magnitude, deviation, largest).
PUBLISHED = {
    "binary": (1.0, 1.0, 1.0),
    "lottery_binary": (1.0, 1.0, 1.0),
    "uniform_pm1": (None, 1 / math.sqrt(3), 1.0),
    "signed_constant_correct": (0.589256, 0.589256, 0.589256),
    "unsigned_constant_correct": (0.589256, 0.0, 0.589256),
    "signed_constant": (0.059222, 0.059222, 0.059222),
    "unsigned_constant": (0.059222, 0.0, 0.059222),
    "kaiming_normal_correct": (None, 0.589256, None),
    "kaiming_normal": (None, 0.059222, None),
    "kaiming_uniform": (None, 0.058926, 0.102062),
    "xavier_normal": (None, 0.041667, None),
    "xavier_constant": (0.041667, 0.041667, 0.041667),
    "standard": (None, 0.024056, 0.041667),
}


@pytest.mark.parametrize("distribution", PUBLISHED)
def test_published_values(distribution):
    x = keras.Input((6, 6, 64))
    network = keras.Model(x, layers.PlainConv2D(64, 3, use_bias=False)(x))
    initialize_kernels(network, distribution, seed=3, scaled_by=0.01)
    kernel = layers.kernel_layers(network)[0].kernel.numpy()
    magnitude, deviation, largest = PUBLISHED[distribution]
    if magnitude is not None:
        np.testing.assert_allclose(np.abs(kernel), magnitude, rtol=1e-5)
    assert kernel.std() == pytest.approx(deviation, rel=0.02, abs=1e-6)
    if largest is not None:
        assert 0.99 * largest <= np.abs(kernel).max() <= largest * 1.00001
    if not distribution.startswith("unsigned"):
        assert abs((kernel > 0).mean() - 0.5) < 5 / math.sqrt(kernel.size)
        other = keras.Model(x, layers.PlainConv2D(64, 3, use_bias=False)(x))
        initialize_kernels(other, distribution, seed=4, scaled_by=0.01)
        assert (layers.kernel_layers(other)[0].kernel.numpy() != kernel).any()


def test_the_fan_of_the_outputs_and_another_gain():
    x = keras.Input((6, 6, 16))
    network = keras.Model(x, layers.PlainConv2D(64, 3, use_bias=False)(x))
    initialize_kernels(network, "signed_constant", mode="fan_out", gain=1.0)
    np.testing.assert_allclose(np.abs(layers.kernel_layers(network)[0].kernel), 1 / math.sqrt(576), rtol=1e-6)


def test_signed_kernels_take_signs_and_a_magnitude():
    network = models.small_cnn(kernel="signed", seed=0)
    initialize_kernels(network, "xavier_constant", seed=1)
    layer = layers.kernel_layers(network)[1]
    fans = math.prod(layer.positive.shape[:2]) * sum(layer.positive.shape[2:])
    assert layer.magnitude == pytest.approx(math.sqrt(2 / fans))
    np.testing.assert_allclose(np.abs(layer.effective_kernel), layer.magnitude, rtol=1e-6)
    with pytest.raises(ValueError, match="conv1 has no kernel to draw by uniform_pm1"):
        initialize_kernels(network, "uniform_pm1")


def test_bad_input():
    with pytest.raises(ValueError, match=r"must be one of kaiming_normal.*Received: distribution='he'"):
        initialize_kernels(models.small_cnn(), "he")
    with pytest.raises(ValueError, match="conv1 has no kernel to draw"):
        initialize_kernels(models.small_cnn(kernel="rewiring", connectivity=0.1), "kaiming_normal")
    with pytest.raises(ValueError, match=r"`scaled_by` must be a fraction .*Received: scaled_by=0"):
        initialize_kernels(models.small_cnn(), "signed_constant", scaled_by=0)
    with pytest.raises(ValueError, match="makes the fan 0"):
        initialize_kernels(models.small_cnn(), "signed_constant", scaled_by=1)
