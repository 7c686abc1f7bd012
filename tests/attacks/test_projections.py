import numpy as np
import pytest
import tensorflow as tf

from tf_robust_sparse.attacks.projections import l2_ball, l2_norm, linf_ball, pixel_range

ROUNDING = 1e-6  # float32, pixels in [0, 1]


@pytest.fixture
def points():
    rng = np.random.default_rng(0)
    return rng.uniform(-2, 3, (16, 4, 4, 1)).astype("float32"), rng.uniform(0, 1, (16, 4, 4, 1)).astype("float32")


def test_linf_ball_worked_example():
    x = tf.constant([[0.0, 0.5, 0.95, 0.5]])
    x_adv = tf.constant([[-0.3, 0.7, 1.2, 0.55]])
    np.testing.assert_allclose(linf_ball(x_adv, x, 0.1), [[0.0, 0.6, 1.0, 0.55]], atol=ROUNDING)


def test_l2_ball_worked_example():
    x = tf.constant([[0.5, 0.5], [0.5, 0.5], [0.0, 0.0]])
    x_adv = tf.constant([[0.8, 0.9], [0.53, 0.54], [-3.0, 4.0]])
    np.testing.assert_allclose(l2_ball(x_adv, x, 0.1), [[0.56, 0.58], [0.53, 0.54], [0.0, 0.08]], atol=ROUNDING)


@pytest.mark.parametrize("epsilon", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("ball", [linf_ball, l2_ball])
def test_projection_is_in_the_ball_in_the_range_and_idempotent(points, ball, epsilon):
    x_adv, x = points
    projected = ball(x_adv, x, epsilon).numpy()
    delta = projected - x
    length = np.abs(delta).max() if ball is linf_ball else np.linalg.norm(delta.reshape(16, -1), axis=1).max()
    assert length <= epsilon + ROUNDING
    assert projected.min() >= 0 and projected.max() <= 1
    np.testing.assert_allclose(ball(projected, x, epsilon), projected, atol=ROUNDING)


@pytest.mark.parametrize("ball", [linf_ball, l2_ball])
def test_the_centre_stays_also_with_radius_zero(points, ball):
    _, x = points
    np.testing.assert_array_equal(ball(x, x, 0.0), x)
    np.testing.assert_array_equal(ball(x, x, 0.3), x)


def test_pixel_range_and_norm():
    np.testing.assert_array_equal(pixel_range(tf.constant([-1.0, 0.5, 2.0])), [0, 0.5, 1])
    assert l2_norm(tf.ones((2, 2, 2, 1))).shape == (2, 1, 1, 1)
    np.testing.assert_allclose(l2_norm(tf.ones((2, 2, 2, 1)))[:, 0, 0, 0], 2.0)
