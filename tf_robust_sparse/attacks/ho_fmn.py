"""HO-FMN: FMN whose optimizer is tuned to the network under attack."""

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tf_robust_sparse.attacks.fmn import next_radius
from tf_robust_sparse.attacks.gradient_attack import check_integer, check_positive, loss_gradient
from tf_robust_sparse.attacks.losses import cross_entropy, dlr, margin
from tf_robust_sparse.attacks.minimum_norm import MinimumNormAttack, cosine
from tf_robust_sparse.attacks.projections import linf_ball, per_example
from tf_robust_sparse.attacks.staged_attack import State
from tf_robust_sparse.layers.forward import Forward
from tf_robust_sparse.layers.kernel_seam import cached_for_inference

LOSSES: dict[str, Callable[[tf.Tensor, tf.Tensor], tf.Tensor]] = {
    "margin": lambda y, logits: -margin(y, logits),
    "ce": cross_entropy,
    "dlr": dlr,
}
# Parameter -> range; the learning rate is drawn on a logarithmic scale.
RATE, DECAY = (8 / 255, 10.0), (0.01, 1.0)
SEARCH_SPACE: dict[str, dict[str, tuple[float, float]]] = {
    "sgd": {"lr": RATE, "momentum": (0.0, 0.9), "weight_decay": DECAY, "dampening": (0.0, 0.2)},
    "adam": {"lr": RATE, "weight_decay": DECAY, "beta1": (0.0, 0.999), "beta2": (0.0, 0.999)},
    "adamax": {"lr": RATE, "weight_decay": DECAY, "beta1": (0.0, 0.999), "beta2": (0.0, 0.999)},
}
TINY = 1e-8


class HOFMN(MinimumNormAttack):
    """FMN in the l-infinity norm with steps of an optimizer that is tuned to the network.

    The steps are those of SGD, Adam or Adamax on the sign of the gradient, with weight decay on the perturbation and a
    learning rate that falls to 0 on half a cosine. `tuned` searches for the parameters; the Adversarial Pruning
    Benchmark reports the accuracy under this attack.

    ```python
    attack = trs.attacks.HOFMN.tuned(network, x, y, trials=4, tuning_steps=20, num_steps=50)
    found = attack.nearest(network, x, y)
    ```

    Args:
        num_steps: Number of steps, each one gradient.
        loss: `"dlr"`, `"margin"` or `"ce"` (cross entropy).
        optimizer: `"sgd"`, `"adam"` or `"adamax"`.
        parameters: Of the optimizer, by name; `None` for those of SGD with `lr` 1 and nothing else.
        decay: Share by which the radius changes in the first step, in (0, 1).
        final_decay: Share in the last step.
        seed: Not used: the attack draws nothing.

    Raises:
        ValueError: if an argument is out of its range.

    Reference: [Floris et al., 2024](https://arxiv.org/abs/2407.08806); the settings are those of the
        [Adversarial Pruning Benchmark](https://arxiv.org/abs/2409.01249).
    """

    norms = ("Linf",)

    def __init__(
        self,
        num_steps: int = 200,
        loss: str = "dlr",
        optimizer: str = "sgd",
        parameters: Mapping[str, float] | None = None,
        decay: float = 0.05,
        final_decay: float = 0.001,
        seed: int = 0,
    ) -> None:
        super().__init__("Linf", num_steps, seed)
        if loss not in LOSSES or optimizer not in SEARCH_SPACE:
            raise ValueError(
                f"`loss` is one of {', '.join(LOSSES)}, and `optimizer` one of {', '.join(SEARCH_SPACE)}. Received: "
                f"loss={loss!r}, optimizer={optimizer!r}"
            )
        if parameters is None:
            parameters = {name: 1.0 if name == "lr" else 0.0 for name in SEARCH_SPACE[optimizer]}
        if {*parameters} != {*SEARCH_SPACE[optimizer]}:
            raise ValueError(
                f"`parameters` of {optimizer} are {', '.join(SEARCH_SPACE[optimizer])}. Received: "
                f"parameters={dict(parameters)!r}"
            )
        self.loss = loss
        self.optimizer = optimizer
        self.parameters: dict[str, Any] = {name: float(value) for name, value in parameters.items()}
        check_positive("decay", decay, 1)
        check_positive("final_decay", final_decay, 1)
        self.decay = float(decay)
        self.final_decay = float(final_decay)

    @classmethod
    def tuned(
        cls,
        model: Callable[..., Any],
        x: Any,
        y: Any,
        trials: int = 32,
        tuning_steps: int = 100,
        num_steps: int = 200,
        loss: str = "dlr",
        optimizer: str = "sgd",
        seed: int = 0,
        after_each: Callable[[int, float], None] | None = None,
    ) -> "HOFMN":
        """Returns the attack whose parameters give the smallest median distance, by random search.

        Args:
            model: Keras model, or any callable from images to logits.
            x: `(images, ...)`, floating, in [0, 1]; published: 64 images. Evaluate the attack on others.
            y: `(images,)`, integer labels.
            trials: Number of parameter sets that are tried, at least 1.
            tuning_steps: Steps of the attack in each trial.
            num_steps, loss, optimizer: See the class.
            seed: Integer; equal seeds give equal parameters.
            after_each: Called after each trial with its number and its median distance.

        Raises:
            ValueError: if an argument is out of its range.
        """
        check_integer("trials", trials, 1, "pass, for example, trials=32")
        check_integer("seed", seed, None, "pass an integer such as seed=0")
        tried = cls(tuning_steps, loss, optimizer)
        images, labels = tf.convert_to_tensor(x), tf.convert_to_tensor(y)
        names = list(SEARCH_SPACE[optimizer])

        @tf.function(autograph=False)
        def distances(values: tf.Tensor) -> tf.Tensor:
            attack = copy.copy(tried)
            attack.parameters = dict(zip(names, tf.unstack(values), strict=True))
            with cached_for_inference(model):
                return attack.nearest(model, images, labels).distance

        random = np.random.default_rng(seed)
        best, chosen = math.inf, dict.fromkeys(names, 0.0)
        for trial in range(trials):
            drawn = {name: _drawn(random, name, span) for name, span in SEARCH_SPACE[optimizer].items()}
            away = distances(tf.constant(list(drawn.values()), tf.float32)).numpy()
            # Images that are misclassified as they are say nothing about the parameters.
            median = float(np.median(away[away > 0])) if (away > 0).any() else 0.0
            if median < best:
                best, chosen = median, drawn
            if after_each is not None:
                after_each(trial, median)
        return cls(num_steps, loss, optimizer, chosen)

    def _start(self, forward: Forward, x: tf.Tensor, y: tf.Tensor, seeds: tf.Tensor) -> State:
        state = {"radius": tf.ones_like(y, tf.float32), "crossed": tf.zeros_like(y, tf.bool)}
        return state | {"mean": tf.zeros_like(x), "square": tf.zeros_like(x)}

    def _step(self, forward: Forward, x: tf.Tensor, y: tf.Tensor, state: State) -> State:
        loss_fn = LOSSES[self.loss]
        _, gradient, wrong = loss_gradient(forward, state["x_current"], y, loss_fn)
        state, _ = self._kept(x, wrong, state)
        decay = cosine(state["iteration"], self.decay, self.final_decay, self.num_steps)
        crossed = state["crossed"] | wrong
        # Until an image is misclassified for the first time, nothing bounds its perturbation.
        worst = self.farthest(x)
        radius = tf.minimum(next_radius(state, decay, wrong, crossed, worst), worst)
        delta = state["x_current"] - x
        move, moments = self._move(state, self.parameters["weight_decay"] * delta - tf.sign(gradient))
        x_new = linf_ball(state["x_current"] + move, x, per_example(radius, x))
        return state | moments | {"radius": radius, "crossed": crossed, "x_current": x_new}

    def _move(self, state: State, slope: tf.Tensor) -> tuple[tf.Tensor, State]:
        """Returns what the optimizer adds to the perturbation, and its state."""
        values = self.parameters
        number = tf.cast(state["iteration"] + 1, tf.float32)
        share = cosine(state["iteration"], 1.0, 0.0, self.num_steps)
        rate = share * values["lr"]
        if self.optimizer == "sgd":
            later = values["momentum"] * state["mean"] + (1 - values["dampening"]) * slope
            mean = tf.where(tf.equal(state["iteration"], 0), slope, later)
            return -rate * mean, {"mean": mean}
        mean = values["beta1"] * state["mean"] + (1 - values["beta1"]) * slope
        unbiased = mean / (1 - tf.pow(tf.cast(values["beta1"], tf.float32), number))
        if self.optimizer == "adamax":
            square = tf.maximum(values["beta2"] * state["square"], tf.abs(slope) + TINY)
            return -rate * unbiased / square, {"mean": mean, "square": square}
        square = values["beta2"] * state["square"] + (1 - values["beta2"]) * tf.square(slope)
        scale = tf.sqrt(square / (1 - tf.pow(tf.cast(values["beta2"], tf.float32), number))) + TINY
        return -rate * unbiased / scale, {"mean": mean, "square": square}

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor, as plain values."""
        names = ("num_steps", "loss", "optimizer", "parameters", "decay", "final_decay", "seed")
        return {name: getattr(self, name) for name in names}


def _drawn(random: np.random.Generator, name: str, span: tuple[float, float]) -> float:
    if name == "lr":
        return float(math.exp(random.uniform(math.log(span[0]), math.log(span[1]))))
    return float(random.uniform(*span))
