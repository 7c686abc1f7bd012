"""The losses on two examples worked out by hand, in NumPy and in compiled TensorFlow."""

import numpy as np
import pytest
import tensorflow as tf

from tf_robust_sparse.attacks import LinfPGD, cross_entropy
from tf_robust_sparse.objectives import AT, MART, MAT, TRADES, Natural, kl_divergence
from tf_robust_sparse.objectives.mart import margin_loss

TOLERANCE = 1e-5  # float32
NATURAL = np.array([[2.0, 0.0, -1.0], [0.5, 1.0, 0.0]], "float32")
ADVERSARIAL = np.array([[1.0, 0.5, 0.0], [1.0, 0.2, 0.3]], "float32")
Y = np.array([0, 1])
ATTACK = LinfPGD(8 / 255, 2 / 255, 10)


def table(x, training):
    """A network that has learned the two pairs of logits: an image is 0 (clean) or 1 (attacked), and its row."""
    del training
    logits = tf.where(x[:, :1] < 0.5, NATURAL, ADVERSARIAL)
    return logits


def compiled_loss(objective):
    x, x_adv = tf.zeros((2, 1)), tf.ones((2, 1))
    return tf.function(lambda: objective.loss(table, x, tf.constant(Y), x_adv), autograph=False)()


def softmax(z):
    e = np.exp(z.astype("float64"))
    return e / e.sum(axis=1, keepdims=True)


P, Q = softmax(NATURAL), softmax(ADVERSARIAL)
CE_NATURAL = -np.log(P[[0, 1], Y])
CE_ADVERSARIAL = -np.log(Q[[0, 1], Y])
KL = (P * np.log(P / Q)).sum(axis=1)
MARGIN = -np.log(1.0001 - Q[[0, 1], [1, 0]] + 1e-12)
ROBUST = KL * (1.0000001 - P[[0, 1], Y])


@pytest.mark.parametrize(
    "in_numpy, expected",
    [
        (CE_NATURAL.mean(), 0.425058),
        (KL, (0.255111, 0.181152)),
        ((CE_NATURAL + 6 * KL).mean(), 1.733845),
        (CE_ADVERSARIAL.mean(), 1.073001),
        (MARGIN.mean(), 0.543997),
        (ROBUST.mean(), 0.0646258),
        ((CE_ADVERSARIAL + MARGIN + 6 * ROBUST).mean(), 2.004752),
    ],
)
def test_numpy_gives_the_worked_numbers(in_numpy, expected):
    np.testing.assert_allclose(in_numpy, expected, atol=TOLERANCE)


def test_the_most_likely_wrong_classes_are_those_of_the_example():
    assert (np.where(np.eye(3)[Y] > 0, -1, Q).argmax(axis=1) == [1, 0]).all()


@pytest.mark.parametrize(
    "objective, expected, logits",
    [
        (Natural(), CE_NATURAL, NATURAL),
        (AT(ATTACK), CE_ADVERSARIAL, ADVERSARIAL),
        (MAT(ATTACK), CE_ADVERSARIAL, ADVERSARIAL),
        (TRADES(ATTACK), CE_NATURAL + 6 * KL, NATURAL),
        (TRADES(ATTACK, beta=0), CE_NATURAL, NATURAL),
        (MART(ATTACK), CE_ADVERSARIAL + MARGIN + 6 * ROBUST, NATURAL),
        (MART(ATTACK, beta=1.5), CE_ADVERSARIAL + MARGIN + 1.5 * ROBUST, NATURAL),
    ],
    ids=lambda value: repr(value.describe()["objective"]) if hasattr(value, "describe") else "",
)
def test_compiled_losses_equal_numpy(objective, expected, logits):
    per_example, for_accuracy, _ = compiled_loss(objective)
    assert per_example.shape == (2,) and per_example.dtype == tf.float32
    np.testing.assert_allclose(per_example, expected, atol=TOLERANCE)
    np.testing.assert_array_equal(for_accuracy, logits)


def test_parts_compiled():
    parts = tf.function(
        lambda: (kl_divergence(NATURAL, ADVERSARIAL), margin_loss(tf.constant(Y), ADVERSARIAL)), autograph=False
    )()
    np.testing.assert_allclose(parts[0], KL, atol=TOLERANCE)
    np.testing.assert_allclose(parts[1], MARGIN, atol=TOLERANCE)
    np.testing.assert_allclose(cross_entropy(Y, NATURAL), CE_NATURAL, atol=TOLERANCE)
