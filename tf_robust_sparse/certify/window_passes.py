"""The backward pass for one convolutional step, over the windows that its neurons see instead of whole images."""

import math
from typing import Any

import tensorflow as tf

from tf_robust_sparse.certify.backward import (
    add_to,
    along_lines,
    constant_of,
    multiplied,
    over_ball,
    relu_slopes,
)
from tf_robust_sparse.certify.ball import Ball, Interval
from tf_robust_sparse.certify.bound_graph import Input, Linear, ReLU, Step
from tf_robust_sparse.certify.rounding import TINY, loss
from tf_robust_sparse.certify.windows import View, cut, sticks_out, through, widened


def number_of_images(around: Ball) -> int:
    """Returns the number of images, or 1 if the batch size is unknown."""
    return around.lower.shape[0] or 1


def bounds_by_windows(
    steps: list[Step],
    number: int,
    intervals: dict[str, Interval],
    around: Ball,
    slope: str,
    chunk: int,
    seen: dict[str, View],
) -> Interval:
    """Bounds the output of a convolutional step; coefficients cover only the window that a neuron sees.

    The arguments are those of `_by_backward_passes`, and `seen` is the result of `views`."""
    shape, by_name = steps[number].shape, {step.name: step for step in steps}
    positions, channels = (shape[0], shape[1]), shape[2]
    batch, places = tf.shape(around.lower)[0], shape[0] * shape[1]
    # The number of positions at once that needs no more memory than `chunk` rows of whole images.
    most = max(math.prod(by_name[name].shape) for name in seen)
    largest = max(math.prod(view.size) * by_name[name].shape[-1] for name, view in seen.items())
    count = max(1, min(chunk * most // (2 * channels * largest * number_of_images(around)), places))
    parts = -(-places // count)

    def windows(x: tf.Tensor, name: str) -> tf.Tensor:
        """Cuts the windows of each part: `(parts, batch, count, height, width, channels)`."""
        found = cut(x, seen[name], positions)
        found = tf.pad(found, [(0, 0), (0, parts * count - places), (0, 0), (0, 0), (0, 0)])
        split = tf.reshape(found, (-1, parts, count, *found.shape[2:]))
        return tf.transpose(split, (1, 0, 2, 3, 4, 5))

    rounding = around.rounding
    lines = {}
    for step in steps[: number + 1]:
        if isinstance(step.rule, ReLU) and step.name in seen:
            before = step.inputs[0]
            above, intercept, below = relu_slopes(intervals[before], slope)
            intercept = intercept if rounding is None else tf.cast(intercept, tf.float64)
            lines[step.name] = tuple(windows(part, before) for part in (above, intercept, below))
    (pixels,) = (name for name in seen if isinstance(by_name[name].rule, Input))
    box = tuple(windows(part, pixels) for part in (around.lower, around.upper, around.center) if part is not None)
    # Zeros outside of a layer are padding, not neurons: coefficients there must not meet biases and lines.
    inside = {
        name: windows(tf.ones((1, *by_name[name].shape[:2], 1)), name)
        for name, view in seen.items()
        if sticks_out(view, positions, by_name[name].shape)
    }

    errors = {}
    if rounding is not None:
        errors = {name: windows(rounding.errors[name], name) for name in seen if name in rounding.errors}

    @tf.autograph.experimental.do_not_convert
    def bound(part: tuple[Any, ...]) -> tf.Tensor:
        lines, box, inside, errors = part
        together = batch * count
        rows = tf.reshape(tf.concat([tf.eye(channels), -tf.eye(channels)], 0), (1, 2 * channels, 1, 1, channels))
        pending = {steps[number].name: rows}
        total = tf.fill((together, 2 * channels), 0.0 if rounding is None else -TINY)
        for step in reversed(steps[: number + 1]):
            coefficients = pending.pop(step.name, None)
            if coefficients is None:
                continue
            view, rule = seen[step.name], step.rule
            if step.name in inside and not (isinstance(rule, Input) and around.norm == "Linf"):
                mask = tf.tile(inside[step.name], (batch, 1, 1, 1, 1))
                coefficients *= tf.reshape(mask, (together, 1, *view.size, 1))
            if step.name in errors:
                total -= loss(coefficients, tf.reshape(errors[step.name], (together, *view.size, step.shape[-1])))
            if isinstance(rule, Input):
                sides = [tf.reshape(side, (together, *view.size, step.shape[-1])) for side in box]
                center = sides[2] if len(sides) > 2 else None
                total += over_ball(coefficients, around._replace(lower=sides[0], upper=sides[1], center=center))
                continue
            passed = coefficients
            if isinstance(rule, Linear):
                assert rule.window is not None
                total += constant_of(rule, coefficients, rounding is not None)
                sizes = zip(view.size, rule.window.strides, rule.window.size, strict=True)
                height, width = ((k - 1) * t + w for k, t, w in sizes)
                before = (height, width, by_name[step.inputs[0]].shape[-1])
                passed = multiplied(rule.window.apply, coefficients, before)
                view = through(view, rule.window)
            elif isinstance(rule, ReLU):
                flat = (together, 1, math.prod(view.size) * step.shape[-1])
                passed, constant = along_lines(coefficients, *(tf.reshape(side, flat) for side in lines[step.name]))
                total += constant
            for name in step.inputs:
                add_to(pending, name, widened(passed, view, seen[name]))
        return total

    found = tf.map_fn(
        bound,
        (lines, box, inside, errors),
        fn_output_signature=tf.TensorSpec((None, 2 * channels)),
        parallel_iterations=1,
    )
    found = tf.transpose(tf.reshape(found, (parts, batch, count, 2, channels)), (3, 1, 0, 2, 4))
    lower, upper = (tf.reshape(side, (batch, parts * count, channels))[:, :places] for side in (found[0], -found[1]))
    return Interval(*(tf.reshape(side, (batch, *shape)) for side in (lower, upper)))
