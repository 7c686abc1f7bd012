"""How sparse a network is, measured on its effective kernels or on the kernels of any Keras model."""

import math
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tf_robust_sparse import layers
from tf_robust_sparse.layers.kernel_seam import all_layers
from tf_robust_sparse.sparsity.prunable import kernel_variables


class KernelStatistics(NamedTuple):
    """Connections of one kernel: `connectivity` is `nonzero / entries`."""

    name: str
    nonzero: int
    entries: int
    prunable: bool

    @property
    def connectivity(self) -> float:
        """Fraction of the entries that are not zero."""
        return self.nonzero / self.entries


def kernel_statistics(network: keras.Model) -> list[KernelStatistics]:
    """Returns the statistics of every kernel of `network`, in forward order.

    In a model without layers of this package, kernels are found by the names of variables, as in `trs.sparsify`.
    """
    ours = layers.kernel_layers(network)
    kernels = [(layer.name, layer.effective_kernel, layer.prunable) for layer in ours]
    kernels = kernels or [(name, variable, True) for name, variable in kernel_variables(network)]
    return [
        KernelStatistics(name, int(tf.math.count_nonzero(kernel)), int(tf.size(kernel)), prunable)
        for name, kernel, prunable in kernels
    ]


def empty_kernels(network: keras.Model) -> list[str]:
    """Returns the names of the layers of `network` without a single connection, in forward order."""
    return [each.name for each in kernel_statistics(network) if not each.nonzero]


def nonzero(network: keras.Model) -> int:
    """Returns the number of non-zero entries of all kernels of `network`."""
    return sum(each.nonzero for each in kernel_statistics(network))


def connectivity(network: keras.Model) -> float:
    """Returns the fraction of non-zero entries over all kernels of `network`.

    Raises:
        ValueError: if `network` has no kernel.
    """
    return summary(network)["connectivity"]


def summary(network: keras.Model) -> dict[str, Any]:
    """Returns `connectivity`, `nonzero`, `prunable` (entries of all kernels) and `layers`, ready for JSON.

    `total_weights` counts all weights of the network, including biases, batch norm and layers without kernels;
    `remaining_weights` counts those that are not pruned. A network whose large layers have no kernel may keep most of
    its weights although its kernels are sparse.

    Raises:
        ValueError: if `network` has no kernel.
    """
    found = kernel_statistics(network)
    entries = sum(each.entries for each in found)
    if not entries:
        raise ValueError(
            "The network has no kernel whose entries could be counted. Received a network of: "
            f"{sorted({type(layer).__name__ for layer in network.layers})}"
        )
    total = sum(each.nonzero for each in found)
    others = _other_weights(network, entries)
    return {
        "connectivity": total / entries,
        "nonzero": total,
        "prunable": entries,
        "total_weights": entries + others,
        "remaining_weights": total + others,
        "layers": [
            {"name": e.name, "nonzero": e.nonzero, "entries": e.entries, "connectivity": e.connectivity} for e in found
        ],
    }


def _other_weights(network: keras.Model, entries: int) -> int:
    """Returns how many weights are not kernel entries: biases, and all weights of layers without a kernel."""
    ours = layers.kernel_layers(network)
    if not ours:
        return sum(math.prod(weight.shape) for weight in network.weights) - entries
    held = {id(layer) for layer in ours}
    count = 0
    for layer in {id(layer): layer for layer in all_layers(network)}.values():
        weights = ([] if layer.bias is None else [layer.bias]) if id(layer) in held else layer.weights
        count += sum(math.prod(weight.shape) for weight in weights)
    return count
