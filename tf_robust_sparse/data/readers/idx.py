"""The IDX files of MNIST and of sets in the same format, compressed by gzip or not."""

import math
from pathlib import Path

import numpy as np

from tf_robust_sparse.data import files

NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def find(folder: Path) -> dict[str, Path] | None:
    """Returns the paths of the four files, or `None` if there is none of them.

    Raises:
        FileNotFoundError: if there are only some of the four.
    """
    return files.find_all(folder, NAMES, ["", ".gz"])


def read(paths: dict[str, Path]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns train images `(n, height, width, 1)` uint8, train labels `(n,)`, and the same of test.

    Raises:
        ValueError: if a file is damaged or truncated.
    """
    arrays = [read_array(paths[name]) for name in NAMES]
    for name, array, rank in zip(NAMES, arrays, (3, 1, 3, 1), strict=True):
        if array.ndim != rank:
            raise files.damaged(paths[name], f"an array of {rank} axes", f"one of shape {array.shape}")
    train_images, train_labels, test_images, test_labels = arrays
    return train_images[..., None], train_labels, test_images[..., None], test_labels


def read_array(path: Path) -> np.ndarray:
    """Returns the array in one IDX file of unsigned bytes.

    Raises:
        ValueError: if the magic number or the size is wrong.
    """
    data = files.read_bytes(Path(path))
    # Two zero bytes, 8 for unsigned bytes, the number of axes, and 4 big-endian bytes for each axis.
    if len(data) < 4 or data[:3] != b"\x00\x00\x08" or len(data) < 4 + 4 * data[3]:
        raise files.damaged(path, "an IDX file, magic number 0x000008 and the number of axes", f"0x{data[:4].hex()}")
    start = 4 + 4 * data[3]
    shape = np.frombuffer(data[4:start], ">u4").tolist()
    if len(data) != start + math.prod(shape):
        raise files.damaged(path, f"{start + math.prod(shape)} bytes for shape {tuple(shape)}", f"{len(data)} bytes")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)
