"""Projections onto the set an adversarial example may lie in: a ball around `x`, within the pixel range [0, 1]."""

import math
from collections.abc import Callable

import tensorflow as tf

from tf_robust_sparse.layers.fusion import compile_elementwise
from tf_robust_sparse.layers.selection import fast_where

ENOUGH = 1e-6  # relative tolerance of the iterations, about the rounding error of a sum over the pixels
LONG = 1e30  # a time after which all room is used; finite, so that a speed of 0 times it is 0


def pixel_range(x: tf.Tensor) -> tf.Tensor:
    """Clips images to the pixel range `[0, 1]`; any shape."""
    return tf.clip_by_value(x, 0.0, 1.0)


def linf_ball(x_adv: tf.Tensor, x: tf.Tensor, epsilon: float | tf.Tensor) -> tf.Tensor:
    """Clips to the pixels within `epsilon` of `x` and in [0, 1].

    Args:
        x_adv: `(batch, ...)`, float32.
        x: `(batch, ...)`, float32, in `[0, 1]`.
        epsilon: Radius in pixels of `[0, 1]`; a number, or `(batch, 1, ..., 1)` for one per example.

    Returns:
        `(batch, ...)`: no pixel is further than `epsilon` from `x`, up to float32 rounding.
    """
    return between(x_adv, *linf_bounds(x, epsilon))


def linf_bounds(x: tf.Tensor, epsilon: float | tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the least and the largest value of each pixel of the l-infinity ball around `x`, within [0, 1]; as `x`.

    A loop over many steps computes them once and passes them to `between`.
    """
    return pixel_range(x - epsilon), pixel_range(x + epsilon)


def between(x_adv: tf.Tensor, low: tf.Tensor, high: tf.Tensor) -> tf.Tensor:
    """Clips each pixel to its own bounds. All have one shape, and no gradient reaches the bounds."""
    return tf.raw_ops.ClipByValue(t=x_adv, clip_value_min=low, clip_value_max=high)  # one pass instead of two


def l2_ball(x_adv: tf.Tensor, x: tf.Tensor, epsilon: float | tf.Tensor) -> tf.Tensor:
    """Shortens `x_adv - x` of each example to Euclidean length `epsilon` where it is longer, then clips to `[0, 1]`.

    The clip moves no pixel away from `x`, which is in `[0, 1]`, so the result is in the ball and in the range. It is
    not always the closest such point.

    Args:
        x_adv: `(batch, ...)`, float32.
        x: `(batch, ...)`, float32, in `[0, 1]`.
        epsilon: Radius in pixels of `[0, 1]`; a number, or `(batch, 1, ..., 1)` for one per example.

    Returns:
        `(batch, ...)`, at most `epsilon` from `x`, up to float32 rounding.
    """
    delta = x_adv - x
    length = l2_norm(delta)
    # The maximum keeps the division finite where the length is 0; `tf.where` evaluates both branches.
    factor = tf.where(length > epsilon, epsilon / tf.maximum(length, 1e-30), 1.0)
    return pixel_range(x + delta * factor)


def l1_ball(x_adv: tf.Tensor, x: tf.Tensor, epsilon: tf.Tensor) -> tf.Tensor:
    """Returns the point nearest to `x_adv` in the intersection of the L1 ball around `x` with [0, 1].

    All entries of `x_adv - x` shrink toward zero by the same amount, and are then cut to the room that [0, 1] leaves.

    Args:
        x_adv: `(batch, ...)`, float32.
        x: `(batch, ...)`, float32, in `[0, 1]`.
        epsilon: Radius, scalar, or `(batch,)` for one per example.

    Returns:
        `(batch, ...)`, at most `epsilon` from `x` in the L1 norm, up to float32 rounding.

    Reference: [Croce and Hein, 2021](https://arxiv.org/abs/2103.01208), section 3.1.
    """
    pixels = math.prod(x.shape[1:])
    flat = _l1_projected(tf.reshape(x_adv, (-1, pixels)), tf.reshape(x, (-1, pixels)), tf.cast(epsilon, tf.float32))
    return tf.reshape(flat, tf.shape(x))


@compile_elementwise
def _l1_projected(x_adv: tf.Tensor, x: tf.Tensor, epsilon: tf.Tensor) -> tf.Tensor:
    """`l1_ball` for `(batch, pixels)`.

    The length of the result is a decreasing, piecewise linear function of the amount by which entries shrink. Newton's
    method, kept inside a bracket, finds the right amount in three to eight passes; bisection would need thirty.
    """
    delta = x_adv - x
    size, room = tf.abs(delta), tf.where(delta > 0, 1 - x, x)

    def at(shrink: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns by how much the length exceeds epsilon, and the number of entries that still shrink: the slope."""
        left = size - shrink[:, tf.newaxis]
        length = tf.reduce_sum(tf.minimum(tf.maximum(left, 0.0), room), axis=1)
        moving = tf.reduce_sum(tf.cast((left > 0) & (left < room), tf.float32), axis=1)
        return length - epsilon, moving

    def step(
        index: tf.Tensor, shrink: tf.Tensor, low: tf.Tensor, high: tf.Tensor, excess: tf.Tensor, moving: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        # The answer lies between `low`, which leaves too much length, and `high`, which leaves too little.
        low, high = tf.where(excess > 0, shrink, low), tf.where(excess > 0, high, shrink)
        newton = shrink + excess / tf.maximum(moving, 1.0)
        # Bisection from the twentieth pass on, because rounding may keep Newton's steps on one side of the answer.
        inside = (newton > low) & (newton < high) & (index < 20)
        after = tf.where(inside, newton, (low + high) / 2)
        shrink = tf.where(tf.abs(excess) > enough, after, shrink)
        return (index + 1, shrink, low, high, *at(shrink))

    enough = ENOUGH * epsilon
    nothing = tf.zeros_like(size[:, 0])
    excess, moving = at(nothing)
    # An example inside the ball has a negative excess at 0; the maximum makes it 0, so that it stays as it is.
    state = (tf.constant(0), nothing, nothing, tf.reduce_max(size, axis=1), tf.maximum(excess, 0.0), moving)
    _, shrink, *_ = tf.while_loop(
        lambda index, shrink, low, high, excess, moving: (index < 50) & tf.reduce_any(tf.abs(excess) > enough),
        step,
        state,
    )
    return pixel_range(x + tf.sign(delta) * tf.minimum(tf.maximum(size - shrink[:, tf.newaxis], 0.0), room))


def l0_ball(x_adv: tf.Tensor, x: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """Undoes all but the largest changes of each example, then clips to [0, 1].

    Args:
        x_adv: `(batch, ...)`, float32.
        x: `(batch, ...)`, float32, in `[0, 1]`.
        count: `(batch,)`, float32, how many entries may differ; of equal changes the first ones stay.

    Returns:
        `(batch, ...)`, with at most `count` entries of each example changed.
    """
    size = tf.reshape(tf.abs(x_adv - x), (tf.shape(x)[0], -1))
    kept = tf.reshape(_first_largest(size, tf.cast(count, tf.int32)), tf.shape(x))
    return pixel_range(tf.where(kept, x_adv, x))


@compile_elementwise
def _first_largest(size: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    bits = tf.bitcast(size, tf.int32)

    def enough(least: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(tf.cast(bits >= least[:, tf.newaxis], tf.int32), axis=1) >= count

    least = _largest_where(enough, count)[:, tf.newaxis]
    larger, equal = bits > least, bits == least
    left = count - tf.reduce_sum(tf.cast(larger, tf.int32), axis=1)
    return larger | (equal & (tf.cumsum(tf.cast(equal, tf.int32), axis=1) <= left[:, tf.newaxis]))


def hyperplane(x: tf.Tensor, normal: tf.Tensor, offset: tf.Tensor, norm: str) -> tf.Tensor:
    """Returns the point of [0, 1]^n on the hyperplane `<normal, v> = offset` that is nearest to `x` in a norm.

    If the hyperplane does not meet the pixel range, every pixel goes as far toward it as it can.

    Args:
        x: `(batch, ...)`, float32, in `[0, 1]`.
        normal: As `x`.
        offset: `(batch,)`, float32.
        norm: `"Linf"`, `"L2"` or `"L1"`.

    Returns:
        `(batch, ...)`, float32.

    Reference: [Croce and Hein, 2020](https://arxiv.org/abs/1907.02044), section 3.1.
    """
    gap = tf.reduce_sum(normal * x, axis=list(range(1, x.shape.rank))) - offset
    return pixel_range(x + toward_hyperplane(x, normal, gap, norm))


def toward_hyperplane(x: tf.Tensor, normal: tf.Tensor, gap: tf.Tensor, norm: str) -> tf.Tensor:
    """Returns how each pixel moves when `x` goes to the nearest point of a hyperplane within [0, 1]^n.

    See `hyperplane`.

    Args:
        x: `(batch, ...)`, float32, in `[0, 1]`.
        normal: As `x`.
        gap: `(batch,)`, float32, `<normal, x>` minus the offset of the hyperplane.
        norm: `"Linf"`, `"L2"` or `"L1"`.

    Returns:
        `(batch, ...)`, float32; added to `x` it stays in [0, 1] up to float32 rounding.
    """
    direction, move = moves_to_hyperplane(x, normal, gap, norm)
    return direction * move


def moves_to_hyperplane(x: tf.Tensor, normal: tf.Tensor, gap: tf.Tensor, norm: str) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns which way each pixel moves, -1, 0 or 1, and how far, at least 0: the factors of `toward_hyperplane`."""
    shape = tf.shape(x)
    x, normal = (tf.reshape(tensor, (tf.shape(tensor)[0], -1)) for tensor in (x, normal))
    if norm != "Linf":
        # Except in Linf, weights below 1e-8 count as 0, as in the authors' code.
        normal = fast_where(tf.abs(normal) >= 1e-8, normal, 0)
    weight = tf.abs(normal)
    # To approach the hyperplane, a pixel decreases if its weight has the sign of the gap, and increases otherwise.
    direction = tf.where(gap >= 0, -1.0, 1.0)[:, tf.newaxis] * tf.sign(normal)
    room = tf.nn.relu(direction) - direction * x  # x for a pixel that decreases, 1 - x for one that increases
    if norm == "L1":
        move = _largest_weights_first(weight, room, tf.abs(gap))
    else:
        move = _filled(weight if norm == "L2" else None, weight, room, tf.abs(gap))
    return tf.reshape(direction, shape), tf.reshape(move, shape)


def _filled(speed: tf.Tensor | None, weight: tf.Tensor, room: tf.Tensor, gap: tf.Tensor) -> tf.Tensor:
    """Returns `min(time * speed, room)` at the time when `sum(weight * min(time * speed, room))` reaches the gap.

    Without `speed` the speed is 1 everywhere. Pixels of weight 0 have no room. If all the room together does not close
    the gap, the time becomes infinite and every pixel uses its room.

    The sum is concave and piecewise linear in time. So Newton's steps from 0 never overshoot and reach the exact
    answer after passing each kink at most once. A handful of steps suffices; sorting the kinks would cost more.
    """

    gain = weight if speed is None else weight * speed

    def reached(time: tf.Tensor) -> tf.Tensor:
        return time[:, tf.newaxis] if speed is None else time[:, tf.newaxis] * speed

    def lacking(time: tf.Tensor) -> tf.Tensor:
        return gap - tf.reduce_sum(weight * tf.minimum(reached(time), room), axis=1)

    def step(index: tf.Tensor, time: tf.Tensor, left: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        slope = tf.reduce_sum(fast_where(reached(time) < room, gain, none), axis=1)
        later = tf.where(slope > 0, time + left / tf.maximum(slope, 1e-30), never)
        time = tf.where(left > enough, later, time)
        return index + 1, time, lacking(time)

    enough = ENOUGH * gap
    never = tf.fill(tf.shape(gap), LONG)
    none = tf.zeros_like(weight)
    _, time, _ = tf.while_loop(
        lambda index, time, left: (index < 50) & tf.reduce_any((left > enough) & (time < LONG)),
        step,
        (tf.constant(0), tf.zeros_like(gap), gap),
        parallel_iterations=1,
    )
    return tf.minimum(reached(time), room)


@compile_elementwise
def _largest_weights_first(weight: tf.Tensor, room: tf.Tensor, gap: tf.Tensor) -> tf.Tensor:
    """Returns the moves of least L1 length: pixels of the largest weights use their room until the gap is closed."""
    gain = weight * room
    bits = tf.bitcast(weight, tf.int32)  # in the order of the weights, see `_largest_where`

    def closed(least: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(tf.where(bits >= least[:, tf.newaxis], gain, 0.0), axis=1) >= gap

    last = _largest_where(closed, gap)[:, tf.newaxis]  # the smallest weight that is needed
    larger, equal = bits > last, (bits == last) & (weight > 0)
    left = gap[:, tf.newaxis] - tf.reduce_sum(tf.where(larger, gain, 0.0), axis=1, keepdims=True)
    # Pixels that tie at that weight share what is left of the gap in proportion to their room.
    of_equal = tf.reduce_sum(tf.where(equal, gain, 0.0), axis=1, keepdims=True)
    share = tf.clip_by_value(left / tf.maximum(of_equal, 1e-30), 0.0, 1.0)
    return tf.where(larger, room, tf.where(equal, share * room, 0.0))


@compile_elementwise
def largest_entries(size: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """Returns which entries of each example are at least as large as its `count`-th largest one.

    Args:
        size: `(batch, entries)`, float32, at least 0.
        count: `(batch,)`, int32, from 1 to the number of entries.

    Returns:
        `(batch, entries)`, bool.
    """
    bits = tf.bitcast(size, tf.int32)

    def enough(least: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(tf.cast(bits >= least[:, tf.newaxis], tf.int32), axis=1) >= count

    return bits >= _largest_where(enough, count)[:, tf.newaxis]


def _largest_where(condition: Callable[[tf.Tensor], tf.Tensor], like: tf.Tensor) -> tf.Tensor:
    """Returns the largest int32 of each example, at least 0, for which a monotone condition holds.

    The bits of positive float32 numbers, read as integers, are in the order of the numbers. So 31 passes, one for each
    bit from the highest down, find an entry without sorting.
    """

    def step(bit: tf.Tensor, found: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        larger = tf.bitwise.bitwise_or(found, tf.bitwise.left_shift(1, bit))
        return bit - 1, tf.where(condition(larger), larger, found)

    return tf.while_loop(lambda bit, _: bit >= 0, step, (tf.constant(30), tf.zeros_like(like, tf.int32)))[1]


def distance(x_adv: tf.Tensor, x: tf.Tensor, norm: str) -> tf.Tensor:
    """Returns the distance of each example in a norm: two `(batch, ...)` to `(batch,)`."""
    return norm_of(tf.abs(x_adv - x), norm)


def norm_of(moves: tf.Tensor, norm: str) -> tf.Tensor:
    """Returns the norm of each example of a `(batch, ...)` tensor without negative entries: `(batch,)`."""
    axes = list(range(1, moves.shape.rank))
    if norm == "Linf":
        return tf.reduce_max(moves, axis=axes)
    if norm == "L2":
        return tf.sqrt(tf.reduce_sum(tf.square(moves), axis=axes))
    return tf.reduce_sum(moves, axis=axes)


def per_example(values: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """Reshapes one value per example so that it broadcasts to the examples: `(batch,)` to `(batch, 1, ..., 1)`."""
    return tf.reshape(values, (-1, *[1] * (x.shape.rank - 1)))


def l2_norm(x: tf.Tensor) -> tf.Tensor:
    """Returns the Euclidean length of each example, broadcastable to it: `(batch, ...)` to `(batch, 1, ..., 1)`."""
    x = tf.convert_to_tensor(x)
    return tf.sqrt(tf.reduce_sum(tf.square(x), axis=list(range(1, x.shape.rank)), keepdims=True))


def normalized(gradient: tf.Tensor) -> tf.Tensor:
    """Divides each example `(batch, ...)` by its Euclidean length; zero stays zero."""
    # Divide by the largest entry first, because the square of a tiny gradient is zero in float32.
    largest = tf.reduce_max(tf.abs(gradient), axis=list(range(1, gradient.shape.rank)), keepdims=True)
    scaled = tf.math.divide_no_nan(gradient, largest)
    return tf.math.divide_no_nan(scaled, l2_norm(scaled))


def count_changed(x_adv: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """Returns the number of entries of each example that differ: two `(batch, ...)` to `(batch,)`, float32."""
    changed = tf.cast(tf.not_equal(x_adv, x), tf.float32)
    return tf.reduce_sum(changed, axis=list(range(1, x.shape.rank)))
