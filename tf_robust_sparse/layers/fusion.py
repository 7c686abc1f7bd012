"""Chains of element-wise operations that run as one loop over memory.

On CPUs, each operation of TensorFlow reads its operands from memory and writes its result back, which takes most of the
time of such a chain. XLA compiles the chain to one loop. Convolutions and matrix products stay with TensorFlow, because
its kernels are faster than XLA's.
"""

import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf


def compile_elementwise(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function that computes the same as `function` and, on machines without GPUs, in one pass.

    Each new combination of shapes is compiled once, in a few hundredths of a second. Rounding may differ in the last
    bit.

    Args:
        function: From tensors to a tensor or a tuple of tensors, of element-wise operations, slices and reshapes.
            All other arguments are constants.
    """
    compiled = tf.function(function, jit_compile=True, autograph=False)

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        return (compiled if compiles() else function)(*args)

    return call


def compiles() -> bool:
    """Returns whether `compile_elementwise` uses XLA: on machines without GPUs whose TensorFlow includes it."""
    return not tf.config.list_logical_devices("GPU") and _xla_works()


@functools.cache
def _xla_works() -> bool:
    with tf.init_scope():
        try:
            tf.function(lambda x: x + 1, jit_compile=True, autograph=False)(tf.zeros(1))
        except tf.errors.OpError:
            return False
    return True
