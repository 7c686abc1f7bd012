"""The loss that an untargeted attack climbs."""

import tensorflow as tf


def cross_entropy(y: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Cross entropy of each example, `-log softmax(logits)[y]`.

    The logits are cast to float32 first: in float16 a confident network has a loss, and a gradient, of exactly zero.

    Args:
        y: `(batch,)`, integer labels in `[0, classes)`.
        logits: `(batch, classes)`, any floating type.

    Returns:
        `(batch,)`, float32, in nats.

    Raises:
        ValueError: if the labels are not integers of shape `(batch,)`.
    """
    y = tf.convert_to_tensor(y)
    if not y.dtype.is_integer or y.shape.rank not in (None, 1):
        raise ValueError(
            "`y` holds integer labels of shape (batch,); for one-hot labels pass tf.argmax(y, axis=-1), for labels of "
            f"shape (batch, 1) pass tf.squeeze(y, axis=-1). Received: y of shape {y.shape} and dtype {y.dtype.name}"
        )
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=tf.cast(logits, tf.float32))
