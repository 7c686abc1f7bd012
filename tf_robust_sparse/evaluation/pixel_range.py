"""Networks that expect other pixels than [0, 1]."""

import copy
import math
import numbers
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tf_robust_sparse.evaluation.saved_model import SavedModelClassifier


def with_pixel_range(model: Callable[..., Any], pixel_range: float) -> Callable[..., Any]:
    """Turns a network that expects pixels in [0, `pixel_range`] into one that takes pixels in [0, 1].

    Attacks and radii are in pixels of [0, 1]. Many networks divide bytes by 255 themselves, in a layer `Rescaling`.

    Args:
        model: Keras model, result of `load_saved_model`, or any other callable from images to logits. It is not
            changed.
        pixel_range: The largest pixel that it expects, above 0; usually 255.

    Returns:
        Callable from `(batch, ...)` images in [0, 1] to the logits of `model` for `pixel_range` times these images. For
        a Keras model it is a Keras model that shares its weights.

    Raises:
        ValueError: if `pixel_range` is not a positive number.
    """
    is_number = isinstance(pixel_range, numbers.Real) and not isinstance(pixel_range, bool)
    if not is_number or not 0 < pixel_range < math.inf:
        raise ValueError(
            "`pixel_range` is the largest pixel that the network expects, usually 1 or 255. "
            f"Received: pixel_range={pixel_range!r}"
        )
    if pixel_range == 1:
        return model
    if isinstance(model, keras.Model):
        images = keras.Input(batch_shape=model.input_shape)
        return keras.Model(images, model(keras.layers.Rescaling(float(pixel_range))(images)))
    if isinstance(model, SavedModelClassifier):
        scaled = copy.copy(model)
        scaled.pixel_range = model.pixel_range * float(pixel_range)
        return scaled
    return lambda x: model(tf.cast(x, tf.float32) * float(pixel_range))
