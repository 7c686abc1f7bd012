"""Train and test pipelines in one call, for first runs and notebooks."""

import os

import tensorflow as tf

from tf_robust_sparse.data.catalog import load
from tf_robust_sparse.data.pipeline import test_dataset, train_dataset
from tf_robust_sparse.data.readers import folder, npz
from tf_robust_sparse.data.source import ImageDataset

PathLike = str | os.PathLike | None
Pair = tuple[tf.data.Dataset, tf.data.Dataset]


def mnist(batch_size: int, data_dir: PathLike = None, seed: int = 0, *, augmentation: str | None = "shift") -> Pair:
    """Returns `(train, test)` of MNIST: see `load` for the searched folders, `train_dataset` for the batches."""
    return _pair(load("mnist", data_dir), batch_size, seed, augmentation)


def fashion_mnist(
    batch_size: int, data_dir: PathLike = None, seed: int = 0, *, augmentation: str | None = "shift"
) -> Pair:
    """Returns `(train, test)` of Fashion-MNIST: see `load` and `train_dataset`."""
    return _pair(load("fashion_mnist", data_dir), batch_size, seed, augmentation)


def cifar10(batch_size: int, data_dir: PathLike = None, seed: int = 0, *, augmentation: str | None = "shift") -> Pair:
    """Returns `(train, test)` of CIFAR-10: see `load` and `train_dataset`."""
    return _pair(load("cifar10", data_dir), batch_size, seed, augmentation)


def cifar100(batch_size: int, data_dir: PathLike = None, seed: int = 0, *, augmentation: str | None = "shift") -> Pair:
    """Returns `(train, test)` of CIFAR-100 with its 100 fine labels: see `load` and `train_dataset`."""
    return _pair(load("cifar100", data_dir), batch_size, seed, augmentation)


def svhn(batch_size: int, data_dir: PathLike = None, seed: int = 0, *, augmentation: str | None = "shift") -> Pair:
    """Returns `(train, test)` of SVHN, the cropped digits without `extra`: see `load` and `train_dataset`."""
    return _pair(load("svhn", data_dir), batch_size, seed, augmentation)


def fashion_mnist_sample(
    batch_size: int, data_dir: PathLike = None, seed: int = 0, *, augmentation: str | None = "shift"
) -> Pair:
    """Returns `(train, test)` of the 8,000 and 2,000 images in the package; `data_dir` is ignored."""
    return _pair(load("fashion_mnist_sample"), batch_size, seed, augmentation)


def from_npz(
    path: str | os.PathLike,
    batch_size: int,
    seed: int = 0,
    *,
    augmentation: str | None = None,
    flip: bool = False,
) -> Pair:
    """Returns `(train, test)` of your own `.npz` file with the keys x_train, y_train, x_test and y_test."""
    return _pair(npz.read(path), batch_size, seed, augmentation, flip)


def from_folder(
    path: str | os.PathLike,
    batch_size: int,
    image_size: int | tuple[int, int] | None = None,
    seed: int = 0,
    *,
    augmentation: str | None = None,
    flip: bool = False,
) -> Pair:
    """Returns `(train, test)` of your own images in `train/<class>/` and `test/<class>/` (or `val/<class>/`)."""
    return _pair(folder.read(path, image_size=image_size), batch_size, seed, augmentation, flip)


def _pair(dataset: ImageDataset, batch_size: int, seed: int, augmentation: str | None, flip: bool = False) -> Pair:
    train = train_dataset(
        dataset.train_images,
        dataset.train_labels,
        batch_size,
        seed=seed,
        augmentation=augmentation,
        flip=flip or dataset.flip,
    )
    return train, test_dataset(dataset.test_images, dataset.test_labels, batch_size)
