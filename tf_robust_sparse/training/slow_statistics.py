"""A warning about batch norm whose averages are too slow for the length of a training."""

import math
import warnings
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_robust_sparse.layers.kernel_seam import all_layers

FEW = 100  # steps; a shorter training is a trial, whose accuracy nobody believes
LEFT = 0.1  # share of its initial values in an average that has not settled


def warn_of_slow_statistics(network: keras.Model, x: Any, batch_size: int | None, given: Mapping[str, Any]) -> None:
    """Warns if averages of batch norm will not forget their initial zeros and ones before training ends.

    Attacks and validation read these averages: with a momentum of 0.999, as in Keras' MobileNetV2, they are at chance
    for thousands of steps, while the accuracy in training looks good.

    Args:
        network: The network that is about to be trained.
        x: Images or batches, as for `fit`.
        batch_size: Images in a step, if `x` is an array.
        given: The other arguments of `fit`: `epochs`, `initial_epoch`, `steps_per_epoch`.
    """
    per_epoch = given.get("steps_per_epoch") or _steps(x, batch_size)
    steps = (per_epoch or 0) * (given.get("epochs", 1) - given.get("initial_epoch", 0))
    fresh = [layer for layer in all_layers(network) if _is_fresh(layer)]
    momentum = max((layer.momentum for layer in fresh), default=0.0)
    if steps >= FEW and momentum**steps > LEFT:
        fitting = math.floor(100 * LEFT ** (4 / steps)) / 100  # settled after a quarter of the training
        warnings.warn(
            f"The averages of batch norm have a momentum of {momentum:g}, too slow for the {steps} steps of this "
            "training: attacks and validation would read their initial values. Set `layer.momentum = "
            f"{min(0.99, fitting):g}` in these layers before training.",
            stacklevel=3,
        )


def _is_fresh(layer: Any) -> bool:
    """Returns whether a layer is batch norm that learns, and has not seen a batch."""
    if not isinstance(layer, keras.layers.BatchNormalization) or not layer.trainable:
        return False
    return not np.any(layer.moving_mean) and bool(np.all(np.asarray(layer.moving_variance) == 1))


def _steps(x: Any, batch_size: int | None) -> int | None:
    """Returns the number of steps of an epoch, or `None` where only reading the data would tell."""
    if isinstance(x, tf.data.Dataset):
        count = int(x.cardinality())
        return count if count > 0 else None
    return -(-len(x) // batch_size) if batch_size and isinstance(x, (np.ndarray, tf.Tensor)) else None
