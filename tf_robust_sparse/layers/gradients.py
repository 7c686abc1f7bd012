"""Functions with a gradient written by hand, which do not keep the graphs that call them."""

import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf


def custom_gradient(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `tf.custom_gradient(function)`, which may be called in any number of graphs without a leak.

    TensorFlow registers the gradient of each call in a graph under a name of its own and never removes it, so that the
    whole graph stays in memory as long as the program runs: megabytes for each evaluation of a network. Here the
    function has a graph of its own for each combination of shapes, and all others call that one.

    Args:
        function: From tensors to a result and the function of its gradient, as for `tf.custom_gradient`. It depends on
            its arguments alone.
    """
    eager = tf.custom_gradient(function)

    @functools.cache
    def compiled(shapes: str) -> Callable[..., Any]:
        # One tf.function for all would use a graph of unknown sizes for known ones too, which `function` may ask for.
        del shapes
        return tf.function(eager, autograph=False)

    @functools.wraps(function)
    def call(*tensors: tf.Tensor) -> Any:
        if tf.executing_eagerly():
            return eager(*tensors)
        return compiled(" ".join(f"{tensor.dtype.name}{tensor.shape}" for tensor in tensors))(*tensors)

    return call
