"""Gradients of bounds are those of differences, through slopes and intervals before; a margin of 0 proves nothing."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_robust_sparse import certify, layers

CHANGE = 3e-4  # of the loss, by which kinks are seldom met and rounding does not count


def dense():
    x = inputs = keras.Input((6,))
    for units in (9, 8):
        x = layers.PlainDense(units, activation="relu")(x)
    return keras.Model(inputs, layers.PlainDense(3)(x))


def convolutional():
    x = inputs = keras.Input((5, 5, 2))
    for channels in (4, 5):
        x = layers.PlainConv2D(channels, 3, padding="same", activation="relu")(x)
        x = layers.BatchNormalization()(x)
    return keras.Model(inputs, layers.PlainDense(3)(keras.layers.Flatten()(x)))


@pytest.mark.parametrize(
    ("method", "build"),
    [
        *(("ibp", convolutional), ("crown-ibp", convolutional), ("crown", dense), ("zonotope", dense)),
        *(
            pytest.param(*each, marks=pytest.mark.full)
            for each in (("ibp", dense), ("crown-ibp", dense), ("crown", convolutional), ("zonotope", convolutional))
        ),
    ],
)
def test_gradients_are_those_of_differences(method, build):
    keras.utils.set_random_seed(5)
    network, random = build(), np.random.default_rng(3)
    x = random.random((4, *network.input_shape[1:]), "float32")
    y = tf.constant([0, 1, 2, 0])

    def loss():
        # The adaptive lower line jumps, which no gradient can tell.
        found = certify.margins(network, tf.constant(x), y, 0.08, method, slope="zero-lb")
        logits = tf.concat([tf.zeros((4, 1)), -found], axis=1)
        return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(tf.zeros(4, tf.int64), logits))

    variables = network.trainable_variables
    for variable in variables:
        if "kernel" not in variable.path:
            variable.assign(variable + random.normal(0, 0.1, variable.shape))
    with tf.GradientTape() as tape:
        value = loss()
    for variable, gradient in zip(variables, tape.gradient(value, variables), strict=True):
        start = variable.numpy()
        direction = np.sign(gradient.numpy()).astype("float32")  # where the loss changes most
        slope = float(np.abs(gradient).sum())
        assert slope > 1e-3
        step = CHANGE / slope
        ends = []
        for sign in (-1, 1):
            variable.assign(start + sign * step * direction)
            ends.append(float(loss()))
        variable.assign(start)
        assert (ends[1] - ends[0]) / (2 * step) == pytest.approx(slope, rel=2e-2), variable.path


def test_a_margin_of_zero_proves_nothing():
    network = dense()
    for variable in network.layers[-1].weights:
        variable.assign(tf.zeros_like(variable))
    x = np.random.default_rng(3).random((2, 6), "float32")
    for method in ("ibp", "crown-ibp", "crown"):
        rows = certify.verify_images(network, x, np.zeros(2, np.int64), 0.01, method)
        assert [(row.prediction, row.verified) for row in rows] == [(0, False)] * 2
        assert all(-1e-6 < row.margin <= 0 for row in rows)
