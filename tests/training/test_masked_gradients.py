"""Training says where the robust accuracy of its validation cannot be believed."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_robust_sparse as trs

X = np.random.default_rng(0).random((64, 4, 4, 1), "float32")
Y = (X.mean(axis=(1, 2, 3)) > 0.5).astype("int64")


def fitted(hidden, validation):
    """Trains a tiny network whose images pass `hidden` first."""
    stack = [keras.layers.Flatten(), keras.layers.Dense(2)]
    network = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Lambda(hidden), *stack])
    attack = trs.attacks.LinfPGD(epsilon=0.1, step_size=0.05, num_steps=1)
    model = trs.RobustModel(network, trs.objectives.Natural(), validation_attack=attack)
    model.compile("sgd")
    return model.fit(X, Y, validation_data=validation, verbose=0)


@pytest.mark.parametrize("form", ["arrays", "dataset"])
def test_gradients_of_zero_are_warned_of(form):
    validation = (X, Y) if form == "arrays" else tf.data.Dataset.from_tensor_slices((X, Y)).batch(16)
    with pytest.warns(UserWarning, match=r"The pixels of (\d+) of \1 validation images have gradients of exactly zero"):
        fitted(lambda x: tf.cast(tf.cast(16 * x, tf.int32), tf.float32) + 0 * x, validation)


def test_other_networks_raise_no_doubt():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted(lambda x: x, (X, Y))
