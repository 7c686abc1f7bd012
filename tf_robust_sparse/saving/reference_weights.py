"""Weights published with "Training Adversarially Robust Sparse Networks via Bayesian Connectivity Sampling".

The files (IGITUGraz/SparseAdversarialTraining, named `*_weights.pickle`) hold `{"param_list": [...]}`, a flat list of
variables without names or optimizer state. The list follows the forward pass; in a residual block the shortcut comes
after all layers of the main branch. Each layer contributes

- sparse kernel: theta, sign (both float32), then the bias where the layer has one (dense layers only);
- kernel of a densely trained network: kernel, then the bias;
- batch norm: gamma, beta, moving mean, moving variance. It follows the convolution that it normalizes; one that
  precedes its convolution, as in wide residual networks, comes first.

Weights, strides and paddings are those of `tf_robust_sparse.models` with `padding_mode="tf_same"`.
"""

import os
import pickle
from typing import Any, NamedTuple

import keras
import numpy as np

from tf_robust_sparse.layers.kernel_layer import KernelLayer
from tf_robust_sparse.layers.topology import layer_graph
from tf_robust_sparse.paths import user_path
from tf_robust_sparse.saving import layer_values, variable_pickle


class _Slot(NamedTuple):
    """One entry of the list: its layer, role and shape."""

    layer: Any
    role: str
    shape: tuple[int, ...]


def import_reference_weights(path: str | os.PathLike, network: keras.Model) -> None:
    """Assigns published weights to `network`.

    A network with `kernel="rewiring"` takes theta and sign; one of another parametrization takes the effective kernel,
    and its mask if it has one. The file of a densely trained network fits every parametrization. Nothing is assigned
    unless everything fits. The file is a pickle; it is read without calling anything that it names.

    Args:
        path: The pickle.
        network: The same architecture with the same number of classes, from `tf_robust_sparse.models`.

    Raises:
        ValueError: if there is no such file, it is no such list, or an array does not fit; names the first one.
    """
    arrays = read_reference_weights(path)
    sparse, dense = _layout(network, is_sparse=True), _layout(network, is_sparse=False)
    if len(arrays) not in (len(sparse), len(dense)):
        raise ValueError(
            f"The file holds {len(arrays)} arrays; {network.name} takes {len(sparse)} of a sparse network or "
            f"{len(dense)} of a dense one. Build the network of the file. Received: path={os.fspath(path)!r}"
        )
    slots = sparse if len(arrays) == len(sparse) else dense
    for i, (slot, array) in enumerate(zip(slots, arrays, strict=True)):
        if array.shape != slot.shape:
            raise ValueError(
                f"Array {i} of the file has shape {array.shape}, but {slot.role} of {slot.layer.name} in "
                f"{network.name} has {slot.shape}; build the network and number of classes of the file. "
                f"Received: path={os.fspath(path)!r}"
            )
        if array.dtype.kind not in "fi" or not np.isfinite(array).all():
            raise ValueError(
                f"Array {i} of {os.fspath(path)!r} ({slot.role} of {slot.layer.name}) holds infinities or NaN"
            )
        if slot.role == "sign" and not np.isin(array, (-1, 0, 1)).all():
            raise ValueError(
                f"Array {i} of {os.fspath(path)!r}, the sign of {slot.layer.name}, has values other than -1 and 1"
            )
    values: dict[int, dict[str, np.ndarray]] = {}
    for slot, array in zip(slots, arrays, strict=True):
        values.setdefault(id(slot.layer), {})[slot.role] = array
    for layer in dict.fromkeys(slot.layer for slot in slots):
        layer_values.assign(layer, values[id(layer)])


def read_reference_weights(path: str | os.PathLike) -> list[np.ndarray]:
    """Returns the arrays of a published file, in order.

    Raises:
        ValueError: if there is no such file, or it is no such list.
    """
    if not user_path(path).is_file():
        raise ValueError(f"There is no file {os.fspath(path)!r}; pass a published *_weights.pickle, unzipped.")
    try:
        content = variable_pickle.load(path)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{os.fspath(path)!r} is not a published list of weights: {error}") from error
    arrays = content.get("param_list") if isinstance(content, dict) else content
    if not isinstance(arrays, (list, tuple)) or not all(isinstance(array, np.ndarray) for array in arrays):
        raise ValueError(
            f'Published weights must be a list of arrays, alone or as {{"param_list": [...]}}. Received: '
            f"{type(content).__name__} in {os.fspath(path)!r}"
        )
    return list(arrays)


def _layout(network: keras.Model, is_sparse: bool) -> list[_Slot]:
    """Returns the entries of the list of `network`."""
    slots = []
    for layer in _layers_in_list_order(network):
        if isinstance(layer, KernelLayer):
            shape = tuple(layer.effective_kernel.shape)
            slots += [_Slot(layer, role, shape) for role in (("theta", "sign") if is_sparse else ("kernel",))]
            if layer.bias is not None:
                slots.append(_Slot(layer, "bias", tuple(layer.bias.shape)))
        else:
            roles = layer_values.BATCH_NORM_ROLES
            slots += [_Slot(layer, role, tuple(getattr(layer, role).shape)) for role in roles]
    return slots


def _layers_in_list_order(network: keras.Model) -> list[Any]:
    """Returns kernel layers in forward order and each batch norm after the kernel that it normalizes.

    Keras orders layers by depth, which mixes the layers of a shortcut with those of the main branch.
    """
    norms = {}
    ordered = []
    nodes = layer_graph(network)
    kernels = {node.layer.name for node in nodes if isinstance(node.layer, KernelLayer)}
    for node in nodes:
        if isinstance(node.layer, keras.layers.BatchNormalization) and node.inputs and node.inputs[0] in kernels:
            norms[node.inputs[0]] = node.layer
    for node in nodes:
        if node.layer.name in kernels:
            ordered.append(node.layer)
            if node.layer.name in norms:
                ordered.append(norms[node.layer.name])
        elif isinstance(node.layer, keras.layers.BatchNormalization) and node.layer not in norms.values():
            ordered.append(node.layer)
    return ordered
