"""One function that asks any model for its logits."""

import functools
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tf_robust_sparse.layers.classifier import check_classifier
from tf_robust_sparse.layers.kernel_seam import inference_logits

Forward = Callable[[tf.Tensor], tf.Tensor]


def inference_forward(model: Callable[..., Any]) -> Forward:
    """Returns a function from images to float32 logits, with batch norm and dropout in inference mode.

    Args:
        model: A Keras model or layer, which is called with `training=False`; or any other callable (a plain function,
            the `serve` or a signature of a SavedModel), which is called with the images only. The output may be a
            tensor, or a dictionary or list of one tensor.

    Returns:
        A callable from `(batch, ...)` images in `[0, 1]` to `(batch, classes)` logits, float32.

    Raises:
        TypeError: if the model cannot be called; in a traced call, if it computes in NumPy or PyTorch.
        ValueError: at once, if a Keras model of known layers has several inputs or outputs; in the call, if the output
            is not one tensor of shape `(batch, classes)`.
    """
    if not callable(model):
        raise TypeError(
            "`model` must be a Keras model or any callable from images to logits; for a SavedModel directory pass "
            f"evaluation.load_saved_model(path). Received: model={model!r}"
        )
    if isinstance(model, keras.Model) and getattr(model, "inputs", None):
        check_classifier(model, in_structure=True)  # before tracing, which would bury the message in a long trace
    call = model
    if isinstance(model, keras.layers.Layer):
        call = functools.partial(inference_logits, model)

    def forward(x: tf.Tensor) -> tf.Tensor:
        try:
            output = call(x)
        except (NotImplementedError, AttributeError) as error:  # there are no values yet
            if "to a numpy array" not in str(error) and getattr(error, "name", None) != "numpy":
                raise
            raise TypeError(
                "The model computes outside of TensorFlow, in NumPy or PyTorch; for attacks without gradients, such as "
                "Square, pass lambda x: tf.ensure_shape(tf.numpy_function(model, [x], tf.float32), (None, classes)). "
                f"Received: model={model!r}"
            ) from error
        logits = tf.cast(_single_tensor(output), tf.float32)
        if logits.shape.rank not in (None, 2):
            raise ValueError(
                "The model must return logits of shape (batch, classes); flatten or pool the features before the last "
                f"layer. Received: output of shape {logits.shape}"
            )
        return logits

    return forward


def image_shape(model: Callable[..., Any]) -> tuple[int | None, ...] | None:
    """Returns the shape of one image that a model takes, with `None` for sizes that may vary.

    Args:
        model: Any callable; its `input_shape`, if any, is `(batch, ...)`.

    Returns:
        The shape; `None` if the model has no `input_shape`, or several inputs.
    """
    shape = getattr(model, "input_shape", None)
    return shape[1:] if isinstance(shape, tuple) and shape and not isinstance(shape[0], tuple) else None


def _single_tensor(output: Any) -> Any:
    """Returns the one tensor in a model's output."""
    if isinstance(output, dict | list | tuple):
        if len(output) != 1:
            names = list(output) if isinstance(output, dict) else len(output)
            raise ValueError(
                "The model must return one tensor of logits; wrap it in a function that picks the logits. "
                f"Received outputs: {names}"
            )
        return next(iter(output.values() if isinstance(output, dict) else output))
    return output
