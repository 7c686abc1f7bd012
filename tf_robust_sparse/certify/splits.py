"""Bounds of subproblems: a ball, cut by the signs of the inputs of some ReLUs (beta-CROWN).

A subproblem is bounded as the whole ball is, by one backward pass. Split ReLUs are linear, and the sign of their input
enters the pass by a Lagrange multiplier. Gradients optimize the multipliers and the slopes of the other ReLUs.
"""

import math
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tf_robust_sparse.certify.backward import linear_lower_bounds
from tf_robust_sparse.certify.ball import Ball, Interval, ball
from tf_robust_sparse.certify.bound_graph import Input, Linear, MaxPool, ReLU, Step, bound_graph
from tf_robust_sparse.certify.bounds import crown_intervals, interval_bounds
from tf_robust_sparse.certify.rounding import Rounding, check_arithmetic, with_pairs_of_readers
from tf_robust_sparse.layers import cached_kernels

_RATES = (0.1, 0.3)  # of slopes and of multipliers, the latter in units of a neuron's coefficient
_DECAY = 0.95  # of both, from step to step
_ATTACK_STEPS = 30


class Root(NamedTuple):
    """The uncut ball around one image, and what is known of its neurons. The ReLUs' inputs are the neurons.

    Attributes:
        box: Smallest and largest pixels, `(1, ...)` each.
        outer: The box rounded outward, over which bounds hold.
        errors: The rounding errors of `Rounding`, one step after the other, flat.
        lower, upper: Bounds of all neurons: `(neurons,)`.
        undecided: Numbers of the neurons that may have both signs, increasing: `(undecided,)`.
        place: Of each neuron its place in `undecided`, or the length of it if it is off, or one more if it is on:
            `(neurons,)`.
    """

    box: Interval
    outer: Interval
    errors: Any
    lower: np.ndarray
    upper: np.ndarray
    undecided: np.ndarray
    place: np.ndarray


class Parts(NamedTuple):
    """Several subproblems of one image, or one without the first axis; columns are the undecided neurons.

    Attributes:
        rows: Coefficients of the logits whose sum is to be positive: `(parts, classes)`.
        signs: 1 where the part has a neuron on, -1 where off, 0 where both: `(parts, undecided)`.
        alphas: Lower slopes, in [0, 1].
        betas: Multipliers of split neurons, at least 0.
    """

    rows: Any
    signs: Any
    alphas: Any
    betas: Any


class Bounded(NamedTuple):
    """What a bound pass finds of each part.

    Attributes:
        bounds: Lower bounds of `rows` times the logits: `(parts,)`.
        alphas, betas: Moved ones.
        chosen: Place of the neuron to split next, not yet split if one is left: `(parts,)`.
        sizes: Of the coefficients of the neurons: `(parts, undecided)`.
        corners: The image of the ball where the linear bound is smallest: `(parts, ...)`.
    """

    bounds: Any
    alphas: Any
    betas: Any
    chosen: Any
    sizes: Any
    corners: Any


class SplitBounds:
    """Compiled bounds of one network, for all images and any number of parts.

    Args:
        network: A network of linear layers and ReLUs.
        chunk: See `margins`.

    Raises:
        ValueError: if a layer has no rule, or is a max-pooling, which cannot be split.
    """

    def __init__(self, network: keras.Model, chunk: int = 4096) -> None:
        self._network, self._chunk = network, chunk
        with cached_kernels(network):
            self._steps = with_pairs_of_readers(bound_graph(network))
        pools = [step.name for step in self._steps if isinstance(step.rule, MaxPool)]
        if pools:
            raise ValueError(
                f"Branch and bound splits ReLUs only, and the layer {pools[0]} is a max-pooling; use average pooling, "
                "or another method such as alpha-crown"
            )
        self.classes = self._steps[-1].shape[0]
        self._input = next(step for step in self._steps if isinstance(step.rule, Input))
        self._relus = [step for step in self._steps if isinstance(step.rule, ReLU)]
        self._inputs = list(dict.fromkeys(step.inputs[0] for step in self._relus))  # of the ReLUs: the neurons
        shapes = {step.name: step.shape for step in self._steps}
        self._shapes = [shapes[name] for name in self._inputs]
        self._sizes = [math.prod(shape) for shape in self._shapes]
        floats, few = tf.TensorSpec((None,)), tf.TensorSpec((None, None))
        integers = tf.TensorSpec((None,), tf.int32)
        images, one = tf.TensorSpec((None, *self._input.shape)), tf.TensorSpec((1, *self._input.shape))
        of_root = Root(Interval(one, one), Interval(one, one), floats, floats, floats, integers, integers)
        parts = Parts(tf.TensorSpec((None, self.classes)), few, few, few)

        def compiled(function: Any, *signature: Any) -> Any:
            return tf.function(function, input_signature=signature, autograph=False)

        self._intervals = compiled(self._find_intervals, one, tf.TensorSpec(()))
        count, number = tf.TensorSpec((), tf.int32), tf.TensorSpec(())
        self.improve = compiled(self._improve, of_root, parts, floats, count, number)
        self.descend = compiled(self._descend, Interval(one, one), images, parts.rows, number)
        self.logits = compiled(self._logits, images)
        self.affine = compiled(self._affine, images, floats, tf.TensorSpec((), tf.bool))

    def root(self, image: np.ndarray, epsilon: float) -> Root:
        """Returns the ball around an image `(height, width, channels)` and bounds of its neurons by CROWN."""
        box, outer, errors, lower, upper = self._intervals(
            tf.constant(image[np.newaxis]), tf.constant(epsilon, tf.float32)
        )
        lower, upper = lower.numpy(), upper.numpy()
        undecided = np.flatnonzero((lower < 0) & (upper > 0)).astype(np.int32)
        place = (len(undecided) + (lower >= 0)).astype(np.int32)
        place[undecided] = np.arange(len(undecided))
        return Root(box, outer, errors, lower, upper, undecided, place)

    def _find_intervals(self, image: tf.Tensor, epsilon: tf.Tensor) -> tuple[Any, ...]:
        check_arithmetic()
        inner, around = ball(image, epsilon), ball(image, epsilon, rounding=Rounding(self._steps))
        known = interval_bounds(self._steps, around, self._chunk)
        found = crown_intervals(self._steps, around, known, "adaptive", self._chunk)
        lower, upper = (
            tf.concat([tf.reshape(found[name][side], (-1,)) for name in self._inputs], 0) for side in (0, 1)
        )
        errors = around.rounding.errors
        self._rounded = [step for step in self._steps if step.name in errors]
        flat = tf.concat([tf.reshape(errors[step.name], (-1,)) for step in self._rounded], 0)
        return Interval(*inner[:2]), Interval(*around[:2]), flat, lower, upper

    def _improve(self, root: Root, parts: Parts, scale: tf.Tensor, iterations: tf.Tensor, enough: tf.Tensor) -> Bounded:
        """Moves slopes and multipliers by Adam until all bounds are above `enough` or the iterations are over.

        Multipliers are moved in units of `scale`, `(undecided,)`. Every slope in [0, 1] and every multiplier from 0 on
        gives a sound bound, so clipping is all that soundness needs.
        """
        lines = self._lines(root, parts)

        def bound(alphas: tf.Tensor, betas: tf.Tensor, seen: dict[str, tf.Tensor] | None = None) -> tuple[Any, ...]:
            moved = self._moved(root, parts._replace(alphas=alphas, betas=betas))
            with tf.GradientTape() as tape:
                tape.watch(moved)
                lower = self._lower(root, parts, {name: (*lines[name][:2], *moved[name]) for name in lines}, seen)
            found = tape.gradient(lower, moved, unconnected_gradients="zero")
            return lower, *(self._narrow({name: found[name][side] for name in lines}, root) for side in (0, 1))

        def move(step: tf.Tensor, best: tf.Tensor, values: Any, moments: Any, squares: Any) -> tuple[Any, ...]:
            lower, of_alphas, of_multipliers = bound(*values)
            number = tf.cast(step + 1, tf.float32)
            moved = []
            gradients = (of_alphas, parts.signs * of_multipliers * scale)
            for which, gradient in enumerate(gradients):
                moment = 0.9 * moments[which] + 0.1 * gradient
                square = 0.99 * squares[which] + 0.01 * tf.square(gradient)
                size = tf.sqrt(square / (1 - 0.99**number)) + 1e-12
                length = _RATES[which] * _DECAY ** (number - 1) / (1 - 0.9**number)
                change = length * moment / size
                value = values[which] + (change if which == 0 else change * scale)
                moved.append((tf.clip_by_value(value, 0.0, 1.0 if which == 0 else np.inf), moment, square))
            return step + 1, tf.maximum(best, lower), *(tuple(each) for each in zip(*moved, strict=True))

        zeros = (tf.zeros_like(parts.alphas),) * 2
        begin = (tf.constant(0), tf.fill(tf.shape(parts.rows)[:1], -np.inf), (parts.alphas, parts.betas), zeros, zeros)
        _, best, (alphas, betas), _, _ = tf.while_loop(
            lambda step, best, *_: (step < iterations) & tf.reduce_any(best <= enough),
            *(move, begin),
            parallel_iterations=1,
        )
        seen: dict[str, tf.Tensor] = {}
        lower, _, of_multipliers = bound(alphas, betas, seen)
        coefficients = self._narrow({step.name: seen[step.name] for step in self._relus}, root)
        scores = _scores(coefficients, -of_multipliers, parts._replace(alphas=alphas), root)
        corners = tf.where(seen[self._input.name][:, 0] > 0, root.box.lower, root.box.upper)
        chosen = tf.argmax(tf.pad(scores, [(0, 0), (0, 1)], constant_values=-2.0), axis=1)  # there may be no neuron
        return Bounded(tf.maximum(best, lower), alphas, betas, chosen, tf.abs(coefficients), corners)

    def _lines(self, root: Root, parts: Parts) -> dict[str, tuple[tf.Tensor, ...]]:
        """Returns the lines of the ReLUs in each part, see `linear_lower_bounds`."""
        lower, upper = (tf.gather(side, root.undecided) for side in (root.lower, root.upper))
        above = _where_cut(parts.signs, upper / (upper - lower))
        upper_lines = self._by_relu(_wide(above, root, 1.0), _wide(tf.where(parts.signs == 0, -above * lower, 0), root))
        moved = self._moved(root, parts)
        return {name: (*upper_lines[name], *moved[name]) for name in moved}

    def _moved(self, root: Root, parts: Parts) -> dict[str, tuple[tf.Tensor, ...]]:
        """Returns the lower slopes and the multipliers."""
        below = _where_cut(parts.signs, parts.alphas)
        return self._by_relu(_wide(below, root, 1.0), _wide(parts.signs * parts.betas, root))

    def _by_relu(self, *values: tf.Tensor) -> dict[str, tuple[tf.Tensor, ...]]:
        """Returns `(parts, neurons)` as `(parts, 1, neurons of the ReLU)` by the name of the ReLU."""
        split = zip(*(tf.split(each[:, tf.newaxis], self._sizes, axis=2) for each in values), strict=True)
        pieces = dict(zip(self._inputs, split, strict=True))
        return {step.name: pieces[step.inputs[0]] for step in self._relus}

    def _narrow(self, by_relu: dict[str, tf.Tensor], root: Root) -> tf.Tensor:
        """Returns the columns of the undecided neurons, the inverse of `_by_relu(_wide(...))`."""
        pieces: dict[str, tf.Tensor] = {}
        for step, size in ((step, math.prod(step.shape)) for step in self._relus):
            piece = tf.reshape(by_relu[step.name], (-1, size))
            before = step.inputs[0]
            pieces[before] = pieces[before] + piece if before in pieces else piece
        return tf.gather(tf.concat([pieces[name] for name in self._inputs], 1), root.undecided, axis=1)

    def _lower(self, root: Root, parts: Parts, lines: Any, seen: dict[str, tf.Tensor] | None = None) -> tf.Tensor:
        split = tf.split(root.errors, [math.prod(step.shape) for step in self._rounded])
        errors = {
            step.name: tf.reshape(each, (1, *step.shape)) for step, each in zip(self._rounded, split, strict=True)
        }
        around = Ball(*root.outer, None, None, "Linf", Rounding(self._steps, errors))
        rows = parts.rows[:, tf.newaxis]
        last = len(self._steps) - 1
        return linear_lower_bounds(self._steps, last, rows, {}, around, "adaptive", None, lines, seen)[:, 0]

    def _logits(self, images: tf.Tensor) -> tf.Tensor:
        with cached_kernels(self._network):
            return self._network(images, training=False)

    def _descend(self, box: Interval, points: tf.Tensor, rows: tf.Tensor, epsilon: tf.Tensor) -> tf.Tensor:
        """Moves points of the box down `rows` times the logits by signed gradients; returns the lowest of each."""

        def value(points: tf.Tensor) -> tf.Tensor:
            return tf.reduce_sum(rows * self._logits(points), axis=1)

        def move(step: tf.Tensor, points: tf.Tensor, least: tf.Tensor, best: tf.Tensor) -> tuple[tf.Tensor, ...]:
            with tf.GradientTape() as tape:
                tape.watch(points)
                values = value(points)
            lower = values < least
            best = tf.where(tf.reshape(lower, (-1, *(1 for _ in self._input.shape))), points, best)
            length = 0.5 * epsilon * 0.9 ** tf.cast(step, tf.float32)
            points = tf.clip_by_value(points - length * tf.sign(tape.gradient(values, points)), *box)
            return step + 1, points, tf.minimum(values, least), best

        begin = (tf.constant(0), points, tf.fill(tf.shape(points)[:1], np.inf), points)
        _, points, least, best = tf.while_loop(
            lambda step, *_: step < _ATTACK_STEPS, move, begin, parallel_iterations=1
        )
        lower = value(points) < least
        return tf.where(tf.reshape(lower, (-1, *(1 for _ in self._input.shape))), points, best)

    def _affine(self, points: tf.Tensor, active: tf.Tensor, with_bias: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns neurons `(points, neurons)` and logits, if ReLUs are 1 or 0 times their inputs, as `active` says."""
        pattern = {name: each for name, (each,) in self._by_relu(active[tf.newaxis]).items()}
        found: dict[str, tf.Tensor] = {}
        for step in self._steps:
            found[step.name] = _output(step, [found[name] for name in step.inputs], points, pattern, with_bias)
        neurons = tf.concat(
            [tf.reshape(found[name], (-1, size)) for name, size in zip(self._inputs, self._sizes, strict=True)], 1
        )
        return neurons, found[self._steps[-1].name]


def _output(step: Step, inputs: list[tf.Tensor], points: tf.Tensor, pattern: Any, with_bias: tf.Tensor) -> tf.Tensor:
    rule = step.rule
    if isinstance(rule, Input):
        return points
    if isinstance(rule, Linear):
        output = rule.apply(inputs[0])
        return output if rule.bias is None else output + tf.where(with_bias, rule.bias, 0.0)
    return inputs[0] * tf.reshape(pattern[step.name], step.shape) if isinstance(rule, ReLU) else tf.add_n(inputs)


def _wide(values: tf.Tensor, root: Root, on: float = 0.0) -> tf.Tensor:
    """Returns `(parts, undecided)` as `(parts, neurons)`, with 0 for neurons that are off and `on` for those on."""
    more = tf.broadcast_to([0.0, on], (tf.shape(values)[0], 2))
    return tf.gather(tf.concat([values, more], 1), root.place, axis=1)


def _where_cut(signs: tf.Tensor, slopes: tf.Tensor) -> tf.Tensor:
    """Returns slopes, of split neurons 1 or 0."""
    return tf.where(signs == 0, slopes, tf.maximum(signs, 0.0))


def _scores(coefficients: tf.Tensor, inputs: tf.Tensor, parts: Parts, root: Root) -> tf.Tensor:
    """Returns how much a split of each neuron may raise both bounds, -1 for split ones: `(parts, undecided)`.

    The gradient with respect to a neuron's multiplier is its value where the linear bound is smallest. There the ReLU's
    line misses the ReLU of either part by what is counted here, to first order.
    """
    lower, upper = (tf.gather(side, root.undecided) for side in (root.lower, root.upper))
    inputs = tf.clip_by_value(inputs, lower, upper)
    above = upper / (upper - lower)
    line = tf.where(coefficients < 0, above * (inputs - lower), parts.alphas * inputs)
    on, off = coefficients * (inputs - line), -coefficients * line
    score = tf.maximum(on, 1e-6) * tf.maximum(off, 1e-6)
    return tf.where(parts.signs == 0, score, -1.0)
