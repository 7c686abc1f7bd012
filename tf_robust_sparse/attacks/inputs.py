"""What an attack is called with, checked before its first step."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tf_robust_sparse.data.checks import Shape, checked_images, checked_labels
from tf_robust_sparse.layers.forward import Forward, image_shape, inference_forward


def checked_inputs(
    model: Callable[..., Any], x: Any, y: Any, shape: Shape | None = None, any_label: bool = False
) -> tuple[Forward, tf.Tensor, Any]:
    """Returns the model as a function from images to logits, the images as float32 and the labels as int64.

    Args:
        model: See `inference_forward`.
        x: See `data.checks.checked_images`, as `shape`; the shape that the model takes, if it says so, counts more.
        y: See `data.checks.checked_labels`.
        any_label: Whether the labels do not matter; they are then returned unchecked.

    Raises:
        ValueError: if images or labels are malformed. The first forward pass refuses labels without a logit, if their
            values are known.
    """
    forward, taken = inference_forward(model), image_shape(model)
    images = checked_images(x, shape if taken is None or (shape and len(shape) != len(taken)) else taken)
    images = tf.cast(x if tf.is_tensor(x) else images, tf.float32)  # a tensor stays on its device
    if any_label:
        return forward, images, y
    labels = checked_labels(y, images.shape[0])
    if tf.is_symbolic_tensor(labels):
        return forward, images, labels

    def answers(some: tf.Tensor) -> tf.Tensor:
        logits = forward(some)
        classes = logits.shape[-1]
        checked_labels(labels, classes=classes, why=f", because the network has {classes} logits")
        return logits

    return answers, images, tf.constant(labels)
