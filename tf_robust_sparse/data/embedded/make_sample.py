"""Draws the embedded sample from the official files of Fashion-MNIST.

Run: python -m tf_robust_sparse.data.embedded.make_sample FOLDER_OF_THE_IDX_FILES fashion_mnist_sample.npz
"""

import hashlib
import io
import sys
import zipfile
from pathlib import Path

import numpy as np

from tf_robust_sparse.data.readers import idx

_SEED = 2017
_TRAIN_PER_CLASS = 800
_TEST_PER_CLASS = 200


def make(folder: Path | str, output: Path | str) -> str:
    """Writes the sample and returns the sha256 of the file.

    Args:
        folder: Holds the four IDX files of Fashion-MNIST.
        output: The `.npz` file to write: `x_train` uint8 (8000, 28, 28), `y_train` uint8 (8000,), and the same of
            test with 2,000.

    Raises:
        FileNotFoundError: if the folder lacks the files.
        ValueError: if one is damaged.
    """
    paths = idx.find(Path(folder))
    if paths is None:
        raise FileNotFoundError(f"{folder}: expected {', '.join(idx.NAMES)} there, gzip'd or not")
    train_images, train_labels, test_images, test_labels = idx.read(paths)
    random = np.random.RandomState(_SEED)  # its stream is frozen for good, a Generator's is not
    train = draw(train_labels, _TRAIN_PER_CLASS, random)
    test = draw(test_labels, _TEST_PER_CLASS, random)
    arrays = {
        "x_train": train_images[train, ..., 0],
        "y_train": train_labels[train],
        "x_test": test_images[test, ..., 0],
        "y_test": test_labels[test],
    }
    # Not np.savez_compressed: here the time stamp, the system and the compression level are fixed.
    with zipfile.ZipFile(output, "w") as archive:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system = 3
            content = io.BytesIO()
            np.lib.format.write_array(content, array, allow_pickle=False)
            archive.writestr(entry, content.getvalue(), zipfile.ZIP_DEFLATED, compresslevel=9)
    return hashlib.sha256(Path(output).read_bytes()).hexdigest()


def draw(labels: np.ndarray, per_class: int, random: np.random.RandomState) -> np.ndarray:
    """Returns the indices of `per_class` random examples of each class, in the order of the official file."""
    chosen = [random.permutation(np.flatnonzero(labels == label))[:per_class] for label in np.unique(labels)]
    return np.sort(np.concatenate(chosen))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    print(make(sys.argv[1], sys.argv[2]))
