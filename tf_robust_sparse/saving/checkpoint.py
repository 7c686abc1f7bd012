"""Everything that a run needs to resume in one file: all variables, bit by bit, and its state as JSON.

The file is HDF5. Each variable of the model and of its optimizer (iterations, slots, loss scale) is a data set under
`variables/`, named after the path of the variable. Names that Keras numbers by process (`sgd_1`, `dense_3`) lose
the number, and variables that then share a name are numbered in the order of the model, so names depend on the model
alone. A SHA-256 of the content detects damage.
"""

import hashlib
import io
import json
import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import h5py
import keras
import numpy as np
import tensorflow as tf

from tf_robust_sparse.paths import user_path
from tf_robust_sparse.saving.atomic import replace_file

_FORMAT = "tf_robust_sparse checkpoint 1"
_RESTORE = "pass the flags of the run that wrote it"


class _Content(NamedTuple):
    """The content of a file: its metadata, and the type and value of each variable."""

    metadata: dict[str, Any]
    variables: dict[str, tuple[str, np.ndarray]]


def save_checkpoint(
    path: str | os.PathLike, model: keras.Model, metadata: Mapping[str, Any], writes: bool = True
) -> None:
    """Saves every variable of `model` and its optimizer, the arrays of its `tables`, if any, and `metadata`.

    Args:
        path: The file, such as `run.weights.h5`. An existing file stays until the new one is complete.
        model: A built model; its optimizer is included if it is compiled.
        metadata: Values that JSON can hold; NumPy numbers and arrays become numbers and lists.
        writes: Whether this process writes. One of several workers does; the others take part in collecting the tables.

    Raises:
        ValueError: if the model has no variables yet.
        TypeError: if `metadata` holds values that JSON cannot hold.
        OSError: if the file cannot be written.
    """
    if not writes:
        for table in _tables(model).values():
            np.asarray(table)
        return
    text = json.dumps(dict(metadata), default=_plain)
    variables = _variables(model)
    # HDF5 crashes the process when the disk is full, so it writes to memory.
    image, digest = io.BytesIO(), hashlib.sha256(text.encode())
    with h5py.File(image, "w") as file:
        # Strings of fixed length: a damaged length of a variable one takes up to 4 GB before HDF5 notices.
        file.attrs["format"] = np.bytes_(_FORMAT)
        file.create_dataset("metadata", data=np.frombuffer(text.encode(), np.uint8))
        group = file.create_group("variables")
        for key in sorted(variables):
            value, dtype = _to_storage(variables[key]), variables[key].dtype
            group.create_dataset(key, data=value).attrs["dtype"] = np.bytes_(dtype)
            _add(digest, key, dtype, value)
        file.attrs["sha256"] = np.bytes_(digest.hexdigest())
    # The view ends here, also when the disk is full: one that an exception keeps alive outlives its buffer.
    with replace_file(path) as temporary, image.getbuffer() as view, temporary.open("wb") as file:
        file.write(view)


def load_checkpoint(path: str | os.PathLike, model: keras.Model, weights_only: bool = False) -> dict[str, Any]:
    """Restores every variable of `model` and its optimizer from a file that `save_checkpoint` wrote.

    Nothing is assigned unless everything fits: variables, shapes, types and checksum.

    Args:
        path: The file.
        model: A model built and compiled like the saved one; mirrored variables are set on all replicas.
        weights_only: Whether `model` is the network alone, and the file may hold more, such as its optimizer.

    Returns:
        The metadata.

    Raises:
        ValueError: if there is no such file, it is damaged, or it belongs to another network; names the first mismatch.
    """
    content = _read(path)
    with model.distribute_strategy.scope():
        variables = _variables(model)
        for key, variable in variables.items():
            _check(key, variable, content.variables)
        for key in content.variables:
            if key not in variables and not weights_only:
                raise ValueError(f"the checkpoint holds {key}, which the network does not have; {_RESTORE}")
        for key, variable in variables.items():
            variable.assign(_from_storage(content.variables[key][1], variable.dtype))
    return content.metadata


def read_metadata(path: str | os.PathLike) -> dict[str, Any]:
    """Reads only the metadata; the variables are neither read nor verified.

    Args:
        path: A file that `save_checkpoint` wrote.

    Raises:
        ValueError: if there is no such file or it is damaged.
    """
    return _read(path, metadata_only=True).metadata


def _variables(model: keras.Model) -> dict[str, Any]:
    """Returns the variables of `model` and its optimizer by names that depend on the model alone."""
    if not model.variables:
        raise ValueError(
            "The model has no variables yet; build it, with model.build or by calling it once, before its checkpoint "
            f"is saved or loaded. Received: {model.name}"
        )
    named = [(_name(variable.path, model.name), variable) for variable in model.variables]
    named += [(f"tables/{name}", table) for name, table in _tables(model).items()]
    optimizer, place = getattr(model, "optimizer", None), "optimizer"
    if optimizer is not None:
        if not optimizer.built:
            optimizer.build(model.trainable_variables)
        own: dict[int, str] = {}
        while optimizer is not None:  # a loss scale optimizer contains another
            inner = getattr(optimizer, "inner_optimizer", None)
            of_inner = {id(variable) for variable in inner.variables} if inner is not None else set()
            for variable in optimizer.variables:
                if id(variable) not in of_inner:
                    own[id(variable)] = f"{place}/{_name(variable.path, optimizer.name)}"
                    named.append((own[id(variable)], variable))
            optimizer, place = inner, f"{place}/inner"
    counts: dict[str, int] = {}
    for name, _ in named:
        counts[name] = counts.get(name, 0) + 1
    seen: dict[str, int] = {}
    variables = {}
    for name, variable in named:
        seen[name] = seen.get(name, -1) + 1
        variables[name if counts[name] == 1 else f"{name}#{seen[name]}"] = variable
    return variables


def _tables(model: keras.Model) -> Mapping[str, Any]:
    """Returns the tables that `model` keeps per example."""
    return getattr(model, "tables", {})


def _name(path: str, owner: str) -> str:
    """Returns the path of a variable from its owner on, without the numbers that Keras gives by process.

    The part before the owner depends on whether the variables were created in another object's call.
    """
    parts = path.split("/")
    if owner in parts[:-1]:
        parts = parts[len(parts) - parts[::-1].index(owner) :]
    return re.sub(r"_\d+(?=[_/]|$)", "", "/".join(parts))


def _check(key: str, variable: Any, stored: Mapping[str, tuple[str, np.ndarray]]) -> None:
    if key not in stored:
        raise ValueError(f"the checkpoint does not hold {key}, which the network needs; {_RESTORE}")
    dtype, value = stored[key]
    if value.shape != tuple(variable.shape):
        raise ValueError(
            f"the checkpoint holds {key} of shape {value.shape}, the network needs {tuple(variable.shape)}; {_RESTORE}"
        )
    if dtype != variable.dtype:
        raise ValueError(f"the checkpoint holds {key} of type {dtype}, the network needs {variable.dtype}; {_RESTORE}")


def _to_storage(variable: Any) -> np.ndarray:
    value = np.asarray(keras.ops.convert_to_numpy(variable) if isinstance(variable, keras.Variable) else variable)
    return value.view(np.uint16) if variable.dtype == "bfloat16" else value


def _from_storage(value: np.ndarray, dtype: str) -> np.ndarray:
    return value.view(tf.bfloat16.as_numpy_dtype) if dtype == "bfloat16" else value


def _add(digest: Any, key: str, dtype: str, value: np.ndarray) -> None:
    digest.update(f"{key} {dtype} {value.shape} {value.dtype.str}".encode())
    digest.update(np.ascontiguousarray(value))


def _read(path: str | os.PathLike, metadata_only: bool = False) -> _Content:
    """Reads and verifies a file, without its variables if `metadata_only`."""
    path = user_path(path)
    if not path.is_file():
        raise ValueError(f"There is no checkpoint at {str(path)!r}; pass the file that `save_checkpoint` wrote.")
    variables: dict[str, tuple[str, np.ndarray]] = {}

    left = path.stat().st_size  # nothing in the file is compressed

    def value_of(item):
        nonlocal left
        left -= item.nbytes
        if item.dtype.kind not in "biufc" or left < 0:
            raise ValueError(f"{item.name} claims {item.nbytes} bytes of type {item.dtype}")
        return item[()]

    def visit(key, item):
        if isinstance(item, h5py.Dataset):
            variables[key] = (_text(item, "dtype"), value_of(item))

    try:
        with h5py.File(path, "r") as file:
            is_ours = "format" in file.attrs and _text(file, "format") == _FORMAT
            if is_ours:
                text = value_of(file["metadata"]).tobytes()
                metadata = json.loads(text)
                if not metadata_only:
                    file["variables"].visititems(visit)
                    digest = hashlib.sha256(text)
                    for key in sorted(variables):
                        _add(digest, key, *variables[key])
                    if _text(file, "sha256") != digest.hexdigest():
                        raise ValueError("its content does not match its checksum")
    except Exception as error:  # HDF5 reports damage by the error of whatever fails first
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"The checkpoint {str(path)!r} is damaged; resume from an earlier one. Reason: {reason}"
        ) from error
    if not is_ours:
        raise ValueError(
            f"{str(path)!r} is an HDF5 file but no checkpoint of this package; pass the file that "
            "`save_checkpoint` wrote."
        )
    return _Content(metadata, variables)


def _text(item: Any, name: str) -> str:
    """Returns a text attribute, which is stored as bytes or, in older files, as text."""
    value = item.attrs[name]
    return value.decode() if isinstance(value, bytes) else str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    raise TypeError(
        "`metadata` must hold JSON types alone: dicts, lists, strings, numbers, booleans, None. "
        f"Received: {value!r} of type {type(value).__name__}"
    )
