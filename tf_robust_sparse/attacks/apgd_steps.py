"""The element-wise parts of an APGD step: moves, momentum, projections, and which points are kept."""

import tensorflow as tf

from tf_robust_sparse.attacks.projections import between, distance, per_example, pixel_range
from tf_robust_sparse.layers.fusion import compile_elementwise
from tf_robust_sparse.layers.selection import fast_where


@compile_elementwise
def signed_step(
    x_current: tf.Tensor,
    x_previous: tf.Tensor,
    gradient: tf.Tensor,
    low: tf.Tensor,
    high: tf.Tensor,
    size: tf.Tensor,
    share: tf.Tensor,
) -> tf.Tensor:
    """Returns the next point of the l-infinity attack: a step with momentum, clipped to the bounds of each pixel."""
    ahead = between(x_current + size * tf.sign(gradient), low, high)
    return between(with_momentum(x_current, x_previous, ahead, share), low, high)


def with_momentum(x_current: tf.Tensor, x_previous: tf.Tensor, ahead: tf.Tensor, share: tf.Tensor) -> tf.Tensor:
    """Moves by the mean of the new step, to `ahead` and of weight `share`, and the last step."""
    return x_current + share * (ahead - x_current) + (1 - share) * (x_current - x_previous)


def l2_projected(x_adv: tf.Tensor, x: tf.Tensor, epsilon: tf.Tensor) -> tf.Tensor:
    """Returns the images within `epsilon` of `x` in L2 and within the pixel range."""
    length = tf.minimum(distance(x_adv, x, "L2"), epsilon)
    return pixel_range(x + unit(x_adv - x) * per_example(length, x))


@compile_elementwise
def kept(
    wrong: tf.Tensor,
    better: tf.Tensor,
    x_new: tf.Tensor,
    gradient: tf.Tensor,
    x_found: tf.Tensor,
    x_best: tf.Tensor,
    best_gradient: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns the adversarial examples, the best points and their gradients after a step."""
    return (
        fast_where(wrong, x_new, x_found),
        fast_where(better, x_new, x_best),
        fast_where(better, gradient, best_gradient),
    )


def unit(delta: tf.Tensor) -> tf.Tensor:
    """Divides each example by its L2 length; the constant keeps zero at zero."""
    return delta / (per_example(distance(delta, tf.zeros_like(delta), "L2"), delta) + 1e-12)
