import numpy as np
import pytest
import tensorflow as tf

from tf_robust_sparse import attacks

RANDOM = np.random.default_rng(0)
WEIGHTS = RANDOM.normal(size=(12, 4)).astype("float32")
X = RANDOM.random((40, 12)).astype("float32")
PREDICTED = (X @ WEIGHTS).argmax(axis=1)


def linear(x):
    return x @ WEIGHTS


def test_fgsm_on_a_linear_model_is_known_exactly():
    """With two classes the gradient of the loss is, up to a positive factor, the difference of their weights."""
    two = WEIGHTS[:, :2]
    x_adv = attacks.LinfFGSM(0.3, label="predicted")(lambda x: x @ two, X, tf.zeros(40, tf.int64))
    label = (X @ two).argmax(axis=1)
    away = two[:, 1 - label].T - two[:, label].T
    np.testing.assert_allclose(x_adv, np.clip(X + np.float32(0.3) * np.sign(away), 0, 1), atol=0)


def test_ten_steps_of_pgd_end_where_fgsm_does_on_a_linear_model():
    two, y = WEIGHTS[:, :2], tf.zeros(40, tf.int64)
    fgsm = np.array(attacks.LinfFGSM(0.3, label="predicted")(lambda x: x @ two, X, y))
    pgd = attacks.LinfPGD(0.3, 0.05, 10, random_start=False, label="predicted")(lambda x: x @ two, X, y)
    np.testing.assert_allclose(pgd, fgsm, atol=1e-6)
    # From a random start the way may be 0.6 long: ten steps of 0.05 do not always do, twelve do.
    ten, twelve = (attacks.LinfPGD(0.3, 0.05, n, label="predicted")(lambda x: x @ two, X, y, seed=3) for n in (10, 12))
    assert 0.05 < np.abs(ten - fgsm).max() <= 0.1 + 1e-6
    np.testing.assert_allclose(twelve, fgsm, atol=1e-6)


@pytest.mark.parametrize("make", [attacks.LinfFGSM, lambda e, label: attacks.LinfPGD(e, 0.05, 10, label=label)])
def test_the_ball_is_kept_and_the_true_label_does_not_matter(make):
    attack = make(0.3, label="predicted")
    found = [np.array(attack(linear, X, tf.fill((40,), tf.constant(c, tf.int64)), seed=1)) for c in (0, 1)]
    np.testing.assert_array_equal(*found)
    assert np.abs(found[0] - X).max() <= 0.3 + 1e-6 and found[0].min() >= 0 and found[0].max() <= 1


@pytest.mark.parametrize("make", [attacks.LinfFGSM, lambda e, label: attacks.LinfPGD(e, 0.05, 10, label=label)])
def test_the_two_labels_differ_where_the_network_is_wrong_and_agree_where_it_is_right(make):
    wrong = tf.constant((PREDICTED + 1) % 4, tf.int64)
    right = tf.constant(PREDICTED, tf.int64)
    by_prediction, by_truth = make(0.3, label="predicted"), make(0.3, label="true")
    np.testing.assert_array_equal(by_prediction(linear, X, right, seed=1), by_truth(linear, X, right, seed=1))
    differ = np.array(by_prediction(linear, X, wrong, seed=1)) != np.array(by_truth(linear, X, wrong, seed=1))
    assert differ.any(axis=1).all()


def test_a_pixel_without_gradient_does_not_move():
    weights = WEIGHTS.copy()
    weights[5] = 0
    x_adv = attacks.LinfFGSM(0.3, label="predicted")(lambda x: x @ weights, X, tf.zeros(40, tf.int64))
    np.testing.assert_array_equal(x_adv[:, 5], X[:, 5])


@pytest.mark.parametrize(("label", "targeted"), [("guessed", False), ("predicted", True)])
def test_other_labels_are_refused(label, targeted):
    with pytest.raises(ValueError, match="`label` is one of"):
        attacks.LinfPGD(0.3, targeted=targeted, label=label)


def test_parts_of_a_batch_draw_what_they_draw_alone():
    attack = attacks.LinfPGD(0.3, 0.05, 2, label="predicted")
    y = tf.zeros(40, tf.int64)
    together = attack(linear, X, y, seed=tf.constant([[1, 5], [2, 5]]))
    for part, seed in ((slice(0, 20), [1, 5]), (slice(20, 40), [2, 5])):
        np.testing.assert_array_equal(together[part], attack(linear, X[part], y[part], seed=tf.constant(seed)))
