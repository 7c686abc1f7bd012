"""Regularizers of weights and activities, and add_loss, count in training and nowhere else."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.networks import mirrored, tiny_images
from tf_robust_sparse import objectives
from tf_robust_sparse.attacks import L2PGD
from tf_robust_sparse.layers import MaskedDense
from tf_robust_sparse.training import FreeAT, FreeRobustModel, RobustModel

X, Y = tiny_images(16)
ATTACK = L2PGD(0.5, num_steps=2)
L2 = keras.regularizers.L2(0.1)


@keras.saving.register_keras_serializable(package="tests")
class MeanAdded(keras.layers.Layer):
    def call(self, x):
        self.add_loss(tf.reduce_mean(x))
        return x


def network(**arguments):
    initializer = keras.initializers.HeNormal(1)
    return keras.Sequential(
        [
            keras.Input((12, 12, 1)),
            keras.layers.Flatten(),
            MeanAdded() if arguments.pop("adds", False) else keras.layers.Activation("linear"),
            keras.layers.Dense(10, kernel_initializer=initializer, **arguments),
        ]
    )


def penalty(net, passes, arguments):
    """What the layers add, written out."""
    total = 0.0
    if "kernel_regularizer" in arguments:
        total += 0.1 * tf.reduce_sum(tf.square(net.layers[-1].kernel))
    if "activity_regularizer" in arguments:
        total += sum(0.1 * tf.reduce_sum(tf.square(net(each))) / len(X) for each in passes)
    if "adds" in arguments:
        total += sum(tf.reduce_mean(each) for each in passes)
    return total


METHODS = {"natural": objectives.Natural(), "at": objectives.AT(ATTACK), "trades": objectives.TRADES(ATTACK)}


@pytest.mark.parametrize(
    ("objective", "arguments", "replicas"),
    [
        ("natural", {"kernel_regularizer": L2, "activity_regularizer": L2, "adds": True}, 2),
        ("at", {"kernel_regularizer": L2}, 1),
        ("at", {"activity_regularizer": L2}, 1),
        ("trades", {"kernel_regularizer": L2, "activity_regularizer": L2, "adds": True}, 1),
    ],
)
def test_a_step_descends_the_loss_and_what_layers_add(objective, arguments, replicas):
    """Against the same step by hand: one pass for natural and adversarial training, two for TRADES."""
    method = METHODS[objective]
    with (mirrored() if replicas == 2 else tf.distribute.get_strategy()).scope():
        model = RobustModel(network(**arguments), method)
        model.compile(keras.optimizers.SGD(0.1))
    twin = network(**arguments)
    x, y = tf.constant(X), tf.constant(Y)
    x_adv = tf.convert_to_tensor(method.perturb(twin, x, y, seed=tf.stack([0, 0])))
    with tf.GradientTape() as tape:
        per_example, *_ = method.loss(twin, x, y, x_adv)
        passes = {"natural": [x], "at": [x_adv], "trades": [x, x_adv]}[objective]
        loss = tf.reduce_mean(per_example) + penalty(twin, passes, arguments)
    gradients = tape.gradient(loss, twin.trainable_variables)
    history = model.fit(X, Y, 16, shuffle=False, verbose=0).history
    assert history["loss"] == [pytest.approx(float(loss), rel=1e-5)]
    mine = model.network.trainable_variables
    for weight, before, gradient in zip(mine, twin.trainable_variables, gradients, strict=True):
        np.testing.assert_allclose(weight.numpy(), before - 0.1 * gradient, atol=1e-5)


def test_an_objective_that_calls_the_network_by_itself_has_them_too():
    class Own(objectives.Objective):
        def perturb(self, network, x, y, seed=None):
            return ATTACK(network, x, y, seed=seed)

        def loss(self, network, x, y, x_adv):
            logits = network(x_adv, training=True)
            return 0.0 * tf.reduce_sum(logits, -1), logits

    class Silent(Own):  # as one that asks bounds alone
        def loss(self, network, x, y, x_adv):
            nothing = tf.add_n([0.0 * tf.reduce_sum(weight) for weight in network.trainable_weights])
            return nothing + tf.zeros(len(X)), nothing + tf.zeros((len(X), 10))

    added = {}
    for kind in (Own, Silent):
        model = RobustModel(network(activity_regularizer=L2), kind())
        model.compile(keras.optimizers.SGD(0.0))
        added[kind] = model.fit(X, Y, 16, shuffle=False, verbose=0).history["loss"][0]
    x_adv = ATTACK(model.network, X, Y, seed=tf.stack([0, 0]))
    expected = penalty(model.network, [x_adv], {"activity_regularizer": L2})
    assert added[Own] == pytest.approx(float(expected), rel=1e-3) and added[Silent] == 0.0


def test_free_training_and_masked_kernels_honor_them_too():
    norms = {}
    for strength in (0.0, 1.0):
        net = keras.Sequential(
            [
                keras.Input((12, 12, 1)),
                keras.layers.Flatten(),
                keras.layers.Dense(20, kernel_regularizer=keras.regularizers.L2(strength)),
                MaskedDense(10, kernel_initializer=keras.initializers.HeNormal(1)),
            ]
        )
        net.layers[1].kernel.assign(np.ones((144, 20)) / 20)
        model = FreeRobustModel(net, FreeAT(16, 0.1, 2))
        model.compile(keras.optimizers.SGD(0.01))
        model.fit(X, Y, 16, verbose=0)
        norms[strength] = float(tf.norm(net.layers[1].kernel))
    assert norms[1.0] < 0.98 * norms[0.0]


def test_an_attack_is_not_moved_by_them():
    plain, regularized = network(), network(kernel_regularizer=L2, activity_regularizer=L2)
    x_adv = [np.array(ATTACK(each, X, Y)) for each in (plain, regularized)]
    np.testing.assert_array_equal(*x_adv)
