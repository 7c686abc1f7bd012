"""Finds and loads data sets by name: the known sets, wherever their files are, and a user's own."""

import os
from pathlib import Path

import numpy as np

from tf_robust_sparse.data.embedded import sample
from tf_robust_sparse.data.readers import cifar, folder, idx, imagenet, npz, svhn, tfds
from tf_robust_sparse.data.source import ImageDataset
from tf_robust_sparse.paths import user_path

IN_FILES = ("imagenet", "imagenet100")  # too large for memory
DATASETS = ("mnist", "fashion_mnist", "cifar10", "cifar100", "svhn", "fashion_mnist_sample", *IN_FILES)

_CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_SUBFOLDERS = {
    "mnist": ("mnist", "MNIST/raw", "MNIST"),
    "fashion_mnist": ("fashion_mnist", "fashion-mnist", "FashionMNIST/raw", "FashionMNIST"),
    "cifar10": ("cifar10", "cifar-10", "CIFAR10"),
    "cifar100": ("cifar100", "cifar-100", "CIFAR100"),
    "svhn": ("svhn", "SVHN"),
    "imagenet": ("imagenet", "ImageNet", "ILSVRC2012"),
    "imagenet100": ("imagenet100", "ImageNet100", "imagenet", "ImageNet", "ILSVRC2012"),
}
_OFFICIAL_FILES = {
    "mnist": tuple(f"{name}.gz" for name in idx.NAMES),
    "fashion_mnist": tuple(f"{name}.gz" for name in idx.NAMES),
    "cifar10": cifar.official_files(10)[:1],
    "cifar100": cifar.official_files(100)[:1],
    "svhn": svhn.NAMES,
}
_SYSTEM_FOLDERS = {"fashion_mnist": (Path("/usr/share/datasets/fashion-mnist"),)}  # Debian: dataset-fashion-mnist


def load(
    name: str | os.PathLike,
    data_dir: str | os.PathLike | None = None,
    image_size: int | tuple[int, int] | None = None,
) -> ImageDataset:
    """Reads a data set into memory.

    The official files (compressed or not), or a set prepared by TensorFlow Datasets, are searched for in sub-folders of
    `data_dir` named after the set, then in `data_dir` itself. Without `data_dir`, the folders of the system and of
    TensorFlow Datasets are searched; at last a download is tried, which fails within seconds if the host does not
    answer.

    Args:
        name: One of `DATASETS`, or the path of your own: an `.npz` file with the keys x_train, y_train, x_test
            and y_test, or a folder with `train/<class>/` and `test/<class>/` images.
        data_dir: Folder with the files of a set in `DATASETS`; nothing is downloaded if it is given.
            `fashion_mnist_sample` is part of this package and needs none.
        image_size: For a folder of images: height and width to resize to, or one number for both. For ImageNet, the
            side of the square crop, 224 by default.

    Raises:
        FileNotFoundError: if the files are not found; lists the searched folders.
        ValueError: if the name is unknown, or a file is damaged.
    """
    name = os.fspath(name)
    if name in IN_FILES:
        return _load_in_files(name, data_dir, image_size)
    if image_size is not None and name in DATASETS:
        raise ValueError(f"`image_size` resizes a folder of images; leave it out for {name!r}. Received: {image_size}")
    if name == "fashion_mnist_sample":
        return sample.load()
    if name in DATASETS:
        return _load_known(name, user_path(data_dir) if data_dir is not None else None)
    if name.endswith(".npz"):
        if image_size is not None:
            raise ValueError(f"`image_size` resizes a folder of images; resize the arrays of {name} before saving them")
        return npz.read(user_path(name))
    if user_path(name).is_dir():
        return folder.read(user_path(name), image_size=image_size)
    raise ValueError(
        f"unknown data set; expected one of {', '.join(DATASETS)}, the path of an .npz file or of a folder of images. "
        f"Received: {name!r}"
    )


def _load_in_files(
    name: str, data_dir: str | os.PathLike | None, image_size: int | tuple[int, int] | None
) -> ImageDataset:
    if isinstance(image_size, tuple):
        if image_size[0] != image_size[1]:
            raise ValueError(f"`image_size` of {name} must be one number, the side of a square. Received: {image_size}")
        image_size = image_size[0]
    if data_dir is None:
        raise FileNotFoundError(
            f"{name} is too large to be downloaded; pass as `data_dir` the folder with train/<class>/ and val/<class>/"
        )
    root = user_path(data_dir)
    places = [*(root / sub for sub in _SUBFOLDERS[name]), root]
    for place in places:
        if imagenet.find(place) is not None:
            return imagenet.read(place, name, image_size)
    prepared = tfds.newest_version(root / imagenet.PREPARED)
    if prepared is not None:
        raise FileNotFoundError(
            f"{prepared} is ImageNet as TensorFlow Datasets prepared it, whose images cannot be read in random order; "
            f"unpack it once: python run_scripts/run_unpack_imagenet.py --prepared={prepared} --data_dir={places[0]}"
        )
    raise FileNotFoundError(
        f"no files of {name} found; sort the images into train/<class>/ and val/<class>/ and pass their folder as "
        f"`data_dir`. Looked in: {', '.join(str(place) for place in places)}"
    )


def _load_known(name: str, data_dir: Path | None) -> ImageDataset:
    if data_dir is not None:
        places = [*(data_dir / sub for sub in _SUBFOLDERS[name]), data_dir]
        prepared = data_dir
    else:
        places = list(_SYSTEM_FOLDERS.get(name, ()))
        prepared = tfds.default_folder()
    for place in places:
        dataset = _read_official(name, place)
        if dataset is not None:
            return dataset
    version = tfds.find(prepared, name)
    if version is None and data_dir is None and tfds.reachable(name):
        version = tfds.download(name)
    if version is not None:
        return _dataset(name, *tfds.read(version), origin=version)
    places.append(prepared / tfds.SOURCES[name][0])
    tried = "" if data_dir is not None else " (its host did not answer either)"
    raise FileNotFoundError(
        f"no files of {name} found{tried}; get the official {', '.join(_OFFICIAL_FILES[name])} and pass their folder "
        f"as `data_dir`. Looked in: {', '.join(str(place) for place in places)}"
    )


def _read_official(name: str, place: Path) -> ImageDataset | None:
    if name in ("mnist", "fashion_mnist"):
        paths = idx.find(place)
        if paths is None:
            return None
        arrays = idx.read(paths)
        _check_is_digits(arrays[1], name, place)
        return _dataset(name, *arrays, origin=place)
    if name == "svhn":
        paths = svhn.find(place)
        return _dataset(name, *svhn.read(paths), origin=place) if paths is not None else None
    found = cifar.find(place, 10 if name == "cifar10" else 100)
    if found is None:
        return None
    *examples, class_names = cifar.read(found)
    return _dataset(name, *examples, origin=found.place, class_names=class_names)


def _dataset(
    name: str,
    train_images: np.ndarray,
    train_labels: np.ndarray,
    test_images: np.ndarray,
    test_labels: np.ndarray,
    *,
    origin: Path,
    class_names: tuple[str, ...] | None = None,
) -> ImageDataset:
    known = {"fashion_mnist": sample.CLASS_NAMES, "cifar10": _CIFAR10_CLASSES}
    return ImageDataset(
        name=name,
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
        num_classes=100 if name == "cifar100" else 10,
        class_names=class_names or known.get(name),
        flip=name not in ("mnist", "svhn"),
        origin=str(origin),
    )


def _check_is_digits(train_labels: np.ndarray, name: str, place: Path) -> None:
    """Checks which of two sets with equal file names is given: only Fashion-MNIST has 6,000 images per class."""
    if len(train_labels) != 60_000:
        return
    actual = "fashion_mnist" if (np.bincount(train_labels, minlength=10) == 6_000).all() else "mnist"
    if actual != name:
        raise ValueError(f"{place}: expected the files of {name}; pass another `data_dir`. Received: those of {actual}")
