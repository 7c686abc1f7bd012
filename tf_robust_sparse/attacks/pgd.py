"""Projected gradient attacks in the l-infinity and the l2 ball."""

from collections.abc import Callable

import tensorflow as tf

from tf_robust_sparse.attacks.gradient_attack import GradientAttack, LossFn
from tf_robust_sparse.attacks.projections import between, l2_ball, l2_norm, linf_ball, linf_bounds, pixel_range
from tf_robust_sparse.layers import select
from tf_robust_sparse.layers.forward import Forward
from tf_robust_sparse.layers.noise import fold_in, normal_like, uniform_like


class LinfPGD(GradientAttack):
    """Projected gradient attack in the l-infinity ball, stepping by `step_size * sign(gradient)`.

    The random start is `clip(x + U(-epsilon, epsilon), 0, 1)`. The arguments are those of `GradientAttack`, with
    `epsilon` at most 1.

    Example: `LinfPGD(epsilon=8 / 255, step_size=2 / 255, num_steps=10)`.

    Reference: [Madry et al., 2018](https://arxiv.org/abs/1706.06083), section 2.1.
    """

    norm = "linf"
    max_epsilon = 1.0

    def uniform_start(self, x: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Each pixel uniform within `epsilon`, then clipped to `[0, 1]`."""
        return self.project(x + uniform_like(x, seed, -self.epsilon, self.epsilon), x)

    def normalise(self, gradient: tf.Tensor) -> tf.Tensor:
        """The sign of each entry."""
        return tf.sign(gradient)

    def project(self, x_adv: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        """See `projections.linf_ball`."""
        return linf_ball(x_adv, x, self.epsilon)

    def projection(self, x: tf.Tensor) -> Callable[[tf.Tensor], tf.Tensor]:
        """See `projections.linf_bounds`."""
        low, high = linf_bounds(x, self.epsilon)
        return lambda x_adv: between(x_adv, low, high)


class _KeepsBest(GradientAttack):
    """Returns the point of the highest loss among those whose gradient was taken."""

    def _run(
        self, forward: Forward, x: tf.Tensor, y: tf.Tensor, loss_fn: LossFn, seed: tf.Tensor, start: str
    ) -> tf.Tensor:
        if self.num_steps == 0:
            return super()._run(forward, x, y, loss_fn, seed, start)
        direction = -self.step_size if self.targeted else self.step_size
        project = self.projection(x)

        def step(
            index: tf.Tensor, x_adv: tf.Tensor, best: tf.Tensor, best_gain: tf.Tensor
        ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(x_adv)
                loss = loss_fn(y, forward(x_adv))
            gain = -loss if self.targeted else loss
            better = (gain > best_gain) | tf.equal(index, 0)
            best = tf.ensure_shape(select(better, x_adv, best), x.shape)
            moved = project(x_adv + direction * self.normalise(tape.gradient(loss, x_adv)))
            return index + 1, tf.ensure_shape(moved, x.shape), best, tf.where(better, gain, best_gain)

        first = self._start(x, seed, start)
        no_gain = tf.ensure_shape(tf.zeros(tf.shape(x)[:1]), x.shape[:1])
        best = tf.while_loop(
            lambda index, *_: index < self.num_steps,
            step,
            (tf.constant(0), first, first, no_gain),
            maximum_iterations=self.num_steps,
            parallel_iterations=1,
        )[2]
        return project(best)  # a gaussian start is not in the ball


class LinfBestPGD(_KeepsBest, LinfPGD):
    """As `LinfPGD`, but returns the point of the highest loss among those whose gradient was taken.

    These are the start and all points but the last, so that `num_steps` gradients make at most `num_steps - 1`
    effective steps, and the last one costs no forward pass of its own.

    Reference: [Liu et al., 2022](https://arxiv.org/abs/2202.01341), the published code.
    """


class L2PGD(GradientAttack):
    """Projected gradient attack in the l2 ball of each image, stepping by `step_size * gradient / |gradient|`.

    The random start is uniform in the ball, then clipped to `[0, 1]`. The arguments are those of `GradientAttack`.

    Example: `L2PGD(epsilon=0.5, step_size=0.1, num_steps=10)`.

    Reference: [Madry et al., 2018](https://arxiv.org/abs/1706.06083), section 2.1, with the l2 ball.
    """

    norm = "l2"

    def uniform_start(self, x: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """A uniform direction, and a length `epsilon * u ** (1 / pixels)` that makes the volume density even."""
        direction = self.normalise(normal_like(x, fold_in(seed, 0)))
        per_example = tf.reshape(x, tf.concat([tf.shape(x)[:1], [-1]], axis=0))[:, :1]
        u = uniform_like(per_example, fold_in(seed, 1), 0.0, 1.0)
        pixels = tf.cast(tf.reduce_prod(tf.shape(x)[1:]), tf.float32)
        length = tf.reshape(self.epsilon * u ** (1.0 / pixels), tf.shape(l2_norm(x)))
        return pixel_range(x + length * direction)

    def normalise(self, gradient: tf.Tensor) -> tf.Tensor:
        """Each example's gradient divided by its length; zero stays zero."""
        # Divided by the largest entry first: the square of a tiny gradient would be zero in float32.
        largest = tf.reduce_max(tf.abs(gradient), axis=list(range(1, gradient.shape.rank)), keepdims=True)
        scaled = tf.math.divide_no_nan(gradient, largest)
        return tf.math.divide_no_nan(scaled, l2_norm(scaled))

    def project(self, x_adv: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        """See `projections.l2_ball`."""
        return l2_ball(x_adv, x, self.epsilon)


class L2BestPGD(_KeepsBest, L2PGD):
    """As `L2PGD`, but returns the point of the highest loss among those whose gradient was taken; see `LinfBestPGD`.

    Reference: [Liu et al., 2022](https://arxiv.org/abs/2202.01341), the published code.
    """
