"""Data sets in memory or in files, their readers, and tf.data pipelines with pixels in [0, 1]."""

from tf_robust_sparse.data import restricted_pickle
from tf_robust_sparse.data.catalog import DATASETS, IN_FILES, load
from tf_robust_sparse.data.corruptions import COMPUTED_CORRUPTIONS, corrupt, read_corruptions
from tf_robust_sparse.data.datasets import (
    cifar10,
    cifar100,
    fashion_mnist,
    fashion_mnist_sample,
    from_folder,
    from_npz,
    mnist,
    svhn,
)
from tf_robust_sparse.data.generated import load_generated
from tf_robust_sparse.data.image_files import ImageFiles
from tf_robust_sparse.data.pipeline import auxiliary_batch_size, steps_per_epoch, test_dataset, train_dataset
from tf_robust_sparse.data.pseudo_labels import load_pseudo_labels
from tf_robust_sparse.data.readers.imagenet import unpack as unpack_imagenet
from tf_robust_sparse.data.source import ImageDataset
from tf_robust_sparse.data.stacked_batches import stacked_batches

__all__ = [
    "COMPUTED_CORRUPTIONS",
    "DATASETS",
    "IN_FILES",
    "ImageDataset",
    "ImageFiles",
    "auxiliary_batch_size",
    "cifar10",
    "cifar100",
    "corrupt",
    "fashion_mnist",
    "fashion_mnist_sample",
    "from_folder",
    "from_npz",
    "load",
    "load_generated",
    "load_pseudo_labels",
    "mnist",
    "read_corruptions",
    "restricted_pickle",
    "stacked_batches",
    "steps_per_epoch",
    "svhn",
    "test_dataset",
    "train_dataset",
    "unpack_imagenet",
]
