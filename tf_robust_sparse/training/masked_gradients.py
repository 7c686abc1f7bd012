"""A warning about robust accuracy that masked gradients make too high."""

import warnings
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_robust_sparse.evaluation.robust_accuracy import without_gradient
from tf_robust_sparse.layers.kernel_seam import cached_for_inference

IMAGES = 32
FEW = 0.1  # share of images that may meet only dead units in a network that has not trained for long


def warn_of_masked_gradients(network: keras.Model, validation: Any) -> None:
    """Warns if the pixels of many validation images have gradients of exactly zero, which no attack can follow.

    Checks the correctly classified ones among the first images.

    Args:
        network: The network that was trained.
        validation: `validation_data` of `fit`: a pair of arrays, or batches of pairs that can be read again.
    """
    if isinstance(validation, tf.data.Dataset):
        validation = next(iter(validation), None)
    if not isinstance(validation, (tuple, list)):
        return
    x, y = (part[:IMAGES] for part in validation)
    x, y = np.asarray(x, np.float32), np.asarray(y, np.int64).reshape(-1)
    with cached_for_inference(network):
        correct = np.asarray(network(x, training=False)).argmax(-1) == y
    count = int((without_gradient(network, x, y, len(x)) & correct).sum())
    images = int(correct.sum())
    if count > FEW * images:
        warnings.warn(
            f"The pixels of {count} of {images} validation images have gradients of exactly zero: the validation "
            "attack cannot follow them, and `val_robust_accuracy` is too high. Evaluate with AutoAttack, because its "
            "Square Attack needs no gradients.",
            stacklevel=3,
        )
