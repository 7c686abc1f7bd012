"""What every objective promises."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.conformance.cases import OBJECTIVES
from tests.networks import tiny_images, tiny_network
from tf_robust_sparse import layers

X, Y = tiny_images(9)


IMAGES, LABELS = tf.TensorSpec((None, *X.shape[1:])), tf.TensorSpec((None,), tf.int64)


BY_BOUNDS = ("CrownIBP", "IBP", "MixTrain")


def shallow_network():
    """For bounds, which take a layer for each layer below it."""
    x = inputs = keras.Input(X.shape[1:])
    x = layers.RewiringConv2D(4, 4, strides=4, activation="relu", initial_connectivity=0.5, seed=1)(x)
    outputs = layers.RewiringDense(10, initial_connectivity=0.5, seed=2)(keras.layers.Flatten()(x))
    return keras.Model(inputs, outputs)


# Other sides of a class that has a row by default.
MORE = {
    "AT, as the original of binary sub-networks",
    "CleanAndAdversarial, predicted labels",
    "Reweighted, TRADES",
    "ScheduledRadius, TRADES in l2",
    "Stability, noisy images alone",
    "VulnerabilitySuppression, the largest",
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.full if name in MORE else ()) for name in OBJECTIVES]
)
def test_a_finite_loss_for_every_example_of_batches_of_any_size(name):
    """Perturbing the images depends on the seed, and leaves the network as it is."""
    objective = OBJECTIVES[name]()
    network = shallow_network() if name.partition(",")[0] in BY_BOUNDS else tiny_network()

    @tf.function(input_signature=[IMAGES, LABELS, tf.TensorSpec((2,), tf.int32)], autograph=False)
    def perturb(x, y, seed):
        return objective.perturb(network, x, y, seed=seed)

    @tf.function(input_signature=[IMAGES, LABELS, IMAGES], autograph=False)
    def loss_and_gradients(x, y, x_adv):
        with tf.GradientTape() as tape:
            per_example, logits, *_ = objective.loss(network, x, y, x_adv)
            loss = tf.reduce_mean(per_example)
        return per_example, logits, tape.gradient(loss, network.trainable_variables)

    before = network.get_weights()
    first, same, other = (np.array(perturb(X, Y, [0, seed])) for seed in (1, 1, 2))
    for a, b in zip(before, network.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(first, same)
    inner = getattr(objective, "objective", objective)
    assert (first != other).any() == (hasattr(inner, "attack") or hasattr(inner, "noise_std"))
    for count in (9, 4, 2):
        x_adv = perturb(X[:count], Y[:count], [0, 1])
        per_example, logits, gradients = loss_and_gradients(X[:count], Y[:count], x_adv)
        assert x_adv.shape == (count, *X.shape[1:]) and x_adv.dtype == tf.float32
        assert per_example.shape == (count,) and per_example.dtype == tf.float32
        assert logits.shape == (count, 10) and logits.dtype == tf.float32
        assert np.isfinite(per_example).all()
        assert all(gradient is not None and np.isfinite(gradient).all() for gradient in gradients)
    assert perturb.experimental_get_tracing_count() == loss_and_gradients.experimental_get_tracing_count() == 1


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_description_is_plain(name):
    description = OBJECTIVES[name]().describe()
    assert json.loads(json.dumps(description)) == description
    assert description["objective"] == name.partition(",")[0]
