"""What an image may be, and what a neuron may be: balls and intervals."""

from typing import Any, NamedTuple

import tensorflow as tf

from tf_robust_sparse.data.checks import Shape, checked_images

NORMS = ("Linf", "L2", "L1")


class Ball(NamedTuple):
    """What the image may be: `lower` and `upper` `(batch, ...)`, pixels; in another norm the centre and radius too.

    Attributes:
        lower: Smallest values.
        upper: Largest values.
        centre: The image, or `None` in l-infinity.
        radius: Of the ball in `norm`.
        norm: `"Linf"`, `"L2"` or `"L1"`.
    """

    lower: tf.Tensor
    upper: tf.Tensor
    centre: tf.Tensor | None
    radius: Any
    norm: str


class Interval(NamedTuple):
    """Lower and upper bounds of the same shape."""

    lower: tf.Tensor
    upper: tf.Tensor


def ball(x: tf.Tensor, epsilon: Any, norm: str = "Linf", shape: Shape | None = None) -> Ball:
    """Returns the ball of radius `epsilon` around images `x` in [0, 1], as far as it lies in [0, 1].

    Args:
        x: `(batch, ...)`, float32.
        epsilon: Radius in pixels of [0, 1], a number or a scalar tensor.
        norm: `"Linf"`, `"L2"` or `"L1"`; of the last two the part outside of [0, 1] is only cut off interval by
            interval, which is sound.
        shape: What the images must be of, see `data.checks.checked_images`.

    Raises:
        ValueError: if the norm is unknown, the radius negative, or images are not what `checked_images` takes.
    """
    if norm not in NORMS:
        raise ValueError(f"`norm` must be one of {', '.join(NORMS)}. Received: norm={norm!r}")
    if not tf.is_tensor(epsilon) and not epsilon >= 0:
        raise ValueError(f"`epsilon` is a radius in pixels of [0, 1], at least 0. Received: epsilon={epsilon}")
    x = tf.cast(checked_images(x, shape), tf.float32)
    lower, upper = tf.maximum(x - epsilon, 0.0), tf.minimum(x + epsilon, 1.0)
    return Ball(lower, upper, None if norm == "Linf" else x, epsilon, norm)


def intersection(first: Interval, second: Interval) -> Interval:
    """Returns what lies in both."""
    return Interval(tf.maximum(first.lower, second.lower), tf.minimum(first.upper, second.upper))
