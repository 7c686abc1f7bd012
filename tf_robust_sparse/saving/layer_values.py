"""Assigns arrays from other programs to the variables of a layer, by role."""

from typing import Any

import numpy as np

from tf_robust_sparse.layers.kernel_layer import KernelLayer

BATCH_NORM_ROLES = ("gamma", "beta", "moving_mean", "moving_variance")


def assign(layer: Any, values: dict[str, np.ndarray]) -> None:
    """Assigns arrays to the variables of a layer, whatever its parametrization.

    Kernel entries that are 0 become unconnected, unless scores are given. A signed kernel takes only values of a single
    magnitude.

    Args:
        layer: A kernel layer or batch norm, built.
        values: Arrays by role, in the shapes of `layer`: `theta` and `sign`, or `kernel`, optionally `scores`; `bias`;
            `gamma`, `beta`, `moving_mean`, `moving_variance`.
    """
    if isinstance(layer, KernelLayer):
        _assign_kernel(layer, values)
    for role in ("bias", *BATCH_NORM_ROLES):
        if role in values:
            getattr(layer, role).assign(values[role].astype("float32"))


def _assign_kernel(layer: Any, values: dict[str, np.ndarray]) -> None:
    if "theta" in values:
        connected = (values["theta"] > 0) & (values["sign"] != 0)
        kernel = np.where(connected, values["theta"] * values["sign"], 0)
        theta, sign = np.where(values["sign"] != 0, values["theta"], 0), np.where(values["sign"] < 0, -1, 1)
    else:
        kernel = values["kernel"]
        connected, theta, sign = kernel != 0, np.abs(kernel), np.where(kernel < 0, -1, 1)
    if hasattr(layer, "theta"):
        layer.theta.assign(theta.astype("float32"))
        layer.positive.assign(sign > 0)
        return
    if hasattr(layer, "magnitude"):
        layer.magnitude = one_magnitude(layer, kernel)
        layer.positive.assign(kernel > 0)
    elif hasattr(layer, "stochastic"):
        layer.kernel.assign(np.clip(kernel, -1, 1).astype("float32"))
        if layer.stochastic:
            layer.positive.assign(kernel >= 0)
    else:
        layer.kernel.assign(kernel.astype("float32"))
    if "scores" in values:
        layer.scores.assign(values["scores"].astype("float32"))
    elif hasattr(layer, "kernel_mask"):
        layer.kernel_mask.assign(connected)
    elif hasattr(layer, "scores"):  # every connection of the file stays
        layer.scores.assign(np.abs(kernel).astype("float32"))
        layer.keep_fraction = float(max(connected.mean(), 1 / connected.size))


def one_magnitude(layer: Any, kernel: np.ndarray) -> float:
    """Returns the magnitude that all nonzero entries of `kernel` share.

    Raises:
        ValueError: if they differ.
    """
    magnitudes = np.unique(np.abs(kernel[kernel != 0]))
    if len(magnitudes) > 1:
        raise ValueError(
            f"The kernel of {layer.name} has a single magnitude, the kernel to assign has {len(magnitudes)}; build "
            'the network with kernel="subnet"'
        )
    return float(magnitudes[0]) if len(magnitudes) else layer.magnitude
