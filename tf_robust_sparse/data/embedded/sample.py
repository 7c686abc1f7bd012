"""Reads the embedded sample and checks that it is the file that was shipped."""

import hashlib
import io
from pathlib import Path

import numpy as np

from tf_robust_sparse.data.source import ImageDataset

PATH = Path(__file__).with_name("fashion_mnist_sample.npz")
SHA256 = "234a8e923bccaad2eb03aaf877e1fd430a4835f2d7258a77e7d62d8d614588d2"
CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def load() -> ImageDataset:
    """Returns 8,000 train and 2,000 test images `(n, 28, 28, 1)` uint8 of Fashion-MNIST, balanced over 10 classes.

    Raises:
        FileNotFoundError: if the package was installed without its data.
        ValueError: if the file is not the one that was shipped.
    """
    if not PATH.is_file():
        raise FileNotFoundError(f"{PATH}: expected the sample that comes with this package; install it again")
    data = PATH.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if digest != SHA256:
        raise ValueError(
            f"{PATH}: expected the sample as shipped, sha256 {SHA256}; install the package again. "
            f"Received: sha256 {digest}, {len(data)} bytes"
        )
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        return ImageDataset(
            name="fashion_mnist_sample",
            train_images=archive["x_train"][..., None],
            train_labels=archive["y_train"],
            test_images=archive["x_test"][..., None],
            test_labels=archive["y_test"],
            num_classes=10,
            class_names=CLASS_NAMES,
            flip=True,
            origin=str(PATH),
        )
