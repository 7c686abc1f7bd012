"""Objectives between attack and bounds: worked numbers, their limits, soundness of boxes."""

import itertools
import math

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_robust_sparse as trs
from tests.attacks.networks import batch
from tf_robust_sparse.certify.ball import Interval
from tf_robust_sparse.certify.boxes import BoxBounds, box_bounds
from tf_robust_sparse.objectives import AT, CCIBP, IBP, MTLIBP, SABR, ExpIBP, LinearEpsilon
from tf_robust_sparse.objectives.interval_penalty import interval_penalty
from tf_robust_sparse.objectives.objective import robust_cross_entropy

EPSILON = 0.05
ATTACK = trs.attacks.LinfPGD(EPSILON, num_steps=3)


@pytest.fixture(scope="module")
def network():
    return trs.models.small_cnn(input_shape=(8, 8, 1), num_classes=5, kernel="masked", connectivity=0.5, seed=0)


@pytest.fixture(scope="module")
def images(network):
    x, y = batch(12)
    x, y = tf.constant(x), tf.constant(y, tf.int64)
    return x, y, ATTACK(network, x, y, seed=0)


def losses(objective, network, images):
    return np.array(objective.loss(network, *images).per_example)


def test_the_loss_of_bounds_by_hand():
    assert float(robust_cross_entropy(tf.constant([[1.0, 2.0]]))[0]) == pytest.approx(0.4076060, abs=1e-7)


@pytest.mark.parametrize("kind", [MTLIBP, CCIBP, ExpIBP])
def test_the_ends_are_bounds_and_attack(kind, network, images):
    by_bounds = losses(IBP(EPSILON, final_kappa=None), network, images)
    attacked = losses(AT(ATTACK), network, images)
    exact = kind is MTLIBP
    for alpha, expected in ((1.0, by_bounds), (0.0, attacked)):
        found = losses(kind(ATTACK, EPSILON, alpha), network, images)
        np.testing.assert_allclose(found, expected, rtol=0 if exact else 1e-5, atol=0 if exact else 1e-6)
    between = [losses(kind(ATTACK, EPSILON, alpha), network, images) for alpha in (0.0, 0.1, 0.5, 1.0)]
    assert all((later >= earlier - 1e-5).all() for earlier, later in itertools.pairwise(between))
    assert (between[0] < between[-1]).all()


def test_the_box_of_sabr_lies_in_the_ball_and_its_bounds_hold(network, images):
    x, y, x_adv = images
    np.testing.assert_allclose(
        losses(SABR(ATTACK, EPSILON, 1.0), network, (x, y, x)),
        losses(IBP(EPSILON, final_kappa=None), network, images),
        rtol=1e-5,
    )
    ball = tf.maximum(x - EPSILON, 0.0), tf.minimum(x + EPSILON, 1.0)
    for ratio in (0.1, 0.7):
        low, high = SABR(ATTACK, EPSILON, ratio).box(x, x_adv)
        assert (np.array(low) >= np.array(ball[0])).all() and (np.array(high) <= np.array(ball[1])).all()
        assert (np.array(high - low) > 0).all() and float(tf.reduce_max(high - low)) <= 2 * ratio * EPSILON + 1e-6
        lower = np.array(box_bounds(network, low, high, y).margins)
        share = np.random.default_rng(0).random((200, *x.shape)).astype("float32")
        for points in np.array(low) + share * np.array(high - low):
            logits = network(points).numpy()
            gaps = logits[np.arange(12), y][:, None] - logits
            gaps = gaps[np.arange(5) != np.array(y)[:, None]].reshape(12, 4)
            assert (gaps >= lower - 1e-5).all()


def test_undecided_relus_shrink_by_hand():
    # One pixel in [0.4, 0.6]. Hidden: x - 0.5 in [-0.1, 0.1], undecided, kept up to 0.08; x in [0.4, 0.6], decided.
    inputs = keras.Input((1, 1, 1))
    hidden = keras.layers.Dense(2, activation="relu", name="hidden")
    out = keras.layers.Dense(2, use_bias=False, name="out")
    network = keras.Model(inputs, out(hidden(keras.layers.Flatten()(inputs))))
    hidden.set_weights([np.array([[1.0, 1.0]], "float32"), np.array([-0.5, 0.0], "float32")])
    out.set_weights([np.array([[-1.0, 0.0], [1.0, 0.0]], "float32")])
    low, high = (tf.fill((1, 1, 1, 1), value) for value in (0.4, 0.6))
    for factor, expected in ((1.0, 0.4 - 0.1), (0.8, 0.4 - 0.08)):
        found = box_bounds(network, low, high, tf.constant([0]), relu_shrinkage=factor)
        assert float(found.margins[0, 0]) == pytest.approx(expected, abs=1e-6)
        objective = SABR(trs.attacks.LinfPGD(0.1), 0.1, 1.0, relu_shrinkage=factor)
        image = tf.fill((1, 1, 1, 1), 0.5)
        loss = float(losses(objective, network, (image, tf.constant([0]), image))[0])
        assert loss == pytest.approx(math.log1p(math.exp(-expected)), abs=1e-6)


def test_radius_and_attack_grow_together_and_the_penalty_falls(network, images):
    objective = MTLIBP(trs.attacks.LinfPGD(0.1, num_steps=2), LinearEpsilon(EPSILON, 0, 10), 0.5, regularizer=2.0)
    penalties = []
    for step in (0, 5, 10):
        now = objective.at_step(tf.constant(step))
        low, high = now.box(images[0], images[0])
        assert float(tf.reduce_max(high - low)) == pytest.approx(2 * EPSILON * step / 10, abs=1e-6)
        assert float(now.attack.epsilon) == pytest.approx(0.1 * step / 10)
        plain = MTLIBP(ATTACK, LinearEpsilon(EPSILON, 0, 10), 0.5).at_step(tf.constant(step))
        penalties.append((losses(now, network, images) - losses(plain, network, images)).mean())
    assert penalties[0] > penalties[1] > penalties[2] - 1e-6 and abs(penalties[2]) < 1e-6


def test_the_penalty_by_hand():
    def interval(*pairs):
        low, high = np.array(pairs, "float32").T
        return Interval(tf.constant(low[None]), tf.constant(high[None]))

    pixels = interval((0.0, 0.1))
    # Four times as wide as the pixels; centers 2 and -1 (and 0, undecided), squared deviations 25/9 and 16/9.
    layer = interval((1.8, 2.2), (-1.2, -0.8), (-0.2, 0.2))
    expected = (0.5 - 0.25) / 0.5 + 0 + 0
    assert float(interval_penalty(BoxBounds(None, pixels, [layer]))) == pytest.approx(expected, abs=1e-5)
    lopsided = interval((9.95, 10.05), (-1.05, -0.95))
    assert float(interval_penalty(BoxBounds(None, pixels, [lopsided]))) == pytest.approx((0.5 - 0.1) / 0.5, abs=1e-4)
    assert float(interval_penalty(BoxBounds(None, pixels, [interval((0.0, 0.1))]))) == 0
    assert float(interval_penalty(BoxBounds(None, pixels, []))) == 0


def test_training_raises_the_verified_share(images):
    network = trs.models.small_cnn(input_shape=(8, 8, 1), num_classes=5, seed=0)
    x, y, _ = images
    model = trs.RobustModel(network, MTLIBP(ATTACK, LinearEpsilon(EPSILON, 0, 20), 0.5, regularizer=0.5))
    model.compile(keras.optimizers.Adam(5e-3))
    before = float(tf.reduce_mean(trs.certify.margins(network, x, y, EPSILON, "ibp")))
    history = model.fit(x.numpy(), y.numpy(), batch_size=12, epochs=40, verbose=0).history
    assert float(tf.reduce_mean(trs.certify.margins(network, x, y, EPSILON, "ibp"))) > before
    assert math.isfinite(history["loss"][-1]) and history["loss"][-1] < history["loss"][0]


def test_bad_arguments_are_named():
    for make, said in (
        (lambda: MTLIBP(ATTACK, EPSILON, 1.5), "`alpha` is the weight of the bounds, in [0, 1]. Received: alpha=1.5"),
        (lambda: SABR(ATTACK, EPSILON, -1), "`ratio` is the box's share of the radius"),
        (lambda: SABR(ATTACK, EPSILON, 1, relu_shrinkage=0), "`relu_shrinkage` is a factor in (0, 1]. Received"),
        (lambda: CCIBP(trs.attacks.L2PGD(0.5), EPSILON, 0.5), "`attack` must be one in l-infinity"),
        (lambda: ExpIBP(ATTACK, EPSILON, 0.5, regularizer=-1), "`regularizer` is a weight, at least 0"),
    ):
        with pytest.raises(ValueError) as error:
            make()
        assert said in str(error.value)
