"""A user's own data in one NumPy archive."""

import os
import zipfile
import zlib
from pathlib import Path

import numpy as np

from tf_robust_sparse.data.readers import files
from tf_robust_sparse.data.source import ImageDataset

KEYS = ("x_train", "y_train", "x_test", "y_test")


def read(path: str | os.PathLike) -> ImageDataset:
    """Reads a file written by `np.savez_compressed(path, x_train=..., y_train=..., x_test=..., y_test=...)`.

    Images are `(n, height, width[, channels])`, uint8 or floats in [0, 1]; labels `(n,)` or `(n, 1)`, integers.
    The number of classes is one more than the largest label of either split.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged, lacks a key, or holds Python objects or values out of range.
    """
    path = Path(path)
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


def read_arrays(path: Path, keys: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Returns the named arrays of a `.npz` file; never unpickles.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged, lacks a key or holds Python objects.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a .npz file with {', '.join(keys)}; check the path. No such file")
    try:
        with path.open("rb") as stream:
            archive = np.load(stream, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("one array, as np.save writes; use np.savez_compressed")
            missing = [key for key in keys if key not in archive]
            if missing:
                raise ValueError(f"no {', '.join(missing)} among its keys {sorted(archive.files)[:10]}")
            return {key: archive[key] for key in keys}
    except (ValueError, EOFError, OSError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        expected = f"a complete .npz file of plain arrays {', '.join(keys)}"
        raise files.damaged(path, expected, f"{path.stat().st_size} bytes: {error}") from error
