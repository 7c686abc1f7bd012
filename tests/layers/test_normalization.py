"""Normalisation of pixels has the values and gradients of Keras's."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_robust_sparse.layers import Normalization


def value_and_gradient(layer, x):
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x)
        total = tf.reduce_sum(y**3)
    return y, tape.gradient(total, x)


@pytest.mark.parametrize(
    ("shape", "arguments"),
    [
        ((2, 5, 4, 3), {"mean": [0.4, 0.5, 0.6], "variance": [0.1, 0.2, 0.0]}),
        ((2, 5, 4, 1), {"mean": [0.4], "variance": [0.1]}),
        ((2, 5, 4, 3), {"mean": 0.4, "variance": 0.3}),
        ((2, 5, 4, 3), {"mean": [0.4, 0.5, 0.6], "variance": [0.1, 0.2, 0.3], "invert": True}),
        ((2, 5, 4, 3), {"mean": 0.4, "variance": 0.3, "axis": None}),
        ((2, 5, 4, 3), {"mean": [0.1, 0.2, 0.3, 0.4], "variance": [1.0, 2.0, 3.0, 4.0], "axis": 2}),
        ((2, 5), {"mean": [0.1, 0.2, 0.3, 0.4, 0.5], "variance": [1.0, 2.0, 3.0, 4.0, 5.0]}),
    ],
)
def test_values_and_gradients_equal_those_of_keras(shape, arguments):
    x = tf.constant(np.random.default_rng(0).uniform(size=shape).astype("float32"))
    found = value_and_gradient(Normalization(**arguments), x)
    expected = value_and_gradient(keras.layers.Normalization(**arguments), x)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_adapted_statistics_are_used_and_the_batch_may_be_of_unknown_size():
    x = np.random.default_rng(0).uniform(size=(8, 3, 3, 2)).astype("float32")
    layer, expected = Normalization(), keras.layers.Normalization()
    layer.adapt(x)
    expected.adapt(x)
    compiled = tf.function(layer, input_signature=[tf.TensorSpec((None, 3, 3, 2))], autograph=False)
    np.testing.assert_allclose(compiled(x), expected(x), rtol=1e-6)


def test_images_of_unknown_size_are_normalised():
    arguments = {"mean": [0.4, 0.5], "variance": [0.1, 0.2]}
    x = tf.random.stateless_uniform((2, 4, 3, 2), (0, 0))
    compiled = tf.function(Normalization(**arguments), input_signature=[tf.TensorSpec((None, None, None, 2))])
    np.testing.assert_allclose(compiled(x), keras.layers.Normalization(**arguments)(x), rtol=1e-6)
