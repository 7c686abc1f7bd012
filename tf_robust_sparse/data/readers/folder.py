"""Your own data as image files, one folder per class."""

import collections
import dataclasses
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf

from tf_robust_sparse.data.image_files import ENDINGS, decode
from tf_robust_sparse.data.source import ImageDataset
from tf_robust_sparse.paths import user_path

ImageSize = int | tuple[int, int] | None
_NOT_THE_USERS = {"__MACOSX", "__pycache__", "@eaDir", "$RECYCLE.BIN"}  # created by operating systems and tools


def find(folder: Path) -> tuple[Path, Path] | None:
    """Returns the folders of the train and the test images, or `None` unless both are there."""
    train = folder / "train"
    for name in ("test", "val"):
        if train.is_dir() and (folder / name).is_dir():
            return train, folder / name
    return None


def read(folder: str | os.PathLike, image_size: ImageSize = None, channels: int = 3) -> ImageDataset:
    """Reads `train/<class>/*.png` and `test/<class>/*.png` (or `val/<class>/...`); JPEG and BMP files too.

    Classes are the sub-folders of `train` with images, numbered in alphabetical order; images may be in nested
    folders. Hidden folders such as `.ipynb_checkpoints`, empty ones and other files are skipped, with a warning that
    counts them. All images are decoded at once and kept as uint8.

    Args:
        folder: Holds `train` and `test`, or `train` and `val`.
        image_size: Height and width to resize to, or one number for both; `None` if all images have one size.
        channels: 3 for color, 1 for gray; files are converted.

    Raises:
        FileNotFoundError: if the folders are not there.
        ValueError: if there are no images, an image is damaged or has another size, a class has only files of other
            formats, or test has an unknown class.
    """
    folder = user_path(folder)
    found = find(folder)
    if found is None:
        raise FileNotFoundError(
            f"{folder}: expected the folders train/<class>/ and test/<class>/ (or val/<class>/) with .png or .jpg "
            "images; sort the images into them. Received: no such folders"
        )
    train, test = (list_images(place) for place in found)
    check_classes(train, test)
    classes = list(train.images)
    splits = [_read_split(listed, classes, image_size, channels) for listed in (train, test)]
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


@dataclasses.dataclass(frozen=True)
class Listed:
    """The image files of a split by class, in alphabetical order; hidden and empty folders are no classes."""

    place: Path
    images: dict[str, list[str]]


def list_images(place: Path) -> Listed:
    """Finds the image files in `<class>/` folders, at any depth, and warns about other files.

    Raises:
        ValueError: if there are no images, or all files of a class have another format.
    """
    images: dict[str, list[str]] = {}
    skipped: dict[str, list[str]] = collections.defaultdict(list)
    for entry in _entries(place):
        if _is_hidden(entry.name):
            skipped["hidden"].append(entry.path)
        elif entry.is_dir():
            images[entry.name] = list(_walk(entry.path, skipped))
            if not images[entry.name]:
                _check_empty(entry.path)
                skipped["empty folders"].append(entry.path)
        elif _ending(entry.name) in ENDINGS:
            skipped["outside of class folders"].append(entry.path)
    images = {name: found for name, found in images.items() if found}
    if not images:
        raise ValueError(f"{place}: expected .png, .jpg or .bmp images in a folder for each class. Received: no images")
    if skipped:
        parts = (f"{len(paths)} {kind} (such as {paths[0]})" for kind, paths in sorted(skipped.items()))
        warnings.warn(f"{place}: skipped {', '.join(parts)}", stacklevel=2)
    return Listed(place, images)


def check_classes(train: Listed, test: Listed) -> None:
    """Raises a `ValueError` if a class of `test` has no training images."""
    unknown = [name for name in test.images if name not in train.images]
    if unknown:
        raise ValueError(
            f"{test.place}: expected only classes that train/ has too, {list(train.images)[:10]}. "
            f"Received: {unknown[:10]}"
        )


def _walk(directory: str, skipped: dict[str, list[str]]) -> Iterator[str]:
    for entry in _entries(directory):
        if _is_hidden(entry.name):
            skipped["hidden"].append(entry.path)
        elif entry.is_dir(follow_symlinks=False):
            yield from _walk(entry.path, skipped)
        elif _ending(entry.name) not in ENDINGS:
            skipped[f"files of type {_ending(entry.name) or '(none)'}"].append(entry.path)
        elif not entry.is_file():  # opening a pipe would wait forever
            skipped["that are no regular files"].append(entry.path)
        else:
            yield entry.path


def _entries(directory: str | Path) -> list[os.DirEntry]:
    with os.scandir(directory) as found:  # knows the type of most entries without another disk access
        return sorted(found, key=lambda entry: entry.name)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in _NOT_THE_USERS


def _ending(name: str) -> str:
    return Path(name).suffix.lower()


def _check_empty(folder: str) -> None:
    others: dict[str, list[str]] = collections.defaultdict(list)
    list(_walk(folder, others))
    if any(kind != "hidden" for kind in others):
        found = ", ".join(f"{len(paths)} {kind}" for kind, paths in sorted(others.items()))
        raise ValueError(f"{folder}: expected images as {', '.join(sorted(ENDINGS))}; convert them. Received: {found}")


def _read_split(
    listed: Listed, classes: list[str], image_size: ImageSize, channels: int
) -> tuple[np.ndarray, np.ndarray]:
    images: list[np.ndarray] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        for path in listed.images.get(name, ()):
            image = _resized(decode(path, channels), image_size)
            if images and image.shape != images[0].shape:
                raise ValueError(
                    f"{path}: expected {images[0].shape[:2]}, the size of the images before it; pass "
                    f"`image_size` to resize them all. Received: {image.shape[:2]}"
                )
            images.append(image)
            labels.append(label)
    return np.stack(images), np.array(labels, np.int64)


def _resized(image: tf.Tensor, image_size: ImageSize) -> np.ndarray:
    if image_size is not None:
        size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        if tuple(image.shape[:2]) != size:
            image = tf.cast(tf.round(tf.image.resize(image, size, antialias=True)), tf.uint8)
    return image.numpy()
