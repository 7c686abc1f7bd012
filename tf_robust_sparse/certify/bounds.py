"""Bounds of every neuron over a ball around the image, and of the margins between logits: IBP, CROWN-IBP, CROWN.

All of it is differentiable with respect to kernels, scores, biases and batch norm, and runs under `tf.function`.
"""

import math
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tf_robust_sparse.certify.bound_graph import Input, Linear, MaxPool, ReLU, Step, Sum, bound_graph
from tf_robust_sparse.certify.windows import View, cut, sticks_out, through, views, widened

SLOPES = ("adaptive", "zero-lb", "one-lb", "same-slope")
METHODS = ("ibp", "crown-ibp", "crown", "alpha-crown", "zonotope")
NORMS = ("Linf", "L2", "L1")
_GUARD = 1e-8
_SMALLEST_BETA = 1e-5


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
        ValueError: if the norm is unknown.
    """
    if norm not in NORMS:
        raise ValueError(f"`norm` must be one of {', '.join(NORMS)}. Received: norm={norm!r}")
    x = tf.cast(x, tf.float32)
    lower, upper = tf.maximum(x - epsilon, 0.0), tf.minimum(x + epsilon, 1.0)
    return Ball(lower, upper, None if norm == "Linf" else x, epsilon, norm)


def specification(y: tf.Tensor, classes: int) -> tf.Tensor:
    """Returns the rows `e_y - e_j` for all j other than y in rising order: `(batch, classes - 1, classes)`."""
    others = np.array([[j for j in range(classes) if j != label] for label in range(classes)], np.int32)
    own = tf.one_hot(y, classes)[:, tf.newaxis]
    return own - tf.one_hot(tf.gather(others, y), classes)


def margins(
    network: keras.Model,
    x: tf.Tensor,
    y: tf.Tensor,
    epsilon: Any,
    method: str = "crown-ibp",
    *,
    slope: str = "adaptive",
    norm: str = "Linf",
    tight: bool = False,
    chunk: int = 4096,
) -> tf.Tensor:
    """Returns lower bounds of the logit of the class minus that of every other, over the ball.

    An image is verified if all of them are positive.

    Args:
        network: A functional or sequential network of layers that `bound_graph` knows, which ends in logits.
        x: `(batch, height, width, channels)`, in [0, 1].
        y: `(batch,)`, integer labels.
        epsilon: Radius in pixels of [0, 1].
        method: `"ibp"`: intervals, the last layer merged with the margins. `"crown-ibp"`: one backward pass of linear
            bounds through ReLUs bounded by intervals. `"crown"`: every ReLU bounded by a backward pass of its own.
            `"alpha-crown"`: as `"crown"`, the lower lines of the last pass then moved by gradients, for each margin
            its own. `"zonotope"`: as `"crown"` with parallel lines, which equals symbolic intervals.
        slope: Lower line of a ReLU that may be on or off: `"adaptive"`, `"zero-lb"`, `"one-lb"` or `"same-slope"`.
        norm: Norm of the ball.
        tight: Whether bounds between are intersected with intervals, and the better of both is returned.
        chunk: Rows that `"crown"` carries back at once, two for each neuron of each image, which bounds the memory; in
            a batch of unknown size they count for each image.

    Returns:
        `(batch, classes - 1)`, float32, other classes in rising order.

    Raises:
        ValueError: if an argument is unknown or a layer has no rule.

    Reference: [Gowal et al., 2018](https://arxiv.org/abs/1810.12715); [Zhang et al., 2018](https://arxiv.org/abs/1811.00866);
        [Zhang et al., 2019](https://arxiv.org/abs/1906.06316); moved slopes:
        [Xu et al., 2021](https://arxiv.org/abs/2011.13824).
    """
    check_choices(method, slope, norm)
    steps = bound_graph(network)
    around = ball(x, epsilon, norm)
    rows = specification(y, steps[-1].shape[0])
    by_interval = None
    intervals: dict[str, Interval] = {}
    if tight or method in ("ibp", "crown-ibp"):
        intervals = interval_bounds(steps, around, chunk)
    if tight or method == "ibp":
        by_interval = interval_margins(steps, intervals, rows)
    if method == "ibp":
        return by_interval
    if method != "crown-ibp":
        slope = "same-slope" if method == "zonotope" else slope
        intervals = crown_intervals(steps, around, intervals if tight else None, slope, chunk)
    if method == "alpha-crown":
        lower = _with_moved_slopes(steps, rows, intervals, around, slope)
    else:
        lower = linear_lower_bounds(steps, len(steps) - 1, rows, intervals, around, slope)
    return lower if by_interval is None else tf.maximum(lower, by_interval)


def mixed_margins(
    network: keras.Model, x: tf.Tensor, y: tf.Tensor, epsilon: Any, beta: Any, slope: str = "adaptive"
) -> tf.Tensor:
    """Returns `beta` times the bounds of CROWN-IBP plus `1 - beta` times those of IBP, over an l-infinity ball.

    Both come from one pass of intervals; without the backward pass where `beta` is below 1e-5.

    Args:
        network, x, y, epsilon, slope: See `margins`.
        beta: In [0, 1], a number or a scalar tensor.

    Returns:
        `(batch, classes - 1)`, float32.

    Reference: [Zhang et al., 2019](https://arxiv.org/abs/1906.06316), equation 8.
    """
    check_choices("crown-ibp", slope, "Linf")
    steps, around = bound_graph(network), ball(x, epsilon)
    rows = specification(y, steps[-1].shape[0])
    intervals = interval_bounds(steps, around)
    by_interval = interval_margins(steps, intervals, rows)

    def mixed() -> tf.Tensor:
        by_lines = linear_lower_bounds(steps, len(steps) - 1, rows, intervals, around, slope)
        return beta * by_lines + (1 - beta) * by_interval

    return tf.cond(tf.convert_to_tensor(beta) >= _SMALLEST_BETA, mixed, lambda: by_interval)


def check_choices(method: str, slope: str, norm: str) -> None:
    """Raises a `ValueError` unless `margins` knows all three."""
    for name, value, known in (("method", method, METHODS), ("slope", slope, SLOPES), ("norm", norm, NORMS)):
        if value not in known:
            raise ValueError(f"`{name}` must be one of {', '.join(known)}. Received: {name}={value!r}")


def interval_bounds(steps: list[Step], around: Ball, chunk: int = 4096) -> dict[str, Interval]:
    """Returns the interval of the output of every step: `(batch, ...)` each.

    In l2 and l1 what depends on the images by linear steps alone is bounded by the ball itself, `chunk` rows at
    once.
    """
    found: dict[str, Interval] = {}
    of_images = set()  # steps that are linear in the images
    for number, step in enumerate(steps):
        bounds = _interval(step, [found[name] for name in step.inputs], around)
        if isinstance(step.rule, (Input, Linear, Sum)) and all(name in of_images for name in step.inputs):
            of_images.add(step.name)
            if around.norm != "Linf" and step.inputs:
                bounds = _intersection(bounds, _by_backward_passes(steps, number, {}, around, "same-slope", chunk))
        found[step.name] = bounds
    return found


def _intersection(first: Interval, second: Interval) -> Interval:
    return Interval(tf.maximum(first.lower, second.lower), tf.minimum(first.upper, second.upper))


def _interval(step: Step, inputs: list[Interval], around: Ball) -> Interval:
    rule = step.rule
    if isinstance(rule, Input):
        return Interval(around.lower, around.upper)
    if isinstance(rule, Linear):
        lower, upper = inputs[0]
        middle = (upper + lower) / 2
        centre, radius = rule.apply(middle), rule.absolute(upper - middle)
        if rule.bias is not None:
            centre += rule.bias
        return Interval(centre - radius, centre + radius)
    if isinstance(rule, ReLU):
        return Interval(tf.nn.relu(inputs[0].lower), tf.nn.relu(inputs[0].upper))
    if isinstance(rule, MaxPool):
        lower, upper = (tf.nn.max_pool2d(part, rule.window, rule.strides, "VALID") for part in inputs[0])
        return Interval(lower, upper)
    return Interval(tf.add_n([part.lower for part in inputs]), tf.add_n([part.upper for part in inputs]))


def interval_margins(steps: list[Step], intervals: dict[str, Interval], rows: tf.Tensor) -> tf.Tensor:
    """Lower bounds of `rows` times the logits by intervals, the last layer multiplied with the rows first."""
    last = steps[-1]
    assert isinstance(last.rule, Linear)
    lower, upper = intervals[last.inputs[0]]
    coefficients = _through(last.rule.apply, rows, tuple(lower.shape[1:]))
    return _constant(last.rule, rows) + _over_box(coefficients, Interval(lower, upper))


def crown_intervals(
    steps: list[Step], around: Ball, known: dict[str, Interval] | None, slope: str, chunk: int
) -> dict[str, Interval]:
    """Returns intervals of the inputs of every ReLU and max-pooling by backward passes of their own.

    Args:
        steps: The network.
        around: The ball.
        known: Intervals to intersect them with, or `None`.
        slope: Lower line of undecided ReLUs.
        chunk: Rows that are carried back at once.
    """
    needed = {step.inputs[0] for step in steps if isinstance(step.rule, (ReLU, MaxPool))}
    found: dict[str, Interval] = {}
    for number, step in enumerate(steps):
        if step.name not in needed:
            continue
        first = isinstance(step.rule, Linear) and isinstance(_step(steps, step.inputs[0]).rule, Input)
        if first and around.norm == "Linf":  # of one linear map the interval is exact
            bounds = _interval(step, [Interval(around.lower, around.upper)], around)
        else:
            feeds = [other.rule for other in steps if step.name in other.inputs]
            decided = known[step.name] if known and all(isinstance(rule, ReLU) for rule in feeds) else None
            bounds = _by_backward_passes(steps, number, found, around, slope, chunk, decided)
        if known is not None:
            bounds = _intersection(bounds, known[step.name])
        found[step.name] = bounds
    return found


def _by_backward_passes(
    steps: list[Step],
    number: int,
    intervals: dict[str, Interval],
    around: Ball,
    slope: str,
    chunk: int,
    known: Interval | None = None,
) -> Interval:
    """Bounds the output of one step, some neurons at a time; with `known` intervals those that these leave undecided.

    What is decided keeps its interval: the line of its ReLU does not depend on more.
    """
    seen = views(steps, number)
    if seen is not None:
        return _by_windows(steps, number, intervals, around, slope, chunk, seen)
    shape = steps[number].shape
    neurons = math.prod(shape)
    batch = tf.shape(around.lower)[0]
    count = max(1, min(chunk // (2 * _images(around)), neurons))  # each has two rows
    chosen = tf.range(neurons)
    if known is not None:
        undecided = tf.reduce_any((known.lower < 0) & (known.upper > 0), axis=0)
        chosen = tf.cast(tf.where(tf.reshape(undecided, (neurons,)))[:, 0], tf.int32)

    @tf.autograph.experimental.do_not_convert
    def bound(part: tf.Tensor) -> tf.Tensor:
        rows = tf.reshape(tf.one_hot(part, neurons), (1, count, *shape))
        rows = tf.concat([rows, -rows], 1)  # of all images alike, until a ReLU
        return linear_lower_bounds(steps, number, rows, intervals, around, slope)

    parts = tf.maximum(-(-tf.shape(chosen)[0] // count), 1)
    padded = tf.reshape(tf.pad(chosen, [(0, parts * count - tf.shape(chosen)[0])]), (parts, count))
    found = tf.map_fn(bound, padded, fn_output_signature=tf.TensorSpec((None, 2 * count)), parallel_iterations=1)
    found = tf.reshape(tf.transpose(found, (0, 2, 1)), (parts, 2, count, batch))
    lower, upper = (
        tf.reshape(side, (parts * count, batch))[: tf.shape(chosen)[0]] for side in (found[:, 0], -found[:, 1])
    )
    if known is not None:  # scattered to their places
        before = [tf.transpose(tf.reshape(side, (batch, neurons))) for side in known]
        lower, upper = (
            tf.tensor_scatter_nd_update(old, chosen[:, tf.newaxis], new)
            for old, new in zip(before, (lower, upper), strict=True)
        )
    return Interval(*(tf.reshape(tf.transpose(side), (batch, *shape)) for side in (lower, upper)))


def _images(around: Ball) -> int:
    """Returns how many images there are, 1 if that is not known before they come."""
    return around.lower.shape[0] or 1


def _by_windows(
    steps: list[Step],
    number: int,
    intervals: dict[str, Interval],
    around: Ball,
    slope: str,
    chunk: int,
    seen: dict[str, View],
) -> Interval:
    """Bounds the output of one step of images by backward passes through the windows that its neurons see."""
    shape, by_name = steps[number].shape, {step.name: step for step in steps}
    positions, channels = (shape[0], shape[1]), shape[2]
    batch, places = tf.shape(around.lower)[0], shape[0] * shape[1]
    # As many positions as hold no more than `chunk` rows of whole images would.
    most = max(math.prod(by_name[name].shape) for name in seen)
    largest = max(math.prod(view.size) * by_name[name].shape[-1] for name, view in seen.items())
    count = max(1, min(chunk * most // (2 * channels * largest * _images(around)), places))
    parts = -(-places // count)

    def windows(x: tf.Tensor, name: str) -> tf.Tensor:
        """Cut for each part: `(parts, batch, count, height, width, channels)`."""
        found = cut(x, seen[name], positions)
        found = tf.pad(found, [(0, 0), (0, parts * count - places), (0, 0), (0, 0), (0, 0)])
        split = tf.reshape(found, (-1, parts, count, *found.shape[2:]))
        return tf.transpose(split, (1, 0, 2, 3, 4, 5))

    lines = {}
    for step in steps[: number + 1]:
        if isinstance(step.rule, ReLU) and step.name in seen:
            before = step.inputs[0]
            lines[step.name] = tuple(windows(part, before) for part in relu_slopes(intervals[before], slope))
    (pixels,) = (name for name in seen if isinstance(by_name[name].rule, Input))
    box = tuple(windows(part, pixels) for part in (around.lower, around.upper, around.centre) if part is not None)
    inside = {
        name: windows(tf.ones((1, *by_name[name].shape[:2], 1)), name)
        for name, view in seen.items()
        if sticks_out(view, positions, by_name[name].shape)
    }

    @tf.autograph.experimental.do_not_convert
    def bound(part: tuple[Any, ...]) -> tf.Tensor:
        lines, box, inside = part
        together = batch * count
        rows = tf.reshape(tf.concat([tf.eye(channels), -tf.eye(channels)], 0), (1, 2 * channels, 1, 1, channels))
        pending = {steps[number].name: rows}
        total = tf.zeros((together, 2 * channels))
        for step in reversed(steps[: number + 1]):
            coefficients = pending.pop(step.name, None)
            if coefficients is None:
                continue
            view, rule = seen[step.name], step.rule
            if step.name in inside and not (isinstance(rule, Input) and around.norm == "Linf"):
                mask = tf.tile(inside[step.name], (batch, 1, 1, 1, 1))
                coefficients *= tf.reshape(mask, (together, 1, *view.size, 1))
            if isinstance(rule, Input):
                sides = [tf.reshape(side, (together, *view.size, step.shape[-1])) for side in box]
                local = Ball(sides[0], sides[1], sides[2] if len(sides) > 2 else None, around.radius, around.norm)
                total += _over_ball(coefficients, local)
                continue
            passed = coefficients
            if isinstance(rule, Linear):
                assert rule.window is not None
                total += _constant(rule, coefficients)
                sizes = zip(view.size, rule.window.strides, rule.window.size, strict=True)
                height, width = ((k - 1) * t + w for k, t, w in sizes)
                before = (height, width, by_name[step.inputs[0]].shape[-1])
                passed = _through(rule.window.apply, coefficients, before)
                view = through(view, rule.window)
            elif isinstance(rule, ReLU):
                flat = (together, 1, math.prod(view.size) * step.shape[-1])
                passed, constant = _along_lines(coefficients, *(tf.reshape(side, flat) for side in lines[step.name]))
                total += constant
            for name in step.inputs:
                _add(pending, name, widened(passed, view, seen[name]))
        return total

    found = tf.map_fn(
        bound,
        (lines, box, inside),
        fn_output_signature=tf.TensorSpec((None, 2 * channels)),
        parallel_iterations=1,
    )
    found = tf.transpose(tf.reshape(found, (parts, batch, count, 2, channels)), (3, 1, 0, 2, 4))
    lower, upper = (tf.reshape(side, (batch, parts * count, channels))[:, :places] for side in (found[0], -found[1]))
    return Interval(*(tf.reshape(side, (batch, *shape)) for side in (lower, upper)))


def linear_lower_bounds(
    steps: list[Step],
    number: int,
    rows: tf.Tensor,
    intervals: dict[str, Interval],
    around: Ball,
    slope: str,
    alphas: dict[str, tf.Tensor] | None = None,
) -> tf.Tensor:
    """Returns lower bounds of `rows` times the output of a step over the ball, by one backward pass.

    Args:
        steps: The network.
        number: Of the step.
        rows: `(batch, rows, *shape)`, coefficients of its output; `(1, rows, *shape)` for all images alike.
        intervals: Of the inputs of every ReLU and max-pooling before it.
        around: The ball.
        slope: Lower line of undecided ReLUs.
        alphas: Lower slopes by the name of the ReLU, `(batch, 1, *shape)` or one per row, in place of `slope`.

    Returns:
        `(batch, rows)`.
    """
    pending = {steps[number].name: rows}
    total = tf.zeros(tf.shape(rows)[:2])
    for step in reversed(steps[: number + 1]):
        coefficients = pending.pop(step.name, None)
        if coefficients is None:
            continue
        rule = step.rule
        if isinstance(rule, Input):
            total += _over_ball(coefficients, around)
            continue
        if isinstance(rule, Sum):
            for name in step.inputs:
                _add(pending, name, coefficients)
            continue
        before = _step(steps, step.inputs[0]).shape
        if isinstance(rule, Linear):
            total += _constant(rule, coefficients)
            passed = _through(rule.apply, coefficients, before)
        elif isinstance(rule, ReLU):
            alpha = None if alphas is None else alphas.get(step.name)
            passed, constant = _through_relu(coefficients, intervals[step.inputs[0]], slope, alpha)
            total += constant
        else:
            passed, constant = _through_max_pool(coefficients, rule, intervals[step.inputs[0]], before)
            total += constant
        _add(pending, step.inputs[0], passed)
    return total


def _with_moved_slopes(
    steps: list[Step],
    rows: tf.Tensor,
    intervals: dict[str, Interval],
    around: Ball,
    slope: str,
    iterations: int = 20,
    rate: float = 0.25,
) -> tf.Tensor:
    """Moves the lower slopes of undecided ReLUs, each row its own, up the gradient of its bound; keeps the best."""
    relus = [step for step in steps if isinstance(step.rule, ReLU)]
    number_of_rows = tf.shape(rows)[1]
    begin = []
    for step in relus:
        below = relu_slopes(intervals[step.inputs[0]], slope)[2][:, tf.newaxis]
        begin.append(tf.repeat(below, number_of_rows, axis=1))

    def bound(alphas: list[tf.Tensor]) -> tf.Tensor:
        named = {step.name: alpha for step, alpha in zip(relus, alphas, strict=True)}
        return linear_lower_bounds(steps, len(steps) - 1, rows, intervals, around, slope, named)

    def move(iteration: tf.Tensor, best: tf.Tensor, alphas: list[tf.Tensor]) -> tuple[Any, ...]:
        with tf.GradientTape() as tape:
            tape.watch(alphas)
            lower = bound(alphas)
        gradients = tape.gradient(lower, alphas, unconnected_gradients="zero")
        length = rate * 0.9 ** tf.cast(iteration, tf.float32)
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


def _step(steps: list[Step], name: str) -> Step:
    return next(step for step in steps if step.name == name)


def _add(pending: dict[str, tf.Tensor], name: str, coefficients: tf.Tensor) -> None:
    pending[name] = pending[name] + coefficients if name in pending else coefficients


def _through(apply: Any, coefficients: tf.Tensor, before: tuple[int, ...]) -> tf.Tensor:
    """Multiplies coefficients `(batch, rows, *after)` by the linear map: `(batch, rows, *before)`."""
    batch, rows = tf.shape(coefficients)[0], tf.shape(coefficients)[1]
    flat = tf.reshape(coefficients, (batch * rows, *coefficients.shape[2:]))
    nowhere = tf.zeros((batch * rows, *before))
    with tf.GradientTape() as tape:
        tape.watch(nowhere)
        there = apply(nowhere)
    found = tape.gradient(there, nowhere, output_gradients=flat)
    return tf.reshape(found, (batch, rows, *before))


def _constant(rule: Linear, coefficients: tf.Tensor) -> tf.Tensor:
    if rule.bias is None:
        return tf.zeros(tf.shape(coefficients)[:2])
    return tf.reduce_sum(coefficients * rule.bias, axis=list(range(2, len(coefficients.shape))))


def relu_slopes(bounds: Interval, slope: str) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns the upper line's slope and intercept and the lower line's slope of ReLUs with these inputs.

    The upper slope carries gradients, the lower one does not, except where both are the same.
    """
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
    coefficients: tf.Tensor, bounds: Interval, slope: str, alpha: tf.Tensor | None
) -> tuple[tf.Tensor, tf.Tensor]:
    above, intercept, below = (part[:, tf.newaxis] for part in relu_slopes(bounds, slope))
    if alpha is not None:  # of decided ReLUs the line is known
        decided = ((bounds.lower >= 0) | (bounds.upper <= 0))[:, tf.newaxis]
        below = tf.where(decided, tf.cast(bounds.lower >= 0, tf.float32)[:, tf.newaxis], alpha)
    batch, neurons = tf.shape(above)[0], math.prod(coefficients.shape[2:])
    return _along_lines(coefficients, *(tf.reshape(part, (batch, -1, neurons)) for part in (above, intercept, below)))


def _along_lines(
    coefficients: tf.Tensor, above: tf.Tensor, intercept: tf.Tensor, below: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Passes coefficients `(batch or 1, rows, ...)` through lines `(batch, 1 or rows, neurons)`."""
    batch, rows, shape = tf.shape(above)[0], tf.shape(coefficients)[1], coefficients.shape[2:]
    flat = tf.reshape(coefficients, (tf.shape(coefficients)[0], rows, math.prod(shape)))
    if coefficients.shape[0] == 1:
        flat = tf.broadcast_to(flat, (batch, rows, math.prod(shape)))
    passed, constant = _by_lines(flat, above, intercept, below)
    return tf.reshape(passed, (batch, rows, *shape)), constant


@tf.custom_gradient
def _by_lines(coefficients: tf.Tensor, above: tf.Tensor, intercept: tf.Tensor, below: tf.Tensor) -> Any:
    """Positive coefficients take the lower line `below * x`, negative ones the upper, `above * x + intercept`.

    The gradient is written out, for what TensorFlow derives from minima and maxima passes ten times over memory.

    Args:
        coefficients: `(batch, rows, neurons)`.
        above: `(batch, 1, neurons)`.
        intercept: As `above`.
        below: As `above`, or with lines for each row.

    Returns:
        The coefficients of the ReLU's inputs, and the constants `(batch, rows)`.
    """
    negative = tf.minimum(coefficients, 0.0)

    def gradient(of_passed: tf.Tensor, of_constant: tf.Tensor) -> tuple[tf.Tensor, ...]:
        of_constant = of_constant[:, :, tf.newaxis]
        of_coefficients = tf.where(coefficients < 0, of_passed * above + of_constant * intercept, of_passed * below)
        of_above = tf.reduce_sum(of_passed * negative, axis=1, keepdims=True)
        of_intercept = tf.matmul(of_constant, negative, transpose_a=True)
        of_below = of_passed * (coefficients - negative)
        if below.shape[1] == 1:
            of_below = tf.reduce_sum(of_below, axis=1, keepdims=True)
        return of_coefficients, of_above, of_intercept, of_below

    passed = coefficients * below + negative * (above - below)
    return (passed, tf.matmul(negative, intercept, transpose_b=True)[:, :, 0]), gradient


def _through_max_pool(
    coefficients: tf.Tensor, rule: MaxPool, bounds: Interval, before: tuple[int, ...]
) -> tuple[tf.Tensor, tf.Tensor]:
    """Below, the input of largest lower bound; above, that one if it is always the largest, else a constant."""
    taps, channels = math.prod(rule.window), before[-1]

    def windows(x: tf.Tensor) -> tf.Tensor:
        size, strides = (1, *rule.window, 1), (1, *rule.strides, 1)
        patches = tf.image.extract_patches(x, size, strides, (1, 1, 1, 1), "VALID")
        return tf.reshape(patches, (tf.shape(x)[0], *patches.shape[1:3], taps, channels))

    lower, upper = windows(bounds.lower), windows(bounds.upper)
    chosen = tf.one_hot(tf.argmax(lower, axis=3), taps, axis=3)
    others = tf.reduce_max(tf.where(chosen > 0, -math.inf, upper), axis=3)
    decided = tf.reduce_max(lower, axis=3) >= others
    positive, negative = tf.maximum(coefficients, 0.0), tf.minimum(coefficients, 0.0)
    passed = positive + tf.where(decided[:, tf.newaxis], negative, 0.0)
    spread = passed[:, :, :, :, tf.newaxis] * chosen[:, tf.newaxis]
    ceiling = tf.where(decided, 0.0, tf.reduce_max(upper, axis=3))
    constant = tf.reduce_sum(negative * ceiling[:, tf.newaxis], axis=[2, 3, 4])
    return _through(windows, spread, before), constant


def _over_ball(coefficients: tf.Tensor, around: Ball) -> tf.Tensor:
    """Smallest value of `coefficients` times the image over the ball: `(batch, rows)`."""
    box = _over_box(coefficients, Interval(around.lower, around.upper))
    if around.centre is None:
        return box
    axes = list(range(2, len(coefficients.shape)))
    if around.norm == "L2":
        dual = tf.sqrt(tf.maximum(tf.reduce_sum(tf.square(coefficients), axis=axes), 1e-24))
    else:
        dual = tf.reduce_max(tf.abs(coefficients), axis=axes)
    at_centre = tf.reduce_sum(coefficients * around.centre[:, tf.newaxis], axis=axes)
    return tf.maximum(box, at_centre - around.radius * dual)


def _over_box(coefficients: tf.Tensor, box: Interval) -> tf.Tensor:
    """Smallest value of `coefficients` `(batch, rows, ...)` times what is in the box: `(batch, rows)`."""
    neurons = math.prod(coefficients.shape[2:])
    flat = tf.reshape(coefficients, (tf.shape(coefficients)[0], -1, neurons))
    centre, radius = (box.upper + box.lower) / 2, (box.upper - box.lower) / 2
    centre, radius = (tf.reshape(part, (-1, neurons, 1)) for part in (centre, radius))
    return (tf.matmul(flat, centre) - tf.matmul(tf.abs(flat), radius))[:, :, 0]
