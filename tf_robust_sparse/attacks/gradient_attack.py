"""The one loop that all gradient attacks share."""

import copy
import math
import numbers
from collections.abc import Callable
from typing import Any, Self

import tensorflow as tf

from tf_robust_sparse.attacks.inputs import checked_inputs
from tf_robust_sparse.attacks.losses import log_odds
from tf_robust_sparse.deprecation import adopt_old_methods, renamed_method
from tf_robust_sparse.layers.forward import Forward
from tf_robust_sparse.layers.noise import as_seed, fold_in, normal_like
from tf_robust_sparse.layers.selection import fast_where

LossFn = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]

# Starting points. "gaussian" is the one of TRADES and MART; its noise is so small that it is no matter of epsilon.
STARTS = ("uniform", "gaussian", "none")
LABELS = ("true", "predicted")
GAUSSIAN_STDDEV = 0.001


class GradientAttack:
    """Steps along the normalized input gradient of a loss, projecting back into a ball around the image.

    `x_adv <- project(x_adv + step_size * normalize(gradient))`, `num_steps` times; the last iterate is returned, in the
    ball and in `[0, 1]`. The gradient is taken with respect to the images only, with the network in inference mode, so
    no weight and no batch-norm statistic changes. A subclass is a norm: it writes the three hooks `uniform_start`,
    `normalize` and `project`, and `projection` where a loop over many steps can compute something once.

    Equal arguments give equal adversarial examples. Pass another `seed` in each training step.

    Args:
        epsilon: Radius of the ball in pixels of `[0, 1]`, at least 0.
        step_size: Length of one step in the norm of the ball, in pixels of `[0, 1]`; `None` for
            `2.5 * epsilon / num_steps`.
        num_steps: Number of steps, at least 0; with 0 the starting point is returned.
        random_start: Whether to start at a uniformly drawn point of the ball; else at the image.
        restarts: Number of runs from different starting points, at least 1. Each example keeps the run with the highest
            loss among those that fool the network, or among all runs if none does.
        targeted: Whether `y` is the class to reach; the loss is then descended.
        seed: Integer, the seed of the starting points when a call passes none.
        label: What an untargeted attack leads away from: the `"true"` class `y`, or the class `"predicted"` for the
            clean image (the first one if logits are equal), whatever `y` is. Leading away from the prediction leaks no
            label into training ([Kurakin et al., 2017](https://arxiv.org/abs/1611.01236), section 3.3), and may bring
            a misclassified image back to its class.
        keep_best: Whether to return the point with the highest loss among those whose gradient was taken, instead of
            the last iterate. These are the start and all points but the last, so that `num_steps` gradients make at
            most `num_steps - 1` effective steps. This is the attack of the published code of binary sub-networks
            ([Liu et al., 2022](https://arxiv.org/abs/2202.01341)).

    Raises:
        ValueError: if an argument is out of its range.

    Attributes:
        unrolled: Whether the graph repeats the operations of a step `num_steps` times instead of using a loop; `False`
            by default. Faster for small networks, whose gradient takes no longer than one pass of TensorFlow's loop.

    Reference: [Madry et al., 2018](https://arxiv.org/abs/1706.06083), section 2.1.
    """

    norm = "none"
    max_epsilon = math.inf
    unrolled = False

    def __init__(
        self,
        epsilon: float,
        step_size: float | None = None,
        num_steps: int = 10,
        random_start: bool = True,
        restarts: int = 1,
        targeted: bool = False,
        seed: int = 0,
        label: str = "true",
        keep_best: bool = False,
    ) -> None:
        _check_number("epsilon", epsilon, "the radius in pixels of [0, 1]", "for 8/255 pass epsilon=8/255")
        if epsilon > self.max_epsilon:
            raise ValueError(
                f"`epsilon` is the radius in pixels of [0, 1], at most {self.max_epsilon:g} in the {self.norm} norm; "
                f"for 8/255 pass epsilon=8/255. Received: epsilon={epsilon}"
            )
        check_integer("num_steps", num_steps, 0, "pass num_steps=0 to get the starting point")
        if step_size is None:
            step_size = 2.5 * epsilon / num_steps if num_steps else 0.0
        _check_number("step_size", step_size, "the length of a step in pixels of [0, 1]", "for 2/255 pass 2/255")
        check_integer("restarts", restarts, 1, "pass restarts=1 for a single run")
        check_integer("seed", seed, None, "pass an integer such as seed=0")
        if restarts > 1 and not random_start:
            raise ValueError(
                "`restarts` above 1 repeats the attack from other random starting points; pass random_start=True, or "
                f"restarts=1. Received: restarts={restarts}, random_start={random_start}"
            )
        if label not in LABELS or (targeted and label != "true"):
            raise ValueError(
                f'`label` is one of {LABELS}, and "true" for a targeted attack, which leads toward `y`. '
                f"Received: label={label!r}, targeted={targeted}"
            )
        self.epsilon = float(epsilon)
        self.step_size = float(step_size)
        self.num_steps = int(num_steps)
        self.random_start = bool(random_start)
        self.restarts = int(restarts)
        self.targeted = bool(targeted)
        self.seed = int(seed)
        self.label = label
        self.keep_best = bool(keep_best)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        adopt_old_methods(cls, {"normalise": "normalize"})

    normalise = renamed_method("normalise", "normalize")

    def uniform_start(self, x: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Returns a random point of the ball around each image, in `[0, 1]`: `(batch, ...)`, float32."""
        raise NotImplementedError

    def normalize(self, gradient: tf.Tensor) -> tf.Tensor:
        """Returns the steepest direction of length 1 in the norm of the ball; zero for zero gradients."""
        raise NotImplementedError

    def project(self, x_adv: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        """Brings `(batch, ...)` images back into the ball around `x` and into `[0, 1]`."""
        raise NotImplementedError

    def projection(self, x: tf.Tensor) -> Callable[[tf.Tensor], tf.Tensor]:
        """Returns `project` for many points around the same images; computes here what depends only on the images."""
        return lambda x_adv: self.project(x_adv, x)

    def __call__(
        self,
        model: Callable[..., Any],
        x: tf.Tensor,
        y: tf.Tensor,
        loss_fn: LossFn | None = None,
        seed: int | tf.Tensor | None = None,
        start: str | None = None,
    ) -> tf.Tensor:
        """Finds adversarial examples.

        Args:
            model: Keras model, or any callable from images to logits.
            x: `(batch, ...)`, floating, in `[0, 1]`.
            y: `(batch,)`, integers: the true classes, or the classes to reach if the attack is targeted.
            loss_fn: `loss_fn(y, logits)`, from float32 logits `(batch, classes)` to one loss per example, `(batch,)`;
                `None` for the cross entropy, climbed as `log_odds`.
            seed: Integer, integers of shape `(2,)`, or `(parts, 2)` for one seed per equal part of the batch, such as
                `(batch, 2)` for one per example; `None` for the seed given to the constructor.
            start: `"uniform"` (in the ball), `"gaussian"` (`x + 0.001 * N(0, 1)`, not clipped before the first step),
                `"none"` (at `x`), or `None` for the choice of the constructor.

        Returns:
            `(batch, ...)`, float32, of the shape of `x`; not differentiable.

        Raises:
            ValueError: if images or labels are not as described, `start` or `seed` is not one of the above, `loss_fn`
                does not return one loss per example, or the logits do not depend differentiably on the images.
        """
        forward, x, y = checked_inputs(model, x, y, any_label=self.label == "predicted")
        if start is None:
            start = "uniform" if self.random_start else "none"
        if start not in STARTS:
            raise ValueError(f"`start` is one of {STARTS}, or None. Received: start={start!r}")
        loss_fn = log_odds if loss_fn is None else loss_fn
        seed = as_seed(self.seed if seed is None else seed)
        if self.label == "predicted":
            y = tf.stop_gradient(tf.argmax(forward(x), axis=-1))

        def run(restart: int | tf.Tensor) -> tf.Tensor:
            return self._run(forward, x, y, loss_fn, fold_in(seed, restart), start)

        x_adv = run(0) if self.restarts == 1 else self._best_of_restarts(run, forward, x, y, loss_fn)
        return tf.stop_gradient(x_adv)

    def _run(
        self, forward: Forward, x: tf.Tensor, y: tf.Tensor, loss_fn: LossFn, seed: tf.Tensor, start: str
    ) -> tf.Tensor:
        """Runs the loop from one starting point."""
        x_start = self._start(x, seed, start)
        if self.num_steps == 0:
            return self.project(x_start, x)
        if self.keep_best:
            return self._best_visited(forward, x, y, loss_fn, x_start)
        direction = -self.step_size if self.targeted else self.step_size
        project = self.projection(x)

        def step(index: tf.Tensor, x_adv: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            gradient = input_gradient(forward, x_adv, y, loss_fn)
            x_adv = project(x_adv + direction * self.normalize(gradient))
            return index + 1, tf.ensure_shape(x_adv, x.shape)

        if self.unrolled:
            x_adv = x_start
            for _ in range(self.num_steps):
                _, x_adv = step(tf.constant(0), x_adv)
            return x_adv
        # Not a loop over tf.range: train_step is traced without AutoGraph.
        _, x_adv = tf.while_loop(
            lambda index, _: index < self.num_steps,
            step,
            (tf.constant(0), x_start),
            maximum_iterations=self.num_steps,
            parallel_iterations=1,
        )
        return x_adv

    def _best_visited(
        self, forward: Forward, x: tf.Tensor, y: tf.Tensor, loss_fn: LossFn, x_start: tf.Tensor
    ) -> tf.Tensor:
        """Runs the loop, and returns the point of the highest loss among those whose gradient was taken."""
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
            best = tf.ensure_shape(fast_where(better, x_adv, best), x.shape)
            moved = project(x_adv + direction * self.normalize(tape.gradient(loss, x_adv)))
            return index + 1, tf.ensure_shape(moved, x.shape), best, tf.where(better, gain, best_gain)

        no_gain = tf.ensure_shape(tf.zeros(tf.shape(x)[:1]), x.shape[:1])
        best = tf.while_loop(
            lambda index, *_: index < self.num_steps,
            step,
            (tf.constant(0), x_start, x_start, no_gain),
            maximum_iterations=self.num_steps,
            parallel_iterations=1,
        )[2]
        return project(best)  # the start may be the best point, and a gaussian start is not in the ball

    def _start(self, x: tf.Tensor, seed: tf.Tensor, start: str) -> tf.Tensor:
        """Returns the point that `start` names."""
        if start == "uniform":
            return self.uniform_start(x, seed)
        return x + normal_like(x, seed, GAUSSIAN_STDDEV) if start == "gaussian" else x

    def _best_of_restarts(
        self, run: Callable[[tf.Tensor], tf.Tensor], forward: Forward, x: tf.Tensor, y: tf.Tensor, loss_fn: LossFn
    ) -> tf.Tensor:
        """Keeps, for each example, the run that fools the network with the highest loss, or else the highest loss."""

        def step(
            restart: tf.Tensor, best: tf.Tensor, best_fools: tf.Tensor, best_gain: tf.Tensor
        ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
            x_adv = run(restart)
            logits = forward(x_adv)
            hit = tf.argmax(logits, axis=-1) == tf.cast(y, tf.int64)
            fools = hit if self.targeted else tf.logical_not(hit)
            loss = loss_fn(y, logits)
            gain = -loss if self.targeted else loss
            better = (fools & ~best_fools) | ((fools == best_fools) & (gain > best_gain)) | tf.equal(restart, 0)
            return (
                restart + 1,
                tf.ensure_shape(fast_where(better, x_adv, best), x.shape),
                best_fools | fools,
                tf.where(better, gain, best_gain),
            )

        batch = tf.shape(x)[:1]
        state = (tf.constant(0), x, tf.ensure_shape(tf.zeros(batch, tf.bool), x.shape[:1]))
        no_gain = tf.ensure_shape(tf.zeros(batch), x.shape[:1])
        return tf.while_loop(
            lambda restart, *_: restart < self.restarts,
            step,
            (*state, no_gain),
            maximum_iterations=self.restarts,
            parallel_iterations=1,
        )[1]

    def at_radius(self, epsilon: tf.Tensor) -> Self:
        """Returns this attack in a ball of another radius, with steps in proportion.

        For a radius that changes in training.

        Args:
            epsilon: Scalar, float32, at least 0; may be a symbolic tensor, unlike in the constructor.

        Raises:
            ValueError: if the radius of this attack is 0.
        """
        if not self.epsilon > 0:
            raise ValueError(
                f"`epsilon` must be positive: steps are in proportion to it. Received: epsilon={self.epsilon}"
            )
        now = copy.copy(self)
        now.epsilon, now.step_size = epsilon, self.step_size / self.epsilon * epsilon
        return now

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor, as plain values."""
        return {
            "epsilon": self.epsilon,
            "step_size": self.step_size,
            "num_steps": self.num_steps,
            "random_start": self.random_start,
            "restarts": self.restarts,
            "targeted": self.targeted,
            "seed": self.seed,
            "label": self.label,
            **({"keep_best": True} if self.keep_best else {}),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "GradientAttack":
        """Returns the attack with this `get_config()`."""
        return cls(**config)

    def describe(self) -> dict[str, Any]:
        """Returns everything that defines the attack, as plain values for a results file."""
        return {
            "attack": type(self).__name__,
            "norm": self.norm,
            "epsilon": self.epsilon,
            "step_size": self.step_size,
            "num_steps": self.num_steps,
            "random_start": self.random_start,
            "restarts": self.restarts,
            "targeted": self.targeted,
            "seed": self.seed,
            "label": self.label,
            **({"keep_best": True} if self.keep_best else {}),
        }

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.get_config().items())
        return f"{type(self).__name__}({arguments})"


def input_gradient(forward: Forward, x: tf.Tensor, y: tf.Tensor, loss_fn: LossFn) -> tf.Tensor:
    """Returns the gradient of each example's loss with respect to its pixels, `(batch, ...)`."""
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(x)
        loss = loss_fn(y, forward(x))
    if loss.shape.rank not in (None, 1):
        raise ValueError(
            "`loss_fn(y, logits)` returns one loss per example, of shape (batch,); leave out the mean or the sum over "
            f"the batch. Received: loss of shape {loss.shape}"
        )
    gradient = tape.gradient(loss, x)
    if gradient is None:
        raise ValueError(
            "The attack needs the gradient of the logits with respect to the images, but the model has none; "
            "remove NumPy code, integer casts and tf.stop_gradient between the images and the logits."
        )
    return gradient


def loss_gradient(
    forward: Forward, x: tf.Tensor, y: tf.Tensor, loss_fn: LossFn
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns the loss of each image, its gradient with respect to the pixels, and whether the network is wrong.

    One forward pass gives all three.
    """
    seen: list[tf.Tensor] = []

    def remembered(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        seen[:] = [loss_fn(labels, logits), logits]
        return seen[0]

    gradient = input_gradient(forward, x, y, remembered)
    return seen[0], gradient, tf.argmax(seen[1], axis=-1) != y


def _check_number(name: str, value: Any, meaning: str, advice: str) -> None:
    if not isinstance(value, numbers.Real) or isinstance(value, bool) or not math.isfinite(value) or value < 0:
        raise ValueError(f"`{name}` is {meaning}, at least 0; {advice}. Received: {name}={value}")


def check_positive(name: str, value: Any, largest: float = math.inf) -> None:
    """Raises a `ValueError` that names the argument unless its value is a number above 0 and below `largest`."""
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_number or not 0 < value < largest:
        limit = "" if largest == math.inf else f" and below {largest:g}"
        raise ValueError(f"`{name}` is a number above 0{limit}. Received: {name}={value!r}")


def check_integer(name: str, value: Any, minimum: int | None, advice: str) -> None:
    """Raises a `ValueError` that names the argument unless its value is an integer of at least `minimum`."""
    is_integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not is_integer or (minimum is not None and value < minimum):
        limit = "" if minimum is None else f", at least {minimum}"
        raise ValueError(f"`{name}` is an integer{limit}; {advice}. Received: {name}={value}")
