"""Fast adversarial training: one step per batch on perturbations that are kept for every image over the epochs."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_robust_sparse import layers
from tf_robust_sparse.attacks import GradientAttack, cross_entropy, fold_in, uniform_like
from tf_robust_sparse.layers import select
from tf_robust_sparse.objectives import Objective
from tf_robust_sparse.objectives.objective import training_logits
from tf_robust_sparse.sparsity import Sparsifier
from tf_robust_sparse.training.robust_model import RobustModel

_MARGIN = 4  # pixels by which images are padded before they are cropped
_FILL = 0.5  # what they are padded with
_LARGE, _BLOCK = 160, 8  # images taller than this keep one value per block of this side
_CROP, _START = 0xC20, 0x5A7  # streams of draws


class StoredAT(Objective):
    """The cross-entropy of images with a perturbation that is kept for each of them; see `StoredRobustModel`.

    Args:
        num_examples: Number of training images; their indices are below it.
        epsilon: Radius of the l-infinity ball in pixels of [0, 1], in (0, 1].
        step_size: Length of the one step, positive.
        flip: Whether images are mirrored.
        carry: Whether perturbations are kept; else each batch starts at random.
        batch_norm: `"training"`, as published: the step of the attack normalises by the batch and moves the
            statistics; or `"inference"`.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(
        self,
        num_examples: int,
        epsilon: float = 8 / 255,
        step_size: float = 4 / 255,
        flip: bool = True,
        carry: bool = True,
        batch_norm: str = "training",
    ) -> None:
        if isinstance(num_examples, bool) or not isinstance(num_examples, (int, np.integer)) or num_examples < 1:
            raise ValueError(f"`num_examples` must be a positive integer. Received: num_examples={num_examples!r}")
        if not 0 < epsilon <= 1 or not 0 < step_size < math.inf:
            raise ValueError(
                "`epsilon` is a radius in pixels of [0, 1] and `step_size` positive; pass for example 8 / 255 and "
                f"4 / 255. Received: epsilon={epsilon!r}, step_size={step_size!r}"
            )
        if batch_norm not in ("training", "inference"):
            raise ValueError(f'`batch_norm` must be "training" or "inference". Received: batch_norm={batch_norm!r}')
        self.num_examples = int(num_examples)
        self.epsilon = float(epsilon)
        self.step_size = float(step_size)
        self.flip = bool(flip)
        self.carry = bool(carry)
        self.batch_norm = batch_norm

    def loss(self, network: keras.Model, x: tf.Tensor, y: tf.Tensor, x_adv: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Losses `(batch,)` and logits `(batch, classes)` of the perturbed images."""
        logits = training_logits(network, x_adv)
        return cross_entropy(y, logits), logits

    def describe(self) -> dict[str, Any]:
        """Everything that defines the objective, as plain values for a results file."""
        names = ("epsilon", "step_size", "flip", "carry", "batch_norm")
        return {**super().describe(), **{name: getattr(self, name) for name in names}}


class StoredRobustModel(RobustModel):
    """Trains `network` on images attacked by one step from where the attack of the epoch before ended.

    Batches are `(x, y, index)`, see `data.train_dataset(with_index=True)`, with images that are not augmented: each is
    padded by 4 pixels of 0.5, cropped at an offset of 0 to 7 either way and mirrored here, and the part of its own
    perturbation at the same place comes with it. One gradient step moves that part, which is written back. So an epoch
    costs two passes per image, and attacks grow as strong as ones of many steps over the epochs.

    Perturbations are float16, in one variable `(num_examples, height + 8, width + 8, channels)` (480 MB for CIFAR's
    50,000 images), with one value per 8x8 block for images taller than 160 pixels. It is part of a checkpoint. On
    several replicas each has a copy, and every copy gets the rows of all of them.

    Args:
        network: As for `RobustModel`.
        objective: `StoredAT`, or one that wraps it such as `Reweighted`.
        sparsifier, validation_attack, seed, validation_checks: As for `RobustModel`.

    Raises:
        ValueError: as for `RobustModel`, or if the objective is another one.

    Reference: [Zheng et al., 2020](https://arxiv.org/abs/1912.11969), section 3.3 (perturbations carried over epochs);
        [Liu et al., 2022](https://arxiv.org/abs/2202.01341), section 4.3.
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
        stored = getattr(objective, "objective", objective)
        if not isinstance(stored, StoredAT):
            raise ValueError(f"`objective` must be a StoredAT, or wrap one. Received: objective={objective!r}")
        self._settings = stored
        super().__init__(network, objective, sparsifier, validation_attack, seed, validation_checks)

    def build(self, input_shape):
        """Creates the perturbations, uniform in the ball."""
        height, width, channels = input_shape[1:]
        self._block = _BLOCK if height > _LARGE else 1
        self._frame = (height + 2 * _MARGIN, width + 2 * _MARGIN)
        rows = [-(-side // self._block) for side in self._frame]
        number = self._settings.num_examples if self._settings.carry else 1
        self._perturbations = self.add_weight(
            name="perturbations",
            shape=(number, *rows, channels),
            initializer=self._random_perturbations,
            dtype="float16",
            trainable=False,
            autocast=False,
            aggregation="only_first_replica",
        )
        super().build(input_shape)

    def train_step(self, data):
        """Crops, attacks by one step, keeps the perturbations, trains; see the class."""
        x, y, index = data
        x, settings = tf.cast(x, tf.float32), self._settings
        seed = self._step_seed()
        offsets, mirrored = crops(tf.shape(x)[0], fold_in(seed, _CROP), settings.flip)
        padded = tf.pad(x, ((0, 0), *[(_MARGIN, _MARGIN)] * 2, (0, 0)), constant_values=_FILL)
        x = cropped(padded, offsets, mirrored, x.shape[1:3])
        stored = self._stored(index, padded, fold_in(seed, _START))
        start = cropped(stored, offsets, mirrored, x.shape[1:3])
        with tf.GradientTape() as tape, layers.settled_kernels(self.network):
            with tape.stop_recording():
                delta = self._stepped(x, y, start)
            per_example, logits = self.objective.loss(self.network, x, y, x + delta)
            loss = self.optimizer.scale_loss(self._mean_loss(per_example))
        weights = self.network.trainable_variables
        self._update(tape.gradient(loss, weights), weights)
        if settings.carry:
            self._keep(index, put_back(stored, delta, offsets, mirrored))
        return self._without_validation(self._update_metrics(per_example, x, y, logits))

    def _stepped(self, x: tf.Tensor, y: tf.Tensor, delta: tf.Tensor) -> tf.Tensor:
        """One step of the attack from `x + delta`, which need not be in [0, 1]."""
        settings = self._settings
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(delta)
            if settings.batch_norm == "training":
                logits = training_logits(self.network, x + delta)
            else:
                with self._inference_kernels():
                    logits = tf.cast(self.network(x + delta, training=False), tf.float32)
            loss = tf.reduce_sum(cross_entropy(y, logits))
        direction = tf.sign(tape.gradient(loss, delta))
        delta = tf.clip_by_value(delta + settings.step_size * direction, -settings.epsilon, settings.epsilon)
        return tf.clip_by_value(x + delta, 0.0, 1.0) - x

    def _stored(self, index: tf.Tensor, padded: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """The perturbations of these images in the padded frame, float32."""
        epsilon = self._settings.epsilon
        if not self._settings.carry:
            return uniform_like(padded, seed, -epsilon, epsilon)
        rows = tf.cast(tf.gather(self._perturbations.value, index), tf.float32)
        if self._block > 1:
            rows = tf.repeat(tf.repeat(rows, self._block, 1), self._block, 2)[:, : self._frame[0], : self._frame[1]]
        rows = tf.ensure_shape(rows, padded.shape)
        return tf.clip_by_value(rows, -epsilon, epsilon)

    def _keep(self, index: tf.Tensor, rows: tf.Tensor) -> None:
        """Writes perturbations back, on every replica those of all."""
        rows = self._compact(rows)
        context = tf.distribute.get_replica_context()
        variable = self._perturbations.value
        if context.num_replicas_in_sync == 1:
            variable.scatter_update(tf.IndexedSlices(rows, index))
            return
        index, rows = context.all_gather(index, axis=0), context.all_gather(rows, axis=0)

        def write(strategy, index, rows):
            strategy.extended.update(
                variable, lambda v, i, r: v.scatter_update(tf.IndexedSlices(r, i)), args=(index, rows), group=False
            )

        context.merge_call(write, args=(index, rows))

    def _compact(self, rows: tf.Tensor) -> tf.Tensor:
        """Averages blocks and rounds to float16, never beyond the ball."""
        if self._block > 1:
            rows = block_means(rows, self._block)
        largest = _float16_below(self._settings.epsilon)
        return tf.cast(tf.clip_by_value(rows, -largest, largest), tf.float16)

    def _random_perturbations(self, shape, dtype=None):
        """Draws a few thousand images at a time, for float32 numbers of all would take twice the memory."""
        generator = np.random.default_rng([self.seed, _START])
        found = np.empty(shape, np.float16)
        largest = _float16_below(self._settings.epsilon)
        for first in range(0, shape[0], 1024):
            part = found[first : first + 1024]
            part[...] = np.clip(
                self._settings.epsilon * (2 * generator.random(part.shape, np.float32) - 1), -largest, largest
            )
        return tf.constant(found)

    def _check_data(self, data: Any, batch_size: int | None = None) -> int | None:
        if isinstance(data, tf.data.Dataset) and isinstance(data.element_spec, tuple) and len(data.element_spec) == 3:
            data = data.map(lambda x, y, index: (x, y))
        return super()._check_data(data, batch_size)


def crops(number: tf.Tensor, seed: tf.Tensor, flip: bool) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns offsets `(number, 2)`, integers in 0..7, and which of the images are mirrored `(number,)`."""
    draws = uniform_like(tf.zeros((number, 3)), seed, 0.0, 1.0)
    offsets = tf.minimum(tf.cast(draws[:, :2] * 2 * _MARGIN, tf.int32), 2 * _MARGIN - 1)
    return offsets, (draws[:, 2] < 0.5) if flip else tf.zeros_like(draws[:, 2], tf.bool)


def cropped(images: tf.Tensor, offsets: tf.Tensor, mirrored: tf.Tensor, size: Any) -> tf.Tensor:
    """Returns the part of each image `(batch, height, width, channels)` at its offset, then mirrored."""
    rows = offsets[:, :1] + tf.range(size[0])[tf.newaxis]
    columns = offsets[:, 1:] + tf.range(size[1])[tf.newaxis]
    columns = tf.where(mirrored[:, tf.newaxis], columns[:, ::-1], columns)
    return tf.gather(tf.gather(images, rows, axis=1, batch_dims=1), columns, axis=2, batch_dims=1)


def put_back(images: tf.Tensor, parts: tf.Tensor, offsets: tf.Tensor, mirrored: tf.Tensor) -> tf.Tensor:
    """Returns `images` with `parts` where `cropped` took them from."""
    height, width = parts.shape[1:3]
    rows = tf.range(images.shape[1])[tf.newaxis] - offsets[:, :1]
    columns = tf.range(images.shape[2])[tf.newaxis] - offsets[:, 1:]
    inside = ((rows >= 0) & (rows < height))[:, :, tf.newaxis] & ((columns >= 0) & (columns < width))[:, tf.newaxis, :]
    rows, columns = tf.clip_by_value(rows, 0, height - 1), tf.clip_by_value(columns, 0, width - 1)
    columns = tf.where(mirrored[:, tf.newaxis], width - 1 - columns, columns)
    moved = tf.gather(tf.gather(parts, rows, axis=1, batch_dims=1), columns, axis=2, batch_dims=1)
    return select(tf.broadcast_to(inside[..., tf.newaxis], tf.shape(images)), moved, images)


def block_means(images: tf.Tensor, side: int) -> tf.Tensor:
    """Averages blocks of `side` x `side` pixels; those at the lower and right border may be smaller."""
    height, width, channels = images.shape[1:]
    missing = [-height % side, -width % side]
    images = tf.pad(images, ((0, 0), (0, missing[0]), (0, missing[1]), (0, 0)))
    rows, columns = images.shape[1] // side, images.shape[2] // side
    sums = tf.reduce_sum(tf.reshape(images, (-1, rows, side, columns, side, channels)), (2, 4))
    heights = np.full(rows, side)
    widths = np.full(columns, side)
    heights[-1] -= missing[0]
    widths[-1] -= missing[1]
    return sums / tf.constant(heights[:, None, None] * widths[None, :, None], tf.float32)


def _float16_below(value: float) -> float:
    """The largest float16 that is not above `value`, as float32."""
    rounded = np.float16(value)
    return float(rounded if rounded <= value else np.nextafter(rounded, np.float16(0)))
