"""CutMix: shares and labels by hand, what the attack aims at, replicas, resumed runs."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_robust_sparse as trs
from tests.networks import mirrored, tiny_images, tiny_network
from tf_robust_sparse.objectives import AT, MART, TRADES, CutMix
from tf_robust_sparse.objectives.mixing import clipped_boxes, mixed, mixed_labels

X, Y = tiny_images(32)
ATTACK = trs.attacks.LinfPGD(0.05, 0.03, 2)


def test_boxes_shares_and_labels():
    """One box for a quarter of the batch, partners within it, the share of the label is the area of the box."""
    shares = []
    for seed in range(20):
        partner, box = (np.array(each) for each in clipped_boxes(tf.constant(32), tf.constant([seed, 7]), (12, 12), 4))
        assert (partner // 8 == np.arange(32) // 8).all() and sorted(partner) == list(range(32))
        quarters = box.reshape(4, 8, 144)
        assert (quarters == quarters[:, :1]).all()
        area = box.reshape(32, -1).mean(1)
        shares += list(area[::8])
        labels = np.array(mixed_labels(tf.constant(Y), 10, partner, tf.constant(box)))
        np.testing.assert_allclose(labels.sum(1), 1, atol=1e-6)
        one_hot = np.eye(10)[Y]
        np.testing.assert_allclose(labels, one_hot * (1 - area[:, None]) + one_hot[partner] * area[:, None], atol=1e-7)
        np.testing.assert_array_equal(mixed(tf.constant(X), partner, tf.constant(box)), np.where(box, X[partner], X))
        rows, columns = box[0, :, :, 0].any(1), box[0, :, :, 0].any(0)
        assert box[0].sum() == rows.sum() * columns.sum()  # a rectangle
    assert 0.2 < np.mean(shares) < 0.45 and max(shares) > 0.5  # half, less what the border cuts off


@pytest.mark.parametrize("make", [lambda: AT(ATTACK), lambda: TRADES(ATTACK, beta=2.0, start="uniform")])
def test_attack_and_loss_aim_at_mixed_labels(make):
    network, inner = tiny_network("plain", batch_norm=False), make()
    objective = CutMix(inner, seed=5)
    x, labels = objective.mixed(network, tf.constant(X), tf.constant(Y))
    climbed = []

    def spy(network, x, y, loss_fn, **more):
        logits = network(x, training=False)
        climbed.append((loss_fn(y, logits), logits))
        return x

    inner.attack = spy
    x_adv = objective.perturb(network, tf.constant(X), tf.constant(Y), seed=1)
    np.testing.assert_array_equal(x_adv, x)
    value, logits = climbed[0]
    expected = -np.sum(labels * tf.nn.log_softmax(logits), axis=-1)
    np.testing.assert_allclose(value, expected, atol=1e-5)
    moved = np.clip(np.array(x) + 0.01, 0, 1)
    found = objective.loss(network, tf.constant(X), tf.constant(Y), tf.constant(moved))
    clean, attacked = (tf.nn.log_softmax(network(each)) for each in (x, moved))
    if isinstance(inner, AT):
        expected = -np.sum(labels * attacked, axis=-1)
    else:
        expected = -np.sum(labels * clean, axis=-1) + 2 * np.sum(np.exp(clean) * (clean - attacked), axis=-1)
    np.testing.assert_allclose(found.per_example, expected, atol=1e-5)


def model_of(scope=None):
    with scope or tf.name_scope("one"):
        layers = [keras.layers.Flatten(), keras.layers.Dense(10, kernel_initializer="zeros")]
        model = trs.RobustModel(keras.Sequential([keras.Input((12, 12, 1)), *layers]), CutMix(AT(ATTACK)))
        model.compile(keras.optimizers.SGD(0.05, momentum=0.9))
    return model


def fit(model):
    model.fit(tf.data.Dataset.from_tensor_slices((X, Y)).batch(16), verbose=0)
    return [np.array(each) for each in model.network.trainable_variables]


def test_replicas_train_on_the_same_boxes_and_resumed_runs_repeat(tmp_path):
    whole, again, two = model_of(), model_of(), model_of(mirrored().scope())
    fit(whole)
    trs.saving.save_checkpoint(tmp_path / "state.weights.h5", whole, {})
    expected = fit(whole)
    trs.saving.load_checkpoint(tmp_path / "state.weights.h5", again)
    for a, b in zip(expected, fit(again), strict=True):
        np.testing.assert_array_equal(a, b)
    fit(two)
    for a, b in zip(expected, fit(two), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_bad_arguments():
    with pytest.raises(ValueError, match="must take mixed labels"):
        CutMix(MART(ATTACK))
    with pytest.raises(ValueError, match="must take mixed labels"):
        CutMix(trs.objectives.AWP(AT(ATTACK)))
    with pytest.raises(ValueError, match="groups=0"):
        CutMix(AT(ATTACK), groups=0)
