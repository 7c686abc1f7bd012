"""Projections onto the set an adversarial example may lie in: a ball around `x`, within the pixel range [0, 1]."""

import tensorflow as tf


def pixel_range(x: tf.Tensor) -> tf.Tensor:
    """Clips images to the pixel range `[0, 1]`; any shape."""
    return tf.clip_by_value(x, 0.0, 1.0)


def linf_ball(x_adv: tf.Tensor, x: tf.Tensor, epsilon: float) -> tf.Tensor:
    """`clip(x + clip(x_adv - x, -epsilon, epsilon), 0, 1)`.

    Args:
        x_adv: `(batch, ...)`, float32.
        x: `(batch, ...)`, float32, in `[0, 1]`.
        epsilon: Radius in pixels of `[0, 1]`.

    Returns:
        `(batch, ...)`: no pixel is further than `epsilon` from `x`, up to float32 rounding.
    """
    return pixel_range(x + tf.clip_by_value(x_adv - x, -epsilon, epsilon))


def l2_ball(x_adv: tf.Tensor, x: tf.Tensor, epsilon: float) -> tf.Tensor:
    """Shortens `x_adv - x` of each example to Euclidean length `epsilon` where it is longer, then clips to `[0, 1]`.

    The clip brings no pixel further from an `x` in `[0, 1]`, so the result is in the ball and in the range; it is not
    always the closest such point.

    Args:
        x_adv: `(batch, ...)`, float32.
        x: `(batch, ...)`, float32, in `[0, 1]`.
        epsilon: Radius of the ball of each example, in pixels of `[0, 1]`.

    Returns:
        `(batch, ...)`, at most `epsilon` from `x`, up to float32 rounding.
    """
    delta = x_adv - x
    length = l2_norm(delta)
    # Not epsilon / length inside the ball: length may be zero.
    factor = tf.where(length > epsilon, epsilon / tf.maximum(length, 1e-30), 1.0)
    return pixel_range(x + delta * factor)


def l2_norm(x: tf.Tensor) -> tf.Tensor:
    """Euclidean length of each example, kept broadcastable: `(batch, ...)` to `(batch, 1, ..., 1)`."""
    x = tf.convert_to_tensor(x)
    return tf.sqrt(tf.reduce_sum(tf.square(x), axis=list(range(1, x.shape.rank)), keepdims=True))
