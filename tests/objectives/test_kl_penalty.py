"""The divergence of variational layers as a term of the loss."""

import numpy as np
import pytest
import tensorflow as tf

from tests.networks import tiny_images, tiny_network
from tf_robust_sparse import models, objectives
from tf_robust_sparse.layers.beta_bernoulli import prior_divergence
from tf_robust_sparse.layers.training_noise import training_noise

X, Y = tiny_images(8)


def test_divergence_is_added_to_every_example():
    network = tiny_network("bayesian")
    with training_noise(network, tf.constant([1, 2])):
        expected, *_ = objectives.Natural().loss(network, X, Y, X)
        found, *_ = objectives.KLPenalty(objectives.Natural(), 1e-3).loss(network, X, Y, X)
    np.testing.assert_allclose(found - expected, np.full(8, 1e-3 * prior_divergence(network)), rtol=1e-3)


def test_gates_and_kernels_count():
    network = models.lenet_conv(kernel="bayesian", gates=True, seed=0)
    separate = [layer.kl_divergence() for layer in network.layers if hasattr(layer, "kl_divergence")]
    assert len(separate) == 8
    assert float(prior_divergence(network)) == pytest.approx(float(sum(separate)), rel=1e-6)


def test_other_networks_and_strengths_are_refused():
    with pytest.raises(ValueError, match="neither gates nor Bayesian"):
        objectives.KLPenalty(objectives.Natural(), 1.0).loss(tiny_network("plain"), X, Y, X)
    with pytest.raises(ValueError, match="strength"):
        objectives.KLPenalty(objectives.Natural(), -1.0)
