"""Weights trained with PyTorch, from HYDRA's checkpoints, those of binary sub-networks, and torchvision.

The modules of a state dict are matched to layers:

- Residual networks, by name: `conv1`, `bn1`, `layer2.0.conv1`, `layer2.0.shortcut.0` or `.downsample.0`, `linear` or
  `fc`; wide ones `block1.layer.0.bn1`, `block1.layer.0.convShortcut` and so on. `sub_block1`, which no forward pass
  uses, is ignored.
- In binary sub-networks the classifier `fc` is a convolution of one pixel, `last` the batch norm after it, and batch
  norm may have neither scale nor shift.
- Others, whose modules are numbered: convolutions, batch norms and dense layers, each in the order of the numbers.

Kernels are transposed from (out, in, height, width) to (height, width, in, out), dense layers after a `Flatten` from
channels first to channels last. PyTorch pads on both sides, so the network needs `padding_mode="symmetric"`.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tf_robust_sparse.data.readers import npz
from tf_robust_sparse.layers.kernel_layer import KernelLayer
from tf_robust_sparse.layers.signed import SignedKernel
from tf_robust_sparse.layers.subnet import SubnetKernel
from tf_robust_sparse.layers.topology import layer_graph
from tf_robust_sparse.paths import user_path
from tf_robust_sparse.saving import layer_values

PYTORCH_SUFFIXES = (".pt", ".pth", ".tar", ".safetensors", ".npz")
_BATCH_NORM = dict(zip(layer_values.BATCH_NORM_ROLES, ("weight", "bias", "running_mean", "running_var"), strict=True))
_SCORES = ("popup_scores", "scores")
_INSTALL = "python -m pip install 'tf_robust_sparse[pytorch]'"
_WRAPPERS = ("state_dict", "model_state_dict", "model")
# Pattern of layer names -> module names, as replacements of the match.
_NAMES = (
    (r"stem", (r"conv1",)),
    (r"stem_bn|final_bn", (r"bn1",)),
    (r"stage(\d+)_block(\d+)_((?:conv|bn)\d)", (r"layer\1.{index}.\3",)),
    (r"stage(\d+)_block(\d+)_shortcut", (r"layer\1.{index}.shortcut.0", r"layer\1.{index}.downsample.0")),
    (r"stage(\d+)_block(\d+)_shortcut_bn", (r"layer\1.{index}.shortcut.1", r"layer\1.{index}.downsample.1")),
    (r"group(\d+)_block(\d+)_((?:conv|bn)\d)", (r"block\1.layer.{index}.\3",)),
    (r"group(\d+)_block(\d+)_shortcut", (r"block\1.layer.{index}.convShortcut",)),
    (r"classifier", (r"linear", r"fc")),
    (r"classifier_bn", (r"last",)),
)


def import_pytorch_weights(path: str | os.PathLike, network: keras.Model) -> None:
    """Assigns the weights of a PyTorch checkpoint to `network`.

    Importance scores (`popup_scores` or `scores`) go to subnet kernels, whose keep fractions do not change. Without
    scores in the file, all its connections, the nonzero entries, stay. Ties between scores are resolved as in PyTorch,
    where the last entry in its memory order stays: such scores are increased by the smallest possible amount. Nothing
    is assigned unless everything fits.

    Args:
        path: A checkpoint of `torch.save` (`.pt`, `.pth`, `.pth.tar`; read by `torch.load(weights_only=True)`, which
            needs torch), a `.safetensors` (needs safetensors) or an `.npz` with the entries of the state dict.
        network: The same architecture from `tf_robust_sparse.models`, with `padding_mode="symmetric"`.

    Raises:
        ValueError: if there is no such file, it cannot be read, or it does not fit; names the layer or module.
        ImportError: if the package that reads it is not installed.
    """
    modules = _modules(_read(user_path(path)), path)
    found = _match(network, modules, path)
    flattened = _flattened_shapes(network)
    values = {}
    for layer in _layers_with_weights(network):
        module = found[layer.name]
        try:
            values[layer.name] = _values(layer, module, modules[module], flattened.get(layer.name))
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)!r}: {error}") from error
    unused = sorted(set(modules) - set(found.values()), key=_natural)
    unused = [name for name in unused if not re.search(r"(^|\.)sub_block1\.", name)]
    if unused:
        raise ValueError(
            f"{network.name} has no layer for {unused[0]} of {os.fspath(path)!r}; build the architecture of the file"
        )
    for layer in _layers_with_weights(network):
        layer_values.assign(layer, values[layer.name])


def pytorch_modules(path: str | os.PathLike) -> tuple[str, ...]:
    """Returns the names of the modules with weights in a PyTorch checkpoint, without a wrapper's prefix.

    Args:
        path: See `import_pytorch_weights`.

    Raises:
        ValueError, ImportError: see `import_pytorch_weights`.
    """
    return tuple(_modules(_read(user_path(path)), path))


def _read(path: Path) -> Mapping[str, np.ndarray]:
    if not path.is_file():
        raise ValueError(f"There is no file {os.fspath(path)!r}; pass a PyTorch checkpoint, a .safetensors or an .npz")
    try:
        if path.suffix == ".npz":
            return npz.read_arrays(path)
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        return _read_torch(path)
    except ImportError:
        raise
    except Exception as error:  # the readers raise different exceptions for damaged files
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{os.fspath(path)!r} cannot be read as a checkpoint of weights alone ({reason:.400}); save its state dict "
            "again, with torch.save, as .safetensors or as .npz"
        ) from error


def _read_safetensors(path: Path) -> Mapping[str, np.ndarray]:
    try:
        from safetensors import numpy as safetensors
    except ImportError:
        raise ImportError(f"Reading {path.name} needs safetensors: {_INSTALL}") from None
    return safetensors.load_file(path)


def _read_torch(path: Path) -> Mapping[str, np.ndarray]:
    try:
        import torch
    except ImportError:
        raise ImportError(
            f"Reading {path.name} needs torch: {_INSTALL}, or save the state dict as .safetensors or .npz"
        ) from None
    # Checkpoints often hold the best accuracy as a NumPy number; apart from tensors, nothing else is allowed.
    number, dtype = type(np.float64(0).dtype), np.dtype
    scalar = np.float64(0).__reduce__()[0]
    harmless: list[Any] = [dtype, number, scalar, (scalar, "numpy.core.multiarray.scalar")]
    with torch.serialization.safe_globals(harmless):
        content = torch.load(path, map_location="cpu", weights_only=True)
    for name in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not isinstance(content, Mapping):
        raise ValueError(f"expected a state dict. Received: {type(content).__name__}")
    return {name: value.float().numpy() for name, value in content.items() if isinstance(value, torch.Tensor)}


def _modules(state: Mapping[str, np.ndarray], path: str | os.PathLike) -> dict[str, dict[str, np.ndarray]]:
    """Groups the entries of a state dict by module, for modules with weights."""
    modules: dict[str, dict[str, np.ndarray]] = {}
    for key, value in state.items():
        module, _, entry = key.removeprefix("module.").rpartition(".")
        value = np.asarray(value)
        if value.dtype.kind not in "biuf":
            raise ValueError(f"{os.fspath(path)!r} holds {key} of type {value.dtype}, expected numbers")
        modules.setdefault(module, {})[entry] = value
    modules = {name: entries for name, entries in modules.items() if {"weight", "running_mean"} & set(entries)}
    if not any("weight" in entries for entries in modules.values()):
        raise ValueError(f"{os.fspath(path)!r} holds no state dict: there is no entry named *.weight")
    if all(name.startswith("1.") for name in modules) and not all(re.fullmatch(r"1\.\d+", name) for name in modules):
        modules = {name.removeprefix("1."): entries for name, entries in modules.items()}  # a normalization precedes it
    return modules


def _match(network: keras.Model, modules: dict[str, dict[str, np.ndarray]], path: str | os.PathLike) -> dict[str, str]:
    """Returns the module of each layer."""
    ours = _layers_with_weights(network)
    if any(layer.name == "stem" for layer in ours):
        found = {}
        for layer in ours:
            candidates = _candidates(layer.name)
            present = [name for name in candidates if name in modules]
            if not present:
                raise ValueError(
                    f"{os.fspath(path)!r} has no module {' or '.join(candidates)} for {layer.name} of {network.name}; "
                    f"build the architecture of the file. It has {', '.join(sorted(modules, key=_natural)[:8])}"
                )
            found[layer.name] = present[0]
        return found
    found = {}
    kinds = {"convolutions": _is_conv, "batch norms": _is_batch_norm, "dense layers": _is_dense}
    for kind, belongs in kinds.items():
        mine = [layer for layer in ours if belongs(layer)]
        theirs = sorted((name for name, entries in modules.items() if _kind(entries) == kind), key=_natural)
        if len(mine) != len(theirs):
            raise ValueError(
                f"{os.fspath(path)!r} has {len(theirs)} {kind}, {network.name} has {len(mine)}; build the "
                "architecture of the file"
            )
        found.update({layer.name: name for layer, name in zip(mine, theirs, strict=True)})
    return found


def _candidates(name: str) -> list[str]:
    for pattern, replacements in _NAMES:
        match = re.fullmatch(pattern, name)
        if match:
            index = int(match[2]) - 1 if match.re.groups >= 2 else 0  # PyTorch counts blocks from 0
            return [match.expand(each).format(index=index) for each in replacements]
    return [name]


def _layers_with_weights(network: keras.Model) -> list[Any]:
    return [
        layer
        for layer in dict.fromkeys(node.layer for node in layer_graph(network))
        if isinstance(layer, KernelLayer) or _is_batch_norm(layer)
    ]


def _is_conv(layer: Any) -> bool:
    return isinstance(layer, KernelLayer) and len(layer.effective_kernel.shape) == 4


def _is_dense(layer: Any) -> bool:
    return isinstance(layer, KernelLayer) and len(layer.effective_kernel.shape) == 2


def _is_batch_norm(layer: Any) -> bool:
    return isinstance(layer, keras.layers.BatchNormalization)


def _kind(entries: dict[str, np.ndarray]) -> str:
    if "running_mean" in entries:
        return "batch norms"
    return {4: "convolutions", 2: "dense layers"}.get(entries["weight"].ndim, "others")


def _flattened_shapes(network: keras.Model) -> dict[str, tuple[int, ...]]:
    """Returns the flattened (height, width, channels) of each dense layer that follows a Flatten."""
    flattens = {
        node.layer.name: tuple(node.layer.input.shape[1:])
        for node in layer_graph(network)
        if isinstance(node.layer, keras.layers.Flatten)
    }
    return {
        node.layer.name: flattens[node.inputs[0]]
        for node in layer_graph(network)
        if node.inputs[:1] and node.inputs[0] in flattens
    }


def _values(
    layer: Any, module: str, entries: dict[str, np.ndarray], flattened: tuple[int, ...] | None
) -> dict[str, np.ndarray]:
    """Returns the arrays of a layer by role, in the layout of Keras."""
    if _is_batch_norm(layer):
        has = {role: name for role, name in _BATCH_NORM.items() if getattr(layer, role, None) is not None}
        missing = [name for name in has.values() if name not in entries]
        if missing:
            raise ValueError(f"{module}.{missing[0]} is missing, which {layer.name} needs")
        surplus = [name for name in ("weight", "bias") if name in entries and name not in has.values()]
        if surplus:
            raise ValueError(
                f"{module}.{surplus[0]} has no place in {layer.name}, a batch norm without scale and shift"
            )
        values = {role: entries[name] for role, name in has.items()}
        shapes = {role: tuple(getattr(layer, role).shape) for role in values}
    else:
        if "weight" not in entries:
            raise ValueError(f"{module}.weight is missing, which {layer.name} needs")
        scores = next((name for name in _SCORES if name in entries), None)
        if scores is not None and not isinstance(layer, SubnetKernel):
            raise ValueError(
                f"{module} has importance scores, but {layer.name} has none; build the network with "
                'kernel="subnet" and, as connectivity, the fraction that the scores keep (1 if it was never pruned)'
            )
        shape = tuple(layer.effective_kernel.shape)
        values = {"kernel": _to_keras(entries["weight"], flattened, len(shape))}
        shapes = {"kernel": shape, "scores": shape, "bias": (shape[-1],)}
        if scores is not None:
            values["scores"] = _to_keras(_without_ties(entries[scores], layer.kept), flattened, len(shape))
        if ("bias" in entries) != (layer.bias is not None):
            only = module if "bias" in entries else layer.name
            raise ValueError(f"Of {layer.name} and its module {module} only {only} has a bias")
        if layer.bias is not None:
            values["bias"] = entries["bias"]
        if isinstance(layer, SignedKernel):
            layer.check_magnitude(values["kernel"])
    for role, value in values.items():
        if value.shape != shapes[role]:
            raise ValueError(
                f"{module} has {role} of shape {value.shape}, {layer.name} of {shapes[role]} (height, width, in, out); "
                "build the architecture, number of classes and image size of the file"
            )
        if not np.isfinite(value).all():
            raise ValueError(f"{module} has {role} with infinities or NaN")
    return values


def _without_ties(scores: np.ndarray, kept: int) -> np.ndarray:
    """Returns scores whose `kept` largest absolute values are those that PyTorch keeps: ties go to the last.

    Transposing a kernel changes the memory order, so ties at the threshold are resolved here.
    """
    sizes = np.abs(scores).ravel()
    threshold = np.partition(sizes, sizes.size - kept)[sizes.size - kept]
    tied = np.flatnonzero(sizes == threshold)
    wanted = kept - np.count_nonzero(sizes > threshold)
    if wanted == tied.size:
        return scores
    larger = max(np.nextafter(threshold, np.float32(np.inf), dtype=np.float32), np.finfo(np.float32).tiny)
    untied = scores.astype(np.float32).ravel()
    untied[tied[-wanted:]] = np.where(untied[tied[-wanted:]] < 0, -larger, larger)
    return untied.reshape(scores.shape)


def _to_keras(weight: np.ndarray, flattened: tuple[int, ...] | None, rank: int) -> np.ndarray:
    if weight.ndim == 4 and rank == 2 and weight.shape[2:] == (1, 1):
        return weight[:, :, 0, 0].T  # a 1x1 convolution of one pixel is a dense layer
    if weight.ndim == 4:
        return np.transpose(weight, (2, 3, 1, 0))
    if weight.ndim != 2:
        return weight
    if flattened is not None and len(flattened) == 3 and np.prod(flattened) == weight.shape[1]:
        height, width, channels = flattened
        by_place = weight.reshape(-1, channels, height, width)
        return np.transpose(by_place, (2, 3, 1, 0)).reshape(-1, weight.shape[0])
    return weight.T


def _natural(name: str) -> list[tuple[int, int | str]]:
    """Sorts numbers by value: `features.10` after `features.9`."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", name) if part]
