"""Max pooling with a faster gradient on CPUs.

TensorFlow's gradient of max pooling visits the windows one by one. Where windows do not overlap, each pixel belongs to
one window, and a single loop over the images compares it with the maximum. `benchmarks/pgd.py` measures the effect.
"""

import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_robust_sparse.layers.fusion import compile_elementwise, compiles
from tf_robust_sparse.layers.gradients import custom_gradient


@keras.saving.register_keras_serializable(package="tf_robust_sparse")
class MaxPooling2D(keras.layers.MaxPooling2D):
    """`keras.layers.MaxPooling2D` with a faster gradient on CPUs, for windows that do not overlap.

    Arguments, values and gradients are those of the Keras layer: among equal pixels of a window, the first one, row by
    row, receives the gradient. Channels are last unless the argument says otherwise, whatever keras.json says.
    """

    plain_class = keras.layers.MaxPooling2D

    def __init__(
        self,
        pool_size: Any = (2, 2),
        strides: Any = None,
        padding: str = "valid",
        data_format: str = "channels_last",
        **kwargs: Any,
    ) -> None:
        super().__init__(pool_size, strides, padding, data_format, **kwargs)

    def plain_config(self) -> dict[str, Any]:
        """Returns the configuration of the equivalent layer of Keras."""
        return self.get_config()

    def call(self, inputs):
        """Takes the maxima of windows of `inputs` `(batch, height, width, channels)`."""
        if self.data_format == "channels_last" and is_faster(inputs, self.pool_size, self.strides, self.padding):
            return max_pool(inputs, self.pool_size)
        return super().call(inputs)


def is_faster(x: tf.Tensor, window: tuple[int, int], strides: tuple[int, int], padding: str) -> bool:
    """Returns whether `max_pool` can compute this pooling faster, which is the case on CPUs alone.

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
        and compiles()
    )


def max_pool(x: tf.Tensor, window: tuple[int, int]) -> tf.Tensor:
    """Returns the maxima of adjacent windows of `x` `(batch, height, width, channels)`, all but the batch known.

    Pixels beyond the last whole window of a row or column are ignored.

    Args:
        x: Floating, images at least as large as a window.
        window: Height and width.
    """
    return _pooled(tuple(window))(x)


@functools.cache
def _pooled(window: tuple[int, int]) -> Callable[[tf.Tensor], tf.Tensor]:
    @custom_gradient
    def pooled(x: tf.Tensor) -> Any:
        maxima = tf.nn.max_pool2d(x, window, window, "VALID")

        def gradient(upstream: tf.Tensor) -> tf.Tensor:
            return tf.ensure_shape(_gradient(window)(x, maxima, upstream), x.shape)

        return maxima, gradient

    return pooled


@functools.cache
def _gradient(window: tuple[int, int]) -> Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]:
    """Returns a function from images, maxima and upstream gradient to the gradient, for one window size."""
    high, wide = window

    def gradient(x: tf.Tensor, maxima: tf.Tensor, upstream: tf.Tensor) -> tf.Tensor:
        _, rows, columns, channels = maxima.shape
        _, height, width, _ = x.shape
        # Axes: image, window row, row within the window, window column, column within the window, channel.
        windows = tf.reshape(x[:, : rows * high, : columns * wide], (-1, rows, high, columns, wide, channels))
        maxima, upstream = (tf.reshape(tensor, (-1, rows, 1, columns, 1, channels)) for tensor in (maxima, upstream))
        last = high * wide - 1
        first = tf.fill(tf.shape(maxima), last)  # which pixel of a window is the first maximum
        for place in reversed(range(last)):
            row, column = divmod(place, wide)
            pixel = windows[:, :, row : row + 1, :, column : column + 1]
            first = tf.where(tf.equal(pixel, maxima), place, first)
        places = np.arange(high * wide, dtype=np.int32).reshape(1, 1, high, 1, wide, 1)
        routed = tf.where(tf.equal(first, places), upstream, tf.zeros((), upstream.dtype))
        routed = tf.reshape(routed, (-1, rows * high, columns * wide, channels))
        return tf.pad(routed, [(0, 0), (0, height - rows * high), (0, width - columns * wide), (0, 0)])

    return compile_elementwise(gradient)
