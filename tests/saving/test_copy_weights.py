"""Weights from one network to another, whatever the form of their kernels."""

import numpy as np
import pytest

from tests.networks import tiny_images, tiny_network
from tf_robust_sparse import models
from tf_robust_sparse.models.cnn import vgg4
from tf_robust_sparse.saving import copy_weights, strip

X, _ = tiny_images(8)


@pytest.mark.parametrize("target", ["plain", "masked", "subnet"])
@pytest.mark.parametrize("source", ["plain", "masked", "rewiring", "subnet"])
def test_logits_are_copied(source, target):
    first, second = tiny_network(source, seed=1), tiny_network(target, seed=2)
    first.get_layer("bn1").moving_mean.assign(np.random.default_rng(0).normal(size=8))
    copy_weights(first, second)
    np.testing.assert_allclose(second(X), first(X), atol=1e-6)


def test_a_stripped_network_is_a_source_too():
    first, second = tiny_network("rewiring"), tiny_network("subnet")
    copy_weights(strip(first), second)
    np.testing.assert_allclose(second(X), first(X), atol=1e-6)


def test_scores_are_copied_if_asked_for():
    first, second, third = tiny_network("subnet"), tiny_network("subnet"), tiny_network("subnet")
    own = third.get_layer("conv1").scores.numpy().copy()
    copy_weights(first, second)
    copy_weights(first, third, scores=False)
    np.testing.assert_array_equal(first.get_layer("conv1").scores, second.get_layer("conv1").scores)
    np.testing.assert_array_equal(third.get_layer("conv1").scores, own)


def test_nothing_is_assigned_unless_everything_fits():
    first, second = tiny_network("plain", classes=5), tiny_network("subnet", seed=2)
    before = second.get_layer("conv1").kernel.numpy().copy()
    with pytest.raises(
        ValueError, match=r"classifier/kernel is of shape \(144, 5\) in the source and of shape \(144, 10\)"
    ):
        copy_weights(first, second)
    np.testing.assert_array_equal(second.get_layer("conv1").kernel, before)


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        (lambda: models.small_cnn(), lambda: models.lenet5_caffe(), "conv1/kernel is of shape"),
        (lambda: tiny_network("plain"), lambda: tiny_network("rewiring"), "conv1 has no kernel to copy to"),
        (lambda: tiny_network("plain"), lambda: tiny_network("plain", batch_norm=False), "has a layer bn1"),
    ],
)
def test_other_architectures_are_named(source, target, message):
    with pytest.raises(ValueError, match=message):
        copy_weights(source(), target())


def test_other_padding_is_another_network():
    source, network = (vgg4(padding_mode=mode) for mode in ("tf_same", "symmetric"))
    with pytest.raises(ValueError, match=r"differ in their padding, same in the source and valid here.*padding_mode"):
        copy_weights(source, network)


def test_spreads_of_drawn_weights_are_copied():
    source, network = (models.lenet_conv(kernel="bayesian", seed=seed) for seed in (0, 1))
    source.get_layer("conv1").kernel_rho.assign(source.get_layer("conv1").kernel_rho - 4)
    copy_weights(source, network)
    for a, b in zip(source.weights, network.weights, strict=True):
        np.testing.assert_array_equal(a, b)
