"""Max pooling has the values and the gradients of TensorFlow's, ties and pixels beyond the last window included."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_robust_sparse.layers import MaxPooling2D, pooling


def images(*shape, levels=None, seed=0):
    """Random images; with few levels most windows hold their maximum several times."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=shape) if levels is None else generator.integers(0, levels, shape)
    return tf.constant(x.astype("float32"))


def value_and_gradient(pool, x):
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = pool(x)
        total = tf.reduce_sum(y * tf.cos(tf.reshape(tf.range(tf.size(y), dtype=tf.float32), tf.shape(y))))
    return y, tape.gradient(total, x)


@pytest.mark.parametrize("levels", [None, 2, 1])
@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize(
    ("image", "window"),
    [
        ((24, 24, 5), (2, 2)),
        ((7, 9, 3), (2, 2)),
        ((9, 6, 4), (3, 2)),
        ((8, 11, 1), (1, 3)),
        ((2, 2, 6), (2, 2)),
        ((8, 8, 2), (4, 4)),
        ((5, 4, 2), (5, 4)),
    ],
)
def test_values_and_gradients_equal_those_of_keras(image, window, padding, levels):
    x = images(3, *image, levels=levels)
    found = value_and_gradient(MaxPooling2D(window, padding=padding), x)
    expected = value_and_gradient(keras.layers.MaxPooling2D(window, padding=padding), x)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_batch_may_be_of_unknown_size_and_gradients_have_gradients():
    x = images(4, 6, 6, 2)

    def second(pool):
        def penalty(x):
            with tf.GradientTape() as outer:
                outer.watch(x)
                with tf.GradientTape() as tape:
                    tape.watch(x)
                    total = tf.reduce_sum(pool(x) ** 3)
                squares = tf.reduce_sum(tape.gradient(total, x) ** 2)
            return outer.gradient(squares, x)

        return penalty

    signature = [tf.TensorSpec((None, 6, 6, 2))]
    ours = tf.function(second(MaxPooling2D(2)), input_signature=signature, autograph=False)
    np.testing.assert_allclose(ours(x), second(keras.layers.MaxPooling2D(2))(x), rtol=1e-6)


def operations(pool, x):
    graph = tf.function(lambda x: value_and_gradient(pool, x)[1], autograph=False).get_concrete_function(x).graph
    return {op.type for op in graph.get_operations()}


def test_it_is_used_where_windows_do_not_overlap_and_nowhere_else():
    assert "MaxPoolGrad" not in operations(MaxPooling2D(2), tf.zeros((2, 8, 8, 3)))
    for pool, shape in (
        (MaxPooling2D(3, strides=2), (2, 9, 9, 3)),
        (MaxPooling2D(2, padding="same"), (2, 7, 8, 3)),
        (MaxPooling2D(5), (2, 10, 10, 3)),
    ):
        x = images(*shape)
        assert "MaxPoolGrad" in operations(pool, x)
    unknown = tf.TensorSpec((2, None, 8, 3))
    assert "MaxPoolGrad" in operations(MaxPooling2D(2), unknown)


def test_a_gpu_keeps_the_gradient_of_its_own(monkeypatch):
    x = tf.zeros((2, 4, 4, 1))
    assert pooling.is_faster(x, (2, 2), (2, 2), "valid")
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind=None: [kind])
    assert not pooling.is_faster(x, (2, 2), (2, 2), "valid")


def test_channels_first_go_to_keras():
    pool = MaxPooling2D(2, data_format="channels_first")
    assert pool.compute_output_shape((1, 3, 4, 6)) == (1, 3, 2, 3)
