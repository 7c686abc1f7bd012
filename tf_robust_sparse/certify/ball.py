"""What an image may be, and what a neuron may be: balls and intervals."""

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

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


def ball(x: tf.Tensor, epsilon: Any, norm: str = "Linf") -> Ball:
    """Returns the ball of radius `epsilon` around images `x` in [0, 1], as far as it lies in [0, 1].

    Args:
        x: `(batch, ...)`, float32.
        epsilon: Radius in pixels of [0, 1], a number or a scalar tensor.
        norm: `"Linf"`, `"L2"` or `"L1"`; of the last two the part outside of [0, 1] is only cut off interval by
            interval, which is sound.

    Raises:
        ValueError: if the norm is unknown, the radius negative, or, of pixels that are known, one is outside of [0, 1].
    """
    if norm not in NORMS:
        raise ValueError(f"`norm` must be one of {', '.join(NORMS)}. Received: norm={norm!r}")
    if not tf.is_tensor(epsilon) and not epsilon >= 0:
        raise ValueError(f"`epsilon` is a radius in pixels of [0, 1], at least 0. Received: epsilon={epsilon}")
    if not tf.is_tensor(x) or hasattr(x, "numpy"):
        check_pixels(x)
    x = tf.cast(x, tf.float32)
    lower, upper = tf.maximum(x - epsilon, 0.0), tf.minimum(x + epsilon, 1.0)
    return Ball(lower, upper, None if norm == "Linf" else x, epsilon, norm)


def check_pixels(x: Any) -> None:
    """Checks that images are floats in [0, 1], around which alone a ball is what it says.

    Raises:
        ValueError: if they are not.
    """
    x = np.asarray(x)
    if x.dtype.kind != "f" or (x.size and not (x.min() >= 0 and x.max() <= 1)):
        span = f"[{x.min()}, {x.max()}]" if x.size else "none"
        raise ValueError(f"Images must be floats in [0, 1]; divide bytes by 255. Received: {x.dtype}, range {span}")


def intersection(first: Interval, second: Interval) -> Interval:
    """Returns what lies in both."""
    return Interval(tf.maximum(first.lower, second.lower), tf.minimum(first.upper, second.upper))
