"""Max pooling with another gradient on CPUs.

TensorFlow's gradient of max pooling visits the windows one by one. Where windows do not overlap, each pixel belongs to
one window, and whole maps of the pixels at one place of their windows are compared with the maxima at once. Within
PGD-50 on LeNet-5 (`benchmarks/pgd.py`, 250 images) this took 0.79 instead of 1.02 s; alone, outside such a loop, it is
slower.
"""

from typing import Any

import keras
import tensorflow as tf

from tf_robust_sparse.layers.selection import select


@keras.saving.register_keras_serializable(package="tf_robust_sparse")
class MaxPooling2D(keras.layers.MaxPooling2D):
    """`keras.layers.MaxPooling2D` with a gradient of its own on CPUs, for windows that do not overlap.

    Arguments, values and gradients are those of the Keras layer: of equal pixels of a window the first, row by row,
    receives the gradient.
    """

    plain_class = keras.layers.MaxPooling2D

    def plain_config(self) -> dict[str, Any]:
        """Returns the configuration of the equivalent layer of Keras."""
        return self.get_config()

    def call(self, inputs):
        """Takes the maxima of windows of `inputs` `(batch, height, width, channels)`."""
        if self.data_format == "channels_last" and pays(inputs, self.pool_size, self.strides, self.padding):
            return max_pool(inputs, self.pool_size)
        return super().call(inputs)


def pays(x: tf.Tensor, window: tuple[int, int], strides: tuple[int, int], padding: str) -> bool:
    """Tells whether `max_pool` computes the pooling, which it does on CPUs alone.

    Args:
        x: `(batch, height, width, channels)`.
        window, strides: Vertical and horizontal.
        padding: `"same"` or `"valid"`.
    """
    return (
        tuple(window) == tuple(strides)
        and 1 < window[0] * window[1] <= 16
        and tf.is_tensor(x)
        and x.shape.rank == 4
        and None not in x.shape[1:]
        and all(size >= side for size, side in zip(x.shape[1:3], window, strict=True))
        and (padding == "valid" or all(size % side == 0 for size, side in zip(x.shape[1:3], window, strict=True)))
        and not tf.config.list_logical_devices("GPU")
    )


def max_pool(x: tf.Tensor, window: tuple[int, int]) -> tf.Tensor:
    """Returns the maxima of adjacent windows of `x` `(batch, height, width, channels)`, all but the batch known.

    Pixels beyond the last whole window of a row or column are left out.

    Args:
        x: Floating, images at least as large as a window.
        window: Height and width.
    """

    @tf.custom_gradient
    def pooled(x: tf.Tensor) -> Any:
        maxima = tf.nn.max_pool2d(x, window, window, "VALID")
        return maxima, lambda upstream: _gradient(x, maxima, upstream, window)

    return pooled(x)


def _gradient(x: tf.Tensor, maxima: tf.Tensor, upstream: tf.Tensor, window: tuple[int, int]) -> tf.Tensor:
    high, wide = window
    _, rows, columns, channels = maxima.shape
    _, height, width, _ = x.shape
    # Axes: image, window row, row within the window, window column, the pixels of a row of a window.
    whole = x[:, : rows * high, : columns * wide]
    pixels = tf.reshape(whole, (-1, rows, high, columns, wide * channels))
    maxima, left = (tf.reshape(tensor, (-1, rows, columns, channels)) for tensor in (maxima, upstream))
    lines = []
    for row in range(high):
        line = []
        for column in range(wide):
            if (row, column) == (high - 1, wide - 1):
                line.append(left)  # nobody before was the maximum
            else:
                found = tf.equal(pixels[:, :, row, :, column * channels : (column + 1) * channels], maxima)
                line.append(select(found, left, 0))
                left = select(found, tf.zeros_like(left), left)
        lines.append(tf.concat(line, axis=-1))
    gradient = tf.reshape(tf.stack(lines, axis=2), (-1, rows * high, columns * wide, channels))
    beyond = [(0, 0), (0, height - rows * high), (0, width - columns * wide), (0, 0)]
    return tf.ensure_shape(tf.pad(gradient, beyond) if any(map(any, beyond)) else gradient, x.shape)
