"""The interface of objectives: which images to train on, and the loss on them."""

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self, TypeAlias

import keras
import tensorflow as tf

from tf_robust_sparse.attacks import GradientAttack
from tf_robust_sparse.layers.features import FeatureRecorder
from tf_robust_sparse.layers.training_noise import joined_parts, pass_number
from tf_robust_sparse.objectives.layer_losses import training_pass_ended

Seed: TypeAlias = int | tf.Tensor | None


class Losses(NamedTuple):
    """The result of an objective for a batch.

    Attributes:
        per_example: `(batch,)`, float32. Training minimizes their mean.
        logits: `(batch, classes)`, float32. Training accuracy is measured on them.
        logits_adv: `(batch, classes)`, float32, logits of the attacked images; `None` if the objective does not
            compute them. An objective that sees only attacked images returns the same tensor twice.
    """

    per_example: tf.Tensor
    logits: tf.Tensor
    logits_adv: tf.Tensor | None = None


class Objective:
    """Base class of what training minimizes.

    A training step takes the objective `at_step`, calls its `perturb`, which does not change the network, and then its
    `loss` under a gradient tape. A subclass writes `loss`, and `perturb` if it attacks; this class perturbs nothing.

    Attributes:
        attack: Attack that `perturb` runs; `None` if it runs none, or one that is not a `GradientAttack`.
        adversarial_weight: Share of the cross entropy of attacked images in the loss, in [0, 1]; only for records.
        label_smoothing: Share of each label that is spread evenly over all classes.
        terms: Names of the terms that `loss` reports, see `terms.report_term`.
        takes_mixed_labels: Whether labels may be probabilities `(batch, classes)`, see `CutMix`.
        views: How many attacked images `perturb` returns for each image.
        state: Layer that holds what the objective keeps between steps, a part of checkpoints; `None` if it keeps
            nothing.
    """

    attack: GradientAttack | None = None
    adversarial_weight: float = 0.0
    label_smoothing: float = 0.0
    terms: tuple[str, ...] = ()
    takes_mixed_labels: bool = False
    views: int = 1
    state: keras.layers.Layer | None = None

    def attach(self, network: keras.Model) -> None:
        """Creates what the objective keeps between steps, for a built network."""

    def end_epoch(self, epoch: int) -> None:
        """Changes what the objective keeps, at the end of an epoch of `fit`, outside of the compiled step.

        Args:
            epoch: Its number, from 0.
        """

    def with_attack(self, attack: GradientAttack) -> Self:
        """Returns the objective with another attack.

        Raises:
            ValueError: if the objective runs no `GradientAttack`.
        """
        del attack
        raise ValueError(f"`objective` must attack, as AT or TRADES do. Received: objective={self!r}")

    def at_step(self, step: tf.Tensor, seed: Seed = None) -> Self:
        """Returns the objective with its schedules evaluated at `step`; without schedules, the objective itself.

        Args:
            step: Number of updates so far, scalar, integer.
            seed: See `perturb`; for random draws of the loss.
        """
        del step, seed
        return self

    def at_radius(self, epsilon: tf.Tensor) -> Self:
        """Returns the objective with its attack in a ball of another radius, and steps in proportion to it.

        Args:
            epsilon: The radius, scalar, float32.

        Raises:
            ValueError: if the objective does not attack in a ball.
        """
        del epsilon
        raise ValueError(f"`objective` must attack in a ball, as AT or TRADES do. Received: objective={self!r}")

    def perturb(self, network: keras.Model, x: tf.Tensor, y: tf.Tensor, seed: Seed = None) -> tf.Tensor:
        """Returns the images to train on, found with the network in inference mode.

        Args:
            network: Network that returns logits.
            x: `(batch, ...)`, floating, in `[0, 1]`.
            y: `(batch,)`, integer labels.
            seed: Integer, or integers of shape `(2,)`, different in each step; `None` for the seed of the attack, which
                is the same in each step.

        Returns:
            `(batch, ...)`, in the order of `x`; `(views * batch, ...)` with several `views`, one after the other.
        """
        del network, y, seed
        return x

    def loss(self, network: keras.Model, x: tf.Tensor, y: tf.Tensor, x_adv: tf.Tensor) -> Losses:
        """Returns the loss of each example, with the network in training mode.

        Args:
            network: Network that returns logits.
            x: `(batch, ...)`, floating, in `[0, 1]`.
            y: `(batch,)`, integer labels.
            x_adv: `(batch, ...)`, the result of `perturb`.

        Returns:
            The losses and logits, in the order of `y`.
        """
        raise NotImplementedError

    def weight_offsets(self, network: keras.Model, loss: Callable[[], tf.Tensor]) -> Sequence[tuple[Any, tf.Tensor]]:
        """What is added to weights while the loss is taken, see `AWP`; nothing, unless a subclass says so.

        Args:
            network: Network that returns logits.
            loss: Returns the mean loss of the step, a scalar, from a forward pass with the weights as they are.

        Returns:
            Kernel layers of this package, their scores or other variables, each with its offset.
        """
        del network, loss
        return []

    def penalty(self, network: keras.Model) -> tf.Tensor:
        """Returns the part of the loss that depends on the weights alone, see `L1Penalty`: a scalar, 0 without one.

        For a stack of networks it is one number for each of them.
        """
        del network
        return tf.zeros(())

    def describe(self) -> dict[str, Any]:
        """Returns everything that defines the objective, as plain values for a results file."""
        return {"objective": type(self).__name__}

    def __repr__(self) -> str:
        name, *settings = self.describe().items()
        return f"{name[1]}({', '.join(f'{key}={value!r}' for key, value in settings)})"


class AttackObjective(Objective):
    """An objective that attacks the network it trains.

    Args:
        attack: Untargeted attack, such as `LinfPGD(epsilon=8 / 255, step_size=2 / 255, num_steps=10)`.

    Raises:
        ValueError: if `attack` is not an untargeted attack.
    """

    attack: GradientAttack

    def __init__(self, attack: GradientAttack) -> None:
        if not isinstance(attack, GradientAttack):
            raise ValueError(
                "`attack` must be an attack object; pass attacks.LinfPGD(epsilon=8 / 255, step_size=2 / 255, "
                f"num_steps=10). Received: attack={attack!r}"
            )
        if attack.targeted:
            raise ValueError(
                "`attack` raises the loss of the true label in training; pass an attack with targeted=False. "
                f"Received: attack={attack!r}"
            )
        self.attack = attack

    def at_radius(self, epsilon: tf.Tensor) -> Self:
        """Returns this objective with its attack in a ball of another radius, see `GradientAttack.at_radius`."""
        return self.with_attack(self.attack.at_radius(epsilon))

    def with_attack(self, attack: GradientAttack) -> Self:
        """Returns this objective with another attack."""
        now = copy.copy(self)
        now.attack = attack
        return now

    def describe(self) -> dict[str, Any]:
        """Returns everything that defines the objective, as plain values for a results file."""
        return {**super().describe(), "attack": self.attack.describe()}


class _Forwarded:
    """An attribute of the objective inside; a subclass may set its own."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, around: Any, owner: type | None = None) -> Any:
        return self if around is None else getattr(around.objective, self._name)


class ObjectiveAround(Objective):
    """An objective that changes the loss of another one, and is like it in everything else.

    Args:
        objective: The other objective.

    Raises:
        ValueError: if `objective` is not an objective.
    """

    attack: Any = _Forwarded()
    adversarial_weight: Any = _Forwarded()
    label_smoothing: Any = _Forwarded()
    terms: Any = _Forwarded()
    views: Any = _Forwarded()
    state: Any = _Forwarded()

    def __init__(self, objective: Objective) -> None:
        if not isinstance(objective, Objective):
            raise ValueError(f"`objective` must be an objective, such as Natural(). Received: objective={objective!r}")
        self.objective = objective

    def at_step(self, step: tf.Tensor, seed: Seed = None) -> Self:
        """Returns this objective around the other one at that step."""
        return self.around(self.objective.at_step(step, seed))

    def at_radius(self, epsilon: tf.Tensor) -> Self:
        """Returns this objective around the other one with that radius."""
        return self.around(self.objective.at_radius(epsilon))

    def with_attack(self, attack: GradientAttack) -> Self:
        """Returns this objective around the other one with that attack."""
        return self.around(self.objective.with_attack(attack))

    def attach(self, network: keras.Model) -> None:
        """Attaches the other objective."""
        self.objective.attach(network)

    def end_epoch(self, epoch: int) -> None:
        """Ends the epoch of the other objective."""
        self.objective.end_epoch(epoch)

    def around(self, objective: Objective) -> Self:
        """Returns this objective with another one inside."""
        now = copy.copy(self)
        now.objective = objective
        return now

    def perturb(self, network: keras.Model, x: tf.Tensor, y: tf.Tensor, seed: Seed = None) -> tf.Tensor:
        """Returns the result of the other objective's `perturb`."""
        return self.objective.perturb(network, x, y, seed=seed)

    def loss(self, network: keras.Model, x: tf.Tensor, y: tf.Tensor, x_adv: tf.Tensor) -> Losses:
        """Returns what the other objective's `loss` returns."""
        return Losses(*self.objective.loss(network, x, y, x_adv))

    def weight_offsets(self, network: keras.Model, loss: Callable[[], tf.Tensor]) -> Sequence[tuple[Any, tf.Tensor]]:
        """What the other objective's `weight_offsets` returns."""
        return self.objective.weight_offsets(network, loss)

    def penalty(self, network: keras.Model) -> tf.Tensor:
        """Returns the other objective's `penalty`."""
        return self.objective.penalty(network)


def innermost(objective: Objective) -> Objective:
    """Returns the objective inside all `ObjectiveAround`s."""
    while isinstance(objective, ObjectiveAround):
        objective = objective.objective
    return objective


def training_logits(network: keras.Model, x: tf.Tensor) -> tf.Tensor:
    """Returns logits in training mode: `(batch, classes)`, float32 also in mixed precision."""
    logits = tf.cast(network(x, training=True), tf.float32)
    training_pass_ended()
    return logits


def attacked_logits(network: keras.Model, x_adv: tf.Tensor) -> tf.Tensor:
    """As `training_logits`, for attacked images after the clean ones: gates and dropout may draw again."""
    with pass_number(1):
        return training_logits(network, x_adv)


def joint_training_logits(network: keras.Model, x: tf.Tensor, x_adv: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """As `training_logits`, for both batches in one forward pass: batch norm takes its statistics over both."""
    both = tf.concat([x, x_adv], axis=0)
    with joined_parts(2):
        logits, logits_adv = tf.split(training_logits(network, both), 2)
    if isinstance(network, FeatureRecorder):
        network.split(both, (x, x_adv))
    return logits, logits_adv


def bounded_logits(network: keras.Model, x: tf.Tensor) -> tf.Tensor:
    """Returns logits in inference mode, as bounds see the network: `(batch, classes)`, float32."""
    return tf.cast(network(x, training=False), tf.float32)


def robust_cross_entropy(lower: tf.Tensor) -> tf.Tensor:
    """Returns the largest cross entropy that lower bounds of the margins allow.

    Args:
        lower: `(batch, classes - 1)`, lower bounds of the logit of the class minus each other logit.

    Returns:
        `(batch,)`: `log(1 + sum exp(-lower))`.
    """
    return tf.reduce_logsumexp(tf.pad(-lower, [[0, 0], [1, 0]]), axis=1)
