"""SVHN, format 2: cropped digits in MATLAB files."""

import io
import zlib
from pathlib import Path

import numpy as np

from tf_robust_sparse.data import files

NAMES = ("train_32x32.mat", "test_32x32.mat")
_HEADER, _TAG, _COMPRESSED = 128, 8, 15
_MOST = 1 << 29  # bytes of a file once unpacked; the larger one has 225 MB


def find(folder: Path) -> dict[str, Path] | None:
    """Returns the paths of the two files, or `None` if neither is there.

    Raises:
        FileNotFoundError: if only one of the two is there.
    """
    return files.find_all(folder, NAMES, [""])


def read(paths: dict[str, Path]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns train images `(n, 32, 32, 3)` uint8, train labels `(n,)` int64 in 0..9, and the same of test.

    Raises:
        ValueError: if a file is damaged or cut short.
    """
    return (*read_split(paths[NAMES[0]]), *read_split(paths[NAMES[1]]))


def read_split(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Returns images `(n, 32, 32, 3)` uint8 and labels `(n,)` int64; the digit 0, stored as 10, becomes 0.

    Raises:
        ValueError: if the file is damaged, or holds other arrays.
    """
    import scipy.io

    try:
        plain = io.BytesIO(_unpacked(files.read_bytes(Path(path), _MOST)))
        content = scipy.io.loadmat(plain, variable_names=("X", "y"))
    except Exception as error:  # a damaged file fails in many places of the parser
        received = f"{Path(path).stat().st_size} bytes: {type(error).__name__}: {error}"
        raise files.damaged(path, "a complete MATLAB file", received) from error
    images, labels = content.get("X"), content.get("y")
    if not isinstance(images, np.ndarray) or not isinstance(labels, np.ndarray):
        keys = sorted(key for key in content if not key.startswith("__"))
        raise files.damaged(path, "a MATLAB file with 'X' and 'y'", f"one with {keys}")
    if images.dtype != np.uint8 or images.shape[:-1] != (32, 32, 3) or images.shape[-1] != labels.size:
        received = f"{images.dtype} of shape {images.shape}"
        raise files.damaged(path, f"uint8 'X' of shape (32, 32, 3, {labels.size})", received)
    labels = labels.reshape(-1)
    if not np.isin(labels, range(1, 11)).all():
        raise files.damaged(path, "labels 1..10", f"labels from {labels.min()} to {labels.max()}")
    return np.ascontiguousarray(images.transpose(3, 0, 1, 2)), labels.astype(np.int64) % 10


def _unpacked(data: bytes) -> bytes:
    """Returns a MATLAB 5 file with its packed variables unpacked, each to its checksum, which SciPy does not reach."""
    order = {b"IM": "little", b"MI": "big"}.get(data[_HEADER - 2 : _HEADER])
    if order is None:
        raise ValueError("no MATLAB 5 file")
    parts, place, left = [data[:_HEADER]], _HEADER, _MOST
    while place < len(data):
        kind = int.from_bytes(data[place : place + 4], order)  # type: ignore[arg-type]
        size = int.from_bytes(data[place + 4 : place + _TAG], order)  # type: ignore[arg-type]
        end = place + _TAG + size
        if end > len(data):
            raise ValueError(f"a variable of {size} bytes at {place}, beyond the end")
        if kind == _COMPRESSED:
            packed = zlib.decompressobj()
            parts.append(packed.decompress(data[place + _TAG : end], left))
            if not packed.eof:
                raise ValueError("a packed variable that is cut short or too long")
        else:
            parts.append(data[place:end])
        left -= len(parts[-1])
        place = end
    return b"".join(parts)
