"""The losses that attacks climb: one value per example, higher if the network is closer to being wrong."""

import math
from typing import Any

import tensorflow as tf

from tf_robust_sparse.layers.gradients import custom_gradient

FAR = 1e30  # moves a logit below all others, and is finite: tf.debugging.enable_check_numerics stops at infinities


def cross_entropy(y: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Returns the cross entropy of each example, `-log softmax(logits)[y]`.

    The logits are cast to float32 first, because in float16 the loss and the gradient of a confident network are 0.

    Args:
        y: `(batch,)`, integer labels in `[0, classes)`.
        logits: `(batch, classes)`, any floating type.

    Returns:
        `(batch,)`, float32, in nats.

    Raises:
        ValueError: if the labels are not integers of shape `(batch,)`.
    """
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels=_labels(y), logits=tf.cast(logits, tf.float32))


def log_odds(y: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Returns the logarithm of the odds against the true class, `log((1 - p) / p)` with `p = softmax(logits)[y]`.

    The cross entropy is `log(1 + exp(log_odds))`: both rise together, and their gradients have the same direction. The
    gradient of the cross entropy has the factor `1 - p`, which is 0 in float32 for confident networks, so an attack
    would stand still. The gradient of the log odds is of order 1 everywhere.

    Args:
        y: `(batch,)`, integer labels in `[0, classes)`.
        logits: `(batch, classes)`, any floating type.

    Returns:
        `(batch,)`, float32.

    Raises:
        ValueError: if the labels are not integers of shape `(batch,)`.
    """
    return _log_odds(_labels(y), tf.cast(logits, tf.float32))


@custom_gradient
def _log_odds(y: tf.Tensor, logits: tf.Tensor) -> Any:
    own = tf.one_hot(y, tf.shape(logits)[-1])
    others = logits - FAR * own  # takes the true class out of the sum and of the softmax

    def gradient(upstream: tf.Tensor) -> tuple[None, tf.Tensor]:
        return None, upstream[:, tf.newaxis] * (tf.nn.softmax(others) - own)

    return tf.reduce_logsumexp(others, axis=-1) - _logit_of(y, logits), gradient


def margin(y: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Returns the logit of the true class minus the largest other logit; at most 0 if the network is wrong.

    Args:
        y: `(batch,)`, integer labels.
        logits: `(batch, classes)`, float32.

    Returns:
        `(batch,)`, float32.
    """
    others = tf.where(tf.one_hot(y, tf.shape(logits)[-1], on_value=True, off_value=False), logits.dtype.min, logits)
    return _logit_of(y, logits) - tf.reduce_max(others, axis=-1)


def dlr(y: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Returns the difference of logits ratio: the negative margin over the gap of the largest and the third logit.

    Shifting or scaling the logits does not change it, so confident networks keep their gradients.

    Args:
        y: `(batch,)`, integer labels.
        logits: `(batch, classes)`, float32, at least three classes.

    Returns:
        `(batch,)`, float32.

    Reference: [Croce and Hein, 2020](https://arxiv.org/abs/2003.01690), equation 6.
    """
    largest, classes = tf.math.top_k(logits, 3)
    right = tf.cast(classes[:, 0], y.dtype) == y
    rival = tf.where(right, largest[:, 1], largest[:, 0])
    return (rival - _logit_of(y, logits)) / (largest[:, 0] - largest[:, 2] + 1e-12)


def targeted_dlr(y: tf.Tensor, logits: tf.Tensor, target: tf.Tensor) -> tf.Tensor:
    """Returns `dlr` toward one class: `-(z_y - z_target) / (z_1 - (z_3 + z_4) / 2)`, logits ordered from the largest.

    Args:
        y: `(batch,)`, integer labels.
        logits: `(batch, classes)`, float32, at least four classes.
        target: `(batch,)`, integers, the classes to reach.

    Returns:
        `(batch,)`, float32.

    Reference: [Croce and Hein, 2020](https://arxiv.org/abs/2003.01690), equation 7.
    """
    largest = tf.math.top_k(logits, 4).values
    scale = largest[:, 0] - (largest[:, 2] + largest[:, 3]) / 2 + 1e-12
    return (_logit_of(target, logits) - _logit_of(y, logits)) / scale


@custom_gradient
def far_cross_entropy(y: tf.Tensor, logits: tf.Tensor) -> Any:
    """Returns the cross entropy, with a gradient scaled by 2^24; APGD uses only its direction.

    TensorFlow flushes denormal numbers to zero, so without the scale the gradient of a confident network would vanish
    earlier than in other frameworks.
    """
    log_probabilities = tf.nn.log_softmax(logits)

    def gradient(upstream: tf.Tensor) -> tuple[None, tf.Tensor]:
        scale = 2.0**24
        # Below -103 the exponential is 0 in float32 even with denormals, so there is nothing to scale up.
        others = tf.where(log_probabilities > -103.0, tf.exp(log_probabilities + math.log(scale)), 0.0)
        own = scale * (tf.exp(log_probabilities) - 1)
        is_own = tf.one_hot(y, tf.shape(logits)[-1], on_value=True, off_value=False)
        return None, upstream[:, tf.newaxis] * tf.where(is_own, own, others)

    return -tf.gather(log_probabilities, y, batch_dims=1), gradient


def _labels(y: tf.Tensor) -> tf.Tensor:
    y = tf.convert_to_tensor(y)
    if not y.dtype.is_integer or y.shape.rank not in (None, 1):
        raise ValueError(
            "`y` holds integer labels of shape (batch,); for one-hot labels pass tf.argmax(y, axis=-1), for labels of "
            f"shape (batch, 1) pass tf.squeeze(y, axis=-1). Received: y of shape {y.shape} and dtype {y.dtype.name}"
        )
    return y if y.dtype in (tf.int32, tf.int64) else tf.cast(y, tf.int64)  # TensorFlow's operations take no other type


def _logit_of(y: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    return tf.gather(logits, y, batch_dims=1)
