"""A penalty that keeps intervals tight while the radius of certified training grows."""

import tensorflow as tf

from tf_robust_sparse.certify.ball import Interval
from tf_robust_sparse.certify.boxes import BoxBounds

TOLERANCE = 0.5
TINY = 1e-12


def interval_penalty(bounds: BoxBounds, tolerance: float = TOLERANCE) -> tf.Tensor:
    """Returns how far the intervals of hidden neurons are from the shape that trains well: a scalar, at least 0.

    Two means over the ReLUs are added. The first grows where intervals before a ReLU are more than `1 / tolerance`
    times as wide as those of the pixels. The second grows where active and inactive neurons, those that no image of the
    box switches, differ in the sum of their centers or of the squared deviations of these.

    Reference: [Shi et al., 2021](https://arxiv.org/abs/2103.14754), section 3.3.
    """
    width = tf.reduce_mean(bounds.images.upper - bounds.images.lower)
    wide, unbalanced = [], []
    for each in bounds.before_relu:
        share = width / tf.maximum(tf.reduce_mean(each.upper - each.lower), TINY)
        wide.append(tf.nn.relu(tolerance - share) / tolerance)
        unbalanced += [tf.nn.relu(tolerance - ratio) / tolerance for ratio in _balances(each)]
    number = len(bounds.before_relu) or 1
    return (tf.add_n(wide) + tf.add_n(unbalanced)) / number if wide else tf.zeros(())


def _balances(interval: Interval) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the smaller of each ratio and its inverse; 1, which costs nothing, where either kind is missing."""
    center = (interval.lower + interval.upper) / 2
    active, inactive = (tf.cast(each, tf.float32) for each in (interval.lower > 0, interval.upper < 0))
    deviation = tf.square(center - tf.reduce_mean(center))

    def ratio(first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
        there = (first > TINY) & (second > TINY)
        first, second = tf.where(there, first, 1.0), tf.where(there, second, 1.0)
        return tf.minimum(first / second, second / first)

    return (
        ratio(tf.reduce_sum(center * active), -tf.reduce_sum(center * inactive)),
        ratio(tf.reduce_sum(deviation * active), tf.reduce_sum(deviation * inactive)),
    )
