"""A network in about as few bytes as its connections need, in one file, for deployment and archives.

Format, all numbers little-endian: 8 magic bytes, the version (2 bytes), the lengths of head and body (8 bytes each),
head, body, and a SHA-256 of everything before it. The head is JSON, compressed by zlib: the configuration of the
network as Keras writes it and, for every array, its number of bytes in the body and its coding; see `sparse_coding`.
The file contains no code, and only layers of Keras and of this package are rebuilt.

Only effective kernels are stored: masked-out weights, scores of unused entries and signs of dormant ones are lost.
Biases and batch norm stay float32.
"""

import gzip
import hashlib
import json
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tf_robust_sparse.layers.kernel_layer import KernelLayer
from tf_robust_sparse.paths import user_path
from tf_robust_sparse.saving import layer_values, sparse_coding
from tf_robust_sparse.saving.atomic import replace_file

COMPACT_SUFFIX = ".trs"
COMPACT_VALUES = ("float32", "float16")
_MAGIC = b"\x93TRS\r\n\x1a\n"  # a transfer that changes line ends damages it visibly
_VERSION = 1
_START = struct.Struct("<8sHQQ")
_DIGEST = 32
_LONGEST_HEAD = 1 << 26  # bytes of JSON; ResNet-50 needs 200 KB
_PACKAGE = "tf_robust_sparse"
_KERNEL = "effective_kernel"
_WITH_CODE = ("Lambda", "__lambda__", "function", "TorchModuleWrapper")  # of Keras, but may run any code


def save_compact(network: keras.Model, path: str | os.PathLike, values: str = "float32") -> Path:
    """Writes a network, storing only the connections of its kernels.

    The network that `load_compact` reads has the same logits bit by bit, unless `values` rounds the kernels. A
    connection takes its position, plus a bit in a kernel with a single magnitude or a number in other kernels.

    Args:
        network: A functional or sequential model of this package's layers and Keras' own, built.
        path: The file, such as `network.trs`. An existing file stays until the new one is complete.
        values: `"float32"`, or `"float16"` for kernels rounded to half precision.

    Returns:
        The path of the file.

    Raises:
        ValueError: if the network cannot be described without code, or a kernel holds values that are not finite.
        OSError: if the file cannot be written.
    """
    if values not in COMPACT_VALUES:
        raise ValueError(f"`values` must be one of {', '.join(COMPACT_VALUES)}. Received: values={values!r}")
    if not isinstance(network, keras.Model) or not network.built:
        raise ValueError(f"`network` must be a built keras.Model. Received: network={network!r}")
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(network)))
    _check_config(config)
    arrays, body = [], []
    place = 0
    for name, dtype, array in _arrays(network):
        head, content = sparse_coding.encode(array, values == "float16" and name.endswith(_KERNEL))
        arrays.append({"name": name, "dtype": dtype, "shape": list(array.shape), "bytes": len(content), **head})
        body.append(content)
        place += len(content)
    text = _packed({"network": config, "arrays": arrays})
    content = _START.pack(_MAGIC, _VERSION, len(text), place) + text + b"".join(body)
    with replace_file(path) as temporary:
        temporary.write_bytes(content + hashlib.sha256(content).digest())
    return user_path(path)


def load_compact(path: str | os.PathLike) -> keras.Model:
    """Reads a network that `save_compact` wrote. No code from the file is run.

    Args:
        path: The file.

    Returns:
        The network, not compiled, with the same layers. A masked or rewired kernel is connected where the file has a
        weight; subnet scores are the magnitudes of the kernel.

    Raises:
        ValueError: if there is no such file, or it is damaged, truncated, of another kind, or of a newer version.
    """
    path = user_path(path)
    if not path.is_file():
        raise ValueError(
            f"There is no compact network at {path}; pass a file that `save_compact` wrote. "
            f"Received: path={os.fspath(path)!r}"
        )
    head, body = _read(path)
    try:
        _check_config(head["network"])
        network = keras.saving.deserialize_keras_object(head["network"], safe_mode=True)
        _assign(network, head["arrays"], body)
    # The checksum is right, so a failure means that another program wrote the head; it may fail anywhere.
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ValueError(
            f"The compact network in {path} cannot be rebuilt; was it written by this package? Reason: {reason:.400}"
        ) from error
    return network


def compact_sizes(network: keras.Model, values: str = "float32") -> dict[str, Any]:
    """Compares ways to store the arrays of `network`, in bytes.

    Args:
        network, values: See `save_compact`.

    Returns:
        `dense`: every number in float32, including zeros; `gzip`: the same, compressed by gzip at its highest level;
        `compact`: the arrays as `save_compact` stores them, and `head`, their description; `bound`: the average that no
        code can beat if positions and signs are uniformly random. `layers` lists for each kernel its `name`, `entries`,
        `kept`, its coding (`positions`, `values`), `dense`, `compact` and `bound`.
    """
    half = values == "float16"
    rows, heads, dense, compact, bound = [], [], [], 0, 0.0
    for name, _, array in _arrays(network):
        is_kernel = name.endswith(_KERNEL)
        content = array.astype(np.float32).tobytes()
        head, packed = sparse_coding.encode(array, half and is_kernel)
        least = sparse_coding.entropy_bound(array, half and is_kernel) / 8
        heads.append({"name": name, "shape": array.shape, "bytes": len(packed), **head})
        dense.append(content)
        compact += len(packed)
        bound += least
        if is_kernel:
            rows.append(
                {
                    "name": name.removesuffix(f"/{_KERNEL}"),
                    "entries": array.size,
                    "kept": int(np.count_nonzero(array)),
                    "positions": head["positions"],
                    "values": head["values"],
                    "dense": len(content),
                    "compact": len(packed),
                    "bound": round(least),
                }
            )
    everything = b"".join(dense)
    description = len(_packed({"network": keras.saving.serialize_keras_object(network), "arrays": heads}))
    return {
        "dense": len(everything),
        "gzip": len(gzip.compress(everything, 9, mtime=0)),
        "compact": compact,
        "head": description,
        "bound": round(bound),
        "layers": rows,
    }


def _packed(head: dict[str, Any]) -> bytes:
    return zlib.compress(json.dumps(head, separators=(",", ":"), sort_keys=True).encode(), 9)


def _unpacked(content: bytes) -> Any:
    reader = zlib.decompressobj()
    text = reader.decompress(content, _LONGEST_HEAD)
    if not reader.eof or reader.unused_data:
        raise ValueError("it is incomplete or too long")
    return json.loads(text)


def _read(path: Path) -> tuple[dict[str, Any], bytes]:
    """Returns the head and body of a file after verifying its checksum."""
    content = path.read_bytes()
    if len(content) < _START.size or not content.startswith(_MAGIC):
        raise ValueError(
            f"{path} is no compact network, or its beginning is damaged; pass a file that `save_compact` wrote. "
            f"It begins with {content[:8]!r}"
        )
    _, version, head_length, body_length = _START.unpack_from(content)
    if version > _VERSION:
        raise ValueError(
            f"{path} has version {version}, this package reads up to {_VERSION}; read it with a newer "
            "tf_robust_sparse, unless it is damaged"
        )
    if len(content) != _START.size + head_length + body_length + _DIGEST:
        raise ValueError(
            f"{path} is cut short or damaged; copy it again. Expected "
            f"{_START.size + head_length + body_length + _DIGEST} bytes. Received: {len(content)}"
        )
    if hashlib.sha256(content[:-_DIGEST]).digest() != content[-_DIGEST:]:
        raise ValueError(f"{path} is damaged, its content does not match its checksum; copy it again")
    middle = _START.size + head_length
    try:
        head = _unpacked(content[_START.size : middle])
        if not isinstance(head, dict) or not {"network", "arrays"} <= set(head):
            raise ValueError("no description of a network")
    except (ValueError, RecursionError, zlib.error) as error:
        raise ValueError(f"{path} has a head that cannot be read: {error}") from error
    return head, content[middle:-_DIGEST]


def _check_config(config: Any) -> None:
    """Raises `ValueError` if a configuration names objects that are neither of Keras nor of this package."""
    if isinstance(config, (list, tuple)):
        for each in config:
            _check_config(each)
    if not isinstance(config, dict):
        return
    for each in config.values():
        _check_config(each)
    if "class_name" not in config:
        return
    name, module, registered = config["class_name"], config.get("module"), config.get("registered_name")
    of_keras = str(module).partition(".")[0] == "keras" and registered in (None, name) and name not in _WITH_CODE
    ours = str(registered).startswith(f"{_PACKAGE}>") and keras.saving.get_registered_object(registered) is not None
    harmless = name == "__keras_tensor__" or (name == "function" and module == "builtins" and _is_activation(config))
    if not (of_keras or ours or harmless):
        raise ValueError(
            "A compact file can hold only layers of Keras and tf_robust_sparse; replace others before saving. "
            f"Received: {module}.{name}"
        )


def _is_activation(config: dict[str, Any]) -> bool:
    name = config.get("config")
    return isinstance(name, str) and name == config.get("registered_name") and hasattr(keras.activations, name)


def _layers(network: keras.Model, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields every layer with its path through nested models."""
    for layer in network.layers:
        if isinstance(layer, keras.Model):
            yield from _layers(layer, f"{prefix}{layer.name}/")
        else:
            yield f"{prefix}{layer.name}", layer


def _arrays(network: keras.Model) -> Iterator[tuple[str, str, np.ndarray]]:
    """Yields the name, type and value of each array that is stored."""
    for place, layer in _layers(network):
        if isinstance(layer, KernelLayer):
            # Adding 0 turns -0 into 0, because rewired kernels cannot hold -0.
            kernel = np.asarray(keras.ops.convert_to_numpy(layer.effective_kernel)) + np.float32(0)
            if not np.isfinite(kernel).all():
                raise ValueError(f"The kernel of {layer.name} holds infinities or NaN; train the network again")
            yield f"{place}/{_KERNEL}", "float32", kernel
            if layer.bias is not None:
                yield f"{place}/bias", layer.bias.dtype, _stored(layer.bias)
        else:
            for number, weight in enumerate(layer.weights):
                yield f"{place}/{number}", weight.dtype, _stored(weight)


def _stored(variable: Any) -> np.ndarray:
    value = np.asarray(keras.ops.convert_to_numpy(variable))
    return value.view(np.uint16) if variable.dtype == "bfloat16" else value


def _assign(network: keras.Model, entries: list[dict[str, Any]], body: bytes) -> None:
    place, found = 0, {}
    for entry in entries:
        length = entry["bytes"]
        if not isinstance(length, int) or length < 0 or entry["name"] in found:
            raise ValueError(f"{entry['name']} of {length!r} bytes")
        found[entry["name"]] = (entry, body[place : place + length])
        place += length
    if place != len(body):
        raise ValueError(f"arrays of {place} bytes in a body of {len(body)}")
    for name, expected in _variables(network):
        if name not in found:
            raise ValueError(f"{name} is missing")
        entry, content = found.pop(name)
        dtype, shape = entry["dtype"], tuple(entry["shape"])
        stored = "uint16" if dtype == "bfloat16" else dtype
        if shape != tuple(expected.shape) or dtype != expected.dtype:
            raise ValueError(f"{name} is {dtype} {shape}, the network has {expected.dtype} {tuple(expected.shape)}")
        array = sparse_coding.decode(entry, shape, stored, content)
        expected.assign(array.view(keras.ops.convert_to_numpy(expected.value).dtype) if stored != dtype else array)
    if found:
        raise ValueError(f"the network has no {next(iter(found))}")


class _KernelOf:
    """The effective kernel of a layer with the interface of a variable."""

    dtype = "float32"

    def __init__(self, layer: Any) -> None:
        self._layer = layer
        self.shape = layer.effective_kernel.shape

    def assign(self, kernel: np.ndarray) -> None:
        """Sets kernel, mask, theta and signs, or scores."""
        fraction = getattr(self._layer, "keep_fraction", None)
        layer_values.assign(self._layer, {"kernel": kernel})
        if fraction is not None:  # it may exceed the connections in the file; the surplus entries are 0
            self._layer.keep_fraction = fraction


def _variables(network: keras.Model) -> Iterator[tuple[str, Any]]:
    """Yields the name and variable of each array, in the order of `_arrays`."""
    for place, layer in _layers(network):
        if isinstance(layer, KernelLayer):
            yield f"{place}/{_KERNEL}", _KernelOf(layer)
            if layer.bias is not None:
                yield f"{place}/bias", layer.bias
        else:
            for number, weight in enumerate(layer.weights):
                yield f"{place}/{number}", weight
