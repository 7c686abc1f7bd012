"""The convolution of few channels has the values and the gradients of the plain one."""

import numpy as np
import pytest
import tensorflow as tf

from tf_robust_sparse.layers import few_channels, kernel_seam


def random(*shape, seed=0):
    return tf.constant(np.random.default_rng(seed).normal(size=shape).astype("float32"))


def value_and_gradients(convolve, x, kernel):
    with tf.GradientTape() as tape:
        tape.watch([x, kernel])
        y = convolve(x, kernel)
        total = tf.reduce_sum(y * tf.cos(tf.reshape(tf.range(tf.size(y), dtype=tf.float32), tf.shape(y))))
    return [y, *tape.gradient(total, [x, kernel])]


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize(
    ("image", "kernel", "strides"),
    [
        ((28, 28, 1), (5, 5), (1, 1)),
        ((12, 12, 3), (3, 3), (1, 1)),
        ((12, 12, 3), (4, 4), (2, 2)),
        ((11, 9, 1), (4, 3), (2, 1)),
        ((13, 10, 3), (3, 5), (3, 2)),
        ((9, 7, 2), (2, 2), (2, 2)),
        ((7, 8, 4), (3, 3), (2, 2)),
        ((5, 5, 3), (5, 5), (1, 1)),
        ((8, 9, 1), (7, 7), (4, 4)),
        ((20, 1, 3), (1, 1), (1, 1)),
        ((9, 12, 3), (4, 4), (2, 2)),
        ((11, 11, 2), (5, 4), (3, 3)),
        ((32, 32, 3), (4, 4), (2, 2)),
        ((6, 6, 3), (1, 3), (1, 1)),
        ((9, 9, 8), (5, 5), (2, 2)),
        ((7, 9, 6), (3, 3), (1, 1)),
    ],
)
def test_values_and_gradients_are_those_of_the_convolution(image, kernel, strides, padding):
    x, weights = random(2, *image), random(*kernel, image[2], 8, seed=1)
    found = value_and_gradients(lambda x, k: few_channels.convolve(x, k, strides, padding), x, weights)
    expected = value_and_gradients(lambda x, k: tf.nn.conv2d(x, k, strides, padding.upper()), x, weights)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_batch_may_be_of_unknown_size_and_gradients_have_gradients():
    x, kernel = random(3, 10, 10, 1), random(3, 3, 1, 8, seed=1)

    def second(convolve):
        def penalty(x, kernel):
            with tf.GradientTape() as outer:
                outer.watch(kernel)
                with tf.GradientTape() as tape:
                    tape.watch(x)
                    total = tf.reduce_sum(convolve(x, kernel) ** 2)
                squares = tf.reduce_sum(tape.gradient(total, x) ** 2)
            return outer.gradient(squares, kernel)

        return penalty

    signature = [tf.TensorSpec((None, 10, 10, 1)), tf.TensorSpec((3, 3, 1, 8))]
    ours = tf.function(
        second(lambda x, k: few_channels.convolve(x, k, (1, 1), "same")), input_signature=signature, autograph=False
    )
    expected = second(lambda x, k: tf.nn.conv2d(x, k, 1, "SAME"))(x, kernel)
    np.testing.assert_allclose(ours(x, kernel), expected, rtol=1e-4, atol=1e-2)


def operations(function, *arguments):
    graph = tf.function(function, autograph=False).get_concrete_function(*arguments).graph
    nested = graph.as_graph_def().library.function  # a gradient written by hand has a graph of its own
    return {op.type for op in graph.get_operations()} | {node.op for each in nested for node in each.node_def}


def test_the_seam_uses_it_for_images_and_only_there():
    def gradient(convolve):
        def function(x, kernel):
            with tf.GradientTape() as tape:
                tape.watch(x)
                total = tf.reduce_sum(convolve(x, kernel))
            return tape.gradient(total, x)

        return function

    def seam(x, kernel):
        return kernel_seam.convolve(x, kernel, (1, 1), "same")

    for shape in ((3, 3, 3, 16), (3, 3, 1, 2), (3, 3, 8, 16)):
        assert "GatherV2" in operations(gradient(seam), tf.zeros((2, 8, 8, shape[2])), tf.zeros(shape))
    for x, kernel in (
        (tf.zeros((2, 8, 8, 16)), tf.zeros((3, 3, 16, 16))),
        (tf.zeros((2, 8, 8, 3)), tf.zeros((1, 1, 3, 16))),
        (tf.zeros((2, 8, 8, 3), tf.float16), tf.zeros((3, 3, 3, 16), tf.float16)),
    ):
        assert "GatherV2" not in operations(gradient(seam), x, kernel)
