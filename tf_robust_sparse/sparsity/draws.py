"""Uniform draws of kernel entries without replacement."""

from collections.abc import Sequence

import tensorflow as tf


def draw_dormant(
    connected: Sequence[tf.Tensor], sizes: Sequence[int], counts: tf.Tensor, seed: tf.Tensor
) -> list[tf.Tensor]:
    """Draws positions of each kernel that are not connected, uniformly and without replacement.

    The draw is exactly uniform. One graph serves the whole network, and while few positions are drawn, time and memory
    do not grow with the kernels.

    Args:
        connected: Flat positions of the connections of each kernel, int64, ascending.
        sizes: Number of entries of each kernel.
        counts: int64 `(kernels,)`, how many to draw, at most the number of dormant entries.
        seed: Stateless seed, `(2,)`.

    Returns:
        Flat positions for each kernel, int64, without repetition.
    """
    numbers = tf.stack([tf.size(positions, tf.int64) for positions in connected])
    ranks = _distinct_ranks(tf.constant(sizes, tf.int64) - numbers, counts, seed)
    # A rank counts dormant entries. `positions[i] - i` of them precede connection i, so the search returns how many
    # connections precede the dormant entry of a rank; added to the rank, this is its position.
    return [
        rank + tf.searchsorted(positions - tf.range(number), rank, side="right", out_type=tf.int64)
        for rank, positions, number in zip(
            tf.split(ranks, counts, num=len(sizes)), connected, tf.unstack(numbers), strict=True
        )
    ]


def _distinct_ranks(rooms: tf.Tensor, counts: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Returns `counts` different integers of `range(rooms)` for each kernel, one kernel after the other.

    Integers are drawn with replacement and repeated ones are dropped until there are enough: the first distinct values
    of a uniform stream are a uniform draw without replacement.
    """
    kernels = rooms.shape[0]
    offsets = tf.cumsum(rooms, exclusive=True)  # makes the integers of all kernels distinct keys

    def kernel_of(keys):
        return tf.searchsorted(offsets, keys, side="right") - 1

    def numbers_of(kernel):
        return tf.cast(tf.math.bincount(kernel, minlength=kernels, maxlength=kernels), tf.int64)

    def some_left(keys, draw):
        return tf.size(keys, tf.int64) < tf.reduce_sum(counts)

    def add(keys, draw):
        found = numbers_of(kernel_of(keys))
        left = counts - found
        # Draws a fifth more than needed on average, so that a second round is rare.
        expected = 1.2 * tf.cast(left * rooms, tf.float64) / tf.cast(tf.maximum(rooms - found, 1), tf.float64)
        kernel = tf.repeat(tf.range(kernels), tf.where(left > 0, tf.cast(expected, tf.int64) + 8, 0))
        room = tf.gather(rooms, kernel)
        uniform = tf.random.stateless_uniform(
            tf.shape(kernel), tf.random.experimental.stateless_fold_in(seed, draw), dtype=tf.float64
        )
        rank = tf.minimum(tf.cast(uniform * tf.cast(room, tf.float64), tf.int64), room - 1)
        keys = tf.unique(tf.concat([keys, tf.gather(offsets, kernel) + rank], 0)).y  # in order of first appearance
        keys = tf.gather(keys, tf.argsort(kernel_of(keys), stable=True))
        kernel = kernel_of(keys)
        # Keeps the first `counts` keys of each kernel; the sort above is stable, so their order is that of the stream.
        place = tf.range(tf.size(keys, tf.int64)) - tf.gather(tf.cumsum(numbers_of(kernel), exclusive=True), kernel)
        return tf.boolean_mask(keys, place < tf.gather(counts, kernel)), draw + 1

    keys, _ = tf.while_loop(
        some_left,
        add,
        (tf.zeros((0,), tf.int64), tf.constant(0)),
        shape_invariants=(tf.TensorShape([None]), tf.TensorShape([])),
        parallel_iterations=1,
    )
    return keys - tf.gather(offsets, kernel_of(keys))
