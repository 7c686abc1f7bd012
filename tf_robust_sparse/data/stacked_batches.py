"""Batches for networks that are trained side by side, each in an order of its own."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf


def stacked_batches(examples: int, batch_size: int, seeds: Sequence[int], first_step: int = 0) -> tf.data.Dataset:
    """Returns endless shuffled batches of the places of examples, one part per seed, in the order of the seeds.

    Each part goes through epochs of its own: all examples in an order that depends on its seed and the epoch alone, the
    last, partial batch of an epoch included. So a part is what the same seed gives alone, and the batches from
    `first_step` on are those that an uninterrupted pass gives from there.

    Places and not images, which whoever trains takes from memory: a step of a small network is as short as what
    `tf.data` needs to call a function.

    Args:
        examples: How many there are, at least 1.
        batch_size: Examples per part and step.
        seeds: One integer per part.
        first_step: Number of batches to leave out.

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
    options.autotune.enabled = False  # nothing here to tune, and the end of a call of `fit` would wait for it, 0.35 s
    return epochs.flat_map(epoch).skip(first_step % steps).with_options(options)


def steps_of_an_epoch(examples: int, batch_size: int) -> int:
    """Returns the number of batches of an epoch, the partial one included."""
    return -(-examples // batch_size)
