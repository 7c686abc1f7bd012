"""What a small network's attack is spared leaves its numbers as they are."""

import numpy as np
import pytest
import tensorflow as tf

from tests.networks import tiny_images, tiny_network
from tf_robust_sparse import attacks
from tf_robust_sparse.attacks.projections import between, linf_bounds

ROUNDING = 1e-6  # float32, pixels in [0, 1]


@pytest.mark.parametrize("epsilon", [0.0, 8 / 255, 0.3, 1.0])
def test_the_box_around_an_image_is_its_ball(epsilon):
    rng = np.random.default_rng(0)
    x, x_adv = rng.uniform(0, 1, (16, 4, 4, 1)).astype("float32"), rng.uniform(-2, 3, (16, 4, 4, 1)).astype("float32")
    low, high = linf_bounds(tf.constant(x), epsilon)
    for point in (x_adv, x):
        ball = np.clip(x + np.clip(point - x, -epsilon, epsilon), 0, 1)
        np.testing.assert_allclose(between(tf.constant(point), low, high), ball, atol=ROUNDING)
        np.testing.assert_array_equal(between(ball, low, high), np.clip(ball, low, high))


@pytest.mark.parametrize(
    "attack", [attacks.LinfPGD(0.3, 0.05, 4), attacks.LinfFGSM(0.3), attacks.L2PGD(1.0, 0.3, 3)], ids=str
)
def test_written_out_step_by_step_an_attack_is_what_it_is_in_a_loop(attack):
    network, (x, y) = tiny_network("plain"), map(tf.constant, tiny_images(8))
    found, operations = [], []
    for unrolled in (False, True):
        attack.unrolled = unrolled
        function = tf.function(lambda: attack(network, x, y, seed=3), autograph=False)
        found.append(function().numpy())
        operations.append({operation.type for operation in function.get_concrete_function().graph.get_operations()})
    np.testing.assert_allclose(*found, atol=ROUNDING)
    assert [any("While" in name for name in names) for names in operations] == [True, False]
