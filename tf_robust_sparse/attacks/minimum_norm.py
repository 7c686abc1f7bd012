"""The base of attacks that look for the nearest adversarial example instead of one inside a given ball."""

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from tf_robust_sparse import schedules
from tf_robust_sparse.attacks.gradient_attack import check_integer
from tf_robust_sparse.attacks.inputs import checked_inputs
from tf_robust_sparse.attacks.losses import FAR
from tf_robust_sparse.attacks.projections import count_changed, distance
from tf_robust_sparse.attacks.staged_attack import State, while_state
from tf_robust_sparse.layers.forward import Forward
from tf_robust_sparse.layers.noise import as_seed
from tf_robust_sparse.layers.selection import fast_where


class Nearest(NamedTuple):
    """What a minimum-norm attack found.

    Attributes:
        x_adv: `(batch, ...)`, float32: the nearest adversarial example, or the image itself where none was found.
        distance: `(batch,)`, float32: its distance from the image in the norm of the attack; 0 for images that are
            misclassified as they are, 1e30 where nothing was found.
        found: `(batch,)`, bool: whether an adversarial example was found.
    """

    x_adv: tf.Tensor
    distance: tf.Tensor
    found: tf.Tensor


class MinimumNormAttack:
    """Looks for the adversarial example nearest to each image.

    One run gives the distance to the decision boundary, from above, and so the robust accuracy at every radius: the
    share of images whose distance is larger. See `tf_robust_sparse.evaluation.minimum_norms`.

    A subclass writes `_start` and `_step`; every row of a batch is on its own, so that the result for an image does not
    depend on the others.

    Args:
        norm: Norm in which distances are measured: one of `norms`.
        num_steps: Number of steps, at least 1.
        seed: Integer, the seed of random draws when a call passes none.

    Raises:
        ValueError: if an argument is out of its range.
    """

    norms: tuple[str, ...] = ("Linf", "L2", "L1", "L0")
    gradients_per_step = 1

    def __init__(self, norm: str, num_steps: int, seed: int = 0) -> None:
        if norm not in self.norms:
            raise ValueError(f"`norm` is one of {', '.join(self.norms)}. Received: norm={norm!r}")
        check_integer("num_steps", num_steps, 1, "pass, for example, num_steps=100")
        check_integer("seed", seed, None, "pass an integer such as seed=0")
        self.norm = norm
        self.num_steps = int(num_steps)
        self.seed = int(seed)

    def nearest(
        self, model: Callable[..., Any], x: tf.Tensor, y: tf.Tensor, seed: int | tf.Tensor | None = None
    ) -> Nearest:
        """Attacks one batch.

        Args:
            model: Keras model, or any callable from images to logits.
            x: `(batch, ...)`, floating, in [0, 1].
            y: `(batch,)`, integer labels.
            seed: Integer, integers of shape `(2,)`, or `(batch, 2)` for one seed per image; `None` for the seed of
                the constructor.

        Returns:
            The nearest examples.

        Raises:
            ValueError: if images or labels are malformed.
        """
        forward, x, y = checked_inputs(model, x, y)
        seeds = as_seed(self.seed if seed is None else seed)
        nothing = tf.fill(tf.shape(y), FAR)
        state = {"iteration": tf.constant(0), "x_current": x, "x_best": x, "best": nothing}
        state |= self._start(forward, x, y, seeds)
        state = while_state(
            tf.constant(self.num_steps),
            lambda now: self._step(forward, x, y, now) | {"iteration": now["iteration"] + 1},
            state,
            self._goes_on,
        )
        return Nearest(*(tf.stop_gradient(each) for each in (state["x_best"], state["best"], state["best"] < FAR)))

    def __call__(
        self, model: Callable[..., Any], x: tf.Tensor, y: tf.Tensor, seed: int | tf.Tensor | None = None
    ) -> tf.Tensor:
        """Returns the adversarial examples alone, `(batch, ...)`; see `nearest`."""
        return self.nearest(model, x, y, seed).x_adv

    def _start(self, forward: Forward, x: tf.Tensor, y: tf.Tensor, seeds: tf.Tensor) -> State:
        """Returns what the state holds in addition to `iteration`, `x_current`, `x_best` and `best`."""
        raise NotImplementedError

    def _step(self, forward: Forward, x: tf.Tensor, y: tf.Tensor, state: State) -> State:
        """Returns the state after one step."""
        raise NotImplementedError

    def _goes_on(self, state: State) -> tf.Tensor:
        """Returns whether there is anything left to do for any image, a scalar."""
        del state
        return tf.constant(True)

    def length(self, x_adv: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        """Returns the distance of each example from its image, `(batch,)`."""
        return count_changed(x_adv, x) if self.norm == "L0" else distance(x_adv, x, self.norm)

    def farthest(self, x: tf.Tensor) -> tf.Tensor:
        """Returns the distance of the farthest image of the pixel range from each image, `(batch,)`."""
        return self.length(tf.where(x > 0.5, tf.zeros_like(x), tf.ones_like(x)), x)

    def _kept(self, x: tf.Tensor, wrong: tf.Tensor, state: State) -> tuple[State, tf.Tensor]:
        """Returns the state with the current point where it is adversarial and nearer, and its distances."""
        away = self.length(state["x_current"], x)
        nearer = wrong & (away < state["best"])
        kept = {
            "best": tf.where(nearer, away, state["best"]),
            "x_best": fast_where(nearer, state["x_current"], state["x_best"]),
        }
        return state | kept, away

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor, as plain values."""
        return {"norm": self.norm, "num_steps": self.num_steps, "seed": self.seed}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "MinimumNormAttack":
        """Returns the attack with this `get_config()`."""
        return cls(**config)

    def describe(self) -> dict[str, Any]:
        """Returns everything that defines the attack, as plain values for a results file."""
        return {"attack": type(self).__name__, "norm": self.norm, **self.get_config()}

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.get_config().items())
        return f"{type(self).__name__}({arguments})"


def cosine(iteration: tf.Tensor, first: float, last: float, steps: int) -> tf.Tensor:
    """Returns a number that goes from `first` toward `last` on half a cosine, by the step; scalar, float32."""
    return schedules.linear(schedules.cosine(tf.cast(iteration, tf.float32), length=steps), last, first)
