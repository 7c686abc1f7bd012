"""Kernels and masks of a masked network as arrays by layer name: what rounds of pruning write and read."""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from tf_robust_sparse.sparsity.prunable import is_masked, prunable_layers


def masked_layers(network: keras.Model) -> list[Any]:
    """Returns the layers of `network` with masked kernels that are not frozen, in forward order.

    Raises:
        ValueError: if there is none, or there are prunable kernels of another form.
    """
    return prunable_layers(network, is_masked, "Rounds of pruning need", "masked")


def get_kernels(network: keras.Model) -> dict[str, np.ndarray]:
    """Returns the kernels by layer name, float32, with what their masks hide."""
    return {layer.name: _array(layer.kernel) for layer in masked_layers(network)}


def get_masks(network: keras.Model) -> dict[str, np.ndarray]:
    """Returns the masks by layer name, boolean."""
    return {layer.name: _array(layer.kernel_mask) for layer in masked_layers(network)}


def set_kernels(network: keras.Model, kernels: Mapping[str, np.ndarray]) -> None:
    """Assigns kernels by layer name.

    Raises:
        ValueError: if a layer is missing or too many, or a shape is another one.
    """
    for layer, kernel in _matched(network, kernels, "kernels"):
        layer.kernel.assign(kernel.astype(np.float32))


def set_masks(network: keras.Model, masks: Mapping[str, np.ndarray]) -> None:
    """Assigns masks by layer name: boolean, or numbers that are exactly 0 or 1.

    Raises:
        ValueError: if a layer is missing or too many, a shape is another one, or a value is neither 0 nor 1.
    """
    for layer, mask in _matched(network, masks, "masks"):
        if mask.dtype != bool and not np.isin(mask, (0, 1)).all():
            strange = mask[~np.isin(mask, (0, 1))].reshape(-1)[0]
            raise ValueError(f"The mask of {layer.name} must hold 0 and 1 alone. Received: {strange}")
        layer.kernel_mask.assign(mask.astype(bool))


def apply_masks(kernels: Mapping[str, np.ndarray], masks: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the kernels with exact zeros where the mask is off."""
    return {name: np.where(np.asarray(masks[name]).astype(bool), kernel, 0) for name, kernel in kernels.items()}


def remaining(masks: Mapping[str, np.ndarray]) -> tuple[int, int]:
    """Returns how many entries the masks leave, and how many there are."""
    return sum(int(np.count_nonzero(mask)) for mask in masks.values()), sum(mask.size for mask in masks.values())


def verify(network: keras.Model, x: np.ndarray) -> None:
    """Checks that what the masks hide has no influence: logits stay the same, bit by bit, when it is set to zero.

    Raises:
        RuntimeError: if it has.
    """
    before, kernels = keras.ops.convert_to_numpy(network(x, training=False)), get_kernels(network)
    try:
        set_kernels(network, apply_masks(kernels, get_masks(network)))
        after = keras.ops.convert_to_numpy(network(x, training=False))
    finally:
        set_kernels(network, kernels)
    if not np.array_equal(before, after):
        raise RuntimeError(
            f"Pruned entries change the logits, by up to {np.abs(before - after).max():g}; the masks are not applied."
        )


def _matched(network: keras.Model, values: Mapping[str, np.ndarray], what: str) -> list[tuple[Any, np.ndarray]]:
    found = masked_layers(network)
    if {layer.name for layer in found} != set(values):
        raise ValueError(
            f"`{what}` names each masked layer: {', '.join(layer.name for layer in found)}. "
            f"Received: {', '.join(values)}"
        )
    pairs = [(layer, np.asarray(values[layer.name])) for layer in found]
    for layer, value in pairs:
        if value.shape != tuple(layer.kernel.shape):
            raise ValueError(
                f"`{what}`: {layer.name} has a kernel of shape {tuple(layer.kernel.shape)}. Received: {value.shape}"
            )
    return pairs


def _array(variable: Any) -> np.ndarray:
    return np.array(keras.ops.convert_to_numpy(variable))
