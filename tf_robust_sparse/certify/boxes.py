"""Interval bounds over boxes of any shape, with the intervals of hidden neurons; for training."""

from typing import NamedTuple

import keras
import tensorflow as tf

from tf_robust_sparse.certify.ball import Ball, Interval
from tf_robust_sparse.certify.bound_graph import Input, ReLU, bound_graph
from tf_robust_sparse.certify.bounds import interval_bounds, interval_margins, specification


class BoxBounds(NamedTuple):
    """What intervals say about a network over a box.

    Attributes:
        margins: `(batch, classes - 1)`, lower bounds of the logit of the class minus each other logit.
        images: Interval of the pixels, `(batch, ...)`.
        before_relu: Intervals of the inputs of the ReLUs, in the order of the network.
    """

    margins: tf.Tensor
    images: Interval
    before_relu: list[Interval]


def box_bounds(
    network: keras.Model, lower: tf.Tensor, upper: tf.Tensor, y: tf.Tensor, relu_shrinkage: float = 1.0
) -> BoxBounds:
    """Bounds a network over a box by intervals, differentiably.

    Args:
        network: See `margins`.
        lower: Smallest pixels, `(batch, height, width, channels)`, float32.
        upper: Largest pixels, at least `lower`.
        y: `(batch,)`, integer labels.
        relu_shrinkage: What the upper bound of an undecided ReLU is multiplied by; below 1 the result bounds nothing.

    Raises:
        ValueError: if a layer has no rule.
    """
    steps = bound_graph(network)
    intervals = interval_bounds(steps, Ball(lower, upper, None, 0.0, "Linf", relu_shrinkage=relu_shrinkage))
    rows = specification(y, steps[-1].shape[0])
    (images,) = (intervals[step.name] for step in steps if isinstance(step.rule, Input))
    before_relu = [intervals[step.inputs[0]] for step in steps if isinstance(step.rule, ReLU)]
    return BoxBounds(interval_margins(steps, intervals, rows), images, before_relu)
