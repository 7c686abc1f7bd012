"""Bounds of every neuron over a ball around the image, and of the margins between logits: IBP, CROWN-IBP, CROWN.

All bounds are differentiable with respect to kernels, scores, biases and batch norm, and run under `tf.function`.
"""

import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_robust_sparse.certify.backward import (
    SLOPES,
    constant_of,
    linear_lower_bounds,
    lower_bounds_with_moved_slopes,
    multiplied,
    over_box,
    step_named,
)
from tf_robust_sparse.certify.ball import NORMS, Ball, Interval, ball, intersection
from tf_robust_sparse.certify.bound_graph import Input, Linear, MaxPool, ReLU, Step, Sum, bound_graph
from tf_robust_sparse.certify.rounding import TINY, Rounding, check_arithmetic, loss, with_pairs_of_readers
from tf_robust_sparse.certify.window_passes import bounds_by_windows, number_of_images
from tf_robust_sparse.certify.windows import views
from tf_robust_sparse.data.checks import checked_labels

METHODS = ("ibp", "crown-ibp", "crown", "alpha-crown", "zonotope")
_SMALLEST_BETA = 1e-5  # a smaller weight of the linear bounds is not worth their backward pass


def specification(y: tf.Tensor, classes: int) -> tf.Tensor:
    """Returns the rows `e_y - e_j` for all j other than y in increasing order: `(batch, classes - 1, classes)`."""
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
    optimize_intermediate: bool = False,
) -> tf.Tensor:
    """Returns lower bounds of the logit of the class minus each other logit, over a ball around the image.

    An image is verified if all of them are positive. The bounds hold for the logits that the network has in float32, in
    whatever order its sums are computed, and for every float32 image of the ball: what rounding can change is
    subtracted, see `certify.rounding`. This holds in float32 arithmetic; TF32 of GPUs must be off.

    ```python
    lower = trs.certify.margins(network, x, y, epsilon=2 / 255, method="crown-ibp", tight=True)
    verified = tf.reduce_all(lower > 0, axis=1)
    ```

    Args:
        network: A functional or sequential network that ends in logits, of layers that `bound_graph` has rules for.
        x: `(batch, height, width, channels)`, in [0, 1].
        y: `(batch,)`, integer labels.
        epsilon: Radius in pixels of [0, 1].
        method: `"ibp"`: intervals, the last layer merged with the margins. `"crown-ibp"`: one backward pass of linear
            bounds through ReLUs bounded by intervals. `"crown"`: every ReLU bounded by a backward pass of its own.
            `"alpha-crown"`: `"crown"`, then the lower lines of the last pass are optimized by gradients, for each
            margin separately; the bounds of hidden neurons stay those of `"crown"` unless `optimize_intermediate`.
            `"zonotope"`: `"crown"` with parallel lines, which equals symbolic intervals.
        slope: Lower line of a ReLU that may be on or off: `"adaptive"`, `"zero-lb"`, `"one-lb"` or `"same-slope"`.
        norm: Norm of the ball.
        tight: Whether to intersect the bounds of hidden neurons with intervals, and to return the better of both
            bounds.
        chunk: Number of rows that `"crown"` carries back at once, two for each neuron of each image. It limits the
            memory. In a batch of unknown size it counts for each image.
        optimize_intermediate: For `"alpha-crown"`: whether to optimize the bounds of hidden neurons too, each undecided
            neuron with slopes of its own. Never looser, but slower: 20 backward passes with gradients instead of each
            pass of `"crown"`.

    Returns:
        `(batch, classes - 1)`, float32, the other classes in increasing order.

    Raises:
        ValueError: if an argument is unknown, a layer has no rule, or images or labels are malformed.

    Reference: [Gowal et al., 2018](https://arxiv.org/abs/1810.12715); [Zhang et al., 2018](https://arxiv.org/abs/1811.00866);
        [Zhang et al., 2019](https://arxiv.org/abs/1906.06316); moved slopes:
        [Xu et al., 2021](https://arxiv.org/abs/2011.13824).
    """
    check_choices(method, slope, norm, optimize_intermediate)
    check_arithmetic()
    steps = with_pairs_of_readers(bound_graph(network))
    around = ball(x, epsilon, norm, tuple(network.input_shape[1:]), Rounding(steps))
    return _margins(steps, around, x, y, method, slope, tight, chunk, optimize_intermediate)


def training_margins(
    network: keras.Model,
    x: tf.Tensor,
    y: tf.Tensor,
    epsilon: Any,
    method: str = "crown-ibp",
    *,
    slope: str = "adaptive",
    tight: bool = False,
    chunk: int = 4096,
) -> tf.Tensor:
    """Returns `margins` over an l-infinity ball as if nothing were rounded: for losses, not for claims."""
    check_choices(method, slope, "Linf")
    steps = bound_graph(network)
    around = ball(x, epsilon, shape=tuple(network.input_shape[1:]))
    return _margins(steps, around, x, y, method, slope, tight, chunk, False)


def _margins(
    steps: list[Step],
    around: Ball,
    x: tf.Tensor,
    y: tf.Tensor,
    method: str,
    slope: str,
    tight: bool,
    chunk: int,
    optimize_intermediate: bool,
) -> tf.Tensor:
    rows = specification(_labels(y, x, steps), steps[-1].shape[0])
    by_interval = None
    intervals: dict[str, Interval] = {}
    if tight or method in ("ibp", "crown-ibp"):
        intervals = interval_bounds(steps, around, chunk)
    if tight or method == "ibp":
        by_interval = interval_margins(steps, intervals, rows, around.rounding)
    if method == "ibp":
        return by_interval
    if method != "crown-ibp":
        slope = "same-slope" if method == "zonotope" else slope
        intervals = crown_intervals(steps, around, intervals if tight else None, slope, chunk)
    if method == "alpha-crown":
        last = len(steps) - 1
        lower = lower_bounds_with_moved_slopes(steps, last, rows, intervals, around, slope)
        if optimize_intermediate:
            # Tighter intervals change the initial slopes and may loosen single bounds, so take the better of both.
            intervals = crown_intervals(steps, around, intervals, slope, chunk, moved=True)
            lower = tf.maximum(lower, lower_bounds_with_moved_slopes(steps, last, rows, intervals, around, slope))
    else:
        lower = linear_lower_bounds(steps, len(steps) - 1, rows, intervals, around, slope)
    return lower if by_interval is None else tf.maximum(lower, by_interval)


def mixed_margins(
    network: keras.Model, x: tf.Tensor, y: tf.Tensor, epsilon: Any, beta: Any, slope: str = "adaptive"
) -> tf.Tensor:
    """Returns `beta` times the bounds of CROWN-IBP plus `1 - beta` times those of IBP, over an l-infinity ball.

    Both come from one pass of intervals. If `beta` is below 1e-5, the backward pass is left out.

    Args:
        network, x, y, epsilon, slope: See `margins`.
        beta: In [0, 1], a number or a scalar tensor.

    Returns:
        `(batch, classes - 1)`, float32.

    Reference: [Zhang et al., 2019](https://arxiv.org/abs/1906.06316), equation 8.
    """
    check_choices("crown-ibp", slope, "Linf")
    steps, around = bound_graph(network), ball(x, epsilon, shape=tuple(network.input_shape[1:]))
    rows = specification(_labels(y, x, steps), steps[-1].shape[0])
    intervals = interval_bounds(steps, around)
    by_interval = interval_margins(steps, intervals, rows)

    def mixed() -> tf.Tensor:
        by_lines = linear_lower_bounds(steps, len(steps) - 1, rows, intervals, around, slope)
        return beta * by_lines + (1 - beta) * by_interval

    return tf.cond(tf.convert_to_tensor(beta) >= _SMALLEST_BETA, mixed, lambda: by_interval)


def _labels(y: Any, x: Any, steps: list[Step]) -> Any:
    """Returns the labels of the images `x` as int64."""
    classes = steps[-1].shape[0]
    return checked_labels(y, x.shape[0], classes, why=f", because the network has {classes} logits")


def check_choices(method: str, slope: str, norm: str, optimize_intermediate: bool = False) -> None:
    """Raises a `ValueError` unless `margins` knows all arguments."""
    if optimize_intermediate and method != "alpha-crown":
        raise ValueError(f'`optimize_intermediate` requires method="alpha-crown". Received: method={method!r}')
    for name, value, known in (("method", method, METHODS), ("slope", slope, SLOPES), ("norm", norm, NORMS)):
        if value not in known:
            raise ValueError(f"`{name}` must be one of {', '.join(known)}. Received: {name}={value!r}")


def interval_bounds(steps: list[Step], around: Ball, chunk: int = 4096) -> dict[str, Interval]:
    """Returns the interval of the output of every step: `(batch, ...)` each.

    In L2 and L1 a step that depends linearly on the images is also bounded by the ball itself, `chunk` rows at once,
    because a box around the ball is much larger.
    """
    found: dict[str, Interval] = {}
    of_images = set()  # steps that are linear in the images
    for number, step in enumerate(steps):
        bounds = interval_of(step, [found[name] for name in step.inputs], around)
        if isinstance(step.rule, (Input, Linear, Sum)) and all(name in of_images for name in step.inputs):
            of_images.add(step.name)
            if around.norm != "Linf" and step.inputs:
                bounds = intersection(bounds, _by_backward_passes(steps, number, {}, around, "same-slope", chunk))
        found[step.name] = bounds
    return found


def interval_of(step: Step, inputs: list[Interval], around: Ball) -> Interval:
    """Returns the interval of a step's output, given those of its inputs."""
    bounds = _interval(step, inputs, around)
    return bounds if around.rounding is None else around.rounding.widened(step, inputs, bounds)


def _interval(step: Step, inputs: list[Interval], around: Ball) -> Interval:
    rule = step.rule
    if isinstance(rule, Input):
        return Interval(around.lower, around.upper)
    if isinstance(rule, Linear):
        lower, upper = inputs[0]
        if rule.absolute is rule.apply:  # no coefficient is negative
            return Interval(*(_shifted(rule.apply(side), rule.bias) for side in (lower, upper)))
        # Center and radius: two products instead of the four of positive and negative coefficients.
        center, radius = rule.apply((upper + lower) / 2), rule.absolute((upper - lower) / 2)
        center = _shifted(center, rule.bias)
        return Interval(center - radius, center + radius)
    if isinstance(rule, ReLU):
        lower, upper = inputs[0]
        if around.relu_shrinkage != 1:
            upper *= tf.where(tf.logical_and(lower < 0, upper > 0), around.relu_shrinkage, 1.0)
        return Interval(tf.nn.relu(lower), tf.nn.relu(upper))
    if isinstance(rule, MaxPool):
        lower, upper = (tf.nn.max_pool2d(part, rule.window, rule.strides, "VALID") for part in inputs[0])
        return Interval(lower, upper)
    return Interval(tf.add_n([part.lower for part in inputs]), tf.add_n([part.upper for part in inputs]))


def _shifted(x: tf.Tensor, bias: tf.Tensor | None) -> tf.Tensor:
    """Adds a bias, if possible by `bias_add`, which TensorFlow fuses with the preceding convolution."""
    if bias is None:
        return x
    return tf.nn.bias_add(x, bias) if bias.shape == x.shape[-1:] else x + bias


def interval_margins(
    steps: list[Step], intervals: dict[str, Interval], rows: tf.Tensor, rounding: Rounding | None = None
) -> tf.Tensor:
    """Returns lower bounds of `rows` times the logits by intervals.

    The rows are multiplied into the last layer first, which is tighter than the difference of the logits' intervals.
    """
    last = steps[-1]
    assert isinstance(last.rule, Linear)
    before = intervals[last.inputs[0]]
    coefficients = multiplied(last.rule.apply, rows, tuple(before.lower.shape[1:]))
    lower = constant_of(last.rule, rows, rounding is not None) + over_box(coefficients, before, rounding is not None)
    if rounding is None:
        return lower
    return lower - loss(rows, rounding.errors[last.name]) - TINY


def crown_intervals(
    steps: list[Step],
    around: Ball,
    known: dict[str, Interval] | None,
    slope: str,
    chunk: int,
    moved: bool = False,
) -> dict[str, Interval]:
    """Returns intervals of the inputs of every ReLU and max-pooling, each by backward passes of its own.

    Args:
        steps: The network.
        around: The ball.
        known: Intervals to intersect with, or `None`.
        slope: Lower line of undecided ReLUs.
        chunk: Number of rows that are carried back at once.
        moved: Whether gradients optimize the lower slopes, for each neuron separately.
    """
    needed = {step.inputs[0] for step in steps if isinstance(step.rule, (ReLU, MaxPool))}
    found: dict[str, Interval] = {}
    intervals: dict[str, Interval] = {}  # those of all steps, from which rounding errors follow
    for number, step in enumerate(steps):
        if around.rounding is not None:
            intervals[step.name] = interval_of(step, [intervals[name] for name in step.inputs], around)
        if step.name not in needed:
            continue
        first = isinstance(step.rule, Linear) and isinstance(step_named(steps, step.inputs[0]).rule, Input)
        if first and around.norm == "Linf":  # the interval of one linear map of a box is exact
            bounds = intervals.get(step.name) or _interval(step, [Interval(around.lower, around.upper)], around)
        else:
            # A ReLU needs no tighter interval if its input never changes sign; max-pooling does.
            feeds = [other.rule for other in steps if step.name in other.inputs]
            decided = known[step.name] if known and all(isinstance(rule, ReLU) for rule in feeds) else None
            bounds = _by_backward_passes(steps, number, found, around, slope, chunk, decided, moved)
        if known is not None:
            bounds = intersection(bounds, known[step.name])
        if around.rounding is not None:
            intervals[step.name] = intersection(bounds, intervals[step.name])
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
    moved: bool = False,
) -> Interval:
    """Bounds the output of one step, some neurons at a time.

    With `known` intervals only the neurons that these leave undecided; the others keep their interval, because a
    decided ReLU is linear whatever its bounds are.
    """
    seen = None if moved else views(steps, number)  # slopes of its own for each neuron need whole images
    if seen is not None:
        return bounds_by_windows(steps, number, intervals, around, slope, chunk, seen)
    shape = steps[number].shape
    neurons = math.prod(shape)
    batch = tf.shape(around.lower)[0]
    count = max(1, min(chunk // (2 * number_of_images(around)), neurons))  # each neuron has two rows
    chosen = tf.range(neurons)
    if known is not None:
        undecided = tf.reduce_any((known.lower < 0) & (known.upper > 0), axis=0)
        chosen = tf.cast(tf.where(tf.reshape(undecided, (neurons,)))[:, 0], tf.int32)

    @tf.autograph.experimental.do_not_convert
    def bound(part: tf.Tensor) -> tf.Tensor:
        rows = tf.reshape(tf.one_hot(part, neurons), (1, count, *shape))
        rows = tf.concat([rows, -rows], 1)  # the same for all images, until a ReLU
        if moved:
            return lower_bounds_with_moved_slopes(steps, number, rows, intervals, around, slope)
        return linear_lower_bounds(steps, number, rows, intervals, around, slope)

    parts = tf.maximum(-(-tf.shape(chosen)[0] // count), 1)
    padded = tf.reshape(tf.pad(chosen, [(0, parts * count - tf.shape(chosen)[0])]), (parts, count))
    found = tf.map_fn(bound, padded, fn_output_signature=tf.TensorSpec((None, 2 * count)), parallel_iterations=1)
    found = tf.reshape(tf.transpose(found, (0, 2, 1)), (parts, 2, count, batch))
    lower, upper = (
        tf.reshape(side, (parts * count, batch))[: tf.shape(chosen)[0]] for side in (found[:, 0], -found[:, 1])
    )
    if known is not None:  # put them back to their places
        before = [tf.transpose(tf.reshape(side, (batch, neurons))) for side in known]
        lower, upper = (
            tf.tensor_scatter_nd_update(old, chosen[:, tf.newaxis], new)
            for old, new in zip(before, (lower, upper), strict=True)
        )
    return Interval(*(tf.reshape(tf.transpose(side), (batch, *shape)) for side in (lower, upper)))
