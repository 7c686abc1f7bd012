"""A user's own data as image files, one folder a class."""

import os
from pathlib import Path

import numpy as np
import tensorflow as tf

from tf_robust_sparse.data.readers import files
from tf_robust_sparse.data.source import ImageDataset

ImageSize = int | tuple[int, int] | None
ENDINGS = {".png", ".jpg", ".jpeg", ".bmp"}


def find(folder: Path) -> tuple[Path, Path] | None:
    """Returns the folders of the train and the test images, or `None` unless both are there."""
    train = folder / "train"
    for name in ("test", "val"):
        if train.is_dir() and (folder / name).is_dir():
            return train, folder / name
    return None


def read(folder: str | os.PathLike, image_size: ImageSize = None, channels: int = 3) -> ImageDataset:
    """Reads `train/<class>/*.png` and `test/<class>/*.png` (or `val/<class>/...`); JPEG and BMP files too.

    Classes are the sub-folders of `train`, numbered in alphabetical order; images may lie deeper inside them.
    Everything is decoded at once and kept as uint8.

    Args:
        folder: Holds `train` and `test`, or `train` and `val`.
        image_size: Height and width to resize to, or one number for both; `None` if all images have one size.
        channels: 3 for colour, 1 for grey; files are converted.

    Raises:
        FileNotFoundError: if the folders are not there.
        ValueError: if there are no images, an image is damaged or has another size, or test has an unknown class.
    """
    folder = Path(folder)
    found = find(folder)
    if found is None:
        raise FileNotFoundError(
            f"{folder}: expected the folders train/<class>/ and test/<class>/ (or val/<class>/) with .png or .jpg "
            "images; sort the images into them. Received: no such folders"
        )
    classes = sorted(path.name for path in found[0].iterdir() if path.is_dir())
    splits = [_read_split(place, classes, image_size, channels) for place in found]
    return ImageDataset(
        name=folder.name,
        train_images=splits[0][0],
        train_labels=splits[0][1],
        test_images=splits[1][0],
        test_labels=splits[1][1],
        num_classes=len(classes),
        class_names=tuple(classes),
        origin=str(folder),
    )


def _read_split(place: Path, classes: list[str], image_size: ImageSize, channels: int) -> tuple[np.ndarray, np.ndarray]:
    unknown = sorted({path.name for path in place.iterdir() if path.is_dir()} - set(classes))
    if unknown:
        raise ValueError(
            f"{place}: expected only classes that train/ has too, {classes[:10]}. Received: {unknown[:10]}"
        )
    images: list[np.ndarray] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        for path in sorted((place / name).rglob("*")):
            if path.suffix.lower() not in ENDINGS:
                continue
            image = _decode(path, image_size, channels)
            if images and image.shape != images[0].shape:
                raise ValueError(
                    f"{path}: expected {images[0].shape[:2]}, the size of the images before it; pass "
                    f"`image_size` to resize them all. Received: {image.shape[:2]}"
                )
            images.append(image)
            labels.append(label)
    if not images:
        raise ValueError(f"{place}: expected .png, .jpg or .bmp images in a folder for each class. Received: none")
    return np.stack(images), np.array(labels, np.int64)


def _decode(path: Path, image_size: ImageSize, channels: int) -> np.ndarray:
    data = path.read_bytes()
    try:
        image = tf.io.decode_image(data, channels=channels, expand_animations=False)
    except tf.errors.InvalidArgumentError as error:
        received = f"{len(data)} bytes that do not decode"
        raise files.damaged(path, f"a complete {path.suffix} image", received) from error
    if image_size is not None:
        size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        if tuple(image.shape[:2]) != size:
            image = tf.cast(tf.round(tf.image.resize(image, size, antialias=True)), tf.uint8)
    return image.numpy()
