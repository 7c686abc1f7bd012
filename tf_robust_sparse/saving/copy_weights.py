"""Copies weights between networks of the same architecture, whatever their parametrizations."""

from typing import Any

import keras
import numpy as np

from tf_robust_sparse import layers
from tf_robust_sparse.layers.kernel_layer import KernelLayer
from tf_robust_sparse.layers.kernel_seam import all_layers
from tf_robust_sparse.layers.rewiring import RewiringKernel
from tf_robust_sparse.layers.signed import SignedKernel

_HOW = "pass a network of the same architecture, number of classes and image size"


def copy_weights(source: keras.Model, network: keras.Model, scores: bool = True) -> None:
    """Copies kernels, biases, batch norm and, where both have them, scores, rates and spreads, by the layers' names.

    A parametrization with a variable `kernel` gives and takes this variable, whatever its mask; others, such as
    rewiring, give their effective kernel. Gates that only one of the networks has are ignored. Nothing is assigned
    unless everything fits.

    Args:
        source: The network to copy from.
        network: The network to copy to; its masks do not change.
        scores: Whether scores and rates are copied.

    Raises:
        ValueError: if the architectures differ, naming the layer, or `network` has kernels without a `kernel`.
    """
    theirs = {layer.name: layer for layer in all_layers(source) if layer.weights}
    ours = {layer.name: layer for layer in all_layers(network) if layer.weights}
    for each, other in ((theirs, ours), (ours, theirs)):
        for name in [gate.name for gate in each.values() if isinstance(gate, layers.BetaBernoulliDropout)]:
            if name not in other:
                del each[name]
    if set(theirs) != set(ours):
        odd = sorted(set(theirs) ^ set(ours))
        raise ValueError(f"Only one of the two networks has a layer {odd[0]}; {_HOW}")
    assignments: list[tuple[Any, Any]] = []
    for name, layer in ours.items():
        assignments += _of_layer(theirs[name], layer, scores)
    for variable, value in assignments:
        variable.assign(value)


def _of_layer(source: Any, layer: Any, scores: bool) -> list[tuple[Any, Any]]:
    """Returns pairs of a variable and its new value."""
    if not isinstance(layer, KernelLayer):
        pairs = list(zip(layer.weights, source.weights, strict=False))
        if len(layer.weights) != len(source.weights):
            raise ValueError(
                f"The layers {layer.name} have {len(source.weights)} and {len(layer.weights)} weights; {_HOW}"
            )
    else:
        pairs = _of_kernel(source, layer, scores)
        bias = getattr(source, "bias", None)
        if (layer.bias is None) != (bias is None):
            raise ValueError(f"Only one of the layers {layer.name} has a bias; {_HOW}")
        if bias is not None:
            pairs.append((layer.bias, bias))
    for variable, value in pairs:
        if tuple(variable.shape) != tuple(value.shape):
            raise ValueError(
                f"{layer.name}/{variable.name} is of shape {tuple(value.shape)} in the source and of shape "
                f"{tuple(variable.shape)} in the network; {_HOW}"
            )
    for name in ("padding", "strides"):
        theirs, ours = (getattr(each, name, None) for each in (source, layer))
        if theirs is not None and ours is not None and _plain(theirs) != _plain(ours):
            raise ValueError(
                f"The layers {layer.name} differ in their {name}, {_plain(theirs)} in the source and {_plain(ours)} "
                "here, so equal weights would not make equal networks; pass the padding_mode of the source"
            )
    return [(variable, keras.ops.convert_to_numpy(value)) for variable, value in pairs]


def _plain(setting: Any) -> Any:
    return setting if isinstance(setting, str) else tuple(np.ravel(setting).tolist())


def _of_kernel(source: Any, layer: KernelLayer, scores: bool) -> list[tuple[Any, Any]]:
    theirs, ours = source.roles() if isinstance(source, KernelLayer) else {}, layer.roles()
    if isinstance(layer, SignedKernel) and not (
        isinstance(source, SignedKernel) and source.magnitude == layer.magnitude
    ):
        raise ValueError(
            f"The kernel of {layer.name} consists of frozen signs of magnitude {layer.magnitude:g} and takes "
            f'no other values; build the network with kernel="subnet". Received: {type(source).__name__}'
        )
    if isinstance(layer, RewiringKernel):
        raise ValueError(
            f"The layer {layer.name} has no kernel to copy to; build the network with plain, masked or subnet "
            f"kernels. Received: {type(layer).__name__}"
        )
    pairs = []
    if "kernel" in ours:
        kernel = source.stored_kernel if theirs else getattr(source, "kernel", None)
        if kernel is None:
            raise ValueError(f"The source's layer {layer.name} has no kernel; {_HOW}")
        pairs.append((layer.kernel, kernel))
    left = {"kernel"} if scores else {"kernel", "scores", "rate"}
    if ("kernel" in ours) != ("kernel" in theirs):  # signs drawn for a kernel are not those of a frozen one
        left.add("positive")
    return pairs + [(ours[role], theirs[role]) for role in ours if role in theirs and role not in left]
