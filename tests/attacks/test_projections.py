import numpy as np
import pytest
import tensorflow as tf

from tf_robust_sparse.attacks import projections
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


X4 = np.float32([0.5, 0.2, 0.9, 0.4]).reshape(1, 1, 1, 4)


@pytest.mark.parametrize(
    ("offset", "linf", "l2", "l1"),
    [
        (0.2, [-0.1, 0.1, -0.1, 0], [-0.066667, 0.133333, -0.033333, 0], [0, 0.175, 0, 0]),
        (-1.45, [-0.5, 0.6, -0.6, 0], [-0.380952, 0.761905, -0.190476, 0], [-0.4, 0.8, 0, 0]),
        (-1.7, [-0.5, 0.7, -0.7, 0], [-0.5, 0.8, -0.3, 0], [-0.5, 0.8, -0.3, 0]),
        (-3.0, [-0.5, 0.8, -0.9, 0], [-0.5, 0.8, -0.9, 0], [-0.5, 0.8, -0.9, 0]),
    ],
)
def test_projection_onto_a_hyperplane_has_the_tabled_values(offset, linf, l2, l1):
    normal = np.float32([1, -2, 0.5, 0]).reshape(1, 1, 1, 4)
    for norm, expected in (("Linf", linf), ("L2", l2), ("L1", l1)):
        found = projections.hyperplane(tf.constant(X4), tf.constant(normal), tf.constant([offset]), norm)
        np.testing.assert_allclose(np.ravel(found - X4), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("epsilon", "expected"),
    [
        (0.3, [0.2, -0.1, 0, 0]),
        (0.6, [0.35, -0.2, 0, 0.05]),
        (1.0, [0.5, -0.2, 0.025, 0.275]),
        (2, [0.5, -0.2, 0.05, 0.3]),
    ],
)
def test_projection_onto_the_l1_ball_has_the_tabled_values(epsilon, expected):
    step = np.float32([0.6, -0.5, 0.05, 0.3]).reshape(1, 1, 1, 4)
    found = projections.l1_ball(tf.constant(X4 + step), tf.constant(X4), epsilon)
    np.testing.assert_allclose(np.ravel(found - X4), expected, atol=1e-5)


def lengths(delta, norm):
    return np.linalg.norm(delta, ord={"Linf": np.inf, "L2": 2, "L1": 1}[norm], axis=-1)


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_no_point_of_the_hyperplane_is_nearer(norm):
    random = np.random.default_rng(0)
    x = random.random((500, 300)).astype("float32")
    normal = random.normal(size=(500, 300)).astype("float32")
    normal[random.random((500, 300)) < 0.1] = 0
    offset = (normal * random.random((500, 300))).sum(1).astype("float32")
    offset[:50] += 500  # out of reach
    shape = (500, 10, 10, 3)
    found = projections.hyperplane(
        tf.constant(x.reshape(shape)), tf.constant(normal.reshape(shape)), tf.constant(offset), norm
    )
    found = np.reshape(found, (500, 300))
    assert found.min() >= 0 and found.max() <= 1
    np.testing.assert_allclose((normal * found).sum(1)[50:], offset[50:], atol=1e-4)
    moved = np.abs(found - x)[:50]
    room = np.where(normal[:50] > 0, 1 - x[:50], np.where(normal[:50] < 0, x[:50], 0))
    np.testing.assert_allclose(moved, room, atol=1e-6)
    shortest = lengths(found[50:] - x[50:], norm)
    for _ in range(50):
        other = random.random((450, 300))
        # On the segment from `other` to a corner the hyperplane is met where the sign of the gap changes.
        gap = (normal[50:] * other).sum(1) - offset[50:]
        corner = np.where((normal[50:] > 0) == (gap > 0)[:, None], 0.0, 1.0)
        beyond = (normal[50:] * corner).sum(1) - offset[50:]
        share = gap / (gap - beyond)
        meeting = other + share[:, None] * (corner - other)
        assert (lengths(meeting - x[50:], norm) >= shortest - 1e-4).all()


def test_no_point_of_the_l1_ball_is_nearer():
    random = np.random.default_rng(0)
    x = random.random((200, 300)).astype("float32")
    wanted = x + random.normal(size=(200, 300)).astype("float32")
    shape = (200, 10, 10, 3)
    found = projections.l1_ball(tf.constant(wanted.reshape(shape)), tf.constant(x.reshape(shape)), 3.0)
    found = np.reshape(found, (200, 300))
    assert found.min() >= 0 and found.max() <= 1
    np.testing.assert_allclose(np.abs(found - x).sum(1), 3.0, rtol=1e-5)
    nearest = np.linalg.norm(found - wanted, axis=1)
    for _ in range(50):
        other = random.random((200, 300)) - x
        other *= np.minimum(1, 3.0 / np.abs(other).sum(1))[:, None]
        mixed = found - x + 0.1 * (other - (found - x))  # the set is convex
        assert (np.linalg.norm(x + mixed - wanted, axis=1) >= nearest - 1e-5).all()


def test_bounds_of_the_linf_ball_stay_in_the_pixel_range():
    x = tf.constant([[0.0, 0.02, 0.5, 0.99, 1.0]])
    low, high = projections.linf_bounds(x, 0.1)
    np.testing.assert_allclose(low, [[0, 0, 0.4, 0.89, 0.9]], atol=ROUNDING)
    np.testing.assert_allclose(high, [[0.1, 0.12, 0.6, 1, 1]], atol=ROUNDING)
    x_adv = tf.constant([[-1.0, 0.05, 2.0, 0.5, 0.95]])
    np.testing.assert_allclose(projections.between(x_adv, low, high), [[0, 0.05, 0.6, 0.89, 0.95]], atol=ROUNDING)


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_moves_toward_a_hyperplane_take_the_gap_as_it_is(norm):
    random = np.random.default_rng(1)
    x, normal = (random.random((40, 5, 4, 1)).astype("float32") for _ in range(2))
    normal[:, 0] = 0
    normal[:20] *= -1
    gap = random.normal(size=40).astype("float32")
    gap[0] = 0
    move = projections.toward_hyperplane(tf.constant(x), tf.constant(normal), tf.constant(gap), norm).numpy()
    assert not move[0].any() and not move[:, 0].any()  # nowhere to go, and pixels that count for nothing
    offset = (normal * x).sum((1, 2, 3)) - gap
    expected = projections.hyperplane(tf.constant(x), tf.constant(normal), tf.constant(offset), norm)
    np.testing.assert_allclose(x + move, expected, atol=1e-5)
    # A hundred times as far is out of reach: every pixel that counts uses its room.
    far = projections.toward_hyperplane(tf.constant(x), tf.constant(normal), tf.constant(100 * gap), norm).numpy()[1:]
    corner = np.where((normal > 0) == (gap > 0)[:, None, None, None], 0, 1)[1:]
    np.testing.assert_allclose((x[1:] + far)[:, 1:], corner[:, 1:], atol=ROUNDING)
