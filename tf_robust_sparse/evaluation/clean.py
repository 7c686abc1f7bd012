"""Predictions of a network for clean images, and checks of its logits."""

import dataclasses
import warnings

import numpy as np
import tensorflow as tf

from tf_robust_sparse.data.checks import checked_labels
from tf_robust_sparse.evaluation import safety
from tf_robust_sparse.evaluation.survivors import padded_batches
from tf_robust_sparse.layers.forward import Forward

PROBABILITY_TOLERANCE = 1e-3  # rows of a float16 softmax sum to 1 within this
PROBABILITIES = (
    "the outputs look like probabilities (in [0, 1], rows sum to 1), but attacks expect logits: their gradients vanish "
    "in a softmax, and the robust accuracy may come out too high"
)


@dataclasses.dataclass(frozen=True)
class CleanAnswers:
    """The predictions of a network for clean images.

    Attributes:
        correct: `(images,)`, bool: which images are classified correctly.
        num_classes: Number of logits.
        flags: Reasons to doubt the numbers.
    """

    correct: np.ndarray
    num_classes: int
    flags: list[safety.Flag]

    @property
    def accuracy(self) -> float:
        """Share of the images that are classified correctly."""
        return float(self.correct.mean())


def clean_answers(forward: Forward, x: np.ndarray, y: np.ndarray, batch_size: int) -> CleanAnswers:
    """Classifies the images, and checks the logits and the labels.

    Args:
        forward: Function from images to float32 logits.
        x: `(images, ...)`, float32.
        y: `(images,)`, int64.
        batch_size: Number of images in one call; the last batch is padded to it.

    Returns:
        The predictions, with flags for outputs that look like probabilities (also a `UserWarning`), logits that differ
        between two calls or change with the other images of a batch, an accuracy near chance, and a much better
        accuracy on pixels from 0 to 255.

    Raises:
        ValueError: if a logit is not finite, if there are fewer than two logits, or if a label has no logit.
    """
    step = tf.function(
        forward, input_signature=[tf.TensorSpec((batch_size, *x.shape[1:]), tf.float32)], autograph=False
    )
    logits = checked_logits(step, x, y, batch_size, "the clean images")
    flags = []
    sums = logits.sum(axis=-1)
    if logits.min() >= 0 and logits.max() <= 1 and np.abs(sums - 1).max() < PROBABILITY_TOLERANCE:
        warnings.warn(f"Suspicious network: {PROBABILITIES}.", stacklevel=3)
        flags.append(safety.Flag("softmax", f"{PROBABILITIES[:1].upper()}{PROBABILITIES[1:]}."))

    def again(images: np.ndarray) -> np.ndarray:
        return padded_logits(step, images, batch_size)

    randomized = safety.randomized(again, x[:batch_size], passes=2)
    flags += randomized or safety.depends_on_batch(again, x[:batch_size])
    flags += safety.wrong_pixels(again, x, y, logits)
    return CleanAnswers(logits.argmax(axis=-1) == y, logits.shape[-1], flags)


def padded_logits(forward: Forward, x: np.ndarray, batch_size: int) -> np.ndarray:
    """Returns the logits of any number of images, in padded batches of one size."""
    rows = np.arange(len(x))
    return np.concatenate(
        [np.asarray(forward(x[padded]))[:count] for padded, count in padded_batches(rows, batch_size)]
    )


def checked_logits(forward: Forward, x: np.ndarray, y: np.ndarray, batch_size: int, where: str) -> np.ndarray:
    """Returns the logits of all images, checked against the labels.

    Args:
        forward: Function from `(batch_size, ...)` images to float32 logits.
        x: `(images, ...)`, float32.
        y: `(images,)`, int64.
        batch_size: Number of images in one call; the last batch is padded to it.
        where: Name of these images for the message.

    Returns:
        `(images, classes)`, float32.

    Raises:
        ValueError: if a logit is not finite, if there are fewer than two logits, or if a label has no logit.
    """
    logits = padded_logits(forward, x, batch_size)
    check_finite(np.isfinite(logits).all(axis=-1), where)
    num_classes = logits.shape[-1]
    if num_classes < 2:
        raise ValueError(f"The network must return one logit per class, at least two. Received: {num_classes} logit")
    checked_labels(y, len(x), num_classes, why=f", because the network has {num_classes} logits")
    return logits


def check_finite(finite: np.ndarray, where: str) -> None:
    """Raises unless all logits are finite.

    Args:
        finite: `(images,)`, bool: whether all logits of an image are finite.
        where: Name of these images for the message.

    Raises:
        ValueError: if a logit is NaN or infinite.
    """
    if not finite.all():
        raise ValueError(
            f"The network returns NaN or infinite logits on {where} ({int((~finite).sum())} of {finite.size} images); "
            "look for a diverged training run, or an overflow in float16."
        )
