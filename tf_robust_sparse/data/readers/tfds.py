"""Sets that TensorFlow Datasets has prepared on this machine or, if the host answers, can download."""

import os
import threading
import urllib.request
from pathlib import Path

import numpy as np

# Name in TensorFlow Datasets, and a file on the host from which it downloads.
SOURCES = {
    "mnist": ("mnist", "https://storage.googleapis.com/cvdf-datasets/mnist/t10k-labels-idx1-ubyte.gz"),
    "fashion_mnist": (
        "fashion_mnist",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/t10k-labels-idx1-ubyte.gz",
    ),
    "cifar10": ("cifar10", "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"),
    "cifar100": ("cifar100", "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz"),
    "svhn": ("svhn_cropped", "http://ufldl.stanford.edu/housenumbers/test_32x32.mat"),
}


def default_folder() -> Path:
    """Returns the folder in which TensorFlow Datasets keeps prepared sets."""
    return Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()


def find(folder: Path, name: str) -> Path | None:
    """Returns the newest prepared version of the set, or `None`. Does not import TensorFlow Datasets."""
    return newest_version(folder / SOURCES[name][0])


def newest_version(folder: Path) -> Path | None:
    """Returns the newest prepared version in the folder of a set or of one of its configurations, or `None`."""
    versions = [path.parent for path in folder.glob("*/dataset_info.json")]
    return max(versions, key=_version, default=None)


def read(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns train images `(n, height, width, channels)` uint8, train labels `(n,)`, and the same of test.

    Args:
        folder: A prepared version, as `find` returns it.

    Raises:
        ValueError: if its files cannot be read.
    """
    return *read_split(folder, "train"), *read_split(folder, "test")


def read_split(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns images `(n, height, width, channels)` uint8 and labels `(n,)` of one split; see `read`."""
    import tensorflow_datasets

    try:
        examples = tensorflow_datasets.builder_from_directory(str(folder)).as_dataset(split=split, batch_size=-1)
        return np.asarray(examples["image"]), np.asarray(examples["label"])
    except Exception as error:  # the library may fail anywhere on a damaged folder
        raise ValueError(
            f"{folder}: expected a set prepared by TensorFlow Datasets; delete the folder and prepare it again. "
            f"Received: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        ) from error


def download(name: str) -> Path:
    """Downloads and prepares a set in the default folder, and returns the prepared version's folder."""
    import tensorflow_datasets

    builder = tensorflow_datasets.builder(SOURCES[name][0], data_dir=str(default_folder()))
    builder.download_and_prepare()
    return Path(builder.data_dir)


def reachable(name: str, timeout: float = 3.0) -> bool:
    """Returns whether the host of a set answers within `timeout` seconds.

    This is checked before a download, because TensorFlow Datasets would try for minutes.
    """
    answers: list[bool] = []

    def ask():
        try:
            request = urllib.request.Request(SOURCES[name][1], method="HEAD")
            with urllib.request.urlopen(request, timeout=timeout):
                answers.append(True)
        except (OSError, ValueError):
            pass

    # A name server that does not answer ignores the time limit, so the lookup runs in a thread.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout)
    return bool(answers)


def _version(path: Path) -> tuple[int, ...]:
    return tuple(int(part) if part.isdigit() else 0 for part in path.name.split("."))
