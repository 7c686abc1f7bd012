"""Free adversarial training: the backward pass that updates the weights also moves the perturbation."""

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_robust_sparse.attacks import GradientAttack, cross_entropy
from tf_robust_sparse.objectives import Losses, Objective
from tf_robust_sparse.objectives.objective import Seed, training_logits
from tf_robust_sparse.sparsity import Sparsifier
from tf_robust_sparse.sparsity.optimizer_slots import assign_everywhere
from tf_robust_sparse.training.robust_model import RobustModel
from tf_robust_sparse.training.step_data import Step

_FULL_BATCHES = "Free adversarial training needs full batches"


class FreeAT(Objective):
    """The cross entropy of images with a perturbation that persists between batches; see `FreeRobustModel`.

    Args:
        batch_size: Number of images per step on all replicas together; every batch must be full.
        epsilon: Radius of the l-infinity ball in pixels of [0, 1], in (0, 1].
        num_repeats: How often each batch is used, at least 1.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(self, batch_size: int, epsilon: float = 4 / 255, num_repeats: int = 4) -> None:
        if not 0 < epsilon <= 1:
            raise ValueError(
                f"`epsilon` is a radius in pixels of [0, 1]; pass, for example, 4 / 255. Received: epsilon={epsilon!r}"
            )
        for name, value in (("batch_size", batch_size), ("num_repeats", num_repeats)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"`{name}` must be a positive integer. Received: {name}={value!r}")
        self.batch_size = batch_size
        self.epsilon = float(epsilon)
        self.num_repeats = num_repeats

    def perturb(self, network: keras.Model, x: tf.Tensor, y: tf.Tensor, seed: Seed = None) -> tf.Tensor:
        """Raises, because the model keeps the perturbation.

        Raises:
            ValueError: always, naming the model to train with.
        """
        raise ValueError(
            "FreeAT keeps its perturbation from step to step; train it with "
            "training.FreeRobustModel(network, FreeAT(...)). Received: another model"
        )

    def loss(self, network: keras.Model, x: tf.Tensor, y: tf.Tensor, x_adv: tf.Tensor) -> Losses:
        """Returns losses `(batch,)` and logits `(batch, classes)` of the perturbed images."""
        logits = training_logits(network, x_adv)
        return Losses(cross_entropy(y, logits), logits, logits)

    def describe(self) -> dict[str, Any]:
        """Returns everything that defines the objective, as plain values for a results file."""
        settings = {"epsilon": self.epsilon, "num_repeats": self.num_repeats, "batch_size": self.batch_size}
        return {**super().describe(), **settings}


class FreeRobustModel(RobustModel):
    """Trains `network` by free adversarial training.

    Each batch is used `num_repeats` times. Each time one forward and one backward pass give two gradients. The
    optimizer applies the gradient of the weights. The perturbation moves by `epsilon` along the sign of the gradient of
    the images, within its ball. The next batch starts from this perturbation, place by place. So adversarial training
    costs no more than natural training with the same number of passes. A step of `fit` counts as `num_repeats`
    optimization steps; divide the number of epochs accordingly.

    Args:
        network: See `RobustModel`.
        objective: `FreeAT`.
        sparsifier, validation_attack, seed, validation_checks: See `RobustModel`.

    Raises:
        ValueError: as for `RobustModel`, or if `objective` is of another kind.

    Reference: [Shafahi et al., 2019](https://arxiv.org/abs/1904.12843), algorithm 1.
    """

    objective: FreeAT
    _follows_images = True

    def __init__(
        self,
        network: keras.Model,
        objective: FreeAT,
        sparsifier: Sparsifier | None = None,
        validation_attack: GradientAttack | None = None,
        seed: int = 0,
        validation_checks: Mapping[str, Callable[..., tf.Tensor]] | None = None,
    ) -> None:
        if not isinstance(objective, FreeAT):
            raise ValueError(f"`objective` must be a FreeAT. Received: objective={objective!r}")
        super().__init__(network, objective, sparsifier, validation_attack, seed, validation_checks)
        self.updates_per_step = objective.num_repeats

    def build(self, input_shape):
        """Creates the perturbation."""
        self._perturbation = self.add_weight(
            name="perturbation",
            shape=(self.objective.batch_size, *input_shape[1:]),
            initializer="zeros",
            dtype="float32",
            trainable=False,
            autocast=False,
            aggregation="only_first_replica",
        )
        super().build(input_shape)

    def fit(self, x: Any = None, y: Any = None, batch_size: int | None = None, **kwargs: Any) -> Any:
        """Trains as `RobustModel.fit` does, on batches of `objective.batch_size` images.

        Raises:
            ValueError: as `RobustModel.fit`, or if a batch has another size. For arrays this is checked before
                training, for a `tf.data.Dataset` when the batch comes.
        """
        expected = self.objective.batch_size
        how = (
            f"{_FULL_BATCHES} of {expected} images, the batch_size of FreeAT; pass batch_size={expected} and leave out "
            f"the images of a smaller last batch, or batch a dataset by {expected} with drop_remainder=True."
        )
        if isinstance(x, (np.ndarray, tf.Tensor)) and y is not None:
            size, left = batch_size or 32, len(x) % expected  # 32 is the default of Keras
            if size != expected or (left and kwargs.get("steps_per_epoch") is None):
                raise ValueError(f"{how} Received: {len(x)} images in batches of {size}")
        elif isinstance(x, tf.data.Dataset):
            size = tf.nest.flatten(x.element_spec)[0].shape[0]  # `None` if the last one may be smaller
            if size not in (None, expected):
                raise ValueError(f"{how} Received: batches of {size}")
        try:
            return super().fit(x, y, batch_size, **kwargs)
        except tf.errors.InvalidArgumentError as error:
            if _FULL_BATCHES not in str(error):
                raise
            raise ValueError(f"{how} Received: a batch of another size") from error

    def _begin_step(self, data: Any) -> Step:
        """Returns the step with the part of the perturbation that belongs to this replica."""
        number, replicas = tf.shape(data[0])[0], tf.distribute.get_replica_context().num_replicas_in_sync
        full = tf.debugging.assert_equal(number * replicas, self.objective.batch_size, _FULL_BATCHES)
        with tf.control_dependencies([full]):
            step = super()._begin_step((tf.identity(data[0]), *data[1:]))
        delta = tf.convert_to_tensor(self._perturbation)[self._rows(tf.shape(step.part.x)[0])]
        return step._replace(kept=tf.ensure_shape(delta, (None, *step.part.x.shape[1:])))

    def _attacked(self, step: Step) -> Step:
        """Returns the step with the images under the current perturbation."""
        return step._replace(x_adv=tf.clip_by_value(step.part.x + step.kept, 0.0, 1.0))

    def _end_update(self, step: Step, image_gradient: list[tf.Tensor]) -> Step:
        """Moves the perturbation of pixels that it did not take out of [0, 1]."""
        epsilon, moved = self.objective.epsilon, step.part.x + step.kept
        direction = tf.where((moved >= 0) & (moved <= 1), tf.sign(image_gradient[0]), 0.0)
        delta = tf.clip_by_value(step.kept + epsilon * direction, -epsilon, epsilon)
        return step._replace(kept=delta, seed=self._step_seed())

    def _end_step(self, step: Step) -> None:
        """Stores the perturbation of all replicas for the next batch."""
        context = tf.distribute.get_replica_context()
        everything = context.all_gather(step.kept, axis=0) if context.num_replicas_in_sync > 1 else step.kept
        assign_everywhere([(self._perturbation, everything)])

    def _rows(self, number: tf.Tensor) -> slice:
        """Returns the part of the perturbation that belongs to this replica."""
        context = tf.distribute.get_replica_context()
        first = tf.cast(context.replica_id_in_sync_group, tf.int32) * number
        return slice(first, first + number)
