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


def draw_dormant(flat: tf.Tensor, count: tf.Tensor, dormant: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Draws positions of `flat` whose entries are not positive, uniformly and without replacement.

    Positions are drawn among all entries and those of positive entries are rejected, which costs little while most
    entries are dormant; where more than half of the dormant entries are wanted, the list of dormant entries is shuffled
    instead. Both are exactly uniform.

    Args:
        flat: Float tensor `(entries,)`.
        count: Scalar int64, how many to draw, at most `dormant`.
        dormant: Scalar int64, how many entries are not positive.
        seed: Stateless seed, `(2,)`.

    Returns:
        Positions, int64 `(count,)`, all different.
    """
    entries = tf.shape(flat, tf.int64)[0]

    def is_dormant(values):
        # NaN counts as dormant too, or the search would not end; TensorFlow turns `~(x > 0)` into `x <= 0`.
        return tf.logical_or(values <= 0, tf.math.is_nan(values))

    def by_rejection():
        # A fifth more than is needed on average, so that a second round is rare.
        oversampling = 1.2 * tf.cast(entries, tf.float64) / tf.cast(tf.maximum(dormant, 1), tf.float64)

        def draw(positions, round_):
            left = count - tf.size(positions, tf.int64)
            size = tf.cast(tf.cast(left, tf.float64) * oversampling, tf.int64) + 8
            drawn = tf.random.stateless_uniform(
                [tf.minimum(size, entries)],
                tf.random.experimental.stateless_fold_in(seed, round_),
                0,
                entries,
                tf.int64,
            )
            drawn = tf.boolean_mask(drawn, is_dormant(tf.gather(flat, drawn)))
            # tf.unique keeps the order of first appearance, so these are the first distinct ones of the stream.
            return tf.unique(tf.concat([positions, drawn], 0)).y[:count], round_ + 1

        return tf.while_loop(
            lambda positions, round_: tf.size(positions, tf.int64) < count,
            draw,
            (tf.zeros((0,), tf.int64), tf.constant(0)),
            shape_invariants=(tf.TensorShape([None]), tf.TensorShape([])),
            parallel_iterations=1,
        )[0]

    def by_shuffle():
        return tf.random.experimental.stateless_shuffle(tf.where(is_dormant(flat))[:, 0], seed)[:count]

    return tf.cond(2 * count > dormant, by_shuffle, by_rejection)
