"""Training of several networks side by side, with a record of each; rounds of pruning use it."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tf_robust_sparse import layers
from tf_robust_sparse.attacks import GradientAttack
from tf_robust_sparse.data.checks import checked_images
from tf_robust_sparse.data.source import check_examples
from tf_robust_sparse.layers.kernel_seam import inference_logits
from tf_robust_sparse.layers.noise import fold_in
from tf_robust_sparse.layers.selection import fast_where
from tf_robust_sparse.models.stacked import members_of
from tf_robust_sparse.objectives import Objective
from tf_robust_sparse.objectives.label_smoothing import smoothed_cross_entropy
from tf_robust_sparse.sparsity import masked_kernels
from tf_robust_sparse.sparsity.optimizer_slots import slots
from tf_robust_sparse.sparsity.prunable import report_frozen
from tf_robust_sparse.training.robust_model import RobustModel

_CHUNK = 500  # number of images that each member is measured on at once


class NetworkState(NamedTuple):
    """The variables of one network: kernels by the name of the layer, and all others by path."""

    kernels: dict[str, np.ndarray]
    others: dict[str, np.ndarray]


class NetworkMeasures(NamedTuple):
    """Measurements of one network on a set of images: mean losses in nats, and accuracies."""

    loss: float
    accuracy: float
    adversarial_accuracy: float
    clean_loss: float
    adversarial_loss: float


class StackedRobustModel(RobustModel):
    """A `RobustModel` of one network or of a stack of networks, with a record of each.

    Each member of a stack (`models.stack`) minimizes its own mean loss and draws its attack noise from its own seed. So
    it trains as it would alone, up to the rounding of batched products.

    Images are in memory: pass them to `train_on`, and batches of their indices (`data.stacked_batches`) to `fit`.

    Args:
        network: A network with masked kernels, or a stack.
        objective: What training minimizes. The recorded loss is
            `(1 - adversarial_weight) * CE(clean) + adversarial_weight * CE(attacked)`, plus the penalty if there is
            one.
        attack: The attack of `measure`.

    Raises:
        ValueError: as for `RobustModel`, or if the network has no masked kernels.
    """

    def __init__(self, network: keras.Model, objective: Objective, attack: GradientAttack) -> None:
        super().__init__(network, objective)
        masked_kernels.find(network)
        report_frozen(network)
        self.members = members_of(network)
        self.attack = attack
        self._examples: tuple[tf.Tensor, tf.Tensor] | None = None
        self._seeds = tf.Variable(
            tf.zeros(self.members, tf.int32), aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA, trainable=False
        )
        # For each member: number of images, sum of losses, number correct, number correct under attack.
        self._sums = tf.Variable(
            tf.zeros((4, self.members)),
            aggregation=tf.VariableAggregation.SUM,
            synchronization=tf.VariableSynchronization.ON_READ,
            trainable=False,
        )
        # Holds each attack too, because the id of a deleted object may be reused.
        self._measures: dict[int, tuple[GradientAttack, Callable[..., tf.Tensor]]] = {}

    def train_on(self, images: np.ndarray, labels: np.ndarray) -> None:
        """Sets the examples that `fit` gets the indices of.

        Args:
            images: `(n, height, width, channels)`, uint8, or floats in [0, 1].
            labels: `(n,)`, integers.

        Raises:
            ValueError: if they are malformed or do not fit the network.
        """
        if not isinstance(images, np.ndarray):
            raise ValueError("`images` must be in memory; pass an array. Received: image files")
        where = "StackedRobustModel.train_on"
        images, labels = check_examples(images, labels, num_classes=self.network.output_shape[-1], where=where)
        checked_images(images, self.network.input_shape[1:], where, bytes_too=True)
        with tf.device("CPU:0"):
            self._examples = (tf.constant(images), tf.constant(labels))
        self.train_function = None  # a traced function holds the old examples

    def begin(
        self, states: Sequence[NetworkState], masks: Sequence[dict[str, np.ndarray]], seeds: Sequence[int]
    ) -> None:
        """Sets variables and masks of every member, and resets the optimizer."""
        self._assign_states(states)
        masked_kernels.set_masks(self.network, self._together(masks))
        for variable in self.optimizer.variables:
            if variable.name != "learning_rate":
                variable.assign(tf.zeros(variable.shape, variable.dtype))
        self.set_seeds(seeds)

    def set_seeds(self, seeds: Sequence[int]) -> None:
        """Sets the seeds of training, one integer per member, and resets the record."""
        self._seeds.assign(np.asarray(seeds, np.int32))
        self._sums.assign(tf.zeros((4, self.members)))

    def states(self) -> list[NetworkState]:
        """Returns the variables of every member."""
        kernels = self._apart(masked_kernels.get_kernels(self.network))
        others = {v.path: np.array(v) for v in masked_kernels.other_variables(self.network)}
        return [NetworkState(each, dict(others)) for each in kernels]

    def masks(self) -> list[dict[str, np.ndarray]]:
        """Returns the masks of every member."""
        return self._apart(masked_kernels.get_masks(self.network))

    def mask_slots(self) -> None:
        """Sets the optimizer's memory of pruned entries to zero.

        A new optimizer never remembers anything for them, because their gradients are zero. A loaded one may.
        """
        for kernel in masked_kernels.find(self.network):
            for slot in slots(self.optimizer, kernel.weight):
                slot.assign(fast_where(tf.convert_to_tensor(kernel.mask), tf.convert_to_tensor(slot), 0))

    def training_record(self) -> list[tuple[float, float, float]]:
        """Returns loss, accuracy and accuracy under attack of every member since the last call, and resets them.

        Accuracy under attack is NaN if the objective attacks nothing. All are NaN if there was no step.
        """
        number, *sums = np.array(self._sums, np.float64)
        self._sums.assign(tf.zeros((4, self.members)))
        with np.errstate(invalid="ignore"):
            columns = zip(*(each / number for each in sums), strict=True)
            return [(float(loss), float(right), float(attacked)) for loss, right, attacked in columns]

    def measure(
        self,
        x: tf.Tensor,
        y: tf.Tensor,
        seeds: Sequence[int],
        number: int = 0,
        label_smoothing: float = 0.0,
        attack: GradientAttack | None = None,
    ) -> list[NetworkMeasures]:
        """Measures every member on the same images, with an attack on each member.

        Args:
            x: `(n, height, width, channels)`, uint8 or floats in [0, 1].
            y: `(n,)`, int64.
            seeds: One integer per member, the seed of its attack.
            number: Another integer for the seed, such as the number of the training step.
            label_smoothing: Smoothing of the labels in the losses.
            attack: Attack; `None` for the one given to the constructor.
        """
        attack = self.attack if attack is None else attack
        if id(attack) not in self._measures:
            self._measures[id(attack)] = (attack, self._compiled_measure(attack))
        _, measured = self._measures[id(attack)]
        pairs = np.stack([seeds, np.full(self.members, number)], 1)
        seed = tf.constant(pairs if self.members > 1 else pairs[0], tf.int64)
        sums = np.array(measured(x, y, seed, tf.constant(label_smoothing, tf.float32)), np.float64)
        clean, attacked, right, right_attacked = sums / len(y)
        weight = self.objective.adversarial_weight
        loss = (1 - weight) * clean + weight * attacked + np.array(self.objective.penalty(self.network))
        columns = (loss, right, right_attacked, clean, attacked)
        return [NetworkMeasures(*(float(value) for value in each)) for each in zip(*columns, strict=True)]

    def _compiled_measure(self, attack: GradientAttack) -> Callable[..., tf.Tensor]:
        members = self.members
        by_prediction = attack.label == "predicted"
        if by_prediction:  # known here already, so the attack need not compute them again
            attack = type(attack).from_config({**attack.get_config(), "label": "true"})

        def of_each(values: tf.Tensor) -> tf.Tensor:
            return tf.reduce_sum(tf.reshape(tf.cast(values, tf.float32), (members, -1)), axis=1)

        @tf.function(reduce_retracing=True, autograph=False)
        def measure(x: tf.Tensor, y: tf.Tensor, seed: tf.Tensor, label_smoothing: tf.Tensor) -> tf.Tensor:
            def add(first: tf.Tensor, sums: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
                some, labels = x[first : first + _CHUNK], y[first : first + _CHUNK]
                some = _pixels(some)
                if members > 1:
                    some, labels = tf.tile(some, (members, 1, 1, 1)), tf.tile(labels, (members,))
                clean = tf.cast(inference_logits(self.network, some), tf.float32)
                away_from = tf.argmax(clean, axis=-1) if by_prediction else labels
                x_adv = attack(self.network, some, away_from, seed=fold_in(seed, first))
                logits = [clean, tf.cast(inference_logits(self.network, x_adv), tf.float32)]
                losses = [of_each(smoothed_cross_entropy(labels, each, label_smoothing)) for each in logits]
                right = [of_each(tf.argmax(each, axis=-1) == labels) for each in logits]
                return first + _CHUNK, sums + tf.stack(losses + right)

            with layers.cached_kernels(self.network), self._folded_kernels():
                state = (tf.constant(0), tf.zeros((4, members)))
                return tf.while_loop(lambda first, _: first < tf.shape(x)[0], add, state, parallel_iterations=1)[1]

        return measure

    def train_step(self, data):
        """Does one optimization step of every member, on the examples with the indices `data` `(members * batch,)`."""
        images, labels = (tf.gather(each, data) for each in self._examples)
        return super().train_step((_pixels(images), labels))

    def _batch(self, data):
        return data  # `train_on` has checked all of them

    def _checked_data(self, x: Any, y: Any = None, batch_size: int | None = None) -> tuple[Any, Any, int | None]:
        """Checks that batches hold indices of examples."""
        if self._examples is None:
            raise ValueError("`fit` takes batches of indices of examples; call `train_on` first.")
        spec = getattr(x, "element_spec", None)
        if not isinstance(spec, tf.TensorSpec) or not spec.dtype.is_integer or spec.shape.rank != 1:
            raise ValueError(
                "`fit` takes a tf.data.Dataset of indices, integers of shape (members * batch,), such as "
                f"data.stacked_batches makes. Received: elements {spec}"
            )
        return x, None, spec.shape[0]

    def _step_seed(self):
        step = tf.cast(self.optimizer.iterations, tf.int32)
        seeds = tf.convert_to_tensor(self._seeds)
        if self.members == 1:
            return tf.stack([seeds[0], step])
        return tf.stack([seeds, tf.fill((self.members,), step)], axis=1)

    def _mean_loss(self, per_example, images=None):
        return self.members * super()._mean_loss(
            per_example, images
        )  # each member has the mean over its own part of the batch

    def _record_step(self, per_example, x, y, logits, logits_adv):
        right = tf.cast(tf.argmax(logits, axis=-1) == y, tf.float32)
        if logits_adv is None:
            right_adv = tf.fill(tf.shape(right), float("nan"))
        else:
            right_adv = tf.cast(tf.argmax(logits_adv, axis=-1) == y, tf.float32)
        rows = tf.stack([tf.ones_like(right), per_example, right, right_adv])
        self._sums.assign_add(tf.reduce_sum(tf.reshape(rows, (4, self.members, -1)), axis=2))
        return {"loss": tf.reduce_mean(per_example)}

    def _assign_states(self, states: Sequence[NetworkState]) -> None:
        masked_kernels.set_kernels(self.network, self._together([state.kernels for state in states]))
        others = masked_kernels.other_variables(self.network)
        for state in states:  # a stack has no others
            for variable, value in zip(others, state.others.values(), strict=True):
                variable.assign(value)

    def _together(self, parts: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        if len(parts) != self.members:
            raise ValueError(f"Pass one state for each of the {self.members} members. Received: {len(parts)} states")
        if self.members == 1:
            return parts[0]
        return {name: np.stack([part[name] for part in parts]) for name in parts[0]}

    def _apart(self, values: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
        if self.members == 1:
            return [values]
        return [{name: value[member] for name, value in values.items()} for member in range(self.members)]


def _pixels(images: tf.Tensor) -> tf.Tensor:
    return tf.cast(images, tf.float32) / 255.0 if images.dtype == tf.uint8 else images
