"""Sets of images and of neuron values: balls and intervals."""

import math
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tf_robust_sparse.data.checks import Shape, checked_images

NORMS = ("Linf", "L2", "L1")


class Ball(NamedTuple):
    """The images that a bound must hold for.

    Attributes:
        lower: Smallest pixels, `(batch, ...)`.
        upper: Largest pixels, `(batch, ...)`.
        center: The image, or `None` in l-infinity, where `lower` and `upper` say everything.
        radius: Radius of the ball in `norm`.
        norm: `"Linf"`, `"L2"` or `"L1"`.
        rounding: The rounding errors to subtract, or `None` for bounds that only losses use.
        relu_shrinkage: What intervals multiply the upper bound of an undecided ReLU by. Below 1 they are no bounds, and
            only losses use them.
    """

    lower: tf.Tensor
    upper: tf.Tensor
    center: tf.Tensor | None
    radius: Any
    norm: str
    rounding: Any = None
    relu_shrinkage: float = 1.0


class Interval(NamedTuple):
    """Lower and upper bounds of the same shape."""

    lower: tf.Tensor
    upper: tf.Tensor


def ball(x: tf.Tensor, epsilon: Any, norm: str = "Linf", shape: Shape | None = None, rounding: Any = None) -> Ball:
    """Returns the ball of radius `epsilon` around images `x` in [0, 1], as far as it lies in [0, 1].

    With `rounding` it is a little larger: it contains every float32 image whose distance from `x` is at most `epsilon`,
    whether real numbers or float32 measure the distance or find the image.

    Args:
        x: `(batch, ...)`, float32.
        epsilon: Radius in pixels of [0, 1], a number or a scalar tensor.
        norm: `"Linf"`, `"L2"` or `"L1"`. For L2 and L1 the limits of [0, 1] enter only through intervals, which is
            sound but not tight.
        shape: Expected shape of an image, see `data.checks.checked_images`.
        rounding: The rounding errors that bounds over the ball must allow for, or `None`.

    Raises:
        ValueError: if the norm is unknown, the radius negative, or `checked_images` refuses the images.
    """
    if norm not in NORMS:
        raise ValueError(f"`norm` must be one of {', '.join(NORMS)}. Received: norm={norm!r}")
    if not tf.is_tensor(epsilon) and not epsilon >= 0:
        raise ValueError(f"`epsilon` is a radius in pixels of [0, 1], at least 0. Received: epsilon={epsilon}")
    x = tf.cast(checked_images(x, shape), tf.float32)
    center = None if norm == "Linf" else x
    if rounding is None:
        return Ball(tf.maximum(x - epsilon, 0.0), tf.minimum(x + epsilon, 1.0), center, epsilon, norm)
    radius = above(epsilon)
    if norm != "Linf":  # a norm is a sum over all pixels
        radius *= 1 + (math.prod(x.shape[1:]) + 64) * 2.0**-23
    return Ball(*outward(x, radius), center, radius, norm, rounding)


def above(epsilon: Any) -> tf.Tensor:
    """Returns a float32 number above `epsilon`."""
    return tf.math.nextafter(tf.cast(epsilon, tf.float32), np.inf)


def outward(x: tf.Tensor, epsilon: Any) -> Interval:
    """Returns float32 pixels in [0, 1] that enclose `x - epsilon` and `x + epsilon`, before and after rounding.

    Args:
        x: Pixels, float32.
        epsilon: A float32 number.
    """
    lower, upper = tf.math.nextafter(x - epsilon, -np.inf), tf.math.nextafter(x + epsilon, np.inf)
    return Interval(tf.maximum(lower, 0.0), tf.minimum(upper, 1.0))


def intersection(first: Interval, second: Interval) -> Interval:
    """Returns the intersection of two intervals."""
    return Interval(tf.maximum(first.lower, second.lower), tf.minimum(first.upper, second.upper))
