"""Crops, mirrors and boxes of other images, for images and their perturbations, and the way back."""

from typing import Any

import numpy as np
import tensorflow as tf

from tf_robust_sparse.layers import fast_where
from tf_robust_sparse.layers.noise import fold_in, uniform_like

MARGIN = 4  # pixels by which images are padded before they are cropped
_ORDER = 0x0DE  # a stream of random draws


def crops(number: tf.Tensor, seed: tf.Tensor, flip: bool) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns offsets `(number, 2)`, integers in 0..7, and which images are mirrored, `(number,)`."""
    draws = uniform_like(tf.zeros((number, 3)), seed, 0.0, 1.0)
    offsets = tf.minimum(tf.cast(draws[:, :2] * 2 * MARGIN, tf.int32), 2 * MARGIN - 1)
    return offsets, (draws[:, 2] < 0.5) if flip else tf.zeros_like(draws[:, 2], tf.bool)


def cropped(images: tf.Tensor, offsets: tf.Tensor, mirrored: tf.Tensor, size: Any) -> tf.Tensor:
    """Returns the crop of each image `(batch, height, width, channels)` at its offset, mirrored where asked."""
    rows = offsets[:, :1] + tf.range(size[0])[tf.newaxis]
    columns = offsets[:, 1:] + tf.range(size[1])[tf.newaxis]
    columns = tf.where(mirrored[:, tf.newaxis], columns[:, ::-1], columns)
    return tf.gather(tf.gather(images, rows, axis=1, batch_dims=1), columns, axis=2, batch_dims=1)


def put_back(images: tf.Tensor, parts: tf.Tensor, offsets: tf.Tensor, mirrored: tf.Tensor) -> tf.Tensor:
    """Returns `images` with `parts` at the places that `cropped` took them from."""
    height, width = parts.shape[1:3]
    rows = tf.range(images.shape[1])[tf.newaxis] - offsets[:, :1]
    columns = tf.range(images.shape[2])[tf.newaxis] - offsets[:, 1:]
    inside = ((rows >= 0) & (rows < height))[:, :, tf.newaxis] & ((columns >= 0) & (columns < width))[:, tf.newaxis, :]
    rows, columns = tf.clip_by_value(rows, 0, height - 1), tf.clip_by_value(columns, 0, width - 1)
    columns = tf.where(mirrored[:, tf.newaxis], width - 1 - columns, columns)
    moved = tf.gather(tf.gather(parts, rows, axis=1, batch_dims=1), columns, axis=2, batch_dims=1)
    return fast_where(tf.broadcast_to(inside[..., tf.newaxis], tf.shape(images)), moved, images)


def boxes(number: tf.Tensor, seed: tf.Tensor, size: Any, one: bool) -> tuple[tf.Tensor, tf.Tensor]:
    """Draws, for each image, the image of the batch that its box comes from, and the place of the box.

    The area of the box is a uniform share of the image in (0, 1). Its sides are in proportion to those of the image,
    rounded down, and its place is uniform.

    Args:
        number: Number of images in the batch, scalar.
        seed: Integers of shape `(2,)`.
        size: `(height, width)` of the images.
        one: Whether all images have the same box.

    Returns:
        The partners, `(number,)`, int32, a permutation; and the pixels of the boxes, `(number, height, width, 1)`,
        bool.
    """
    draws = uniform_like(tf.zeros((number, 3)), seed, 0.0, 1.0)
    partner = tf.argsort(uniform_like(tf.zeros((number,)), fold_in(seed, _ORDER), 0.0, 1.0))
    if one:
        draws = tf.repeat(tf.random.stateless_uniform((1, 3), seed), number, axis=0)
    inside = []
    for axis, side in enumerate(size):
        length = tf.cast(tf.sqrt(draws[:, 0]) * side, tf.int32)
        first = tf.cast(draws[:, 1 + axis] * tf.cast(side - length, tf.float32), tf.int32)
        places = tf.range(side)[tf.newaxis]
        inside.append((places >= first[:, tf.newaxis]) & (places < (first + length)[:, tf.newaxis]))
    return partner, (inside[0][:, :, tf.newaxis] & inside[1][:, tf.newaxis])[..., tf.newaxis]


def mixed(images: tf.Tensor, partner: tf.Tensor, box: tf.Tensor) -> tf.Tensor:
    """Returns the images with boxes of their partners."""
    return fast_where(tf.broadcast_to(box, tf.shape(images)), tf.gather(images, partner), images)


def mixed_labels(y: tf.Tensor, classes: int, partner: tf.Tensor, box: tf.Tensor) -> tf.Tensor:
    """Returns labels `(batch, classes)`: each class has the share of the pixels that its image contributes."""
    share = tf.reduce_mean(tf.cast(box, tf.float32), (1, 2))
    labels = tf.one_hot(y, classes)
    return labels * (1 - share) + tf.gather(labels, partner) * share


def unmixed(images: tf.Tensor, otherwise: tf.Tensor, partner: tf.Tensor, box: tf.Tensor) -> tf.Tensor:
    """Undoes `mixed`: returns to each image its own pixels.

    A pixel that appears both in the image and in the box of another one becomes the mean of the two. A pixel that
    appears in neither comes from `otherwise`.
    """
    back = tf.math.invert_permutation(partner)
    kept, given = 1 - tf.cast(box, tf.float32), tf.cast(tf.gather(box, back), tf.float32)
    count = kept + given
    mean = (kept * images + given * tf.gather(images, back)) / tf.maximum(count, 1)
    return fast_where(tf.broadcast_to(count > 0, tf.shape(images)), mean, otherwise)


def block_means(images: tf.Tensor, side: int) -> tf.Tensor:
    """Averages blocks of `side` x `side` pixels; blocks at the lower and right border may be smaller."""
    height, width, channels = images.shape[1:]
    missing = [-height % side, -width % side]
    images = tf.pad(images, ((0, 0), (0, missing[0]), (0, missing[1]), (0, 0)))
    rows, columns = images.shape[1] // side, images.shape[2] // side
    sums = tf.reduce_sum(tf.reshape(images, (-1, rows, side, columns, side, channels)), (2, 4))
    heights = np.full(rows, side)
    widths = np.full(columns, side)
    heights[-1] -= missing[0]
    widths[-1] -= missing[1]
    return sums / tf.constant(heights[:, None, None] * widths[None, :, None], tf.float32)
