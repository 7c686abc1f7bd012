"""Selecting entries of a kernel: the largest ones, or uniformly drawn ones."""

import tensorflow as tf


def top_k_mask(scores: tf.Tensor, k: tf.Tensor) -> tf.Tensor:
    """Returns a boolean mask, shaped like `scores`, of exactly the `k` largest entries.

    Ties are broken by position, the first entry in memory order winning.

    Args:
        scores: Tensor of any shape.
        k: Scalar integer in [0, number of entries].
    """
    flat = tf.reshape(scores, (-1,))
    chosen = tf.math.top_k(flat, tf.cast(k, tf.int32), sorted=False).indices
    mask = tf.tensor_scatter_nd_update(
        tf.zeros_like(flat, tf.bool), chosen[:, tf.newaxis], tf.ones_like(chosen, dtype=tf.bool)
    )
    return tf.reshape(mask, tf.shape(scores))


def set_random_dormant(flat: tf.Tensor, count: tf.Tensor, value: float, seed: tf.Tensor) -> tf.Tensor:
    """Returns `flat` with `count` of its entries that are not positive, drawn uniformly, set to `value`.

    The draw is exactly uniform without replacement. Positions are drawn among all entries and those already positive
    are rejected, which costs little while most entries are dormant; where more than half of the dormant entries are
    wanted, the list of dormant entries is shuffled instead.

    Args:
        flat: Float tensor `(entries,)`.
        count: Scalar int64, at most the number of entries that are not positive.
        value: Positive number.
        seed: Stateless seed, `(2,)`.
    """
    entries = tf.shape(flat, tf.int64)[0]
    dormant = entries - tf.math.count_nonzero(flat > 0)

    def connect(flat, positions):
        return tf.tensor_scatter_nd_update(
            flat, positions[:, tf.newaxis], tf.fill(tf.shape(positions), tf.constant(value, flat.dtype))
        )

    def by_rejection():
        # A fifth more than is needed on average, so that a second round is rare.
        oversampling = 1.2 * tf.cast(entries, tf.float64) / tf.cast(tf.maximum(dormant, 1), tf.float64)

        def draw(flat, left, round_):
            size = tf.cast(tf.cast(left, tf.float64) * oversampling, tf.int64) + 8
            drawn = tf.random.stateless_uniform(
                [tf.minimum(size, entries)],
                tf.random.experimental.stateless_fold_in(seed, round_),
                0,
                entries,
                tf.int64,
            )
            drawn = tf.boolean_mask(drawn, tf.gather(flat, drawn) <= 0)
            # tf.unique keeps the order of first appearance, so these are the first distinct ones of the stream.
            positions = tf.unique(drawn).y[:left]
            return connect(flat, positions), left - tf.size(positions, tf.int64), round_ + 1

        return tf.while_loop(
            lambda flat, left, round_: left > 0, draw, (flat, count, tf.constant(0)), parallel_iterations=1
        )[0]

    def by_shuffle():
        positions = tf.where(flat <= 0)[:, 0]
        return connect(flat, tf.random.experimental.stateless_shuffle(positions, seed)[:count])

    return tf.cond(2 * count > dormant, by_shuffle, by_rejection)
