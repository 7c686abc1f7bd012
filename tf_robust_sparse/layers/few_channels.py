"""Convolution of images with few channels, whose gradient for the images is a convolution, too.

Each step of an attack takes the gradient for images of one or three channels. On CPUs, TensorFlow's gradient of such a
convolution is slow for up to about eight channels, because it multiplies matrices that have as many columns. Here one
convolution over the upstream gradient computes a block of several pixels at each position, one filter for each entry
of the block, and a transposition puts the blocks in their places.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tf_robust_sparse.layers.gradients import custom_gradient

_ENOUGH_COLUMNS = 12  # pixels of a block times channels; matrix products with fewer columns are slow
_MOST_CHANNELS = 8


class _Side(NamedTuple):
    """How the upstream gradient becomes blocks of pixels along one side of the images.

    Attributes:
        padding: Zeros before and after the upstream gradient.
        before: Number of pixels by which the first block begins before the image.
        taps: `(block, window)`, the tap of the kernel between each pixel of a block and each entry of the window of
            the upstream gradient that the block sees; -1 where there is none.
        blocks: Number of blocks.
    """

    padding: tuple[int, int]
    before: int
    taps: np.ndarray
    blocks: int


def is_faster(x: tf.Tensor, kernel: tf.Tensor, strides: tuple[int, int], padding: str) -> bool:
    """Returns whether `convolve` is expected to compute the gradient for `x` faster than TensorFlow.

    Args: those of `convolve`.
    """
    height, width = kernel.shape[:2]
    return (
        x.dtype == tf.float32
        and x.shape.rank == 4
        and None not in x.shape[1:]
        and x.shape[3] <= _MOST_CHANNELS
        and 1 < height * width <= 64
        and all(step <= side for step, side in zip(strides, (height, width), strict=True))
        and all(size >= side or padding == "same" for size, side in zip(x.shape[1:3], (height, width), strict=True))
        and not tf.config.list_logical_devices("GPU")
    )


def convolve(x: tf.Tensor, kernel: tf.Tensor, strides: tuple[int, int], padding: str) -> tf.Tensor:
    """Returns the 2-D convolution of `x` `(batch, height, width, channels)`, all but the batch of known size.

    Args:
        x: Images.
        kernel: `(height, width, channels, filters)`, no side shorter than its stride.
        strides: Vertical and horizontal.
        padding: `"same"` or `"valid"`.
    """
    return _convolved(tuple(strides), padding)(x, kernel)


@functools.cache
def _convolved(strides: tuple[int, int], padding: str) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    step, fill = [1, *strides, 1], padding.upper()

    @custom_gradient
    def convolved(x: tf.Tensor, kernel: tf.Tensor) -> Any:
        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            of_kernel = tf.raw_ops.Conv2DBackpropFilter(
                input=x, filter_sizes=tf.shape(kernel), out_backprop=upstream, strides=step, padding=fill
            )
            return _gradient_of_images(upstream, kernel, x.shape[1:], strides, padding), of_kernel

        return tf.nn.conv2d(x, kernel, step, fill), gradient

    return convolved


def _gradient_of_images(
    upstream: tf.Tensor, kernel: tf.Tensor, image: tf.TensorShape, strides: tuple[int, int], padding: str
) -> tf.Tensor:
    height, width, channels = image
    block = _block(channels, strides)
    rows, columns = (
        _side(size, kernel.shape[axis], strides[axis], upstream.shape[1 + axis], padding, block)
        for axis, size in enumerate((height, width))
    )
    # The filters gather entries of the kernel. An extra entry, 0, serves the places without a tap.
    entries = tf.concat([tf.reshape(kernel, (-1,)), tf.zeros(1, kernel.dtype)], 0)
    filters = tf.gather(entries, _arrangement(tuple(kernel.shape), rows, columns))
    # A block of the images begins every `block` pixels, which are `block // stride` outputs of the convolution.
    advance = [1, block // strides[0], block // strides[1], 1]
    padded = tf.pad(upstream, [(0, 0), rows.padding, columns.padding, (0, 0)])
    blocks = tf.nn.conv2d(padded, filters, advance, "VALID")
    lines = tf.reshape(
        blocks[:, : rows.blocks, : columns.blocks], (-1, rows.blocks, columns.blocks, block, block * channels)
    )
    # On CPUs this is faster than `depth_to_space`, which moves single pixels.
    pixels = tf.reshape(
        tf.transpose(lines, (0, 1, 3, 2, 4)), (-1, rows.blocks * block, columns.blocks * block, channels)
    )
    inside = pixels[:, rows.before : rows.before + height, columns.before : columns.before + width]
    return tf.ensure_shape(inside, (upstream.shape[0], height, width, channels))


def _block(channels: int, strides: tuple[int, int]) -> int:
    """Returns the side of a block: a common multiple of the strides that gives enough columns."""
    smallest = int(np.lcm(*strides))
    block = smallest
    while block * block * channels < _ENOUGH_COLUMNS:
        block += smallest
    return block


def _side(size: int, taps: int, stride: int, outputs: int, padding: str, block: int) -> _Side:
    before = max((outputs - 1) * stride + taps - size, 0) // 2 if padding == "same" else 0
    # The first block begins where an output's window may begin, because such a block sees the fewest outputs.
    cut = before % stride
    before, size = before - cut, size + cut
    # Pixel r of a block gets gradient from output q, counted from the block's own, through tap r + before - stride * q.
    first = -((taps - 1 - before) // stride)
    last = (block - 1 + before) // stride
    seen = np.arange(first, last + 1)
    found = np.arange(block)[:, None] + before - stride * seen[None, :]
    found = np.where((found >= 0) & (found < taps), found, -1)
    blocks = -(-size // block)
    needed = block // stride * (blocks - 1) + last + 1
    return _Side((-first, max(0, needed - outputs)), cut, found, blocks)


def _arrangement(shape: tuple[int, ...], rows: _Side, columns: _Side) -> np.ndarray:
    """Returns where in the kernel each filter entry `(window, window, filters, block * block * channels)` is found."""
    height, width, channels, filters = shape
    # Axes: window row, window column, filter, pixel row, pixel column, channel.
    row = rows.taps.T[:, None, None, :, None, None]
    column = columns.taps.T[None, :, None, None, :, None]
    filter_ = np.arange(filters)[:, None, None, None]
    places = ((row * width + column) * channels + np.arange(channels)) * filters + filter_
    places = np.where((row >= 0) & (column >= 0), places, height * width * channels * filters)
    return places.reshape(rows.taps.shape[1], columns.taps.shape[1], filters, -1).astype(np.int32)
