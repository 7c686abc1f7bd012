"""Kernels drawn anew have the distributions they should."""

import math

import numpy as np
import pytest

from tf_robust_sparse import layers, models


@pytest.mark.parametrize("kernel", ["plain", "masked", "subnet"])
@pytest.mark.parametrize("distribution", models.KERNEL_INITIALIZATIONS)
def test_deviation_and_seeds(distribution, kernel):
    network = models.large_cnn(kernel=kernel)

    def drawn(seed):
        models.initialize_kernels(network, distribution, seed)
        return [layer.kernel.numpy() for layer in layers.kernel_layers(network)]

    first, again, other = drawn(1), drawn(1), drawn(2)
    for layer, a, b, c in zip(layers.kernel_layers(network), first, again, other, strict=True):
        np.testing.assert_array_equal(a, b)
        assert (a != c).any()
        fan_in, fan_out = math.prod(a.shape[:-1]), math.prod(a.shape) // a.shape[-2]
        variance = 2 / fan_in
        if distribution == "kaiming_normal_fan_out":
            variance = 2 / fan_out if a.ndim == 4 else 1 / (3 * fan_in)
        assert a.std() == pytest.approx(math.sqrt(variance), rel=6 / math.sqrt(a.size))
        if distribution == "signed_const":
            np.testing.assert_allclose(np.abs(a), math.sqrt(variance), rtol=1e-6)
        if distribution == "kaiming_uniform":
            assert np.abs(a).max() <= math.sqrt(6 / fan_in)
        uniform_bias = distribution == "kaiming_normal_fan_out" and a.ndim == 2
        assert layer.bias.numpy().any() == uniform_bias
        if uniform_bias:
            assert np.abs(layer.bias.numpy()).max() <= 1 / math.sqrt(fan_in)


def test_bad_input():
    with pytest.raises(ValueError, match=r"must be one of kaiming_normal.*Received: distribution='he'"):
        models.initialize_kernels(models.small_cnn(), "he")
    with pytest.raises(ValueError, match="conv1 has no kernel to draw"):
        models.initialize_kernels(models.small_cnn(kernel="rewiring", connectivity=0.1), "kaiming_normal")
