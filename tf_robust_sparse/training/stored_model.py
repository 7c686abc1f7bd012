"""ATTA, fast adversarial training: one attack step per batch, on perturbations that persist over the epochs."""

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self

import keras
import numpy as np
import tensorflow as tf

from tf_robust_sparse.attacks import GradientAttack
from tf_robust_sparse.layers.kernel_seam import inference_logits
from tf_robust_sparse.layers.noise import fold_in, uniform_like
from tf_robust_sparse.objectives import Losses, Objective, ScheduledRadius, mixing
from tf_robust_sparse.objectives.label_smoothing import smoothed_cross_entropy
from tf_robust_sparse.objectives.objective import ObjectiveAround, innermost, training_logits
from tf_robust_sparse.sparsity import Sparsifier
from tf_robust_sparse.training import crops
from tf_robust_sparse.training.crops import MARGIN
from tf_robust_sparse.training.replica_part import ReplicaPart
from tf_robust_sparse.training.replica_table import ReplicaTable
from tf_robust_sparse.training.robust_model import RobustModel
from tf_robust_sparse.training.step_data import Step

MIXES = ("cutmix", "acutmix")
_FILL = 0.5  # value of padding
_LARGE, _BLOCK = 160, 8  # images taller than this keep one value per block of this side
_CROP, _START, _MIX = 0xC20, 0x5A7, 0x317  # streams of random draws
_REMEMBERED, _OF_LABEL = 0.9, 0.1  # soft targets: decay of the mean, and share of the label


class ATTA(Objective):
    """The cross entropy of images with a stored perturbation for each of them; see `StoredRobustModel`.

    ```python
    objective = trs.training.ATTA(num_examples=50_000, epsilon=8 / 255, step_size=4 / 255)
    model = trs.training.StoredRobustModel(network, objective)
    ```

    Args:
        num_examples: Number of training images.
        epsilon: Radius of the l-infinity ball in pixels of [0, 1], in (0, 1].
        step_size: Length of the one step, positive.
        flip: Whether images are mirrored.
        carry: Whether perturbations persist; else each batch starts at random.
        batch_norm: `"training"`, as published: in the attack too, batch norm normalizes by the batch and updates its
            statistics; or `"inference"`.
        mix: `"cutmix"`: each image gets a box of another image of the batch, and its label the share of the box of the
            other label; `"acutmix"`: the same box for the whole batch; or `None`.
        soft_targets: Whether targets are 0.1 times the label plus 0.9 times the moving average of predictions
            for the image, which starts at the label and has decay 0.9. Not together with `mix`.

    Raises:
        ValueError: if an argument is out of its range.
    """

    targets: tf.Tensor | None = None  # of the batch, `(batch, classes)`, if they differ from the labels

    def __init__(
        self,
        num_examples: int,
        epsilon: float = 8 / 255,
        step_size: float = 4 / 255,
        flip: bool = True,
        carry: bool = True,
        batch_norm: str = "training",
        mix: str | None = None,
        soft_targets: bool = False,
    ) -> None:
        if isinstance(num_examples, bool) or not isinstance(num_examples, (int, np.integer)) or num_examples < 1:
            raise ValueError(f"`num_examples` must be a positive integer. Received: num_examples={num_examples!r}")
        if not 0 < epsilon <= 1 or not 0 < step_size < math.inf:
            raise ValueError(
                "`epsilon` is a radius in pixels of [0, 1] and `step_size` positive; pass, for example, 8 / 255 and "
                f"4 / 255. Received: epsilon={epsilon!r}, step_size={step_size!r}"
            )
        if batch_norm not in ("training", "inference"):
            raise ValueError(f'`batch_norm` must be "training" or "inference". Received: batch_norm={batch_norm!r}')
        if mix not in (None, *MIXES) or (mix and soft_targets):
            raise ValueError(
                f"`mix` must be None or one of {', '.join(MIXES)}, and None with `soft_targets`, which are for whole "
                f"images. Received: mix={mix!r}, soft_targets={soft_targets}"
            )
        self.num_examples = int(num_examples)
        self.epsilon = float(epsilon)
        self.step_size = float(step_size)
        self.flip = bool(flip)
        self.carry = bool(carry)
        self.batch_norm = batch_norm
        self.mix = mix
        self.soft_targets = bool(soft_targets)

    def at_radius(self, epsilon: tf.Tensor) -> Self:
        """Returns this objective in a ball of another radius, scalar, float32, with a step in proportion."""
        now = copy.copy(self)
        now.epsilon, now.step_size = epsilon, self.step_size / self.epsilon * epsilon
        return now

    def loss(self, network: keras.Model, x: tf.Tensor, y: tf.Tensor, x_adv: tf.Tensor) -> Losses:
        """Returns losses `(batch,)` and logits `(batch, classes)` of the perturbed images."""
        logits = training_logits(network, x_adv)
        losses = smoothed_cross_entropy(y if self.targets is None else self.targets, logits, 0.0)
        return Losses(losses, logits, logits)

    def describe(self) -> dict[str, Any]:
        """Returns everything that defines the objective, as plain values for a results file."""
        names = ("epsilon", "step_size", "flip", "carry", "batch_norm")
        more = {name: getattr(self, name) for name in ("mix", "soft_targets") if getattr(self, name)}
        return {**super().describe(), **{name: getattr(self, name) for name in names}, **more}


class _Kept(NamedTuple):
    """The data that a step needs to write perturbations back."""

    index: tf.Tensor
    stored: tf.Tensor  # perturbations in the padded frames
    own: tf.Tensor  # perturbations in the crops, before boxes are exchanged
    start: tf.Tensor
    labels: tf.Tensor
    offsets: tf.Tensor
    mirrored: tf.Tensor
    pairs: Any
    delta: tf.Tensor | None = None


class StoredRobustModel(RobustModel):
    """Trains `network` on images attacked by one step, from the perturbation that the last epoch ended with.

    Batches are `(x, y, index)`, see `data.train_dataset(with_index=True)`, with images that are not augmented. This
    model pads each image by 4 pixels of 0.5, crops it at an offset of 0 to 7 in each direction and mirrors it, and
    takes the same crop of its perturbation. One gradient step moves the perturbation, and the result is written back.
    So an epoch costs two passes per image, and over the epochs the attacks become as strong as attacks of many steps.
    Boxes of other images bring their perturbations along and take them back. If two images share a pixel, both keep the
    mean.

    Perturbations are float16, `(num_examples, height + 8, width + 8, channels)` (480 MB for CIFAR's 50,000 images), or
    one value per 8x8 block for images taller than 160 pixels. They are part of a checkpoint. Each of R replicas holds
    those of every R-th image and must get these images: pass `parts=R` to `train_dataset`. The batches depend on R, so
    a run that continues with another number of replicas is not bit-exact.

    Args:
        network: See `RobustModel`.
        objective: `ATTA`, or one that wraps it such as `Reweighted` or `ScheduledRadius`.
        sparsifier, validation_attack, seed, validation_checks: See `RobustModel`.

    Attributes:
        tables: Stored data per example, by name; `numpy.asarray` gives them in the order of the examples.

    Raises:
        ValueError: as for `RobustModel`, or if `objective` is of another kind.

    Reference: [Zheng et al., 2020](https://arxiv.org/abs/1912.11969), section 3.3 (perturbations carried over epochs);
        [Liu et al., 2022](https://arxiv.org/abs/2202.01341), section 4.3; [Yun et al.,
        2019](https://arxiv.org/abs/1905.04899) (boxes).
    """

    def __init__(
        self,
        network: keras.Model,
        objective: Objective,
        sparsifier: Sparsifier | None = None,
        validation_attack: GradientAttack | None = None,
        seed: int = 0,
        validation_checks: Mapping[str, Callable[..., tf.Tensor]] | None = None,
    ) -> None:
        if not isinstance(innermost(objective), ATTA):
            raise ValueError(f"`objective` must be ATTA, or wrap it. Received: objective={objective!r}")
        super().__init__(network, objective, sparsifier, validation_attack, seed, validation_checks)

    def build(self, input_shape):
        """Creates the tables; perturbations start uniform in the ball."""
        height, width, channels = input_shape[1:]
        settings: Any = innermost(self.objective)
        self._block = _BLOCK if height > _LARGE else 1
        self._frame = (height + 2 * MARGIN, width + 2 * MARGIN)
        self._largest = _float16_below(max(settings.epsilon, _largest_scheduled(self.objective)))
        blocks = [-(-side // self._block) for side in self._frame]
        generator = np.random.default_rng([self.seed, _START])

        def uniform(first: int, last: int) -> np.ndarray:
            draws = generator.random((last - first, *blocks, channels), np.float32)
            within = _float16_below(settings.epsilon)
            return np.clip(settings.epsilon * (2 * draws - 1), -within, within).astype(np.float16)

        self.tables: dict[str, ReplicaTable] = {}
        if settings.carry:
            row = (*blocks, channels)
            self.tables["perturbations"] = ReplicaTable("perturbations", settings.num_examples, row, "float16", uniform)
        if settings.soft_targets:
            row = (self.network.output_shape[-1],)
            self.tables["soft_targets"] = ReplicaTable(
                "soft_targets", settings.num_examples, row, "float32", lambda i, j: np.zeros((j - i, *row), np.float32)
            )
        super().build(input_shape)

    def _begin_step(self, data: Any) -> Step:
        """Crops, mirrors and mixes the images together with their stored perturbations."""
        x, y, index = data
        (x, y), seed = self._batch((x, y)), self._step_seed()
        objective = self.objective.at_step(tf.convert_to_tensor(self.optimizer.iterations), seed)
        settings: Any = innermost(objective)
        size, number = x.shape[1:3], tf.shape(x)[0]
        offsets, mirrored = crops.draw_crops(number, fold_in(seed, _CROP), settings.flip)
        padded = tf.pad(x, ((0, 0), *[(MARGIN, MARGIN)] * 2, (0, 0)), constant_values=_FILL)
        x = crops.cropped(padded, offsets, mirrored, size)
        stored = self._stored(index, padded, fold_in(seed, _START), settings.epsilon)
        own = crops.cropped(stored, offsets, mirrored, size)
        start, labels, pairs = own, y, None
        if settings.mix:
            pairs = mixing.boxes(number, fold_in(seed, _MIX), size, one=settings.mix == "acutmix")
            x, start = mixing.mixed(x, *pairs), mixing.mixed(own, *pairs)
            labels = mixing.mixed_labels(y, self.network.output_shape[-1], *pairs)
        kept = _Kept(index, stored, own, start, labels, offsets, mirrored, pairs)
        return Step(ReplicaPart(x, y), seed, objective, kept=kept)

    def _attacked(self, step: Step) -> Step:
        """Returns the step with images attacked by one step from their stored perturbations."""
        settings: Any = innermost(step.objective)
        kept, (x, y) = step.kept, step.part[:2]
        delta, logits = self._stepped(settings, x, kept.labels, kept.start)
        labels = self._soft_targets(kept.index, y, tf.nn.softmax(logits)) if settings.soft_targets else kept.labels
        objective = step.objective if labels is y else _aiming_at(step.objective, labels)
        return step._replace(x_adv=x + delta, objective=objective, kept=kept._replace(delta=delta))

    def _end_step(self, step: Step) -> None:
        """Writes the perturbations back to their places."""
        settings: Any = innermost(step.objective)
        if settings.carry:
            kept: _Kept = step.kept
            part = kept.delta if kept.pairs is None else mixing.unmixed(kept.delta, kept.own, *kept.pairs)
            self._keep(kept.index, crops.put_back(kept.stored, part, kept.offsets, kept.mirrored))

    def _stepped(
        self, settings: ATTA, x: tf.Tensor, labels: tf.Tensor, delta: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the perturbation after one step from `x + delta`, which may leave [0, 1], and the logits there."""
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(delta)
            if settings.batch_norm == "training":
                logits = training_logits(self.network, x + delta)
            else:
                with self._folded_kernels():
                    logits = tf.cast(inference_logits(self.network, x + delta), tf.float32)
            loss = tf.reduce_sum(smoothed_cross_entropy(labels, logits, 0.0))
        direction = tf.sign(tape.gradient(loss, delta))
        delta = tf.clip_by_value(delta + settings.step_size * direction, -settings.epsilon, settings.epsilon)
        return tf.clip_by_value(x + delta, 0.0, 1.0) - x, logits

    def _soft_targets(self, index: tf.Tensor, y: tf.Tensor, probabilities: tf.Tensor) -> tf.Tensor:
        """Updates the moving averages of these images, and returns the targets: `(batch, classes)`."""
        labels = tf.one_hot(y, probabilities.shape[-1])
        means = self.tables["soft_targets"].read(index)
        means = tf.where(tf.reduce_any(means > 0, -1, keepdims=True), means, labels)  # new images start at the label
        means = _REMEMBERED * means + (1 - _REMEMBERED) * probabilities
        self.tables["soft_targets"].write(index, means)
        return _OF_LABEL * labels + (1 - _OF_LABEL) * means

    def _stored(self, index: tf.Tensor, padded: tf.Tensor, seed: tf.Tensor, epsilon: Any) -> tf.Tensor:
        """Returns the perturbations of these images in the padded frame, float32."""
        if "perturbations" not in self.tables:
            return uniform_like(padded, seed, -epsilon, epsilon)
        rows = tf.cast(self.tables["perturbations"].read(index), tf.float32)
        if self._block > 1:
            rows = tf.repeat(tf.repeat(rows, self._block, 1), self._block, 2)[:, : self._frame[0], : self._frame[1]]
        return tf.ensure_shape(rows, padded.shape)

    def _keep(self, index: tf.Tensor, rows: tf.Tensor) -> None:
        """Writes perturbations back: blocks averaged, clipped to the ball, as float16."""
        if self._block > 1:
            rows = crops.block_means(rows, self._block)
        self.tables["perturbations"].write(index, tf.clip_by_value(rows, -self._largest, self._largest))

    def _checked_spec(self, spec: Any) -> int | None:
        with_index = isinstance(spec, tuple) and len(spec) == 3 and getattr(spec[2], "dtype", tf.float32).is_integer
        return super()._checked_spec(spec[:2] if with_index else spec)


def _largest_scheduled(objective: Any) -> float:
    """Returns the largest radius of schedules around an objective, 0 without schedules."""
    largest = 0.0
    while isinstance(objective, ObjectiveAround):
        if isinstance(objective, ScheduledRadius):
            largest = max(largest, objective.schedule.epsilon)
        objective = objective.objective
    return largest


def _aiming_at(objective: Any, targets: tf.Tensor) -> Any:
    """Returns the objective with new targets `(batch, classes)` for the innermost objective."""
    if isinstance(objective, ObjectiveAround):
        return objective.around(_aiming_at(objective.objective, targets))
    now = copy.copy(objective)
    now.targets = targets
    return now


def _float16_below(value: float) -> float:
    """Returns the largest float16 that is not above `value`, as float."""
    rounded = np.float16(value)
    return float(rounded if float(rounded) <= value else np.nextafter(rounded, np.float16(0)))
