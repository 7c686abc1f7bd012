"""Crops and mirrors, for images and their perturbations, and the way back."""

from typing import Any

import numpy as np
import tensorflow as tf

from tf_robust_sparse.layers.noise import uniform_like
from tf_robust_sparse.layers.selection import fast_where

MARGIN = 4  # pixels by which images are padded before they are cropped


def draw_crops(number: tf.Tensor, seed: tf.Tensor, flip: bool) -> tuple[tf.Tensor, tf.Tensor]:
    """Draws offsets `(number, 2)`, integers in 0..7, and which images are mirrored, `(number,)`."""
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
