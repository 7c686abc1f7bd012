"""Training says when the averages of batch norm cannot follow."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_robust_sparse as trs
from tf_robust_sparse.training.slow_statistics import warn_of_slow_statistics

X, Y = np.zeros((300, 4, 4, 1), "float32"), np.zeros(300, "int64")


def network_of(momentum):
    stack = [keras.layers.Flatten(), keras.layers.BatchNormalization(momentum=momentum), keras.layers.Dense(2)]
    inside = keras.Sequential([keras.Input((4, 4, 1)), *stack])
    inputs = keras.Input((4, 4, 1))
    return keras.Model(inputs, inside(inputs))


@pytest.mark.parametrize("form", ["arrays", "dataset", "steps"])
def test_a_slow_average_is_warned_of(form):
    network, said = network_of(0.999), r"momentum of 0.999, too slow for the 150 steps .*`layer.momentum = 0.94`"
    if form == "arrays":
        model = trs.RobustModel(network, trs.objectives.Natural())
        model.compile("sgd")
        with pytest.warns(UserWarning, match=said):
            model.fit(X, Y, batch_size=4, epochs=2, verbose=0)
        with warnings.catch_warnings():  # it has seen batches
            warnings.simplefilter("error")
            warn_of_slow_statistics(network, X, 4, {"epochs": 2})
    else:
        given = {"epochs": 3, "initial_epoch": 1} | ({"steps_per_epoch": 75} if form == "steps" else {})
        batches = tf.data.Dataset.from_tensor_slices((X, Y)).batch(4)
        with pytest.warns(UserWarning, match=said):
            warn_of_slow_statistics(network, batches.repeat() if form == "steps" else batches, None, given)


def test_other_trainings_raise_no_doubt():
    network, frozen = network_of(0.9), network_of(0.999)
    frozen.trainable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_slow_statistics(network, X, 4, {"epochs": 2})
        warn_of_slow_statistics(frozen, X, 4, {"epochs": 2})
        warn_of_slow_statistics(network_of(0.999), X, 4, {"epochs": 1})  # a trial
        warn_of_slow_statistics(network_of(0.999), X, 4, {"epochs": 100})
        warn_of_slow_statistics(network_of(0.999), iter([]), None, {"epochs": 100})
