"""Data sets in memory or in files, their readers, and tf.data pipelines with pixels in [0, 1]."""

from tf_robust_sparse.data.catalog import DATASETS, load
from tf_robust_sparse.data.datasets import cifar10, cifar100, fashion_mnist, fashion_mnist_sample, mnist, svhn
from tf_robust_sparse.data.generated import load_generated
from tf_robust_sparse.data.image_files import ImageFiles
from tf_robust_sparse.data.pipeline import steps_per_epoch, test_dataset, train_dataset
from tf_robust_sparse.data.pseudo_labels import load_pseudo_labels
from tf_robust_sparse.data.source import ImageDataset

__all__ = [
    "DATASETS",
    "ImageDataset",
    "ImageFiles",
    "cifar10",
    "cifar100",
    "fashion_mnist",
    "fashion_mnist_sample",
    "load",
    "load_generated",
    "load_pseudo_labels",
    "mnist",
    "steps_per_epoch",
    "svhn",
    "test_dataset",
    "train_dataset",
]
