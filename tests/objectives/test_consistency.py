"""Consistency: the divergence and the loss by hand, views of a step, replicas."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_robust_sparse as trs
from tests.networks import mirrored, tiny_images, tiny_network
from tf_robust_sparse.objectives import AT, TRADES, Consistency, CutMix
from tf_robust_sparse.objectives.divergences import js_divergence

X, Y = tiny_images(16)
ATTACK = trs.attacks.LinfPGD(0.05, 0.03, 2)


def by_hand(a, b):
    p, q = (np.exp(z - z.max()) / np.exp(z - z.max()).sum() for z in (np.array(a, float), np.array(b, float)))
    mean = np.maximum((p + q) / 2, 1e-8)
    terms = [np.sum(r[r > 0] * (np.log(r[r > 0]) - np.log(mean[r > 0]))) for r in (p, q)]
    return sum(terms) / 2


def test_the_divergence_by_hand():
    pairs = [([1.0, 2.0, 3.0], [3.0, 1.0, 0.0]), ([80.0, 0.0, 0.0], [0.0, 80.0, 0.0]), ([1.0, 1.0, 2.0],) * 2]
    a, b = (tf.constant([pair[side] for pair in pairs]) for side in (0, 1))
    np.testing.assert_allclose(js_divergence(a, b), [by_hand(*pair) for pair in pairs], atol=1e-6)
    np.testing.assert_allclose(js_divergence(a, b)[1:], [np.log(2), 0], atol=1e-6)


@pytest.mark.parametrize("inner", [AT(ATTACK), TRADES(ATTACK, beta=2.0)])
def test_the_loss_is_the_mean_over_both_views_and_the_divergence(inner):
    network = tiny_network("plain", batch_norm=False)
    objective = Consistency(inner, weight=0.7, temperature=0.5)
    x_adv = objective.perturb(network, tf.constant(X), tf.constant(Y), seed=3)
    views = objective.augmented(tf.constant(X))
    assert not np.array_equal(*views) and np.abs(x_adv - tf.concat(views, 0)).max() <= 0.05 + 1e-6
    losses = objective.loss(network, tf.constant(X), tf.constant(Y), x_adv)
    alone = [inner.loss(network, view, Y, part) for view, part in zip(views, tf.split(x_adv, 2), strict=True)]
    divergence = [by_hand(2 * a, 2 * b) for a, b in zip(*(np.array(each.logits_adv) for each in alone), strict=True)]
    expected = (alone[0].per_example + alone[1].per_example) / 2 + 0.7 * np.array(divergence, np.float32)
    np.testing.assert_allclose(losses.per_example, expected, atol=1e-5)
    np.testing.assert_allclose(losses.logits, alone[0].logits, atol=1e-5)


def test_steps_have_views_of_their_own_and_replicas_share_them():
    objective = Consistency(AT(ATTACK))
    steps = [objective.at_step(tf.constant(step), tf.constant([0, step])) for step in (1, 1, 2)]
    first, again, other = (np.array(step.augmented(tf.constant(X))) for step in steps)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)

    def trained(scope):
        with scope:
            layers = [keras.layers.Flatten(), keras.layers.Dense(10, kernel_initializer="zeros")]
            network = keras.Sequential([keras.Input((12, 12, 1)), *layers])
            model = trs.RobustModel(network, Consistency(AT(ATTACK)))
            model.compile(keras.optimizers.SGD(0.05))
        model.fit(tf.data.Dataset.from_tensor_slices((X, Y)).batch(16).repeat(2), verbose=0)
        return [np.array(each) for each in network.trainable_variables]

    for a, b in zip(trained(tf.name_scope("one")), trained(mirrored().scope()), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_bad_arguments():
    for arguments, message in (
        ({"weight": -1}, "weight=-1"),
        ({"temperature": 0}, "temperature=0"),
        ({"augmentation": "cutmix"}, "augmentation='cutmix'"),
    ):
        with pytest.raises(ValueError, match=message):
            Consistency(AT(ATTACK), **arguments)
    with pytest.raises(ValueError, match="must attack"):
        Consistency(CutMix(AT(ATTACK)))
