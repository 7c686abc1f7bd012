"""Kernels and masks of a masked network as arrays by layer name, as rounds of pruning read and write them."""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from tf_robust_sparse.sparsity.prunable import Prunable, find_parametrized, is_masked


def find(network: keras.Model) -> list[Prunable]:
    """Returns the masked kernels of `network` that are not frozen, in forward order.

    Raises:
        ValueError: if there is none, or there are prunable kernels of another parametrization.
    """
    return find_parametrized(network, is_masked, "Rounds of pruning need", "masked")


def other_variables(network: keras.Model) -> list[Any]:
    """Returns the variables of `network` other than these kernels and their masks."""
    held = {id(variable) for kernel in find(network) for variable in (kernel.weight, kernel.mask)}
    return [variable for variable in network.variables if id(variable) not in held]


def get_kernels(network: keras.Model) -> dict[str, np.ndarray]:
    """Returns the kernels by layer name, float32, including masked-out entries."""
    return {kernel.name: _array(kernel.weight) for kernel in find(network)}


def get_masks(network: keras.Model) -> dict[str, np.ndarray]:
    """Returns the masks by layer name, boolean."""
    return {kernel.name: _array(kernel.mask) for kernel in find(network)}


def set_kernels(network: keras.Model, kernels: Mapping[str, np.ndarray]) -> None:
    """Assigns kernels by layer name.

    Raises:
        ValueError: if a layer is missing or unknown, or a shape differs.
    """
    for kernel, value in _matched(network, kernels, "kernels"):
        kernel.weight.assign(value.astype(np.float32))


def set_masks(network: keras.Model, masks: Mapping[str, np.ndarray]) -> None:
    """Assigns masks by layer name: boolean, or numbers that are exactly 0 or 1.

    Raises:
        ValueError: if a layer is missing or unknown, a shape differs, or a value is neither 0 nor 1.
    """
    for kernel, mask in _matched(network, masks, "masks"):
        if mask.dtype != bool and not np.isin(mask, (0, 1)).all():
            strange = mask[~np.isin(mask, (0, 1))].reshape(-1)[0]
            raise ValueError(f"The mask of {kernel.name} must hold 0 and 1 alone. Received: {strange}")
        kernel.mask.assign(mask.astype(bool))


def apply_masks(kernels: Mapping[str, np.ndarray], masks: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the kernels with exact zeros at masked-out entries."""
    return {name: np.where(np.asarray(masks[name]).astype(bool), kernel, 0) for name, kernel in kernels.items()}


def remaining(masks: Mapping[str, np.ndarray]) -> tuple[int, int]:
    """Returns how many entries the masks keep, and how many there are."""
    return sum(int(np.count_nonzero(mask)) for mask in masks.values()), sum(mask.size for mask in masks.values())


def verify(network: keras.Model, x: np.ndarray) -> None:
    """Checks that masked-out entries have no influence: zeroing them leaves the logits equal, bit by bit.

    Raises:
        RuntimeError: if they have an influence.
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


def _matched(network: keras.Model, values: Mapping[str, np.ndarray], what: str) -> list[tuple[Prunable, np.ndarray]]:
    found = find(network)
    if {kernel.name for kernel in found} != set(values):
        raise ValueError(
            f"`{what}` must name each masked layer: {', '.join(kernel.name for kernel in found)}. "
            f"Received: {', '.join(values)}"
        )
    pairs = [(kernel, np.asarray(values[kernel.name])) for kernel in found]
    for kernel, value in pairs:
        if value.shape != tuple(kernel.weight.shape):
            raise ValueError(
                f"`{what}`: the kernel of {kernel.name} has shape {tuple(kernel.weight.shape)}. Received: {value.shape}"
            )
    return pairs


def _array(variable: Any) -> np.ndarray:
    return np.array(keras.ops.convert_to_numpy(variable))
