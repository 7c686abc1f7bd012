"""The backward pass of linear bounds: coefficients of a step's output become coefficients of the image (CROWN).

A linear function of a layer's output is bounded from below by a linear function of its input, layer by layer, until it
is a linear function of the image. Its minimum over the ball has a closed form.
"""

import math
from typing import Any

import tensorflow as tf

from tf_robust_sparse.certify.ball import Ball, Interval
from tf_robust_sparse.certify.bound_graph import Input, Linear, MaxPool, ReLU, Step, Sum
from tf_robust_sparse.certify.rounding import TINY, loss
from tf_robust_sparse.layers.gradients import custom_gradient

SLOPES = ("adaptive", "zero-lb", "one-lb", "same-slope")
_GUARD = 1e-8  # keeps upper - lower positive for a ReLU whose input is a constant


def linear_lower_bounds(
    steps: list[Step],
    number: int,
    rows: tf.Tensor,
    intervals: dict[str, Interval],
    around: Ball,
    slope: str,
    alphas: dict[str, tf.Tensor] | None = None,
    lines: dict[str, tuple[tf.Tensor, ...]] | None = None,
    seen: dict[str, tf.Tensor] | None = None,
) -> tf.Tensor:
    """Returns lower bounds of `rows` times the output of a step over the ball, by one backward pass.

    Args:
        steps: The network.
        number: Index of the step in `steps`.
        rows: `(batch, rows, *shape)`, coefficients of its output; `(1, rows, *shape)` for all images alike.
        intervals: Bounds of the inputs of every ReLU and max-pooling before it.
        around: The ball; its rounding errors, if there are any, are subtracted.
        slope: Lower line of undecided ReLUs.
        alphas: Lower slopes by the name of the ReLU, `(batch, 1, *shape)` or one per row, in place of `slope`.
        lines: Of each ReLU the upper line's slope and intercept, the lower line's slope, and what to subtract from the
            coefficients of its input, `(batch, 1, neurons)` each, in place of `intervals` and slopes.
        seen: Where to put the coefficients of every ReLU's output and of the images, by the name of the step.

    Returns:
        `(batch, rows)`.
    """
    pending = {steps[number].name: rows}  # step -> coefficients of its output that are not passed on yet
    errors = {} if around.rounding is None else around.rounding.errors
    is_exact = around.rounding is not None
    total = tf.fill(tf.shape(rows)[:2], -TINY if is_exact else 0.0)
    for step in reversed(steps[: number + 1]):
        # All steps that read this output come later in `steps`, so its coefficients are complete.
        coefficients = pending.pop(step.name, None)
        if coefficients is None:  # the output in question does not depend on this step
            continue
        rule = step.rule
        if seen is not None and isinstance(rule, (Input, ReLU)):
            seen[step.name] = coefficients
        if step.name in errors:
            total -= loss(coefficients, errors[step.name])
        if isinstance(rule, Input):
            total += over_ball(coefficients, around)
            continue
        if isinstance(rule, Sum):
            for name in step.inputs:
                add_to(pending, name, coefficients)
            continue
        before = step_named(steps, step.inputs[0]).shape
        if isinstance(rule, Linear):
            total += constant_of(rule, coefficients, is_exact)
            passed = multiplied(rule.apply, coefficients, before)
        elif isinstance(rule, ReLU) and lines is not None:
            above, intercept, below, multipliers = lines[step.name]
            intercept = tf.cast(intercept, tf.float64) if is_exact else intercept
            passed, constant = along_lines(coefficients, above, intercept, below)
            passed -= tf.reshape(multipliers, (-1, 1, *before))
            total += constant
        elif isinstance(rule, ReLU):
            alpha = None if alphas is None else alphas.get(step.name)
            passed, constant = _through_relu(coefficients, intervals[step.inputs[0]], slope, alpha, is_exact)
            total += constant
        else:
            passed, constant = _through_max_pool(coefficients, rule, intervals[step.inputs[0]], before, is_exact)
            total += constant
        add_to(pending, step.inputs[0], passed)
    return total


def lower_bounds_with_moved_slopes(
    steps: list[Step],
    number: int,
    rows: tf.Tensor,
    intervals: dict[str, Interval],
    around: Ball,
    slope: str,
    iterations: int = 20,
    rate: float = 0.25,
) -> tf.Tensor:
    """Improves lower bounds by gradient ascent on the lower slopes of undecided ReLUs (alpha-CROWN).

    Each row has slopes of its own. Returns the best bound of all iterations.

    Args:
        steps, number, rows, intervals, around: See `linear_lower_bounds`.
        slope: Rule for the initial lower slopes.
        iterations: Number of gradient steps.
        rate: Length of the first step; each later one is 10% shorter.
    """
    relus = [step for step in steps[:number] if isinstance(step.rule, ReLU)]
    number_of_rows = tf.shape(rows)[1]
    begin = []
    for step in relus:
        below = relu_slopes(intervals[step.inputs[0]], slope)[2][:, tf.newaxis]
        begin.append(tf.repeat(below, number_of_rows, axis=1))

    def bound(alphas: list[tf.Tensor]) -> tf.Tensor:
        named = {step.name: alpha for step, alpha in zip(relus, alphas, strict=True)}
        return linear_lower_bounds(steps, number, rows, intervals, around, slope, named)

    def move(iteration: tf.Tensor, best: tf.Tensor, alphas: list[tf.Tensor]) -> tuple[Any, ...]:
        with tf.GradientTape() as tape:
            tape.watch(alphas)
            lower = bound(alphas)
        gradients = tape.gradient(lower, alphas, unconnected_gradients="zero")
        length = rate * 0.9 ** tf.cast(iteration, tf.float32)
        # Every slope in [0, 1] gives a sound bound, so clipping is all that soundness needs.
        moved = [
            tf.clip_by_value(alpha + length * tf.sign(gradient), 0.0, 1.0)
            for alpha, gradient in zip(alphas, gradients, strict=True)
        ]
        return iteration + 1, tf.maximum(best, lower), moved

    first = bound(begin)
    if not relus:
        return first
    _, best, _ = tf.while_loop(
        lambda iteration, *_: iteration < iterations, move, (tf.constant(0), first, begin), parallel_iterations=1
    )
    return best


def step_named(steps: list[Step], name: str) -> Step:
    """Returns the step with this name."""
    return next(step for step in steps if step.name == name)


def add_to(pending: dict[str, tf.Tensor], name: str, coefficients: tf.Tensor) -> None:
    """Adds to the coefficients of a step's output."""
    pending[name] = pending[name] + coefficients if name in pending else coefficients


def multiplied(apply: Any, coefficients: tf.Tensor, before: tuple[int, ...]) -> tf.Tensor:
    """Multiplies coefficients `(batch, rows, *after)` by a linear map: `(batch, rows, *before)`.

    The product with the transpose is the gradient of the map, which is the same at every point; it is taken at 0.
    """
    batch, rows = tf.shape(coefficients)[0], tf.shape(coefficients)[1]
    flat = tf.reshape(coefficients, (batch * rows, *coefficients.shape[2:]))
    zeros = tf.zeros((batch * rows, *before))
    with tf.GradientTape() as tape:
        tape.watch(zeros)
        output = apply(zeros)
    found = tape.gradient(output, zeros, output_gradients=flat)
    return tf.reshape(found, (batch, rows, *before))


def constant_of(rule: Linear, coefficients: tf.Tensor, is_exact: bool = False) -> tf.Tensor:
    """Returns `coefficients` `(batch, rows, ...)` times the bias: `(batch, rows)`.

    With `is_exact`, only sums over the last axis are in float32, the others in float64.
    """
    if rule.bias is None:
        return tf.zeros(tf.shape(coefficients)[:2])
    if is_exact:
        channels, (batch, rows) = coefficients.shape[-1], tf.unstack(tf.shape(coefficients)[:2])
        if rule.bias.shape == (channels,):
            products = tf.matmul(tf.reshape(coefficients, (-1, channels)), rule.bias[:, tf.newaxis])
        else:
            products = coefficients * rule.bias
        products = tf.reshape(tf.cast(products, tf.float64), (batch, rows, -1))
        return tf.cast(tf.reduce_sum(products, axis=2), tf.float32)
    return tf.reduce_sum(coefficients * rule.bias, axis=list(range(2, len(coefficients.shape))))


def relu_slopes(bounds: Interval, slope: str) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns the upper line's slope and intercept and the lower line's slope for ReLUs whose inputs have these bounds.

    The upper slope carries gradients, the lower one does not, except where both are the same.
    """
    # Clipped at 0, the same formulas give the identity for active ReLUs and 0 for inactive ones.
    lower, upper = tf.minimum(bounds.lower, 0.0), tf.maximum(bounds.upper, 0.0)
    upper = tf.maximum(upper, lower + _GUARD)
    above = upper / (upper - lower)
    if slope == "same-slope":
        below = above
    else:
        threshold = {"adaptive": above > 0.5, "zero-lb": above >= 1.0, "one-lb": above > 0.0}[slope]
        below = tf.stop_gradient(tf.cast(threshold, tf.float32))
    return above, -above * lower, below


def _through_relu(
    coefficients: tf.Tensor, bounds: Interval, slope: str, alpha: tf.Tensor | None, is_exact: bool
) -> tuple[tf.Tensor, tf.Tensor]:
    above, intercept, below = (part[:, tf.newaxis] for part in relu_slopes(bounds, slope))
    if is_exact:
        intercept = tf.cast(intercept, tf.float64)
    if alpha is not None:  # a decided ReLU is linear, so its line is fixed
        decided = ((bounds.lower >= 0) | (bounds.upper <= 0))[:, tf.newaxis]
        below = tf.where(decided, tf.cast(bounds.lower >= 0, tf.float32)[:, tf.newaxis], alpha)
    batch, neurons = tf.shape(above)[0], math.prod(coefficients.shape[2:])
    return along_lines(coefficients, *(tf.reshape(part, (batch, -1, neurons)) for part in (above, intercept, below)))


def along_lines(
    coefficients: tf.Tensor, above: tf.Tensor, intercept: tf.Tensor, below: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Passes coefficients `(batch or 1, rows, ...)` through lines `(batch, 1 or rows, neurons)`."""
    batch, rows, shape = tf.shape(above)[0], tf.shape(coefficients)[1], coefficients.shape[2:]
    flat = tf.reshape(coefficients, (tf.shape(coefficients)[0], rows, math.prod(shape)))
    if coefficients.shape[0] == 1:
        flat = tf.broadcast_to(flat, (batch, rows, math.prod(shape)))
    passed, constant = by_lines(flat, above, intercept, below)
    return tf.reshape(passed, (batch, rows, *shape)), constant


@custom_gradient
def by_lines(coefficients: tf.Tensor, above: tf.Tensor, intercept: tf.Tensor, below: tf.Tensor) -> Any:
    """Positive coefficients take the lower line `below * x`, negative ones the upper, `above * x + intercept`.

    The gradient is written by hand, because the one that TensorFlow derives from minima and maxima takes ten passes
    over memory.

    Args:
        coefficients: `(batch, rows, neurons)`.
        above: `(batch, 1, neurons)`.
        intercept: As `above`; in float64 if the constants are to be summed so.
        below: As `above`, or `(batch, rows, neurons)` with lines of its own for each row.

    Returns:
        The coefficients of the ReLU's inputs, and the constants `(batch, rows)`, float32.
    """
    negative = tf.minimum(coefficients, 0.0)

    def gradient(of_passed: tf.Tensor, of_constant: tf.Tensor) -> tuple[tf.Tensor, ...]:
        of_constant = of_constant[:, :, tf.newaxis]
        shift = of_constant * tf.cast(intercept, tf.float32)
        of_coefficients = tf.where(coefficients < 0, of_passed * above + shift, of_passed * below)
        of_above = tf.reduce_sum(of_passed * negative, axis=1, keepdims=True)
        of_intercept = tf.cast(tf.matmul(of_constant, negative, transpose_a=True), intercept.dtype)
        of_below = of_passed * (coefficients - negative)
        if below.shape[1] == 1:
            of_below = tf.reduce_sum(of_below, axis=1, keepdims=True)
        return of_coefficients, of_above, of_intercept, of_below

    passed = coefficients * below + negative * (above - below)
    constant = tf.matmul(tf.cast(negative, intercept.dtype), intercept, transpose_b=True)[:, :, 0]
    return (passed, tf.cast(constant, tf.float32)), gradient


def _through_max_pool(
    coefficients: tf.Tensor, rule: MaxPool, bounds: Interval, before: tuple[int, ...], is_exact: bool
) -> tuple[tf.Tensor, tf.Tensor]:
    """Bounds a maximum from below by the input with the largest lower bound, from above by that input or a constant.

    The input is an upper bound too if it is always the largest; otherwise the largest upper bound is.
    """
    taps, channels = math.prod(rule.window), before[-1]

    def windows(x: tf.Tensor) -> tf.Tensor:
        size, strides = (1, *rule.window, 1), (1, *rule.strides, 1)
        patches = tf.image.extract_patches(x, size, strides, (1, 1, 1, 1), "VALID")
        return tf.reshape(patches, (tf.shape(x)[0], *patches.shape[1:3], taps, channels))

    lower, upper = windows(bounds.lower), windows(bounds.upper)
    chosen = tf.one_hot(tf.argmax(lower, axis=3), taps, axis=3)
    others = tf.reduce_max(tf.where(chosen > 0, upper.dtype.min, upper), axis=3)
    decided = tf.reduce_max(lower, axis=3) >= others
    positive, negative = tf.maximum(coefficients, 0.0), tf.minimum(coefficients, 0.0)
    passed = positive + tf.where(decided[:, tf.newaxis], negative, 0.0)
    spread = passed[:, :, :, :, tf.newaxis] * chosen[:, tf.newaxis]
    ceiling = tf.where(decided, 0.0, tf.reduce_max(upper, axis=3))
    products = negative * ceiling[:, tf.newaxis]
    constant = tf.reduce_sum(tf.cast(products, tf.float64) if is_exact else products, axis=[2, 3, 4])
    return multiplied(windows, spread, before), tf.cast(constant, tf.float32)


def over_ball(coefficients: tf.Tensor, around: Ball) -> tf.Tensor:
    """Returns the smallest value of `coefficients` times the image over the ball: `(batch, rows)`.

    In L2 and L1 the better of two bounds: over the enclosing box, and over the ball without the limits of [0, 1].
    """
    box = over_box(coefficients, Interval(around.lower, around.upper), around.rounding is not None)
    if around.center is None:
        return box
    axes = list(range(2, len(coefficients.shape)))
    # Hoelder: the minimum over the ball is the value at the center minus the radius times the dual norm.
    if around.rounding is not None:  # sums in float64 are as good as exact
        coefficients = tf.cast(coefficients, tf.float64)
    if around.norm == "L2":
        dual = tf.sqrt(tf.maximum(tf.reduce_sum(tf.square(coefficients), axis=axes), 1e-24))
    else:
        dual = tf.reduce_max(tf.abs(coefficients), axis=axes)
    at_center = tf.reduce_sum(coefficients * tf.cast(around.center[:, tf.newaxis], coefficients.dtype), axis=axes)
    at_edge = at_center - tf.cast(around.radius, coefficients.dtype) * dual
    return tf.maximum(box, tf.cast(at_edge, tf.float32))


def over_box(coefficients: tf.Tensor, box: Interval, is_exact: bool = False) -> tf.Tensor:
    """Returns the smallest value of `coefficients` `(batch, rows, ...)` times a point of the box: `(batch, rows)`.

    With `is_exact` it sums in float64 and rounds once.
    """
    neurons = math.prod(coefficients.shape[2:])
    flat = tf.reshape(coefficients, (tf.shape(coefficients)[0], -1, neurons))
    if is_exact:
        flat, box = tf.cast(flat, tf.float64), Interval(*(tf.cast(side, tf.float64) for side in box))
    center, radius = (box.upper + box.lower) / 2, (box.upper - box.lower) / 2
    center, radius = (tf.reshape(part, (-1, neurons, 1)) for part in (center, radius))
    return tf.cast((tf.matmul(flat, center) - tf.matmul(tf.abs(flat), radius))[:, :, 0], tf.float32)
