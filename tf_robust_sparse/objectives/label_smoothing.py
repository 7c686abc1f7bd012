"""Label smoothing: labels that give some probability to the other classes."""

import tensorflow as tf

from tf_robust_sparse.attacks import cross_entropy


def smoothed_cross_entropy(y: tf.Tensor, logits: tf.Tensor, label_smoothing: float | tf.Tensor) -> tf.Tensor:
    """Returns the cross entropy of each example to `(1 - s) * one_hot(y) + s / classes`.

    With ten classes and `s = 0.1` the true class has probability 0.91 and each other class 0.01. The smallest loss is
    the entropy of such a label, 0.5002 nats.

    Args:
        y: `(batch,)`, integer labels.
        logits: `(batch, classes)`, any floating type.
        label_smoothing: `s`, in [0, 1); a number, or a scalar tensor.

    Returns:
        `(batch,)`, float32, in nats.

    Reference: [Szegedy et al., 2016](https://arxiv.org/abs/1512.00567), section 7.
    """
    if isinstance(label_smoothing, float) and label_smoothing == 0:
        return cross_entropy(y, logits)
    logits = tf.cast(logits, tf.float32)
    return tf.nn.softmax_cross_entropy_with_logits(smoothed_labels(y, tf.shape(logits)[-1], label_smoothing), logits)


def smoothed_labels(y: tf.Tensor, classes: int | tf.Tensor, label_smoothing: float | tf.Tensor) -> tf.Tensor:
    """Returns `(1 - s) * one_hot(y) + s / classes`: `(batch, classes)`, float32, rows of sum 1."""
    other = label_smoothing / tf.cast(classes, tf.float32)
    return tf.one_hot(y, classes, on_value=1 - label_smoothing + other, off_value=other, dtype=tf.float32)


def checked_smoothing(label_smoothing: float) -> float:
    """Returns `label_smoothing` as a float; raises a `ValueError` unless it is in [0, 1)."""
    if not 0 <= label_smoothing < 1:
        raise ValueError(
            "`label_smoothing` is the share of a label that is spread over all classes, in [0, 1); pass 0 for hard "
            f"labels. Received: label_smoothing={label_smoothing!r}"
        )
    return float(label_smoothing)
