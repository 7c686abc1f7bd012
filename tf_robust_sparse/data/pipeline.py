"""tf.data pipelines in which every batch depends on (seed, epoch, position in the epoch) alone.

A resumed run thus sees the batches of the uninterrupted run, and replicas share one global batch however it is divided.
The random numbers of an example travel with its index, and the batch operation comes last, where tf.distribute expects
it.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tf_robust_sparse.data import augment, image_files
from tf_robust_sparse.data.image_files import ImageFiles
from tf_robust_sparse.data.source import Images, check_examples

_AUGMENTATIONS: dict[str, Callable] = {"shift": augment.shift_and_flip, "crop": augment.crop_and_flip}
_OF_FILES = "resized_crop"

# Each of these draws has a separate key per epoch.
_SHUFFLE, _AUGMENT, _AUXILIARY, _NUM_STREAMS = 0, 1, 2, 4


def train_dataset(
    images: Images,
    labels: np.ndarray,
    batch_size: int,
    *,
    seed: int = 0,
    augmentation: str | None = "shift",
    flip: bool = True,
    epochs: int | None = None,
    first_epoch: int = 0,
    drop_remainder: bool = True,
    auxiliary: tuple[np.ndarray, np.ndarray] | None = None,
    auxiliary_fraction: float = 0.5,
    with_index: bool = False,
    parts: int = 1,
) -> tf.data.Dataset:
    """Returns shuffled, augmented batches `(x, y)` for training.

    With `epochs`, one pass goes through the epochs `first_epoch, ..., epochs - 1`: pass
    `steps_per_epoch=steps_per_epoch(...)` to `fit`. A run resumed at epoch e with `first_epoch=e` sees exactly the
    remaining batches of the uninterrupted run. Without `epochs`, each pass is one epoch, for a plain
    `fit(train, epochs=200)`; the passes then also depend on `tf.random.set_seed`.

    With `auxiliary`, every batch holds `int(batch_size * auxiliary_fraction)` auxiliary examples, spread evenly among
    the labeled ones, and an epoch is one pass over the labeled examples. The auxiliary examples have passes of their
    own, which continue across epochs; each pass is shuffled again.

    Args:
        images: `(n, height, width, channels)`, uint8, or floats in [0, 1]; or `ImageFiles`.
        labels: `(n,)`, integers.
        batch_size: Number of examples in a global batch.
        seed: Seed of the order and of the augmentation.
        augmentation: `"shift"` for `random_shift_and_flip`, `"crop"` for `random_crop_and_flip`, `"resized_crop"`, only
            for `ImageFiles`, for a random part of 8 to 100 % of the image, or `None`.
        flip: Whether the augmentation mirrors images; wrong for digits.
        epochs: Number of epochs, counted from epoch 0, or `None` for one epoch per pass.
        first_epoch: Epoch to begin with, if `epochs` is given.
        drop_remainder: Whether an epoch drops its last, partial batch; otherwise batches have no static size.
        auxiliary: More images and labels, such as pseudo-labeled ones, in the same format.
        auxiliary_fraction: Fraction of auxiliary examples in a batch, in (0, 1).
        with_index: Whether batches are `(x, y, index)` with the place of each example in `images`; auxiliary examples
            are counted after these.
        parts: Number of equal, consecutive parts of a batch. Part r has the examples whose place in `images` is r
            modulo `parts`, so that each replica can keep data for its examples. Needs `with_index` and no `auxiliary`.

    Returns:
        A dataset of `x` float32 `(batch, height, width, channels)` in [0, 1] and `y` int64 `(batch,)`, of known
        cardinality; and `index` int64 `(batch,)` with `with_index`.

    Raises:
        ValueError: if the examples or the settings do not fit this description.
    """
    images, labels = check_examples(images, labels, where="train_dataset")
    n = len(labels)
    auxiliary_batch = 0
    # Images that stay on the disk, see `load_generated`.
    mapped = auxiliary[0] if auxiliary is not None and isinstance(auxiliary[0], np.memmap) else None
    if auxiliary is not None:
        auxiliary = check_examples(*auxiliary, where="train_dataset, auxiliary examples")
        if isinstance(images, ImageFiles) or isinstance(auxiliary[0], ImageFiles):
            raise ValueError("`auxiliary` needs images in memory; pass arrays. Received: image files")
        if auxiliary[0].shape[1:] != images.shape[1:]:
            raise ValueError(
                f"auxiliary images must have the (height, width, channels) of the labeled ones, {images.shape[1:]}; "
                f"resize them. Received: {auxiliary[0].shape[1:]}"
            )
        auxiliary_batch = auxiliary_batch_size(batch_size, auxiliary_fraction)
        if not drop_remainder:
            raise ValueError(
                "with `auxiliary` every batch is full; pass drop_remainder=True. Received: drop_remainder=False"
            )
    known = (*_AUGMENTATIONS, _OF_FILES)
    if augmentation is not None and augmentation not in known:
        raise ValueError(
            f"`augmentation` must be None or one of {', '.join(map(repr, known))}. "
            f"Received: augmentation={augmentation!r}"
        )
    if augmentation == _OF_FILES and not isinstance(images, ImageFiles):
        raise ValueError(
            f"augmentation={augmentation!r} crops images of any size in files; pass ImageFiles, or 'crop'. "
            "Received: images of one size in memory"
        )
    if epochs is not None and not 0 <= first_epoch <= epochs:
        raise ValueError(
            f"`first_epoch` must be in 0..`epochs`; epochs are counted from 0. "
            f"Received: first_epoch={first_epoch}, epochs={epochs}"
        )
    if epochs is None and first_epoch != 0:
        raise ValueError(
            f"`first_epoch` has no effect without `epochs`; pass `epochs`, too. Received: first_epoch={first_epoch}"
        )
    if parts != 1 and (parts < 1 or batch_size % parts or auxiliary is not None or not drop_remainder):
        raise ValueError(
            "`parts` must divide full batches without auxiliary examples into equal parts. "
            f"Received: parts={parts}, batch_size={batch_size}, drop_remainder={drop_remainder}"
        )
    steps = steps_per_epoch(n, batch_size, auxiliary_batch, drop_remainder=drop_remainder)
    per_epoch = steps * batch_size if drop_remainder else n

    def epoch_stream(key):
        if auxiliary is None:
            index = _in_parts(_permutation(n, _key(seed, key, _SHUFFLE)), parts, steps, batch_size)[:per_epoch]
        else:
            labeled_batch = batch_size - auxiliary_batch
            labeled = _permutation(n, _key(seed, key, _SHUFFLE))[: steps * labeled_batch]
            extra = _endless_permutations(len(auxiliary[1]), key, steps * auxiliary_batch, seed)
            rows = tf.reshape(labeled, [steps, labeled_batch]), tf.reshape(extra + n, [steps, auxiliary_batch])
            mixed = tf.gather(tf.concat(rows, axis=1), _interleaving(batch_size, auxiliary_batch), axis=1)
            index = tf.reshape(mixed, [-1])
        number = image_files.NUM_UNIFORMS if augmentation == _OF_FILES else augment.NUM_UNIFORMS
        draws = augment.uniforms(per_epoch, _key(seed, key, _AUGMENT), number)
        dataset = tf.data.Dataset.from_tensor_slices((index, draws))
        # Partial batches end their epochs here; full ones are made below, where tf.distribute can divide them.
        return dataset if drop_remainder else dataset.batch(batch_size)

    if epochs is None:
        keys = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True).take(1)
        num_epochs = 1
    else:
        keys = tf.data.Dataset.range(first_epoch, epochs)
        num_epochs = epochs - first_epoch
    stream = keys.flat_map(epoch_stream)
    stream = stream.apply(
        tf.data.experimental.assert_cardinality(num_epochs * (per_epoch if drop_remainder else steps))
    )

    if augmentation == _OF_FILES and isinstance(images, ImageFiles):
        make_batch = _gather_parts(images, labels, flip)
    else:
        make_batch = _gather_and_move(_gather(images, labels, auxiliary, mapped), augmentation, flip)
    batches = stream.batch(batch_size, drop_remainder=True) if drop_remainder else stream
    return _made(batches, (lambda i, u: (*make_batch(i, u), i)) if with_index else make_batch)


def test_dataset(images: Images, labels: np.ndarray, batch_size: int) -> tf.data.Dataset:
    """Returns all examples in order, unaugmented; the last batch may be smaller.

    Args:
        images: `(n, height, width, channels)`, uint8, or floats in [0, 1]; or `ImageFiles`, whose centers are shown.
        labels: `(n,)`, integers.
        batch_size: Number of examples in a global batch.

    Returns:
        A dataset of `x` float32 `(batch, height, width, channels)` in [0, 1] and `y` int64 `(batch,)`.

    Raises:
        ValueError: if the examples do not fit this description.
    """
    images, labels = check_examples(images, labels, where="test_dataset")
    _check_batch_size(batch_size)
    return _made(tf.data.Dataset.range(len(labels)).batch(batch_size), _gather(images, labels, None))


# pytest would otherwise take the function for a test wherever a test module imports it.
test_dataset.__test__ = False  # type: ignore[attr-defined]


def steps_per_epoch(
    num_examples: int, batch_size: int, auxiliary_batch: int = 0, *, drop_remainder: bool = True
) -> int:
    """Returns the number of batches in an epoch.

    Args:
        num_examples: Number of labeled examples.
        batch_size: Number of examples in a global batch, labeled and auxiliary ones together.
        auxiliary_batch: How many of a batch are auxiliary.
        drop_remainder: Whether the last, partial batch is dropped.

    Raises:
        ValueError: if there is not one full batch, or no room for labeled examples in it.
    """
    _check_batch_size(batch_size)
    labeled_batch = batch_size - auxiliary_batch
    if auxiliary_batch < 0 or labeled_batch < 1:
        raise ValueError(
            f"`auxiliary_batch` must leave room for labeled examples, 0..{batch_size - 1}. "
            f"Received: auxiliary_batch={auxiliary_batch}, batch_size={batch_size}"
        )
    if not drop_remainder:
        return -(-num_examples // labeled_batch)
    if num_examples < labeled_batch:
        raise ValueError(
            f"an epoch needs at least one full batch, {labeled_batch} labeled examples; make `batch_size` smaller. "
            f"Received: {num_examples} examples, batch_size={batch_size}"
        )
    return num_examples // labeled_batch


def auxiliary_batch_size(batch_size: int, auxiliary_fraction: float) -> int:
    """Returns how many examples of a batch are auxiliary: `int(batch_size * auxiliary_fraction)`.

    Raises:
        ValueError: if that leaves no auxiliary or no labeled examples.
    """
    _check_batch_size(batch_size)
    size = int(batch_size * auxiliary_fraction)
    if not 0 < size < batch_size:
        raise ValueError(
            "`auxiliary_fraction` must be the fraction of auxiliary examples, in (0, 1), and both kinds need at "
            f"least one. Received: auxiliary_fraction={auxiliary_fraction}, batch_size={batch_size}"
        )
    return size


def _made(batches: tf.data.Dataset, make_batch: Callable) -> tf.data.Dataset:
    dataset = batches.map(make_batch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    options = tf.data.Options()
    # There are no files to distribute among workers; each takes its part of every global batch.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return dataset.prefetch(tf.data.AUTOTUNE).with_options(options)


def _gather_and_move(gather: Callable, augmentation: str | None, flip: bool) -> Callable:
    """Returns a function from indices and uniform numbers to augmented images and labels."""
    move = functools.partial(_AUGMENTATIONS[augmentation], flip=flip) if augmentation is not None else None

    def make_batch(index, uniform):
        x, y = gather(index)
        return (move(x, uniform) if move is not None else x), y

    return make_batch


def _gather_parts(images: ImageFiles, labels: np.ndarray, flip: bool) -> Callable:
    """Returns a function from indices and uniform numbers to random parts of the images and labels."""
    with tf.device("CPU:0"):
        paths, classes = tf.constant(images.paths.astype(str)), tf.constant(labels)

    def gather(index, uniform):
        x = tf.map_fn(
            lambda one: image_files.random_resized_crop(one[0], one[1], images.size, flip),
            (tf.gather(paths, index), uniform),
            fn_output_signature=tf.TensorSpec(images.shape[1:], tf.float32),
        )
        return x, tf.gather(classes, index)

    return gather


def _gather(
    images: Images,
    labels: np.ndarray,
    auxiliary: tuple[np.ndarray, np.ndarray] | None,
    mapped: np.ndarray | None = None,
) -> Callable:
    """Returns a function from indices `(batch,)` to scaled images and labels; auxiliary indices follow.

    `mapped` are auxiliary images that are read from their file in each batch.
    """
    if isinstance(images, ImageFiles):
        return _gather_centers(images, labels)
    with tf.device("CPU:0"):  # where tf.data runs: a copy on an accelerator would be copied back for every batch
        parts = [(tf.constant(images), tf.constant(labels))]
        if auxiliary is not None:
            parts.append((auxiliary[0] if mapped is not None else tf.constant(auxiliary[0]), tf.constant(auxiliary[1])))

    def take(part, index):
        if tf.is_tensor(part[0]):
            x = tf.gather(part[0], index)
        else:
            x = tf.numpy_function(lambda rows: mapped[rows], [index], tf.uint8, stateful=False)
            x = tf.ensure_shape(x, (*index.shape, *mapped.shape[1:]))
        return (tf.cast(x, tf.float32) / 255.0 if x.dtype == tf.uint8 else x), tf.gather(part[1], index)

    def gather(index):
        if len(parts) == 1:
            return take(parts[0], index)
        n = len(labels)
        is_auxiliary = index >= n
        x, y = take(parts[0], tf.where(is_auxiliary, tf.zeros_like(index), index))
        other_x, other_y = take(parts[1], tf.where(is_auxiliary, index - n, tf.zeros_like(index)))
        return tf.where(is_auxiliary[:, None, None, None], other_x, x), tf.where(is_auxiliary, other_y, y)

    return gather


def _gather_centers(images: ImageFiles, labels: np.ndarray) -> Callable:
    with tf.device("CPU:0"):
        paths, classes = tf.constant(images.paths.astype(str)), tf.constant(labels)

    def gather(index):
        x = tf.map_fn(
            lambda path: image_files.center_crop(path, images.size),
            tf.gather(paths, index),
            fn_output_signature=tf.TensorSpec(images.shape[1:], tf.uint8),
        )
        return tf.cast(x, tf.float32) / 255.0, tf.gather(classes, index)

    return gather


def _key(seed: int, epoch: Any, stream: int) -> tf.Tensor:
    return tf.stack([tf.constant(seed, tf.int64), tf.cast(epoch, tf.int64) * _NUM_STREAMS + stream])


def _permutation(n: int, key: tf.Tensor) -> tf.Tensor:
    """Returns 0..n-1 in random order, int64; equal keys give equal orders."""
    draws = tf.random.stateless_uniform([n], key, minval=None, maxval=None, dtype=tf.int64, alg="philox")
    return tf.cast(tf.argsort(draws, stable=True), tf.int64)


def _in_parts(order: tf.Tensor, parts: int, steps: int, batch_size: int) -> tf.Tensor:
    """Reorders the places so that part r of each batch has places that are r modulo `parts`."""
    if parts == 1:
        return order
    of_parts = [
        tf.reshape(tf.boolean_mask(order, order % parts == part)[: steps * (batch_size // parts)], [steps, -1])
        for part in range(parts)
    ]
    return tf.reshape(tf.concat(of_parts, axis=1), [-1])


def _endless_permutations(n: int, epoch: tf.Tensor, count: int, seed: int) -> tf.Tensor:
    """Returns numbers `epoch * count` to `(epoch + 1) * count` of a concatenation of permutations of 0..n-1."""
    start = tf.cast(epoch, tf.int64) * count
    first_pass, offset = start // n, start % n
    num_passes = -(-(n - 1 + count) // n)  # enough for the largest offset
    permutations = tf.map_fn(
        lambda number: _permutation(n, _key(seed, number, _AUXILIARY)),
        first_pass + tf.range(num_passes, dtype=tf.int64),
    )
    return tf.reshape(permutations, [-1])[offset : offset + count]


def _interleaving(batch_size: int, auxiliary_batch: int) -> np.ndarray:
    """Returns an order that spreads the auxiliary examples, which are at the end of the batch, evenly over it.

    Otherwise one replica would get the labeled half and another one the auxiliary half.
    """
    is_auxiliary = np.diff(np.arange(batch_size + 1) * auxiliary_batch // batch_size) == 1
    order = np.empty(batch_size, np.int64)
    order[~is_auxiliary] = np.arange(batch_size - auxiliary_batch)
    order[is_auxiliary] = np.arange(batch_size - auxiliary_batch, batch_size)
    return order


def _check_batch_size(batch_size: int) -> None:
    if not (isinstance(batch_size, (int, np.integer)) and batch_size >= 1):
        raise ValueError(f"`batch_size` must be a positive integer. Received: batch_size={batch_size!r}")
