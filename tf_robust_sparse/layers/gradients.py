"""Functions with a hand-written gradient that do not keep alive the graphs that call them."""

import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf


def custom_gradient(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `tf.custom_gradient(function)`, which may be called in any number of graphs without a leak.

    TensorFlow registers the gradient of each call in a graph under a new name and never removes it. The whole graph
    then stays in memory while the program runs: megabytes for each evaluation of a network. Here the function is
    traced once for each combination of shapes, and every other graph calls that trace.

    Args:
        function: Maps tensors to a result and its gradient function, as for `tf.custom_gradient`. It must depend on
            its arguments alone.
    """
    eager = tf.custom_gradient(function)

    @functools.cache
    def compiled(shapes: str) -> Callable[..., Any]:
        # A tf.function per combination: a shared one would relax shapes, and `function` may need the known sizes.
        del shapes
        return tf.function(eager, autograph=False)

    @functools.wraps(function)
    def call(*tensors: tf.Tensor) -> Any:
        if tf.executing_eagerly():
            return eager(*tensors)
        return compiled(" ".join(f"{tensor.dtype.name}{tensor.shape}" for tensor in tensors))(*tensors)

    return call
