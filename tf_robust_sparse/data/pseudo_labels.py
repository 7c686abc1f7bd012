"""The file of pseudo-labeled images of robust self-training (RST)."""

import os
import pickle
from pathlib import Path

import numpy as np

from tf_robust_sparse.data import files, restricted_pickle
from tf_robust_sparse.data.readers import npz
from tf_robust_sparse.data.source import check_examples, label_array
from tf_robust_sparse.paths import user_path

KEYS = ("data", "extrapolated_targets")


def load_pseudo_labels(path: str | os.PathLike, num_classes: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Reads images with labels predicted by a network, for `train_dataset(..., auxiliary=...)`.

    The file maps `data` to uint8 `(n, 32, 32, 3)` and `extrapolated_targets` to n integers. It is an `.npz`, or a
    pickled dictionary as published, which is read without calling anything that it names.

    Args:
        path: The file; it is read as a pickle unless its name ends in `.npz`.
        num_classes: Labels must be in `[0, num_classes)`.

    Returns:
        Images uint8 `(n, 32, 32, 3)` and labels int64 `(n,)`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged or has other contents, or labels are out of range.

    Reference: [Carmon et al., 2019](https://arxiv.org/abs/1905.13736), 500 thousand images from 80 Million Tiny Images.
    """
    path = user_path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a file with {' and '.join(map(repr, KEYS))}; check the path")
    content = npz.read_arrays(path, KEYS) if path.suffix == ".npz" else _read_pickle(path)
    try:
        images, labels = content[KEYS[0]], label_array(content[KEYS[1]])
    except ValueError as error:
        raise ValueError(f"{path}: expected {KEYS[1]!r} as n integers; convert it. Received: {error}") from error
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape[1:] != (32, 32, 3):
        kind = f"{images.dtype} {images.shape}" if isinstance(images, np.ndarray) else type(images).__name__
        raise ValueError(f"{path}: expected 'data' as uint8 (n, 32, 32, 3); convert it. Received: {kind}")
    return check_examples(images, labels, num_classes=num_classes, where=str(path))


def _read_pickle(path: Path) -> dict:
    try:
        content = restricted_pickle.load(path, encoding="latin1")
    except pickle.UnpicklingError as error:
        raise files.damaged(path, "a complete pickle of plain data", f"{path.stat().st_size} bytes: {error}") from error
    if not isinstance(content, dict) or not all(key in content for key in KEYS):
        keys = list(content)[:10] if isinstance(content, dict) else type(content).__name__
        raise ValueError(
            f"{path}: expected a dictionary with {' and '.join(map(repr, KEYS))}. Received: {str(keys)[:200]}"
        )
    return content
