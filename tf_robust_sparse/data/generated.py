"""Generated images with labels, as published for robust training: millions of them, read from the disk as needed."""

import os
import zipfile
from pathlib import Path
from typing import BinaryIO

import numpy as np

from tf_robust_sparse.data import files
from tf_robust_sparse.data.readers import npz
from tf_robust_sparse.data.source import check_examples, label_array
from tf_robust_sparse.paths import user_path

KEYS = ("image", "label")


def load_generated(path: str | os.PathLike, num_classes: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Reads generated images for `train_dataset(..., auxiliary=...)`; they stay in the file where that is possible.

    The file is an `.npz` of `image`, uint8 `(n, height, width, channels)`, and `label`, n integers. Written by
    `np.savez`, its images are mapped into memory, so that a million of them take none; written by
    `np.savez_compressed`, they are read as a whole.

    Args:
        path: The file.
        num_classes: Labels must be in `[0, num_classes)`.

    Returns:
        Images uint8 `(n, height, width, channels)`, a `np.memmap` or an array, and labels int64 `(n,)`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged or has other contents, or labels are out of range.

    Reference: [Wang et al., 2023](https://arxiv.org/abs/2302.04638), the layout of the published files.
    """
    path = user_path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a file with {' and '.join(map(repr, KEYS))}; check the path")
    images = _mapped(path, f"{KEYS[0]}.npy")
    content = npz.read_arrays(path, KEYS if images is None else KEYS[1:])
    images = content[KEYS[0]] if images is None else images
    if images.dtype != np.uint8 or images.ndim != 4:
        raise ValueError(
            f"{path}: expected {KEYS[0]!r} as uint8 (n, height, width, channels); convert it. "
            f"Received: {images.dtype} {images.shape}"
        )
    try:
        labels = label_array(content[KEYS[1]])
    except ValueError as error:
        raise ValueError(f"{path}: expected {KEYS[1]!r} as n integers; convert it. Received: {error}") from error
    _, labels = check_examples(
        np.broadcast_to(np.uint8(0), images.shape), labels, num_classes=num_classes, where=str(path)
    )
    return images, labels


def _mapped(path: Path, member: str) -> np.ndarray | None:
    """Returns an array of an archive without reading it; `None` if it is compressed or not there."""
    try:
        with zipfile.ZipFile(path) as archive:
            found = {info.filename: info for info in archive.infolist()}.get(member)
    except (zipfile.BadZipFile, OSError) as error:
        raise files.damaged(path, "a complete .npz file", f"{path.stat().st_size} bytes: {error}") from error
    if found is None or found.compress_type != zipfile.ZIP_STORED:
        return None
    with path.open("rb") as file:
        file.seek(found.header_offset)
        header = file.read(30)
        # The local header ends with a name and extra fields, whose lengths are its last four bytes.
        file.seek(int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little"), os.SEEK_CUR)
        begin = file.tell()
        try:
            shape, fortran, dtype = _array_header(file)
        except ValueError as error:
            raise files.damaged(path, f"an array {member}", str(error)) from error
        start = file.tell()
    size = int(np.prod(shape, dtype=object)) * dtype.itemsize
    there = min(found.file_size, path.stat().st_size - begin) - (start - begin)
    if dtype.hasobject or size > there:
        raise files.damaged(path, f"an array {member} of {size} bytes of numbers", f"{there} bytes of {dtype}")
    return np.memmap(path, dtype, "r", start, shape, "F" if fortran else "C")


def _array_header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(file)
