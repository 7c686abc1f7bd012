"""Weights that are moved while a loss is taken, and get their exact values back."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_robust_sparse.layers.kernel_layer import KernelLayer
from tf_robust_sparse.layers.kernel_seam import moved_kernels, replaced_kernels
from tf_robust_sparse.sparsity.optimizer_slots import assign_everywhere
from tf_robust_sparse.sparsity.scores import scored_layers


@contextlib.contextmanager
def moved_weights(network: keras.Model, offsets: Sequence[tuple[Any, tf.Tensor]]) -> Iterator[None]:
    """Adds offsets to kernels and scores, in the cache, and to other variables, inside the block.

    Gradients of the scores are those at the moved place, if a `tf.GradientTape` records.

    Args:
        network: The network.
        offsets: Kernel layers or variables, each with its offset.
    """
    chosen_by = {id(layer.scores): layer for layer in scored_layers(network)}
    kernels, scores, variables = [], [], []
    for target, offset in offsets:
        if isinstance(target, KernelLayer):
            kernels.append((target, offset))
        elif id(target) in chosen_by:
            layer = chosen_by[id(target)]
            scores.append((layer, layer.kernel_at(target + offset)))
        else:
            variables.append((target, offset))
    before = [(variable, tf.identity(tf.convert_to_tensor(variable))) for variable, _ in variables]
    assign_everywhere([(variable, old + move) for (variable, old), (_, move) in zip(before, variables, strict=True)])
    with replaced_kernels(scores), moved_kernels(kernels):
        yield
    assign_everywhere(before)
