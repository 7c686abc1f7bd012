"""The training step of the package, in parts that kinds of training override."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_robust_sparse import layers
from tf_robust_sparse.attacks import cross_entropy
from tf_robust_sparse.layers.noise import fold_in
from tf_robust_sparse.layers.training_noise import training_noise
from tf_robust_sparse.objectives import Losses, Objective
from tf_robust_sparse.objectives.layer_losses import collected_layer_losses
from tf_robust_sparse.objectives.terms import collected_terms
from tf_robust_sparse.sparsity import Sparsifier
from tf_robust_sparse.sparsity.optimizer_slots import apply_unless
from tf_robust_sparse.training.averages import Average
from tf_robust_sparse.training.replica_part import replica_part, summed_over_replicas
from tf_robust_sparse.training.step_data import Step
from tf_robust_sparse.training.weight_offsets import moved_weights

_DRAWS = 1 << 29  # keeps seeds of layers in training apart from seeds of attacks


class TrainingStep(keras.Model):
    """The training step of `RobustModel`; its subclasses override parts of it.

    A step begins with the images (`_begin_step`). Each update attacks them (`_attacked`), computes the losses
    (`_objective_losses`), assigns weights to losses (`_targets`), updates the weights, and prepares the next update of
    the same images (`_end_update`). `_end_step` stores what later steps need.
    """

    network: keras.Model
    objective: Objective
    sparsifier: Sparsifier | None
    average: Average | None
    _watcher: Sparsifier | None  # the sparsifier, if it watches validation
    seed: int
    shared_noise: bool

    updates_per_step = 1  # how often the optimizer runs on each batch
    _several_targets = False  # whether weights follow different losses
    _follows_images = False  # whether the update needs the gradient of the attacked images

    def train_step(self, data):
        """Does one optimization step; see the class."""
        step = self._begin_step(data)
        for _ in range(self.updates_per_step):
            step, losses, terms = self._update_once(step)
        self._end_step(step)
        x, y = step.part.counted(step.part.x), step.part.counted(step.part.y)
        terms |= self._terms_of(y, losses.logits, losses.logits_adv)
        return self._training_logs(self._record_step(losses.per_example, x, y, losses.logits, losses.logits_adv), terms)

    def _begin_step(self, data: Any) -> Step:
        """Returns the data of the step."""
        seed = self._step_seed()
        objective = self.objective.at_step(tf.convert_to_tensor(self.optimizer.iterations), seed)
        return Step(replica_part(*self._batch(data)), seed, objective)

    def _update_once(self, step: Step) -> tuple[Step, Losses, dict[str, tf.Tensor]]:
        """Attacks, differentiates and updates; the losses include those that layers add."""
        with tf.GradientTape(persistent=self._several_targets) as tape, layers.cached_kernels(self.network):
            with tape.stop_recording():
                step = self._attacked(step)
                offsets = self._weight_offsets(step)
            if self._follows_images:
                tape.watch(step.x_adv)
            with (
                moved_weights(self.network, offsets),
                self._training_noise(step.seed),
                collected_terms() as terms,
                self._layer_losses() as added,
            ):
                losses = self._objective_losses(step)
                if self.sparsifier is not None and self.sparsifier.penalty_name:
                    weight, terms[self.sparsifier.penalty_name] = self.sparsifier.penalty()
                    added.add(weight * terms[self.sparsifier.penalty_name])
            targets = [
                (self._scaled_loss(each, added, step.part.total), variables)
                for each, variables in self._targets(step, losses)
            ]
            sources = self._dense_sources()
        weights, images = self.network.trainable_variables, [step.x_adv] if self._follows_images else []
        (loss, variables), *others = targets
        gradients = tape.gradient(loss, [*variables, *sources, *images])
        dense = gradients[len(variables) :]
        by_weight = {id(variable): each for variable, each in zip(variables, gradients, strict=False)}
        for loss, variables in others:
            by_weight |= {id(v): each for v, each in zip(variables, tape.gradient(loss, variables), strict=True)}
        del tape
        losses = losses._replace(per_example=added.onto(losses.per_example))  # before the weights change
        self._update([by_weight[id(weight)] for weight in weights], weights, dense[: len(sources)], sources)
        return self._end_update(step, dense[len(sources) :]), losses, terms

    def _attacked(self, step: Step) -> Step:
        """Returns the step with its `x_adv`; the tape does not record this."""
        with self._folded_kernels():
            x_adv = step.objective.perturb(self.network, step.part.x, step.part.y, seed=step.seed)
        return step._replace(x_adv=x_adv)

    def _weight_offsets(self, step: Step) -> Sequence[tuple[Any, tf.Tensor]]:
        """Returns what the objective adds to weights while its loss is taken; nothing is recorded."""

        def loss() -> tf.Tensor:
            with self._training_noise(step.seed):
                return self._mean_loss(self._objective_losses(step).per_example, step.part.total)

        return step.objective.weight_offsets(self.network, loss)

    def _objective_losses(self, step: Step) -> Losses:
        """Returns the losses of the objective for the images that count."""
        found = step.objective.loss(self.network, step.part.x, step.part.y, step.x_adv)
        if not isinstance(found, (tuple, list)) or len(found) not in (2, 3):
            raise ValueError(
                "The `loss` of an objective must return Losses(per_example, logits, logits_adv=None). "
                f"Received: {type(found).__name__} from {type(step.objective).__name__}"
            )
        found = Losses(*found)
        if found.per_example.shape.rank != 1:
            raise ValueError(
                "The `loss` of an objective must first return one loss per image, of shape (batch,), without mean or "
                f"sum. Received: shape {tuple(found.per_example.shape)} from {type(step.objective).__name__}"
            )
        losses = Losses(*(step.part.counted(each) for each in found))
        if self._watcher is not None and found.logits_adv is None:
            raise ValueError(
                f"{type(self._watcher).__name__} needs accuracy under attack in training, but "
                f"{type(step.objective).__name__} computes no logits of attacked images; use AT, TRADES or MART"
            )
        return losses._replace(logits_adv=losses.logits) if found.logits_adv is found.logits else losses

    def _targets(self, step: Step, losses: Losses) -> list[tuple[tf.Tensor, list[Any]]]:
        """Returns losses `(batch,)`, each with the weights that it trains; a sparsifier uses the first loss."""
        del step
        return [(losses.per_example, self.network.trainable_variables)]

    def _end_update(self, step: Step, image_gradient: list[tf.Tensor]) -> Step:
        """Returns the data of the next update of the same batch; gets the gradient if `_follows_images`."""
        del image_gradient
        return step

    def _end_step(self, step: Step) -> None:
        """Stores what a later step needs; nothing by default."""

    def _dense_sources(self):
        """Returns other tensors whose gradients the sparsifier needs; called while the tape records."""
        needed = self.sparsifier is not None and self.sparsifier.needs_dense_gradients
        return self.sparsifier.gradient_sources() if needed else []

    def _update(self, gradients, weights, dense, sources):
        """Lets the optimizer and the sparsifier change the weights; `dense` are the gradients of `sources`."""
        # Counting steps and moving connections must wait for the check of the images. Updates of weights wait anyway,
        # because gradients depend on it.
        with tf.control_dependencies([each for each in [*gradients, *dense] if each is not None][-1:]):
            if self.sparsifier is None:
                self.optimizer.apply_gradients(zip(gradients, weights, strict=True))
            else:
                state = self.sparsifier.before_update(self.optimizer)
                masked = self.sparsifier.mask_gradients(gradients, weights)
                apply_unless(self.sparsifier.rests(self.optimizer), self.optimizer, masked, weights)
                self.sparsifier.after_update(state, self.optimizer, summed_over_replicas(dense, sources))
            if self.average is not None:
                self.average.after_update(tf.convert_to_tensor(self.optimizer.iterations))

    def _training_logs(self, logs, terms=None):
        """Drops quantities of validation, and adds the terms of the loss."""
        dropped = ["robust_accuracy", "robust_loss", *self.validation_checks, *(term.name for term in self._terms)]
        logs = {name: value for name, value in logs.items() if name not in dropped}
        for metric in self._terms:
            if terms and metric.name in terms:
                metric.update_state(terms[metric.name])
                logs[metric.name] = self._spread(metric.result())
        return logs

    def _terms_of(self, y, logits, logits_adv):
        """Returns losses and accuracies of clean and attacked images, `(batch,)` each, as far as there are logits."""
        if not self._terms or logits_adv is None:
            return {}
        right = tf.cast(tf.argmax(logits_adv, axis=-1) == tf.cast(y, tf.int64), tf.float32)
        adversarial = {"adversarial_loss": cross_entropy(y, logits_adv), "adversarial_accuracy": right}
        return adversarial if logits is logits_adv else {"clean_loss": cross_entropy(y, logits), **adversarial}

    def _folded_kernels(self):
        return layers.folded_kernels(self.network, allow_sparse=not self.jit_compile)

    def _training_noise(self, seed):
        return training_noise(self.network, fold_in(seed, _DRAWS), shared=self.shared_noise)

    def _step_seed(self):
        """Returns the seed of all random draws in this step."""
        return tf.stack([self.seed, tf.cast(self.optimizer.iterations, tf.int32)])

    def _layer_losses(self):
        return collected_layer_losses(self.network)

    def _scaled_loss(self, per_example, added, images=None):
        """Returns the loss to descend: the mean loss, and once over all replicas the losses that layers add."""
        loss = self._mean_loss(per_example, images)
        if added.total is not None:
            loss += added.total / tf.distribute.get_strategy().num_replicas_in_sync
        return self.optimizer.scale_loss(loss)

    def _mean_loss(self, per_example, images=None):
        """Returns the sum of losses over the global batch size, because the optimizer sums gradients over replicas.

        `images` is the number of images on all replicas, or `None` if all replicas have equal parts.
        """
        return tf.nn.compute_average_loss(per_example) if images is None else tf.reduce_sum(per_example) / images

    def _record_step(self, per_example, x, y, logits, logits_adv):
        """Returns the logs of a training step."""
        del logits_adv  # used by subclasses
        return self._update_metrics(per_example, x, y, logits)
