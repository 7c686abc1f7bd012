import numpy as np
import pytest
import tensorflow as tf

from tf_robust_sparse.attacks import cross_entropy, losses


def test_cross_entropy_of_each_example():
    loss = cross_entropy([0, 1], tf.constant([[2.0, 0.0, -1.0], [0.5, 1.0, 0.0]]))
    assert loss.shape == (2,)
    np.testing.assert_allclose(np.mean(loss), 0.425058, atol=1e-6)


def test_half_precision_logits_are_computed_in_float32():
    loss = cross_entropy([0], tf.constant([[12.0, 0.0]], tf.float16))
    assert loss.dtype == tf.float32
    np.testing.assert_allclose(loss, [np.log1p(np.exp(-12.0))], atol=1e-6)
    assert loss > 0


@pytest.mark.parametrize("y", [[[0], [1]], [[1.0, 0.0], [0.0, 1.0]], [0.0, 1.0]])
def test_labels_that_are_not_integers_of_one_dimension_are_refused(y):
    with pytest.raises(ValueError, match=r"integer labels of shape \(batch,\).*Received"):
        cross_entropy(y, tf.zeros((2, 2)))


LOGITS = tf.constant([[1.0, 3.0, 2.0, 0.5]])


def test_dlr_has_the_tabled_values():
    first, second, third = (tf.constant([label]) for label in range(3))
    np.testing.assert_allclose(losses.dlr(second, LOGITS), [-0.5], rtol=1e-6)
    np.testing.assert_allclose(losses.dlr(first, LOGITS), [1.0], rtol=1e-6)
    np.testing.assert_allclose(losses.targeted_dlr(second, LOGITS, third), [-0.444444], rtol=1e-5)
    np.testing.assert_array_equal(losses.margin(second, LOGITS), [1.0])
    np.testing.assert_array_equal(losses.margin(first, LOGITS), [-2.0])


@pytest.mark.parametrize("loss", ["dlr", "targeted_dlr", "margin"])
def test_gradients_agree_with_finite_differences(loss):
    random = np.random.default_rng(0)
    logits, y, target = random.normal(size=(20, 6)) * 3, random.integers(0, 6, 20), random.integers(0, 6, 20)

    def value(logits):
        more = (tf.constant(target),) if loss == "targeted_dlr" else ()
        return getattr(losses, loss)(tf.constant(y), logits, *more)

    with tf.GradientTape() as tape:
        variable = tf.constant(logits, tf.float64)
        tape.watch(variable)
        total = value(variable)
    gradient = tape.gradient(total, variable).numpy()
    for column in range(6):
        step = np.zeros((20, 6))
        step[:, column] = 1e-6
        numeric = (value(tf.constant(logits + step)) - value(tf.constant(logits - step))) / 2e-6
        np.testing.assert_allclose(gradient[:, column], numeric, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("change", [lambda z: 1000 * z, lambda z: z + 7])
def test_dlr_ignores_scale_and_shift(change):
    random = np.random.default_rng(0)
    logits = tf.constant(random.normal(size=(50, 10)), tf.float32)
    y, target = tf.constant(random.integers(0, 10, 50)), tf.constant(random.integers(0, 10, 50))
    np.testing.assert_allclose(losses.dlr(y, change(logits)), losses.dlr(y, logits), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        losses.targeted_dlr(y, change(logits), target), losses.targeted_dlr(y, logits, target), rtol=1e-4, atol=1e-5
    )
