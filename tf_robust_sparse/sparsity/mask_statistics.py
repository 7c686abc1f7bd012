"""Statistics of masks: how much of each layer stays, in which channels and filters, and how large these weights are."""

from typing import Any

import keras
import numpy as np

from tf_robust_sparse import layers
from tf_robust_sparse.layers.signed import SignedKernel
from tf_robust_sparse.sparsity.prunable import is_masked
from tf_robust_sparse.sparsity.scores import has_scores


def mask_statistics(network: keras.Model) -> list[dict[str, Any]]:
    """Counts the connections of every kernel of `network`, in forward order.

    Returns:
        For each kernel its `name`, `shape`, `entries`, `nonzero`, `connectivity`, the numbers of `channels` (inputs)
        and `filters` (outputs), and how many of them have a connection: `channels_kept`, `filters_kept`.
    """
    found = []
    for layer in layers.kernel_layers(network):
        kept = keras.ops.convert_to_numpy(layer.effective_kernel) != 0
        by_channel = kept.any(axis=tuple(axis for axis in range(kept.ndim) if axis != kept.ndim - 2))
        by_filter = kept.any(axis=tuple(range(kept.ndim - 1)))
        found.append(
            {
                "name": layer.name,
                "shape": list(kept.shape),
                "entries": kept.size,
                "nonzero": int(kept.sum()),
                "connectivity": float(kept.mean()),
                "channels": len(by_channel),
                "channels_kept": int(by_channel.sum()),
                "filters": len(by_filter),
                "filters_kept": int(by_filter.sum()),
            }
        )
    return found


def kept_weights(network: keras.Model, before: keras.Model | None = None, bins: int = 61) -> list[dict[str, Any]]:
    """Returns histograms of the weights that a mask keeps and of those that magnitude pruning would keep.

    Magnitude pruning keeps the largest weights: two humps with a gap around zero. Learned scores keep small ones, too.

    Args:
        network: A pruned network.
        before: The network before pruning, with the same layers, whose weights are counted; `None` for the weights of
            `network` itself, in layers that still hold masked-out weights (subnet and masked kernels).
        bins: Number of intervals.

    Returns:
        For each layer its `name`, the `edges` of the intervals, and how many weights of each interval there are
        (`all`), stay (`kept`), and would stay by magnitude (`kept_by_magnitude`); and `small_kept`, the fraction of
        the kept weights that magnitude pruning would drop.

    Raises:
        ValueError: if no layer holds masked-out weights, or `before` lacks a layer.

    Reference: [Sehwag et al., 2020](https://arxiv.org/abs/2002.10509), section 5.
    """
    others = {} if before is None else {layer.name: layer for layer in layers.kernel_layers(before)}
    found = []
    for layer in layers.kernel_layers(network):
        source = layer
        if before is not None:
            if layer.name not in others:
                raise ValueError(f"`before` has no layer {layer.name}; pass the network that this one was pruned from")
            source = others[layer.name]
        elif not (is_masked(layer) or has_scores(layer)) or isinstance(layer, SignedKernel):
            continue
        mask = keras.ops.convert_to_numpy(layer.effective_kernel) != 0
        weights = source.stored_kernel
        found.append(_histogram(layer.name, keras.ops.convert_to_numpy(weights), mask, bins))
    if not found:
        raise ValueError(
            "The network no longer holds the weights that were pruned; pass the network before pruning as `before`. "
            f"Received: {network.name}"
        )
    return found


def _histogram(name: str, weights: np.ndarray, mask: np.ndarray, bins: int) -> dict[str, Any]:
    if weights.shape != mask.shape:
        raise ValueError(
            f"`before` has a kernel of shape {weights.shape} in {name}, `network` one of {mask.shape}; pass the "
            "network that this one was pruned from"
        )
    largest = float(np.abs(weights).max()) or 1.0
    edges = np.linspace(-largest, largest, bins + 1)
    order = np.argsort(np.abs(weights), axis=None, kind="stable")
    largest_first = np.zeros(weights.size, bool)
    largest_first[order[weights.size - int(mask.sum()) :]] = True
    by_magnitude = largest_first.reshape(weights.shape)
    return {
        "name": name,
        "edges": edges.tolist(),
        "all": np.histogram(weights, edges)[0].tolist(),
        "kept": np.histogram(weights[mask], edges)[0].tolist(),
        "kept_by_magnitude": np.histogram(weights[by_magnitude], edges)[0].tolist(),
        "small_kept": float((mask & ~by_magnitude).sum() / max(int(mask.sum()), 1)),
    }
