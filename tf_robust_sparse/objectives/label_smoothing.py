"""Labels that give some probability to several classes: smoothed ones, and those of mixed images."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tf_robust_sparse.attacks import cross_entropy


def smoothed_cross_entropy(y: tf.Tensor, logits: tf.Tensor, label_smoothing: float | tf.Tensor) -> tf.Tensor:
    """Returns the cross entropy of each example to `(1 - s) * one_hot(y) + s / classes`.

    With ten classes and `s = 0.1` the true class has probability 0.91 and each other class 0.01. The smallest loss is
    the entropy of such a label, 0.5002 nats.

    Args:
        y: `(batch,)`, integer labels; or `(batch, classes)`, probabilities in place of `one_hot(y)`.
        logits: `(batch, classes)`, any floating type.
        label_smoothing: `s`, in [0, 1); a number, or a scalar tensor.

    Returns:
        `(batch,)`, float32, in nats.

    Reference: [Szegedy et al., 2016](https://arxiv.org/abs/1512.00567), section 7.
    """
    if isinstance(label_smoothing, float) and label_smoothing == 0 and not is_mixed(y):
        return cross_entropy(y, logits)
    logits = tf.cast(logits, tf.float32)
    return tf.nn.softmax_cross_entropy_with_logits(smoothed_labels(y, tf.shape(logits)[-1], label_smoothing), logits)


def smoothed_labels(y: tf.Tensor, classes: int | tf.Tensor, label_smoothing: float | tf.Tensor) -> tf.Tensor:
    """Returns `(1 - s) * one_hot(y) + s / classes`: `(batch, classes)`, float32, rows of sum 1.

    `y` may be probabilities `(batch, classes)` in place of `one_hot(y)`.
    """
    other = label_smoothing / tf.cast(classes, tf.float32)
    if is_mixed(y):
        return (1 - label_smoothing) * y + other
    return tf.one_hot(y, classes, on_value=1 - label_smoothing + other, off_value=other, dtype=tf.float32)


def is_mixed(y: tf.Tensor) -> bool:
    """Returns whether labels are probabilities `(batch, classes)`, as those of mixed images."""
    return tf.convert_to_tensor(y).shape.rank == 2


def aimed(y: tf.Tensor, loss_fn: Callable[[Any, tf.Tensor], tf.Tensor]) -> tuple[tf.Tensor, Any]:
    """Returns integer labels and a loss of `(labels, logits)`, as attacks take them, for labels of any kind.

    Args:
        y: Labels, `(batch,)` or `(batch, classes)`.
        loss_fn: Loss of labels and logits, `(batch,)`, that an attack is to raise.
    """
    if not is_mixed(y):
        return y, loss_fn
    return tf.argmax(y, axis=-1), lambda _, logits: loss_fn(y, logits)


def checked_smoothing(label_smoothing: float) -> float:
    """Returns `label_smoothing` as a float; raises a `ValueError` unless it is in [0, 1)."""
    if not 0 <= label_smoothing < 1:
        raise ValueError(
            "`label_smoothing` is the share of a label that is spread over all classes, in [0, 1); pass 0 for hard "
            f"labels. Received: label_smoothing={label_smoothing!r}"
        )
    return float(label_smoothing)
