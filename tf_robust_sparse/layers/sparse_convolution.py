"""Convolution with a kernel that is mostly zeros, as a product of a sparse and a dense matrix.

At 1 % connectivity a dense convolution multiplies by 99 zeros for each connection. Here the kernel is a sparse matrix
`(filters, height * width * channels)` in compressed rows, and the shifted copies of the images are the dense matrix it
multiplies. Building both costs time of its own, so that this pays for many channels and few connections only; `pays`
decides. Used where one kernel serves many forward passes: in attacks and evaluation.
"""

from typing import NamedTuple

import tensorflow as tf


class SparseKernel(NamedTuple):
    """The kernel of a stride-1 convolution with padding "same", as two matrices of compressed rows.

    Attributes:
        matrix: Scalar variant, the sparse `(filters, height * width * channels)`.
        transposed: Scalar variant, the matrix of the convolution that takes gradients from outputs to inputs,
            `(channels, height * width * filters)`.
        shape: `(height, width, channels, filters)` of the dense kernel.
    """

    matrix: tf.Tensor
    transposed: tf.Tensor
    shape: tuple[int, int, int, int]


def pays(shape: tuple[int, ...], connectivity: float) -> bool:
    """Tells whether the sparse product is expected to be faster than a dense convolution on a CPU.

    Its time over that of the dense one is about `10 * connectivity` for the products, which reach a tenth of the
    dense speed, and inversely proportional to the channels for the copies.

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
    connected = tf.where(tf.not_equal(kernel, 0))
    values = tf.gather_nd(kernel, connected)
    row, column, channel, filter_ = tf.unstack(connected, axis=1)
    tap = row * width + column
    opposite_tap = height * width - 1 - tap
    return SparseKernel(
        _compressed_rows(filter_, tap * channels + channel, values, (filters, height * width * channels)),
        _compressed_rows(channel, opposite_tap * filters + filter_, values, (channels, height * width * filters)),
        shape,
    )


def sparse_convolve(x: tf.Tensor, kernel: SparseKernel) -> tf.Tensor:
    """Returns the stride-1 convolution with padding "same" of `x` `(batch, height, width, channels)`.

    Differentiable with respect to `x` alone: the kernel stands still while it is sparse.
    """
    size = kernel.shape[:2]

    @tf.custom_gradient
    def convolved(x: tf.Tensor, matrix: tf.Tensor, transposed: tf.Tensor):
        def gradient(upstream: tf.Tensor):
            back = SparseKernel(transposed, matrix, (*size, kernel.shape[3], kernel.shape[2]))
            return sparse_convolve(upstream, back), None, None

        return _product(x, matrix, size, kernel.shape[3]), gradient

    return convolved(x, kernel.matrix, kernel.transposed)


def _compressed_rows(rows: tf.Tensor, columns: tf.Tensor, values: tf.Tensor, shape: tuple[int, int]) -> tf.Tensor:
    order = tf.argsort(rows * shape[1] + columns)
    return tf.raw_ops.SparseTensorToCSRSparseMatrix(
        indices=tf.gather(tf.stack([rows, columns], 1), order),
        values=tf.gather(values, order),
        dense_shape=tf.constant(shape, tf.int64),
    )


def _product(x: tf.Tensor, matrix: tf.Tensor, size: tuple[int, int], filters: int) -> tf.Tensor:
    """Multiplies the sparse `matrix` with the shifted copies of the images, batch last."""
    batch, height, width, channels = tf.unstack(tf.shape(x))
    margins = [(side // 2, side // 2) for side in size]
    padded = tf.transpose(tf.pad(x, ((0, 0), *margins, (0, 0))), (3, 1, 2, 0))
    shifted = [
        padded[:, row : row + height, column : column + width] for row in range(size[0]) for column in range(size[1])
    ]
    copies = tf.reshape(tf.stack(shifted), (size[0] * size[1] * channels, height * width * batch))
    product = tf.raw_ops.SparseMatrixMatMul(a=matrix, b=copies)
    product = tf.transpose(tf.reshape(product, (filters, height, width, batch)), (3, 1, 2, 0))
    return tf.ensure_shape(product, (*x.shape[:3], filters))
