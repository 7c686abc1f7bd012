"""A guard against catastrophic overfitting: it sees one-step training collapse, goes back, and softens the attack."""

import copy
import logging
from collections.abc import Iterator
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tf_robust_sparse.attacks import NFGSM, GradientAttack, LinfFGSM, LinfPGD
from tf_robust_sparse.attacks.gradient_attack import input_gradient
from tf_robust_sparse.attacks.losses import log_odds
from tf_robust_sparse.data.checks import checked_images, checked_labels
from tf_robust_sparse.layers.forward import inference_forward
from tf_robust_sparse.layers.kernel_seam import cached_for_inference, inference_logits
from tf_robust_sparse.layers.noise import fold_in, uniform_like
from tf_robust_sparse.objectives import Objective

_log = logging.getLogger(__name__)

GUARD_ACTIONS = ("step_size", "noise", "report")
_SHORTER, _WIDER = 0.75, 0.5  # factor of the step, and growth of the noise in units of epsilon
_KEEPS, _FORGETS = 0.9, 0.1  # running mean of the cosine
_MOST = 64  # alarms that are recorded
_TINY = 1e-12
_FEW = 10  # measurements of the cosine before the first alarm
_ABOVE_CHANCE = 2  # the probe is silent until the best accuracy is so often that of guessing
_GOOD = 0.8  # share of the best accuracy from which on weights are kept
_NUMBERS = {
    **dict.fromkeys(("best", "fgsm_at_best", "pgd", "fgsm", "cosine", "mean"), "float32"),
    **dict.fromkeys(("count", "rung", "softened", "kept_at"), "int64"),
}
_STATE: dict[str, Any] = {  # of a variable
    "initializer": "zeros",
    "trainable": False,
    "autocast": False,
    "aggregation": "only_first_replica",
}


class Alarm(NamedTuple):
    """One alarm of a `CollapseGuard`.

    Attributes:
        step: Training step after which it rang.
        by: `"probe"`, the accuracy under PGD, or `"cosine"`, the cosine of gradients.
        value: What was measured.
        reference: What it was compared with: the best accuracy, or the running mean of the cosine.
        back_to: Step whose weights training went back to; -1 if it went on.
    """

    step: int
    by: str
    value: float
    reference: float
    back_to: int


class CollapseGuard(keras.callbacks.Callback):
    """Watches training by one step for catastrophic overfitting, and goes back when it begins.

    Two alarms, both on the same fixed training images, in inference mode:

    - the probe, every `probe_every` steps: accuracy under PGD with 10 steps falls below `fall` times the best so far
      while accuracy under FGSM is higher than it was then;
    - the cosine, every `cosine_every` steps: the mean cosine between the gradients of the loss at `x` and at `x + u`,
      `u` uniform in the ball, falls below `drop` times its running mean. It costs two passes of the first 64 images.

    An alarm puts weights, optimizer slots, connections and averages back to those of the last probe that was good, and
    softens the attack: `"step_size"` shortens its step by a quarter, `"noise"` widens the noise of `NFGSM` by half of
    epsilon. The number of steps stays, so that the learning rate and the order of images go on. All of this is part of
    checkpoints, so that a resumed run repeats the uninterrupted one.

        guard = trs.training.CollapseGuard(x[:256], y[:256], action="noise")
        model = trs.RobustModel(network, trs.objectives.AT(trs.attacks.NFGSM(8 / 255)), guard=guard)
        model.fit(...)
        print(guard.alarms())

    Args:
        images: Training images that are measured, `(n, height, width, channels)`; published: 256.
        labels: Their labels, `(n,)`.
        action: `"step_size"`, `"noise"`, or `"report"` to change nothing.
        probe_every: Steps between two probes.
        cosine_every: Steps between two measurements of the cosine.
        fall: Share of the best accuracy, in (0, 1).
        drop: Share of the running mean of the cosine, in (0, 1).
        seed: Of the random draws.

    Raises:
        ValueError: if an argument is malformed or out of its range.

    Reference: [Wong et al., 2020](https://arxiv.org/abs/2001.03994), section 5.4 (the probe);
        [Andriushchenko and Flammarion, 2020](https://arxiv.org/abs/2007.02617), section 4 (the cosine).
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        action: str = "step_size",
        probe_every: int = 200,
        cosine_every: int = 20,
        fall: float = 0.5,
        drop: float = 0.3,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if action not in GUARD_ACTIONS:
            raise ValueError(f"`action` must be one of {', '.join(GUARD_ACTIONS)}. Received: action={action!r}")
        for name, value in {"probe_every": probe_every, "cosine_every": cosine_every}.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"`{name}` is a number of steps, at least 1. Received: {name}={value!r}")
        for name, share in {"fall": fall, "drop": drop}.items():
            if not 0 < share < 1:
                raise ValueError(f"`{name}` is a share in (0, 1), such as 0.5. Received: {name}={share!r}")
        self._images = checked_images(images)
        self._labels = checked_labels(labels, len(self._images))
        self.action = action
        self.probe_every, self.cosine_every = probe_every, cosine_every
        self.fall, self.drop = float(fall), float(drop)
        self._seed = seed
        self.state = keras.layers.Layer(name="guard", dtype="float32")  # of its variables; part of checkpoints
        self.state.built = True
        self._plain: Any = None  # the objective with the attack as it was given

    def attach(self, model: Any) -> None:
        """Creates the state for a compiled model; a model that is compiled again keeps it.

        Raises:
            ValueError: if the objective has no attack in the l-infinity ball, the attack cannot be softened as asked,
                or the model trains on several machines.
        """
        if self._plain is not None:
            return
        _check_attack(model.objective, self.action)
        if isinstance(model.distribute_strategy, tf.distribute.MultiWorkerMirroredStrategy):
            raise ValueError(
                "A CollapseGuard works on one machine, because several might measure differently; leave it out. "
                "Received: MultiWorkerMirroredStrategy"
            )
        self._plain, self._model = model.objective, model
        with model.distribute_strategy.scope():
            self._numbers = {
                name: self.state.add_weight(name=name, shape=(), dtype=dtype, **_STATE)
                for name, dtype in _NUMBERS.items()
            }
            self._alarms = self.state.add_weight(
                name="alarms", shape=(_MOST, len(Alarm._fields)), dtype="float64", **_STATE
            )
            self._copies = [
                self.state.add_weight(name=f"copy_{number}", shape=each.shape, dtype=each.dtype, **_STATE)
                for number, each in enumerate(self._kept_variables())
            ]
        self._numbers["kept_at"].assign(-1)
        self._probe, self._cosine = _probe(model.network, self._attack), _cosine(model.network, self._attack)
        self._softened = 0  # times, of the objective that the model has

    def alarms(self) -> list[Alarm]:
        """Returns what has rung so far, the first 64 alarms."""
        if self._plain is None:
            return []
        rows = np.array(self._alarms)[: self._number("rung")]
        return [
            Alarm(int(step), "cosine" if by else "probe", float(value), float(reference), int(back_to))
            for step, by, value, reference, back_to in rows
        ]

    def on_train_begin(self, logs=None):
        """Takes up the state, of a checkpoint that was loaded or of an earlier call of `fit`."""
        self._step = self._steps_done()
        self._soften()

    def on_train_batch_end(self, batch, logs=None):
        """Measures, and goes back if it must."""
        before, self._step = self._step, self._steps_done()
        if before // self.cosine_every != self._step // self.cosine_every and self._look_at_cosine():
            return
        if before // self.probe_every != self._step // self.probe_every:
            self._look_at_accuracy()

    def on_epoch_end(self, epoch, logs=None):
        """Adds the last accuracies of the probe, the cosine and the number of alarms to the logs."""
        names = {"guard_accuracy": "pgd", "guard_fgsm_accuracy": "fgsm", "guard_cosine": "cosine"}
        logs.update({name: self._value(number) for name, number in names.items()})
        logs["guard_alarms"] = self._number("rung")

    def describe(self) -> dict[str, Any]:
        """Returns the settings and the alarms, ready for JSON."""
        names = ("action", "probe_every", "cosine_every", "fall", "drop")
        alarms = [alarm._asdict() for alarm in self.alarms()]
        return {**{name: getattr(self, name) for name in names}, "images": len(self._labels), "alarms": alarms}

    @property
    def _attack(self) -> GradientAttack:
        return self._plain.attack

    def _steps_done(self) -> int:
        return int(np.array(self._model.optimizer.iterations))

    def _number(self, name: str) -> int:
        return int(np.array(self._numbers[name]))

    def _value(self, name: str) -> float:
        return float(np.array(self._numbers[name]))

    def _look_at_cosine(self) -> bool:
        """Measures the cosine; returns whether the alarm rang."""
        numbers = self._numbers
        cosine = float(self._cosine(self._images[:64], self._labels[:64], [self._seed, self._step]))
        mean, count = self._value("mean"), self._number("count")
        numbers["cosine"].assign(cosine)
        if count >= _FEW and cosine < self.drop * mean:
            self._ring("cosine", cosine, mean)
            return True
        numbers["mean"].assign(cosine if count == 0 else _KEEPS * mean + _FORGETS * cosine)
        numbers["count"].assign(count + 1)
        return False

    def _look_at_accuracy(self) -> None:
        """Measures accuracies; rings, or keeps the state if the accuracy is good."""
        numbers = self._numbers
        pgd, fgsm = (float(each) for each in self._probe(self._images, self._labels, [self._seed, self._step]))
        numbers["pgd"].assign(pgd)
        numbers["fgsm"].assign(fgsm)
        best = self._value("best")
        floor = _ABOVE_CHANCE / self._model.network.output_shape[-1]
        if best >= floor and pgd < self.fall * best and fgsm > self._value("fgsm_at_best"):
            self._ring("probe", pgd, best)
            return
        if pgd >= _GOOD * best:
            self._keep()
        if pgd > best:
            numbers["best"].assign(pgd)
            numbers["fgsm_at_best"].assign(fgsm)

    def _ring(self, by: str, value: float, reference: float) -> None:
        """Records an alarm, goes back and softens the attack."""
        back_to = self._number("kept_at") if self.action != "report" else -1
        rung = self._number("rung")
        alarm = Alarm(self._step, by, value, reference, back_to)
        if rung < _MOST:
            rows = np.array(self._alarms)
            rows[rung] = (alarm.step, by == "cosine", value, reference, back_to)
            self._alarms.assign(rows)
            self._numbers["rung"].assign(rung + 1)
        _log.warning(self._said(alarm))
        if self.action == "report":
            return
        if back_to >= 0:
            for variable, kept in zip(self._kept_variables(), self._copies, strict=True):
                variable.assign(np.array(kept))
        self._numbers["softened"].assign(self._number("softened") + 1)
        self._numbers["count"].assign(0)  # the cosine has a new mean, of the softer attack
        self._soften()

    def _said(self, alarm: Alarm) -> str:
        what = "the cosine of gradients is" if alarm.by == "cosine" else "accuracy under PGD on training images is"
        found = f"Catastrophic overfitting at step {alarm.step}: {what} {alarm.value:.3f} after {alarm.reference:.3f}"
        if self.action == "report":
            return found
        back = f"back to step {alarm.back_to}" if alarm.back_to >= 0 else "no earlier weights to go back to"
        return f"{found}; {back}, {self.action} is softened"

    def _keep(self) -> None:
        for variable, kept in zip(self._kept_variables(), self._copies, strict=True):
            kept.assign(np.array(variable))
        self._numbers["kept_at"].assign(self._step)

    def _soften(self) -> None:
        """Gives the model the objective whose attack is as soft as the state says."""
        times = self._number("softened")
        if times != self._softened:
            self._model.objective = self._plain.with_attack(softened(self._attack, self.action, times))
            self._model.make_train_function(force=True)
            self._softened = times

    def _kept_variables(self) -> Iterator[Any]:
        """Yields what an alarm puts back: all variables but those of the guard, the number of steps and the rate."""
        optimizer = self._model.optimizer
        own = {id(each) for each in self.state.variables}
        for each in (optimizer, getattr(optimizer, "inner_optimizer", optimizer)):
            own |= {id(each.iterations), id(each.learning_rate)}
        found = {id(each): each for each in [*self._model.variables, *optimizer.variables]}
        yield from (each for key, each in found.items() if key not in own)


def softened(attack: GradientAttack, action: str, times: int) -> GradientAttack:
    """Returns the attack with a step of `0.75 ** times`, or with noise wider by `0.5 * times` in units of epsilon."""
    now = copy.copy(attack)
    if action == "noise" and isinstance(now, NFGSM):
        now.noise += _WIDER * times
    else:
        now.step_size *= _SHORTER**times
    return now


def _check_attack(objective: Objective, action: str) -> None:
    attack = objective.attack
    if attack is None or attack.norm != "linf":
        raise ValueError(
            "A CollapseGuard needs an objective with an attack in the l-infinity ball, such as AT(NFGSM(8 / 255)). "
            f"Received: objective={type(objective).__name__}, attack={attack!r}"
        )
    if action == "noise" and not isinstance(attack, NFGSM):
        raise ValueError(
            'CollapseGuard(action="noise") widens the noise of NFGSM; pass action="step_size" for other attacks. '
            f"Received: attack={attack!r}"
        )


def _probe(network: keras.Model, attack: GradientAttack) -> Any:
    """Returns a compiled function to the accuracies under PGD and FGSM of images, labels and a seed."""
    epsilon = attack.epsilon
    pgd, fgsm = LinfPGD(epsilon, epsilon / 4, 10), LinfFGSM(epsilon)

    @tf.function(reduce_retracing=True, autograph=False)
    def measure(x: tf.Tensor, y: tf.Tensor, seed: tf.Tensor) -> list[tf.Tensor]:
        with cached_for_inference(network):
            found = [inference_logits(network, each(network, x, y, seed=seed)) for each in (pgd, fgsm)]
        return [tf.reduce_mean(tf.cast(tf.argmax(logits, axis=-1) == y, tf.float32)) for logits in found]

    return measure


def _cosine(network: keras.Model, attack: GradientAttack) -> Any:
    """Returns a compiled function to the mean cosine of gradients at images and next to them."""
    epsilon = attack.epsilon

    @tf.function(reduce_retracing=True, autograph=False)
    def measure(x: tf.Tensor, y: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        noise = uniform_like(x, fold_in(seed, 1), -epsilon, epsilon)
        with cached_for_inference(network):
            return tf.reduce_mean(gradient_cosine(inference_forward(network), x, x + noise, y))

    return measure


def gradient_cosine(forward: Any, x: tf.Tensor, moved: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """Returns the cosines `(batch,)` between the gradients of the loss at images and at moved images."""
    first, second = (
        tf.reshape(input_gradient(forward, each, y, log_odds), (tf.shape(x)[0], -1)) for each in (x, moved)
    )
    lengths = tf.norm(first, axis=1) * tf.norm(second, axis=1)
    return tf.reduce_sum(first * second, axis=1) / (lengths + _TINY)
