"""Attacks that run in stages, so that an evaluation can drop broken images between them.

The attacks of AutoAttack keep a state per image, and are done with an image once it is misclassified inside the ball. A
`StagedAttack` therefore exposes its parts: the runs it consists of, how a run starts, and how its state advances by
some iterations. When called like any other attack, it does all of this on one batch, in one graph. The evaluation of a
data set calls the parts itself and removes broken images from the batch between stages.
"""

import math
import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from tf_robust_sparse.attacks.gradient_attack import check_integer
from tf_robust_sparse.attacks.inputs import checked_inputs
from tf_robust_sparse.layers.forward import Forward
from tf_robust_sparse.layers.noise import as_seed, fold_in
from tf_robust_sparse.layers.selection import fast_where

NORMS = ("Linf", "L2", "L1")

# Tensors with one row per image, apart from "iteration" and other scalars. In every state "found" says which images are
# broken inside the ball, and "x_found" holds their adversarial examples; its other rows mean nothing.
State = dict[str, tf.Tensor]


class AttackRun(NamedTuple):
    """One of the runs an attack consists of.

    Attributes:
        restart: Number of the run among those with the same target, from 0.
        rank: Place of the target class in `classes_by_rank`, 2 for the first one aimed at; 0 for no target.
        epsilons: Radius of each phase; a phase starts from the best point of the one before.
        iterations: Number of iterations of each phase.
    """

    restart: int
    rank: int
    epsilons: tuple[float, ...]
    iterations: tuple[int, ...]


class StagedAttack:
    """Base class of the attacks that make up AutoAttack.

    A subclass writes `runs`, `start` and `advance`. All three treat each row of a batch on its own: the result for an
    image does not depend on the other images.

    Args:
        epsilon: Radius of the ball in the norm, in pixels of [0, 1], above 0.
        norm: `"Linf"`, `"L2"` or `"L1"`.
        seed: Integer, the seed of all random draws when a call passes none.

    Raises:
        ValueError: if an argument is out of its range.
    """

    name = ""  # in results files and logs
    uses_gradients = True

    def __init__(self, epsilon: float, norm: str = "Linf", seed: int = 0) -> None:
        if norm not in NORMS:
            raise ValueError(f"`norm` is one of {', '.join(NORMS)}. Received: norm={norm!r}")
        is_number = isinstance(epsilon, numbers.Real) and not isinstance(epsilon, bool)
        if not is_number or not 0 < epsilon < math.inf or (norm == "Linf" and epsilon > 1):
            raise ValueError(
                "`epsilon` is the radius in pixels of [0, 1], above 0 and at most 1 in the Linf norm; for 8/255 pass "
                f"epsilon=8/255. Received: epsilon={epsilon!r}"
            )
        check_integer("seed", seed, None, "pass an integer such as seed=0")
        self.epsilon = float(epsilon)
        self.norm = norm
        self.seed = int(seed)

    def runs(self, num_classes: int) -> list[AttackRun]:
        """Returns the runs against a network of `num_classes` classes, in order."""
        raise NotImplementedError

    def classes_by_rank(self, forward: Forward, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        """Returns the classes in the order in which runs aim at them, `(batch, ranks)`, int64.

        The first column is the predicted class, at which no run aims. By default the order is that of the logits of the
        clean image.
        """
        return tf.argsort(forward(x), axis=-1, direction="DESCENDING", stable=True)

    def start(
        self, forward: Forward, x: tf.Tensor, y: tf.Tensor, seeds: tf.Tensor, target: tf.Tensor, epsilon: tf.Tensor
    ) -> State:
        """Returns the state before the first iteration of a run.

        Args:
            forward: From images to float32 logits `(batch, classes)`.
            x: `(batch, height, width, channels)`, float32, in [0, 1].
            y: `(batch,)`, int64 labels.
            seeds: `(batch, 2)`, int64, one seed per image.
            target: `(batch,)`, int64, the class to reach; that of the image itself in a run without target.
            epsilon: Scalar float32, the radius of the first phase.
        """
        raise NotImplementedError

    def start_again(
        self, forward: Forward, x: tf.Tensor, y: tf.Tensor, seeds: tf.Tensor, target: tf.Tensor, epsilon: tf.Tensor
    ) -> State:
        """Returns the same as `start`, for a run whose `restart` is not 0."""
        return self.start(forward, x, y, seeds, target, epsilon)

    def advance(
        self, forward: Forward, x: tf.Tensor, y: tf.Tensor, state: State, until: tf.Tensor, epsilon: tf.Tensor
    ) -> State:
        """Runs iterations until `state["iteration"]` is `until`, a scalar int32, and returns the state."""
        raise NotImplementedError

    def next_phase(self, forward: Forward, x: tf.Tensor, y: tf.Tensor, state: State, epsilon: tf.Tensor) -> State:
        """Returns the state before the first iteration of a later phase, of radius `epsilon`."""
        raise NotImplementedError(f"{type(self).__name__} has one phase only.")

    def stages(self, iterations: int) -> list[int]:
        """Returns the iterations of a phase after which an evaluation drops broken images; the last is `iterations`."""
        return [iterations]

    def gradient_passes(self) -> int:
        """Returns the number of backward passes in one iteration."""
        return 1

    def __call__(
        self, model: Callable[..., Any], x: tf.Tensor, y: tf.Tensor, seed: int | tf.Tensor | None = None
    ) -> tf.Tensor:
        """Attacks one batch.

        Args:
            model: Keras model, or any callable from images to logits.
            x: `(batch, height, width, channels)`, floating, in [0, 1].
            y: `(batch,)`, integer labels.
            seed: Integer, integers of shape `(2,)`, or `(batch, 2)` for one seed per image; `None` for the seed of
                the constructor.

        Returns:
            `(batch, height, width, channels)`, float32: an adversarial example in the ball and in [0, 1] where one
            was found, the image itself elsewhere.

        Raises:
            ValueError: if an argument is malformed or the network has too few classes.
        """
        forward, x, y = checked_inputs(model, x, y, (None, None, None))
        logits = forward(x)
        seeds = as_seed(self.seed if seed is None else seed)
        if seeds.shape.rank == 1:
            seeds = fold_in(seeds, tf.range(tf.shape(x)[0], dtype=tf.int64))
        broken = tf.argmax(logits, axis=-1) != y
        x_adv = x
        runs = self.runs(logits.shape[-1])
        ranks = self.classes_by_rank(forward, x, y) if any(run.rank for run in runs) else None
        for run in runs:
            state = self.run(forward, x, y, fold_in(seeds, run.restart), run, ranks)
            better = state["found"] & ~broken
            x_adv = fast_where(better, state["x_found"], x_adv)
            broken |= state["found"]
        return tf.stop_gradient(x_adv)

    def run(
        self,
        forward: Forward,
        x: tf.Tensor,
        y: tf.Tensor,
        seeds: tf.Tensor,
        run: AttackRun,
        ranks: tf.Tensor | None = None,
    ) -> State:
        """Returns the state after a whole run on all images; `ranks` are `classes_by_rank`, if they are known."""
        target = y
        if run.rank:
            ranks = self.classes_by_rank(forward, x, y) if ranks is None else ranks
            target = tf.cast(ranks[:, run.rank - 1], tf.int64)
        state: State = {}
        for phase, (epsilon, iterations) in enumerate(zip(run.epsilons, run.iterations, strict=True)):
            radius = tf.constant(epsilon, tf.float32)
            if phase:
                state = self.next_phase(forward, x, y, state, radius)
            else:
                start = self.start_again if run.restart else self.start
                state = start(forward, x, y, seeds, target, radius)
            state = self.advance(forward, x, y, state, tf.constant(iterations), radius)
        return state

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor, as plain values."""
        return {"epsilon": self.epsilon, "norm": self.norm, "seed": self.seed}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "StagedAttack":
        """Returns the attack with this `get_config()`."""
        return cls(**config)

    def describe(self) -> dict[str, Any]:
        """Returns everything that defines the attack, as plain values for a results file."""
        return {"attack": type(self).__name__, **self.get_config()}

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.get_config().items())
        return f"{type(self).__name__}({arguments})"


def while_state(until: tf.Tensor, step: Callable[[State], State], state: State, go_on: Any = None) -> State:
    """Repeats `step` until `state["iteration"]` is `until`, or `go_on(state)` is false.

    Shapes stay as in the first state. Works without AutoGraph, eagerly and in graphs.
    """
    names = sorted(state)

    def condition(*values: tf.Tensor) -> tf.Tensor:
        now = dict(zip(names, values, strict=True))
        left = now["iteration"] < until
        return left if go_on is None else left & go_on(now)

    def body(*values: tf.Tensor) -> list[tf.Tensor]:
        after = step(dict(zip(names, values, strict=True)))
        return [tf.ensure_shape(after[name], state[name].shape) for name in names]

    values = tf.while_loop(condition, body, [state[name] for name in names], parallel_iterations=1)
    return dict(zip(names, values, strict=True))
