"""Convolution with a kernel that is mostly zeros, as a product of a sparse and a dense matrix.

At 1 % connectivity, a dense convolution multiplies by 99 zeros for each connection. Here the kernel is a sparse matrix
`(filters, channels * height * width)` in compressed rows, which multiplies a dense matrix of shifted copies of the
images. Building both takes time, so this is faster for many channels and few connections only; `is_faster` decides.
Attacks and evaluation use it, where one kernel serves many forward passes.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tf_robust_sparse.layers.gradients import custom_gradient


class SparseKernel(NamedTuple):
    """The kernel of a stride-1 convolution with padding "same", as two matrices of compressed rows.

    Attributes:
        matrix: Scalar variant, the sparse `(filters, channels * height * width)`.
        transposed: Scalar variant, the matrix of the convolution that takes gradients from outputs to inputs,
            `(channels, filters * height * width)`.
        shape: `(height, width, channels, filters)` of the dense kernel.
    """

    matrix: tf.Tensor
    transposed: tf.Tensor
    shape: tuple[int, int, int, int]


def is_faster(shape: tuple[int, ...], connectivity: float) -> bool:
    """Returns whether the sparse product is expected to be faster than a dense convolution on a CPU.

    Its time, relative to the dense one, has two parts: about `10 * connectivity` for the products, which run at a tenth
    of the dense speed, and a part for the copies that is inversely proportional to the channels.

    Args:
        shape: `(height, width, channels, filters)` of the kernel.
        connectivity: Fraction of its entries that are not zero.
    """
    height, width, channels, filters = shape
    copies = (45 + 80 / (height * width)) * (1 / channels + 1 / filters)
    return 10 * connectivity + copies < 0.9


def sparse_kernel(kernel: tf.Tensor) -> SparseKernel:
    """Returns the sparse form of a float32 `kernel` `(height, width, channels, filters)` with odd height and width."""
    height, width, channels, filters = shape = tuple(kernel.shape)
    taps = height * width
    flat = tf.reshape(kernel, (-1,))
    connected = tf.where(tf.not_equal(flat, 0))
    values = tf.gather_nd(flat, connected)
    # An entry of the flat kernel is ((tap * channels) + channel) * filters + filter.
    entry = tf.squeeze(connected, 1)
    line, filter_ = entry // filters, entry % filters
    tap, channel = line // channels, line % channels
    return SparseKernel(
        _compressed_rows(filter_, channel * taps + tap, values, (filters, channels * taps)),
        # The gradient is the convolution with the kernel turned by 180 degrees: tap t becomes taps - 1 - t.
        _compressed_rows(channel, filter_ * taps + (taps - 1 - tap), values, (channels, filters * taps)),
        shape,
    )


def sparse_convolve(x: tf.Tensor, kernel: SparseKernel) -> tf.Tensor:
    """Returns the stride-1 convolution with padding "same" of `x` `(batch, height, width, channels)`.

    Differentiable with respect to `x` alone, because the kernel does not change while it is sparse.
    """
    if None in x.shape[1:]:  # the copies need the image size
        return tf.nn.conv2d(x, _dense(kernel), 1, "SAME")
    return _convolved(tuple(kernel.shape))(x, kernel.matrix, kernel.transposed)


@functools.cache
def _convolved(shape: tuple[int, int, int, int]) -> Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]:
    height, width, channels, filters = shape

    @custom_gradient
    def convolved(x: tf.Tensor, matrix: tf.Tensor, transposed: tf.Tensor) -> Any:
        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, None, None]:
            back = SparseKernel(transposed, matrix, (height, width, filters, channels))
            return sparse_convolve(upstream, back), None, None

        return _product(x, matrix, (height, width)), gradient

    return convolved


def _compressed_rows(rows: tf.Tensor, columns: tf.Tensor, values: tf.Tensor, shape: tuple[int, int]) -> tf.Tensor:
    shape = tf.constant(shape, tf.int64)
    sorted_ = tf.raw_ops.SparseReorder(
        input_indices=tf.stack([rows, columns], 1), input_values=values, input_shape=shape
    )
    return tf.raw_ops.SparseTensorToCSRSparseMatrix(
        indices=sorted_.output_indices, values=sorted_.output_values, dense_shape=shape
    )


def _product(x: tf.Tensor, matrix: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """Multiplies the sparse `matrix` by the shifted copies of the images, channels first and batch last."""
    height, width, channels = x.shape[1:]
    margins = [(side // 2, side // 2) for side in size]
    padded = tf.transpose(tf.pad(x, ((0, 0), *margins, (0, 0))), (3, 1, 2, 0))
    pixels = np.arange((height + size[0] - 1) * (width + size[1] - 1), dtype=np.int32)
    # For each tap of the kernel, the indices of the padded pixels that it multiplies, image row after image row.
    seen = np.lib.stride_tricks.sliding_window_view(pixels.reshape(height + size[0] - 1, -1), (height, width))
    copies = tf.gather(tf.reshape(padded, (channels, len(pixels), -1)), seen.reshape(-1), axis=1)
    product = tf.raw_ops.SparseMatrixMatMul(
        a=matrix, b=tf.reshape(copies, (channels * size[0] * size[1], -1)), name="sparse_convolution"
    )
    return tf.transpose(tf.reshape(product, (-1, height, width, tf.shape(x)[0])), (3, 1, 2, 0))


def _dense(kernel: SparseKernel) -> tf.Tensor:
    height, width, channels, filters = kernel.shape
    dense = tf.raw_ops.CSRSparseMatrixToDense(sparse_input=kernel.matrix, type=tf.float32)
    return tf.transpose(tf.reshape(dense, (filters, channels, height, width)), (2, 3, 1, 0))
