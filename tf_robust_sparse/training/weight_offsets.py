"""Weights that are moved while a loss is taken, and get their exact values back."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf

from tf_robust_sparse.layers.kernel_layer import KernelLayer
from tf_robust_sparse.layers.kernel_seam import moved_kernels
from tf_robust_sparse.sparsity.optimizer_slots import assign_everywhere


@contextlib.contextmanager
def moved_weights(offsets: Sequence[tuple[Any, tf.Tensor]]) -> Iterator[None]:
    """Adds offsets to kernels, in the cache, and to variables, inside the block.

    Args:
        offsets: Kernel layers or variables, each with its offset.
    """
    kernels = [each for each in offsets if isinstance(each[0], KernelLayer)]
    variables = [each for each in offsets if not isinstance(each[0], KernelLayer)]
    before = [(variable, tf.identity(tf.convert_to_tensor(variable))) for variable, _ in variables]
    assign_everywhere([(variable, old + move) for (variable, old), (_, move) in zip(before, variables, strict=True)])
    with moved_kernels(kernels):
        yield
    assign_everywhere(before)
