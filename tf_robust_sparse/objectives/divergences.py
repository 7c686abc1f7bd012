"""Divergences between the predictions for two versions of a batch."""

import tensorflow as tf

_LEAST = 1e-8


def kl_divergence(logits_p: tf.Tensor, logits_q: tf.Tensor) -> tf.Tensor:
    """Returns `KL(softmax(logits_p) || softmax(logits_q))` of each example, differentiable in both.

    It is computed from log-probabilities in float32, so that extreme logits give no NaN.

    Args:
        logits_p: `(batch, classes)`, any floating type.
        logits_q: `(batch, classes)`, any floating type.

    Returns:
        `(batch,)`, float32, at least 0 up to rounding, in nats.
    """
    log_p = tf.nn.log_softmax(tf.cast(logits_p, tf.float32))
    log_q = tf.nn.log_softmax(tf.cast(logits_q, tf.float32))
    return tf.reduce_sum(tf.exp(log_p) * (log_p - log_q), axis=-1)


def js_divergence(logits_p: tf.Tensor, logits_q: tf.Tensor) -> tf.Tensor:
    """Returns the Jensen-Shannon divergence of `softmax(logits_p)` and `softmax(logits_q)`, differentiable in both.

    Probabilities of their mean count as at least 1e-8, as in the published code of consistency regularization.

    Args:
        logits_p: `(batch, classes)`, any floating type.
        logits_q: `(batch, classes)`, any floating type.

    Returns:
        `(batch,)`, float32, in nats.
    """
    log_p, log_q = (tf.nn.log_softmax(tf.cast(logits, tf.float32)) for logits in (logits_p, logits_q))
    p, q = tf.exp(log_p), tf.exp(log_q)
    log_mean = tf.math.log(tf.maximum((p + q) / 2, _LEAST))
    return tf.reduce_sum(p * (log_p - log_mean) + q * (log_q - log_mean), axis=-1) / 2
