"""Batches for networks that are trained side by side, each in an order of its own."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tf_robust_sparse.data.source import check_examples


def stacked_train_dataset(
    images: np.ndarray, labels: np.ndarray, batch_size: int, seeds: Sequence[int], first_step: int = 0
) -> tf.data.Dataset:
    """Returns endless shuffled batches `(x, y)`, one part per seed, in the order of the seeds.

    Each part goes through epochs of its own: all images in an order that depends on its seed and the epoch alone, the
    last, partial batch of an epoch included. So a part is what the same seed gives alone, and the batches from
    `first_step` on are those that an uninterrupted pass gives from there.

    Args:
        images: `(n, height, width, channels)`, uint8, or floats in [0, 1].
        labels: `(n,)`, integers.
        batch_size: Images per part and step.
        seeds: One integer per part.
        first_step: Number of batches to leave out.

    Returns:
        A dataset of `x` float32 `(parts * batch, height, width, channels)` in [0, 1] and `y` int64 `(parts * batch,)`.

    Raises:
        ValueError: if the examples or a number do not fit this description.
    """
    images, labels = check_examples(images, labels, where="stacked_train_dataset")
    if not isinstance(images, np.ndarray):
        raise ValueError("`images` must be in memory; pass an array. Received: image files")
    if batch_size < 1 or first_step < 0 or not len(seeds):
        raise ValueError(
            "`batch_size` must be at least 1, `first_step` at least 0, and there must be a seed. "
            f"Received: batch_size={batch_size}, first_step={first_step}, seeds={list(seeds)}"
        )
    n, steps = len(labels), steps_of_an_epoch(len(labels), batch_size)
    with tf.device("CPU:0"):
        pixels, classes, numbers = tf.constant(images), tf.constant(labels), tf.range(n)

    def epoch(number: tf.Tensor) -> tf.data.Dataset:
        orders = tf.stack(
            [tf.random.experimental.stateless_shuffle(numbers, tf.stack([seed, number])) for seed in seeds]
        )
        return tf.data.Dataset.range(steps).map(lambda step: orders[:, step * batch_size : (step + 1) * batch_size])

    def take(index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        index = tf.reshape(index, (-1,))
        x = tf.gather(pixels, index)
        return (tf.cast(x, tf.float32) / 255.0 if x.dtype == tf.uint8 else x), tf.gather(classes, index)

    batches = tf.data.Dataset.range(first_step // steps, np.iinfo(np.int64).max).flat_map(epoch)
    return batches.skip(first_step % steps).map(take).prefetch(4)


def steps_of_an_epoch(examples: int, batch_size: int) -> int:
    """Returns the number of batches of an epoch, the partial one included."""
    return -(-examples // batch_size)
