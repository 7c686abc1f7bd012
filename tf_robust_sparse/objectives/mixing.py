"""Images with boxes of other images, the labels of such mixtures, and the way back."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tf_robust_sparse.layers.noise import fold_in, uniform_like
from tf_robust_sparse.layers.selection import fast_where

_ORDER = 0x0DE  # a stream of random draws


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
    ends = []
    for axis, side in enumerate(size):
        length = tf.cast(tf.sqrt(draws[:, 0]) * side, tf.int32)
        first = tf.cast(draws[:, 1 + axis] * tf.cast(side - length, tf.float32), tf.int32)
        ends.append((first, first + length))
    return partner, _rectangles(size, ends)


def clipped_boxes(number: tf.Tensor, seed: tf.Tensor, size: Any, groups: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Draws one box for each of several equal, consecutive groups of the batch, and partners within the groups.

    The area of a box is a uniform share of the image, its center is a uniform pixel, and what reaches beyond the border
    is cut off. On several replicas each one has its part of the groups, at least one.

    Args:
        number: Number of images in the batch of this replica, scalar.
        seed: Integers of shape `(2,)`.
        size: `(height, width)` of the images.
        groups: Number of groups of the global batch.

    Returns:
        As `boxes`.
    """
    context = tf.distribute.get_replica_context()
    replicas = 1 if context is None else context.num_replicas_in_sync
    here = max(1, groups // replicas)
    group = tf.minimum(tf.range(number) * here // tf.maximum(number, 1), here - 1)
    # Draws below 1 sort the images within their groups.
    order = 0.999 * uniform_like(tf.zeros((number,)), fold_in(seed, _ORDER), 0.0, 1.0)
    partner = tf.argsort(tf.cast(group, tf.float32) + order)
    draws = tf.random.stateless_uniform((here * replicas, 3), seed)
    first = 0 if replicas == 1 else tf.cast(context.replica_id_in_sync_group, tf.int32) * here
    draws = tf.gather(draws, first + group)
    ends = []
    for axis, side in enumerate(size):
        half = tf.cast(tf.sqrt(draws[:, 0]) * side, tf.int32) // 2
        center = tf.cast(draws[:, 1 + axis] * side, tf.int32)
        ends.append((center - half, center + half))
    return partner, _rectangles(size, ends)


def _rectangles(size: Any, ends: Sequence[tuple[tf.Tensor, tf.Tensor]]) -> tf.Tensor:
    """Returns pixels `(number, height, width, 1)`, bool, from the first to before the last row and column of each."""
    inside = [
        (tf.range(side) >= first[:, tf.newaxis]) & (tf.range(side) < last[:, tf.newaxis])
        for side, (first, last) in zip(size, ends, strict=True)
    ]
    return (inside[0][:, :, tf.newaxis] & inside[1][:, tf.newaxis])[..., tf.newaxis]


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
