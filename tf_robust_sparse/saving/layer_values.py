"""Assigns arrays from other programs to the variables of a layer, by role."""

from typing import Any

import numpy as np

from tf_robust_sparse.layers.kernel_layer import KernelLayer
from tf_robust_sparse.layers.rewiring import RewiringKernel

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


def _assign_kernel(layer: KernelLayer, values: dict[str, np.ndarray]) -> None:
    if "theta" not in values:
        scores = values.get("scores")
        layer.load_kernel(values["kernel"].astype("float32"), None if scores is None else scores.astype("float32"))
    elif isinstance(layer, RewiringKernel):  # dormant entries keep their theta and their sign
        layer.theta.assign(np.where(values["sign"] != 0, values["theta"], 0).astype("float32"))
        layer.positive.assign(values["sign"] >= 0)
    else:
        connected = (values["theta"] > 0) & (values["sign"] != 0)
        layer.load_kernel(np.where(connected, values["theta"] * values["sign"], 0).astype("float32"))
