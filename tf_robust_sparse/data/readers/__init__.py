"""Readers of data files: one module per format, each with `find(folder)` and `read(...)`."""

from tf_robust_sparse.data.readers import cifar, folder, idx, npz, svhn, tfds

__all__ = ["cifar", "folder", "idx", "npz", "svhn", "tfds"]
