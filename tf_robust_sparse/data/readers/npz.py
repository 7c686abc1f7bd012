"""Your own data in one NumPy archive."""

import io
import math
import os
import zipfile
from collections.abc import Collection
from pathlib import Path

import numpy as np

from tf_robust_sparse.data import files
from tf_robust_sparse.data.source import ImageDataset
from tf_robust_sparse.paths import user_path

_NPY = b"\x93NUMPY"
_LONGEST_HEADER = 1 << 17  # NumPy refuses headers beyond 10,000 bytes
KEYS = ("x_train", "y_train", "x_test", "y_test")


def read(path: str | os.PathLike) -> ImageDataset:
    """Reads a file written by `np.savez_compressed(path, x_train=..., y_train=..., x_test=..., y_test=...)`.

    Images are `(n, height, width[, channels])`, uint8 or floats in [0, 1]; labels `(n,)` or `(n, 1)`, integers.
    The number of classes is one more than the largest label of either split.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged, lacks a key, or holds Python objects or values out of range.
    """
    path = user_path(path)
    arrays = read_arrays(path, KEYS)
    for key in ("x_train", "x_test"):
        if arrays[key].ndim == 3:
            arrays[key] = arrays[key][..., None]
    for key in ("y_train", "y_test"):
        if arrays[key].ndim == 2 and arrays[key].shape[1] == 1:
            arrays[key] = arrays[key][:, 0]
    labels = [arrays[key] for key in ("y_train", "y_test") if np.issubdtype(arrays[key].dtype, np.integer)]
    num_classes = max([2, *(int(array.max()) + 1 for array in labels if array.size)])
    return ImageDataset(
        name=path.stem,
        train_images=arrays["x_train"],
        train_labels=arrays["y_train"],
        test_images=arrays["x_test"],
        test_labels=arrays["y_test"],
        num_classes=num_classes,
        origin=str(path),
    )


def read_arrays(path: Path, keys: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """Returns the named arrays of a `.npz` file, or all of them; never unpickles.

    Each array is read to its checksum, and its size is compared with its header before memory is allocated.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged, lacks a key, holds Python objects, or unpacks to more than a gibibyte and
            more than 64 times its size.
    """
    path = user_path(path)
    named = ", ".join(keys or ())
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a .npz file with {named or 'arrays'}; check the path. No such file")
    try:
        with path.open("rb") as stream:
            if stream.read(len(_NPY)) == _NPY:
                raise ValueError("one array, as np.save writes; use np.savez_compressed")
        with zipfile.ZipFile(path) as archive:
            files.check_unpacked(archive, path)
            members = {name.removesuffix(".npy"): name for name in archive.namelist() if name.endswith(".npy")}
            missing = [key for key in keys or () if key not in members]
            if missing:
                raise ValueError(f"no {', '.join(missing)} among its keys {sorted(members)[:10]}")
            return {key: _member(archive, members[key], key) for key in keys or members}
    except Exception as error:  # zipfile and NumPy raise many kinds of exceptions for damage
        expected = f"a complete .npz file of plain arrays {named}".strip()
        received = f"{path.stat().st_size} bytes: {error or type(error).__name__}"
        raise files.damaged(path, expected, received) from error


def read_array(path: Path) -> np.ndarray:
    """Returns the array of a `.npy` file; never unpickles.

    Raises:
        ValueError: if the file is no regular file or damaged, or holds Python objects.
    """
    files.check_regular(path)
    content = bytearray(path.read_bytes())
    try:
        return _parse(content, path.name)
    except Exception as error:  # NumPy evaluates the header as a Python expression
        raise files.damaged(path, "a complete .npy file of plain numbers", f"{len(content)} bytes: {error}") from error


def _member(archive: zipfile.ZipFile, member: str, key: str) -> np.ndarray:
    with archive.open(member) as stream:
        return _parse(files.read_parts(stream), key)


def _parse(content: bytearray, name: str) -> np.ndarray:
    """Returns the array of a `.npy` file as a view of `content`."""
    stream = io.BytesIO(content[:_LONGEST_HEADER])
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"{name} is of version {version}")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, is_fortran, dtype = read(stream)
    if dtype.kind not in "?biufcSU":
        raise ValueError(f"{name} is of type {str(dtype)[:40]}, no numbers or text; Python objects are never unpickled")
    start, size = stream.tell(), math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or len(content) - start != size:
        raise ValueError(f"{name} has {len(content) - start} bytes, {size} for its shape {str(shape)[:80]}")
    array = np.frombuffer(content, dtype, offset=start) if size else np.empty(math.prod(shape), dtype)
    return array.reshape(shape, order="F" if is_fortran else "C")
