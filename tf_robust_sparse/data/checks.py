"""The check of images and labels that attacks, bounds, training, evaluation and readers share.

All values of arrays and eager tensors are checked. Only the type and shape of a tensor in a graph are known, so only
these are checked, which costs a traced attack nothing; a training step adds the operations of `checked_in_graph`.
"""

import contextlib
import re
from collections.abc import Iterator
from typing import Any, NoReturn

import numpy as np
import tensorflow as tf

Shape = tuple[int | None, ...]

_PIXELS, _BYTES_TOO = "Images must be floats in [0, 1]", "Images must be floats in [0, 1], or uint8 in 0..255"
# The message of an Assert operation: each of its values in brackets.
_FAILED = re.compile(r"\[((?:Images|Labels) must be .*? Received: [^\]]*)\]((?: \[[^\]]*\])*)")


def checked_images(images: Any, shape: Shape | None = None, where: str = "", bytes_too: bool = False) -> Any:
    """Returns images as a tensor of a graph or as an array, or raises an error of one line that names the fault.

    Args:
        images: `(n, ...)`, at least one, floating, finite and in [0, 1]; tensor, array, or what NumPy can convert.
        shape: Shape of one image, with `None` for sizes that may vary; `None` for any shape.
        where: Beginning of the message, such as `"cifar10, train split"`.
        bytes_too: Whether uint8 in 0..255 is allowed, too.

    Raises:
        ValueError: if the images do not fit this description.
    """
    images = _numbers(images, "Images", where)
    known = _known_shape(images)
    if known is None or len(known) < 2 or (shape is not None and not _fits(known[1:], shape)):
        sizes = "..." if shape is None else ", ".join("any" if size is None else str(size) for size in shape)
        _refuse(
            where,
            f"Images must be a batch of shape (n, {sizes}); add a batch axis to a single image, a channel axis to gray "
            f"ones. Received: shape {known}",
        )
    if 0 in known:
        _refuse(where, f"Images must not be empty; pass at least one image. Received: shape {known}")
    kind, allowed = tf.as_dtype(images.dtype), _BYTES_TOO if bytes_too else _PIXELS
    if kind == tf.uint8 and bytes_too:
        return images
    if not kind.is_floating:
        _refuse(where, f"{allowed}; divide bytes by 255: tf.cast(x, tf.float32) / 255. Received: dtype {kind.name}")
    if not tf.is_symbolic_tensor(images):
        low, high = float(images.min()), float(images.max())
        if not (low >= 0 and high <= 1):  # written so that a NaN fails
            odd = np.count_nonzero(~np.isfinite(images.astype(np.float32)))
            if odd:
                _refuse(
                    where,
                    f"{allowed}; look for a division by zero in their preprocessing. "
                    f"Received: {odd} of {images.size} pixels NaN or infinite",
                )
            _refuse(where, f"{allowed}; {_advice(low, high)}. Received: pixels from {low:g} to {high:g}")
    return images


def checked_labels(
    labels: Any, number: int | None = None, classes: int | None = None, where: str = "", why: str = ""
) -> Any:
    """Returns labels `(n,)` as int64, in a graph or as an array, or raises an error of one line that names the fault.

    Args:
        labels: `(n,)` or `(n, 1)`, integers of any width; tensor, array, or anything that NumPy converts.
        number: Number of images; `None` if it is unknown.
        classes: Number of classes; `None` if it is unknown.
        where: Beginning of the message.
        why: The reason for the number of classes, such as `", because the network has 10 logits"`.

    Raises:
        ValueError: if the labels do not fit this description.
    """
    labels = _numbers(labels, "Labels", where)
    known, kind = _known_shape(labels), tf.as_dtype(labels.dtype)
    below = "at least 0" if classes is None else f"in [0, {classes})"
    if known is not None and len(known) == 2 and known[1] == 1:
        labels, known = labels[:, 0], known[:1]
    if not kind.is_integer or (known is not None and len(known) != 1):
        _refuse(
            where,
            f"Labels must be integers {below}{why}, one for each image, of shape (n,); turn one-hot labels into class "
            f"numbers with argmax(axis=-1). Received: dtype {kind.name}, shape {known}",
        )
    if number is not None and known is not None and known[0] not in (None, number):
        _refuse(
            where,
            "Labels must be as many as images; check that both come from the same file. "
            f"Received: {number} images, {known[0]} labels",
        )
    if tf.is_symbolic_tensor(labels):
        return tf.cast(labels, tf.int64)
    if labels.size:
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= (2**63 if classes is None else classes):
            _refuse(
                where,
                f"Labels must be integers {below}{why}; renumber the classes or pick the data set that the network "
                f"was trained on. Received: labels from {low} to {high}",
            )
    return labels.astype(np.int64, copy=False)


def checked_in_graph(images: Any, labels: Any, shape: Shape, classes: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns images as float32 and labels `(batch,)` as int64; their computation fails if a value is out of range.

    It is meant for training steps: no update then depends on wrong values, and `failures_in_one_line` names them. The
    cost is one comparison per pixel. XLA omits the check.

    Args:
        images: `(batch, ...)`, floating; may be empty, as a replica's part of a last batch.
        labels: `(batch,)` or `(batch, 1)`, integers.
        shape: Shape of one image, with `None` for sizes that may vary.
        classes: Number of classes.

    Raises:
        ValueError: at once, if a type or shape is wrong.
    """
    why = f", because the network has {classes} logits"
    if not tf.is_symbolic_tensor(images):
        images = checked_images(images, shape) if len(images) else images
        return tf.cast(images, tf.float32), tf.constant(checked_labels(labels, len(images), classes, why=why))
    images = tf.cast(checked_images(images, shape), tf.float32)
    labels = checked_labels(labels, images.shape[0], classes, why=why)
    bad_pixel = f"{_PIXELS}; divide bytes by 255 or undo the normalization. Received: pixels from"
    bad_label = f"Labels must be integers in [0, {classes}){why}. Received: labels from"
    asserted = [
        tf.debugging.Assert(
            tf.reduce_all((values >= 0) & (values <= highest)),  # written so that a NaN fails
            [text, tf.reduce_min(values), "to", tf.reduce_max(values)],
        )
        for values, highest, text in ((images, 1.0, bad_pixel), (labels, classes - 1, bad_label))
    ]
    counts = tf.shape(images)[0], tf.shape(labels)[0]
    many = "Labels must be as many as images. Received: images, labels"
    asserted.append(tf.debugging.Assert(tf.equal(*counts), [many, *counts]))
    with tf.control_dependencies(asserted):
        return tf.identity(images), tf.identity(labels)


@contextlib.contextmanager
def failures_in_one_line() -> Iterator[None]:
    """Converts a failure of `checked_in_graph` inside the block to a `ValueError` of one line."""
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        found = _FAILED.search(str(error))
        if found is None:
            raise
        raise ValueError(" ".join([found[1], *re.findall(r"\[([^\]]*)\]", found[2])])) from None


def _numbers(values: Any, what: str, where: str) -> Any:
    """Returns a tensor of a graph, or an array of numbers."""
    if tf.is_symbolic_tensor(values):
        return values
    try:
        array = np.asarray(values)
        tf.as_dtype(array.dtype)
    except (TypeError, ValueError, tf.errors.OpError):  # lists of unequal length, data sets, dates
        array = np.asarray(None)
    if array.dtype.kind in "OSU":
        _refuse(where, f"{what} must be an array or tensor of numbers. Received: {_kind_of(values)}")
    return array


def _kind_of(values: Any) -> str:
    """Returns a name for a value that is no array of numbers."""
    if isinstance(values, np.ndarray):
        return f"array of dtype {values.dtype}"
    return f"{type(values).__name__} {' '.join(repr(values).split())[:60]}"


def _known_shape(values: Any) -> Shape | None:
    """Returns the shape, with `None` for unknown sizes, or `None` for an unknown rank."""
    shape = tf.TensorShape(values.shape)
    return None if shape.rank is None else tuple(shape)


def _fits(sizes: Shape, expected: Shape) -> bool:
    return len(sizes) == len(expected) and all(
        have is None or want in (None, have) for have, want in zip(sizes, expected, strict=True)
    )


def _advice(low: float, high: float) -> str:
    """Returns advice on pixels in this range."""
    if low >= 0 and 1.5 < high <= 255:
        return "divide by 255"
    if -1 <= low < 0 and high <= 1:
        return "if they are in [-1, 1], pass (x + 1) / 2"
    return "undo the normalization; mean and standard deviation belong in the network"


def _refuse(where: str, text: str) -> NoReturn:
    raise ValueError(f"{where}: {text[0].lower()}{text[1:]}" if where else text)
