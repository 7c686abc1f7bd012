"""The images and labels of an evaluation, checked before any work is done."""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tf_robust_sparse.data.checks import checked_images, checked_labels
from tf_robust_sparse.evaluation.saved_model import SavedModelClassifier
from tf_robust_sparse.layers.forward import image_shape

DEFAULT_BATCH_SIZE = 128


def collect_examples(dataset: Any, max_examples: int | None = None) -> tuple[np.ndarray, np.ndarray, int]:
    """Reads a data set into memory.

    Args:
        dataset: Batched `tf.data.Dataset` of `(x, y)`, or any iterable of such batches, or a tuple `(x, y)` of arrays.
        max_examples: Number of examples to take, from the first on; `None` for all.

    Returns:
        Images `(images, ...)`, float32, in `[0, 1]`; labels `(images,)`, int64; and the size of the first batch, or
        `DEFAULT_BATCH_SIZE` for arrays.

    Raises:
        ValueError: if the data set is empty or endless, or images or labels are malformed.
    """
    if max_examples is not None and max_examples < 1:
        raise ValueError(
            f"`max_examples` is at least 1; pass None for all examples. Received: max_examples={max_examples}"
        )
    if isinstance(dataset, tuple):
        batches, batch_size = [dataset], DEFAULT_BATCH_SIZE
    else:
        endless = isinstance(dataset, tf.data.Dataset) and dataset.cardinality() == tf.data.INFINITE_CARDINALITY
        if endless and max_examples is None:
            raise ValueError("The data set is endless; pass max_examples, or leave out dataset.repeat().")
        batches, batch_size = dataset, 0
    images, labels, count = [], [], 0
    for batch in batches:
        x, y = _checked_batch(batch)
        batch_size = batch_size or len(x)
        images.append(x)
        labels.append(y)
        count += len(x)
        if max_examples is not None and count >= max_examples:
            break
    if count == 0:
        raise ValueError("The data set is empty; pass at least one batch of images and labels.")
    return np.concatenate(images)[:max_examples], np.concatenate(labels)[:max_examples], batch_size


def check_image_shape(model: Callable[..., Any], x: np.ndarray) -> None:
    """Raises unless the images fit the input shape of the model, if it has one.

    Args:
        model: Any callable; its `input_shape`, if any, is `(batch, ...)` with `None` for variable sizes.
        x: `(images, ...)`.

    Raises:
        ValueError: if the model takes images of another shape.
    """
    sizes = image_shape(model)
    if sizes is None:
        return
    if len(sizes) != x.ndim - 1 or any(want not in (None, have) for want, have in zip(sizes, x.shape[1:], strict=True)):
        name = "SavedModel" if isinstance(model, SavedModelClassifier) else "network"
        raise ValueError(
            f"The {name} takes images of {as_size(sizes)}, but the data has {as_size(x.shape[1:])}; "
            "evaluate it on the data set it was trained on."
        )


def fixed_batch_size(model: Callable[..., Any], wanted: int, images: int) -> int:
    """Returns the batch size of an evaluation.

    Args:
        model: Any callable; some SavedModels have a batch size in their `input_shape`.
        wanted: Batch size to use if the model has none.
        images: Number of images in the data set.

    Returns:
        The fixed batch size of the model, or else the wanted one, at most the size of the data set.

    Raises:
        ValueError: if the wanted batch size is below 1.
    """
    if wanted < 1:
        raise ValueError(f"`batch_size` is at least 1; pass None for the default. Received: batch_size={wanted}")
    shape = getattr(model, "input_shape", None)
    fixed = shape[0] if isinstance(shape, tuple) and shape else None
    return fixed if isinstance(fixed, int) else min(wanted, images)


def as_size(shape: tuple[int | None, ...]) -> str:
    """Returns a shape for messages: `(32, 32, 3)` becomes `32x32x3`, and `None` becomes `?`."""
    return "x".join("?" if size is None else str(size) for size in shape)


def _checked_batch(batch: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns one batch as arrays, images in [0, 1] and integer labels of shape `(batch,)`."""
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        parts = len(batch) if isinstance(batch, tuple | list) else type(batch).__name__
        raise ValueError(
            "The data set must yield batches `(x, y)` of images and integer labels; map it to such pairs. "
            f"Received: elements of {parts if isinstance(parts, str) else f'{parts} parts'}"
        )
    x, y = batch
    if np.ndim(y) == 0 and not isinstance(y, str):
        raise ValueError("The data set must yield batches; call dataset.batch(128) first. Received: single examples")
    x = checked_images(x).astype(np.float32, copy=False)
    return x, checked_labels(y, len(x))
