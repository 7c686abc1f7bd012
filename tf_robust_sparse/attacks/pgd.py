"""Projected gradient attacks in the l-infinity and the l2 ball."""

from collections.abc import Callable

import tensorflow as tf

from tf_robust_sparse.attacks.gradient_attack import GradientAttack
from tf_robust_sparse.attacks.projections import (
    between,
    l2_ball,
    l2_norm,
    linf_ball,
    linf_bounds,
    normalized,
    pixel_range,
)
from tf_robust_sparse.layers.noise import fold_in, normal_like, uniform_like


class LinfPGD(GradientAttack):
    """Projected gradient attack in the l-infinity ball, stepping by `step_size * sign(gradient)`.

    The random start is `clip(x + U(-epsilon, epsilon), 0, 1)`. The arguments are those of `GradientAttack`, with
    `epsilon` at most 1.

    ```python
    attack = trs.attacks.LinfPGD(epsilon=8 / 255, step_size=2 / 255, num_steps=10)
    x_adv = attack(network, x, y)  # within 8/255 of x, in [0, 1]
    ```

    Reference: [Madry et al., 2018](https://arxiv.org/abs/1706.06083), section 2.1.
    """

    norm = "linf"
    max_epsilon = 1.0

    def uniform_start(self, x: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Draws each pixel uniformly within `epsilon`, then clips it to `[0, 1]`."""
        return self.project(x + uniform_like(x, seed, -self.epsilon, self.epsilon), x)

    def normalize(self, gradient: tf.Tensor) -> tf.Tensor:
        """Returns the sign of each entry."""
        return tf.sign(gradient)

    def project(self, x_adv: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        """See `projections.linf_ball`."""
        return linf_ball(x_adv, x, self.epsilon)

    def projection(self, x: tf.Tensor) -> Callable[[tf.Tensor], tf.Tensor]:
        """See `projections.linf_bounds`."""
        low, high = linf_bounds(x, self.epsilon)
        return lambda x_adv: between(x_adv, low, high)


class L2PGD(GradientAttack):
    """Projected gradient attack in the l2 ball of each image, stepping by `step_size * gradient / |gradient|`.

    The random start is uniform in the ball, then clipped to `[0, 1]`. The arguments are those of `GradientAttack`.

    ```python
    x_adv = trs.attacks.L2PGD(epsilon=0.5, step_size=0.1, num_steps=10)(network, x, y)
    ```

    Reference: [Madry et al., 2018](https://arxiv.org/abs/1706.06083), section 2.1, with the l2 ball.
    """

    norm = "l2"

    def uniform_start(self, x: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Draws a uniform direction, and the length `epsilon * u ** (1 / pixels)` of uniform points of the ball."""
        direction = self.normalize(normal_like(x, fold_in(seed, 0)))
        per_example = tf.reshape(x, tf.concat([tf.shape(x)[:1], [-1]], axis=0))[:, :1]
        u = uniform_like(per_example, fold_in(seed, 1), 0.0, 1.0)
        pixels = tf.cast(tf.reduce_prod(tf.shape(x)[1:]), tf.float32)
        length = tf.reshape(self.epsilon * u ** (1.0 / pixels), tf.shape(l2_norm(x)))
        return pixel_range(x + length * direction)

    def normalize(self, gradient: tf.Tensor) -> tf.Tensor:
        """Divides each example's gradient by its length; zero stays zero."""
        return normalized(gradient)

    def project(self, x_adv: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        """See `projections.l2_ball`."""
        return l2_ball(x_adv, x, self.epsilon)
