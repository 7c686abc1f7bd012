"""SVHN, format 2: cropped digits in MATLAB files."""

import zlib
from pathlib import Path

import numpy as np

from tf_robust_sparse.data import files
from tf_robust_sparse.data.readers import matlab

NAMES = ("train_32x32.mat", "test_32x32.mat")
_MOST = 1 << 29  # bytes of an unpacked file; the larger one has 225 MB


def find(folder: Path) -> dict[str, Path] | None:
    """Returns the paths of the two files, or `None` if there is neither.

    Raises:
        FileNotFoundError: if there is only one of the two.
    """
    return files.find_all(folder, NAMES, [""])


def read(paths: dict[str, Path]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns train images `(n, 32, 32, 3)` uint8, train labels `(n,)` int64 in 0..9, and the same of test.

    Raises:
        ValueError: if a file is damaged or truncated.
    """
    return (*read_split(paths[NAMES[0]]), *read_split(paths[NAMES[1]]))


def read_split(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Returns images `(n, 32, 32, 3)` uint8 and labels `(n,)` int64; the digit 0, stored as 10, becomes 0.

    Raises:
        ValueError: if the file is damaged or holds other arrays.
    """
    path = Path(path)
    data = files.read_bytes(path, _MOST)
    try:
        content = matlab.parse(data, ("X", "y"), _MOST)
    except (ValueError, zlib.error) as error:
        raise files.damaged(path, "a complete MATLAB file", f"{len(data)} bytes: {error}") from error
    images, labels = content.get("X"), content.get("y")
    if images is None or labels is None:
        raise files.damaged(path, "a MATLAB file with 'X' and 'y'", f"one with {sorted(content)}")
    if images.dtype != np.uint8 or images.shape[:-1] != (32, 32, 3) or images.shape[-1] != labels.size:
        received = f"{images.dtype} of shape {images.shape}"
        raise files.damaged(path, f"uint8 'X' of shape (32, 32, 3, {labels.size})", received)
    labels = labels.reshape(-1)
    if not np.isin(labels, range(1, 11)).all():
        raise files.damaged(path, "labels 1..10", f"labels from {labels.min()} to {labels.max()}")
    return np.ascontiguousarray(images.transpose(3, 0, 1, 2)), labels.astype(np.int64) % 10
