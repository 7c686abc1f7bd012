"""The loss around images."""

import numpy as np
import pytest
import tensorflow as tf

from tests.networks import tiny_network
from tf_robust_sparse.evaluation.loss_surface import loss_surface

RANDOM = np.random.default_rng(0)


def images(network, count=5):
    return RANDOM.random((count, *network.input_shape[1:]), "float32"), RANDOM.integers(
        0, network.output_shape[-1], count
    )


def test_offsets_move_images_along_both_directions():
    network = tiny_network("plain")
    x, y = images(network)
    found = loss_surface(network, x, y, 0.2, points=5, seed=3)
    np.testing.assert_allclose(found.offsets, [-0.2, -0.1, 0, 0.1, 0.2], atol=1e-7)
    assert found.losses.shape == (5, 5, 5)

    def loss(x):
        return tf.nn.sparse_softmax_cross_entropy_with_logits(y, network(x, training=False))

    with tf.GradientTape() as tape:
        variable = tf.Variable(x)
        clean = loss(variable)
    steepest = np.sign(tape.gradient(clean, variable))
    np.testing.assert_allclose(found.losses[:, 2, 2], clean, rtol=1e-5)
    for place, offset in enumerate(found.offsets):
        np.testing.assert_allclose(found.losses[:, place, 2], loss(np.clip(x + offset * steepest, 0, 1)), rtol=1e-4)
    assert (found.losses[:, 3, 2] > found.losses[:, 2, 2]).all()
    assert np.abs(found.losses[:, 2, 0] - found.losses[:, 2, 2]).max() > 0


def test_images_keep_their_directions_whatever_the_batch():
    network = tiny_network("plain")
    x, y = images(network)
    whole = loss_surface(network, x, y, 0.1, points=3, seed=1).losses
    parts = loss_surface(network, x, y, 0.1, points=3, seed=1, batch_size=2).losses
    np.testing.assert_allclose(whole, parts, rtol=1e-5)
    assert np.abs(whole - loss_surface(network, x, y, 0.1, points=3, seed=2).losses).max() > 1e-6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epsilon": 0}, "epsilon"),
        ({"epsilon": 2}, "epsilon"),
        ({"points": 4}, "points"),
        ({"x": np.zeros((0, 8, 8, 3))}, "at least one"),
        ({"x": np.zeros((5, 3, 3, 1))}, "images of 12x12x1"),
    ],
)
def test_what_is_refused(arguments, message):
    network = tiny_network("plain")
    x, y = images(network)
    with pytest.raises(ValueError, match=message):
        loss_surface(network, **{"x": x, "y": y, "epsilon": 0.1, **arguments})
