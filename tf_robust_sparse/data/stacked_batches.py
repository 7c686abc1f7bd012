"""Batches for networks that are trained side by side, each with its own order of examples."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf


def stacked_batches(examples: int, batch_size: int, seeds: Sequence[int], first_step: int = 0) -> tf.data.Dataset:
    """Returns endless shuffled batches of the places of examples, one part per seed, in the order of the seeds.

    Each part has its own epochs: all examples, in an order that depends on its seed and the epoch alone, including the
    last, partial batch. A part thus equals the batches of its seed alone, and the batches from `first_step` on equal
    those of an uninterrupted pass.

    Batches hold places, not images, because a step of a small network is as short as a function call of `tf.data`; the
    training code reads the images from memory.

    Args:
        examples: Number of examples, at least 1.
        batch_size: Number of examples per part and step.
        seeds: One integer per part.
        first_step: Number of batches to skip.

    Returns:
        A dataset of int32 `(parts * batch,)`, in [0, examples).

    Raises:
        ValueError: if a number does not fit this description.
    """
    if examples < 1 or batch_size < 1 or first_step < 0 or not len(seeds):
        raise ValueError(
            "`examples` and `batch_size` must be at least 1, `first_step` at least 0, and there must be a seed. "
            f"Received: examples={examples}, batch_size={batch_size}, first_step={first_step}, seeds={list(seeds)}"
        )
    full, steps = examples // batch_size, steps_of_an_epoch(examples, batch_size)
    numbers = tf.range(examples)

    def epoch(number: tf.Tensor) -> tf.data.Dataset:
        orders = [tf.random.experimental.stateless_shuffle(numbers, tf.stack([seed, number])) for seed in seeds]
        whole = [tf.reshape(order[: full * batch_size], (full, batch_size)) for order in orders]
        batches = tf.data.Dataset.from_tensor_slices(tf.concat(whole, axis=1))
        if full == steps:
            return batches
        rest = tf.concat([order[full * batch_size :] for order in orders], axis=0)
        return batches.concatenate(tf.data.Dataset.from_tensors(rest))

    epochs = tf.data.Dataset.range(first_step // steps, np.iinfo(np.int64).max)
    options = tf.data.Options()
    options.autotune.enabled = False  # nothing to tune here, and the end of `fit` would wait 0.35 s for the tuner
    return epochs.flat_map(epoch).skip(first_step % steps).with_options(options)


def steps_of_an_epoch(examples: int, batch_size: int) -> int:
    """Returns the number of batches of an epoch, including the partial one."""
    return -(-examples // batch_size)
