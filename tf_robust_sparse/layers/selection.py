"""Selecting entries: one tensor or the other, and the largest ones without sorting."""

import functools
import math

import tensorflow as tf

_DIGITS = 1 << 16  # number of values of half of the 32 bits


def fast_where(condition: tf.Tensor, x: tf.Tensor, y: tf.Tensor | float) -> tf.Tensor:
    """`tf.where` for operands of one shape, ten times as fast on CPUs: that one broadcasts even where it need not.

    Args:
        condition: Boolean, of the shape of `x`, or `(batch,)` to choose whole examples.
        x: What is taken where the condition holds.
        y: What is taken elsewhere: as `x`, or a number.

    Returns:
        As `x`.
    """
    x = tf.convert_to_tensor(x)
    if not tf.is_tensor(y):
        y = tf.zeros_like(x) if y == 0 else tf.fill(tf.shape(x), tf.cast(y, x.dtype))
    return tf.raw_ops.Select(condition=condition, x=x, y=y)


def largest_mask(values: tf.Tensor, k: int | tf.Tensor, last_wins: bool = False) -> tf.Tensor:
    """Returns a boolean mask, shaped like `values`, of exactly the `k` largest entries.

    The k-th largest value is found by counting. The float32 bits are mapped to integers of the same order. A histogram
    of the upper 16 bits finds the upper half of the k-th largest value, and a histogram of the lower 16 bits of the
    entries with that upper half finds the rest. This takes two passes over the entries, whatever `k`; sorting 15
    million scores would take longer than the training step that needs them.

    Args:
        values: Floating, any shape; compared in float32. NaN counts as larger than everything, or, with its sign bit
            set, as smaller.
        k: Scalar integer in [0, number of entries].
        last_wins: Whether ties at the k-th value go to the last entries in memory order, not to the first.
    """
    flat = tf.reshape(tf.cast(values, tf.float32), (-1,))
    return tf.reshape(_LARGEST[last_wins](flat, tf.cast(k, tf.int32)), tf.shape(values))


def largest_of_groups_mask(values: tf.Tensor, n: int, axis: int) -> tf.Tensor:
    """Returns a boolean mask, shaped like `values`, of exactly the `n` largest of each group.

    Every pair of entries of a group is compared, without sorting, which is fast for groups of up to 32.

    Args:
        values: Floating; compared in float32, NaN as in `largest_mask`.
        n: Integer in [0, entries of a group].
        axis: The axis along which the entries of a group lie. Ties go to the first entries.
    """
    keys = tf.unstack(_ordered_bits(tf.cast(values, tf.float32)), axis=axis)
    ahead = [tf.zeros_like(key) for key in keys]  # number of entries of the group that rank before this one
    for later, key in enumerate(keys):
        for earlier in range(later):
            first = tf.cast(keys[earlier] >= key, tf.int32)
            ahead[later] += first
            ahead[earlier] += 1 - first
    return tf.stack([number < n for number in ahead], axis)


def _largest(flat: tf.Tensor, k: tf.Tensor, last_wins: bool) -> tf.Tensor:
    keys = _ordered_bits(flat)
    upper = tf.bitwise.right_shift(keys, 16) + _DIGITS // 2
    # k = 0 looks for the largest value, too, but takes none of its entries.
    wanted = tf.maximum(k, 1)
    upper_value, rest = _counted_from_top(upper, wanted)
    # Entries with another upper half get a digit out of range, which is not counted.
    lower = fast_where(upper == upper_value, tf.bitwise.bitwise_and(keys, _DIGITS - 1), _DIGITS)
    lower_value, rest = _counted_from_top(lower, rest)
    threshold = tf.bitwise.left_shift(upper_value - _DIGITS // 2, 16) + lower_value
    above, equal = keys > threshold, keys == threshold
    # Where all entries equal to the threshold are taken, the usual case, the cumulative sum is not needed.
    number = tf.math.count_nonzero(equal, dtype=tf.int32)
    rest = tf.where(k > 0, rest, 0)

    def some() -> tf.Tensor:
        place = tf.cumsum(tf.cast(equal, tf.int32), reverse=last_wins)
        return above | (equal & (place <= rest))

    return tf.cond(number == rest, lambda: above | equal, some)


# Traced once for tensors of any size, so the graph of a step that calls it for many kernels stays small.
_LARGEST = {
    last_wins: tf.function(
        functools.partial(_largest, last_wins=last_wins),
        input_signature=[tf.TensorSpec([None], tf.float32), tf.TensorSpec([], tf.int32)],
        autograph=False,
        experimental_attributes={"_noinline": True},
    )
    for last_wins in (False, True)
}


def _ordered_bits(values: tf.Tensor) -> tf.Tensor:
    """Returns int32 keys in the order of float32 numbers."""
    # Positive floats are ordered like their bits. Negative ones are ordered the other way: flip all bits but the sign.
    bits = tf.bitcast(values, tf.int32)
    keys = tf.bitwise.bitwise_xor(bits, tf.bitwise.bitwise_and(tf.bitwise.right_shift(bits, 31), 0x7FFFFFFF))
    return fast_where(keys != -1, keys, 0)  # -0.0 equals 0.0


def _counted_from_top(digits: tf.Tensor, wanted: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the `wanted`-th largest digit, and its rank, from 1, among the entries with that digit.

    Entries that are not in [0, 65536) are not counted.
    """
    counts = tf.raw_ops.DenseBincount(input=digits, size=_DIGITS, weights=tf.zeros((0,), tf.int32), binary_output=False)
    side = math.isqrt(_DIGITS)  # first a row of counts, then a count of the row, because XLA adds up long rows slowly
    rows = tf.reshape(counts, (side, side))
    row, wanted = _reached(tf.reduce_sum(rows, 1), wanted)
    # Gathered, not sliced: with a slice whose start is unknown, XLA compiles for minutes.
    column, wanted = _reached(tf.gather(rows, row), wanted)
    return row * side + column, wanted


def _reached(counts: tf.Tensor, wanted: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns where the sum of `counts` from the end reaches `wanted`, and how many of that count are wanted."""
    at_least = tf.cumsum(counts, reverse=True)
    place = tf.math.count_nonzero(at_least >= wanted, dtype=tf.int32) - 1
    return place, wanted - tf.gather(at_least - counts, place)
