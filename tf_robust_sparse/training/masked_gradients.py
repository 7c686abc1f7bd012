"""Doubts about the robust accuracy that validation reports."""

import warnings
from typing import Any

import keras
import tensorflow as tf

from tf_robust_sparse.attacks import inference_forward, log_odds
from tf_robust_sparse.attacks.gradient_attack import input_gradient
from tf_robust_sparse.layers import settled_for_inference

IMAGES = 32
FEW = 0.1  # a share in [0, 1]: so many images may meet dead units only while a network is young


def warn_of_masked_gradients(network: keras.Model, validation: Any) -> None:
    """Warns if the pixels of many validation images have gradients of exactly zero, which no attack can follow.

    Of the first images those that are classified correctly are looked at.

    Args:
        network: The network that was trained.
        validation: `validation_data` of `fit`: a pair of arrays, or batches of pairs that can be read again.
    """
    if isinstance(validation, tf.data.Dataset):
        validation = next(iter(validation), None)
    if not isinstance(validation, (tuple, list)):
        return
    x, y = (part[:IMAGES] for part in validation)
    x, y = tf.cast(x, tf.float32), tf.cast(tf.reshape(y, [-1]), tf.int64)
    forward = inference_forward(network)

    # Compiled: eagerly the gradients of the kernels would be computed too.
    @tf.function(autograph=False)
    def looked_at(x: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with settled_for_inference(network):
            correct = tf.argmax(forward(x), -1) == y
            gradient = input_gradient(forward, x, y, log_odds)
        nowhere = tf.reduce_all(tf.equal(gradient, 0), axis=range(1, x.shape.rank))
        return tf.math.count_nonzero(nowhere & correct), tf.math.count_nonzero(correct)

    count, images = (int(each) for each in looked_at(x, y))
    if count > FEW * images:
        warnings.warn(
            f"The pixels of {count} of {images} validation images have gradients of exactly zero: the validation "
            "attack sees nothing there, and `val_robust_accuracy` is too high. Evaluate with AutoAttack, whose Square "
            "needs no gradients.",
            stacklevel=3,
        )
