"""CIFAR-10 and CIFAR-100: the Python and the binary version, as an archive, a folder, or a folder of .xz files."""

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from tf_robust_sparse.data import files, restricted_pickle
from tf_robust_sparse.data.source import label_array

_PIXELS = 3 * 32 * 32
_MOST = 1 << 28  # bytes of an unpacked archive or file; the largest archive has 187 MB


@dataclasses.dataclass(frozen=True)
class _Layout:
    """The names in one version of one data set."""

    num_classes: int
    archive: str
    folders: tuple[str, ...]
    train: tuple[str, ...]
    test: str
    meta: str
    label_bytes: int = 0  # before the pixels of each image; 0 means pickled files

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.train, self.test)


_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
_BINARY_BATCHES = tuple(f"{name}.bin" for name in _BATCHES)
_LAYOUTS = (
    _Layout(10, "cifar-10-python.tar.gz", ("cifar-10-batches-py",), _BATCHES, "test_batch", "batches.meta"),
    _Layout(
        10,
        "cifar-10-binary.tar.gz",
        ("cifar-10-batches-bin",),
        _BINARY_BATCHES,
        "test_batch.bin",
        "batches.meta.txt",
        label_bytes=1,
    ),
    _Layout(
        100, "cifar-100-python.tar.gz", ("cifar-100-python", "cifar-100-python-subset"), ("train",), "test", "meta"
    ),
    _Layout(
        100,
        "cifar-100-binary.tar.gz",
        ("cifar-100-binary",),
        ("train.bin",),
        "test.bin",
        "fine_label_names.txt",
        label_bytes=2,
    ),
)


@dataclasses.dataclass(frozen=True)
class Found:
    """A version of the data set that was found: `paths` of its files, or of its archive under the archive's name."""

    layout: _Layout
    paths: dict[str, Path]
    place: Path


def official_files(num_classes: int) -> tuple[str, ...]:
    """Returns the names of the published archives."""
    return tuple(layout.archive for layout in _LAYOUTS if layout.num_classes == num_classes)


def find(folder: Path, num_classes: int) -> Found | None:
    """Finds any version, in the folder itself or in the sub-folder that the archive unpacks to.

    Raises:
        FileNotFoundError: if a folder holds only some of the files of a version.
    """
    for layout in _LAYOUTS:
        if layout.num_classes != num_classes:
            continue
        for place in (*(folder / name for name in layout.folders), folder):
            # A file called "train" or "test" may be anything; an unpacked CIFAR-100 has both, and "meta".
            if layout.meta == "meta" and not (place / "meta").is_file():
                continue
            paths = files.find_all(place, layout.names, ["", ".xz"])
            if paths is not None:
                return Found(layout, paths, place)
        archive = folder / layout.archive
        if archive.is_file():
            return Found(layout, {layout.archive: archive}, archive)
    return None


def read(
    found: Found,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, tuple[str, ...] | None]:
    """Returns train images `(n, 32, 32, 3)` uint8, train labels `(n,)` int64, the same of test, and class names.

    The labels of CIFAR-100 are the 100 fine ones. Class names are `None` where the files lack them.

    Raises:
        ValueError: if a file is damaged or truncated.
    """
    layout = found.layout
    if layout.archive in found.paths:
        archive = found.paths[layout.archive]
        content = files.read_tar(archive, (*layout.names, layout.meta), _MOST)
        missing = [name for name in layout.names if name not in content]
        if missing:
            raise files.damaged(archive, f"members {', '.join(layout.names)}", f"none called {', '.join(missing)}")
        where = {name: f"{archive}, member {name}" for name in layout.names}
    else:
        content = {name: files.read_bytes(path, _MOST) for name, path in found.paths.items()}
        where = {name: str(path) for name, path in found.paths.items()}
        meta = found.place / layout.meta
        if meta.is_file():
            content[layout.meta] = files.read_bytes(meta, _MOST)
    parse = _parse_binary if layout.label_bytes else _parse_pickle
    batches = [parse(content.pop(name), layout, where[name]) for name in layout.names]
    train_images = np.concatenate([images for images, _ in batches[:-1]])
    train_labels = np.concatenate([labels for _, labels in batches[:-1]])
    return (
        train_images,
        train_labels,
        *batches[-1],
        _class_names(content.get(layout.meta), layout, f"{found.place}, {layout.meta}"),
    )


def _parse_pickle(data: bytes, layout: _Layout, where: str) -> tuple[np.ndarray, np.ndarray]:
    label_key = b"labels" if layout.num_classes == 10 else b"fine_labels"
    content = _unpickle(data, where)
    if not isinstance(content, dict) or b"data" not in content or label_key not in content:
        raise files.damaged(where, f"a dictionary with 'data' and {label_key.decode()!r}", type(content).__name__)
    pixels = content[b"data"]
    try:
        labels = label_array(content[label_key])
    except ValueError as error:
        raise files.damaged(where, "a list of integer labels", str(error)) from error
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape != (labels.size, _PIXELS):
        shape = getattr(pixels, "shape", type(pixels).__name__)
        raise files.damaged(where, f"uint8 'data' of shape ({labels.size}, {_PIXELS})", f"{shape}")
    return _channels_last(pixels), labels.reshape(-1)


def _parse_binary(data: bytes, layout: _Layout, where: str) -> tuple[np.ndarray, np.ndarray]:
    record = layout.label_bytes + _PIXELS
    if not data or len(data) % record:
        raise files.damaged(where, f"a multiple of {record} bytes, {record} for each image", f"{len(data)} bytes")
    records = np.frombuffer(data, np.uint8).reshape(-1, record)
    labels = records[:, layout.label_bytes - 1].astype(np.int64)  # CIFAR-100: the coarse label, then the fine one
    return _channels_last(records[:, layout.label_bytes :]), labels


def _channels_last(pixels: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def _unpickle(data: bytes, where: str) -> Any:
    try:
        return restricted_pickle.load(data, encoding="bytes")
    except pickle.UnpicklingError as error:
        raise files.damaged(where, "a complete pickle of plain data", f"{len(data)} bytes: {error}") from error


def _class_names(data: bytes | None, layout: _Layout, where: str) -> tuple[str, ...] | None:
    if data is None:
        return None
    if layout.label_bytes:
        names = data.decode("utf-8", "replace").split()
    else:
        content = _unpickle(data, where)
        key = b"label_names" if layout.num_classes == 10 else b"fine_label_names"
        stored = content.get(key) if isinstance(content, dict) else None
        if not isinstance(stored, list) or not all(isinstance(name, bytes) for name in stored):
            raise files.damaged(where, f"a list of names under {key.decode()!r}", type(stored).__name__)
        names = [name.decode("utf-8", "replace") for name in stored]
    return tuple(names) if len(names) == layout.num_classes else None
