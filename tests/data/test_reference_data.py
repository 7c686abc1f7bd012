"""The real files, where $TRS_DATA_DIR has them."""

import os

import numpy as np
import pytest

from tf_robust_sparse import data

ROOT = os.environ.get("TRS_DATA_DIR")
pytestmark = [
    pytest.mark.reference_data,
    pytest.mark.skipif(not ROOT, reason="set TRS_DATA_DIR to the folder of the real data sets"),
]


def test_mnist():
    dataset = data.load("mnist", ROOT)
    assert dataset.train_images.shape == (60_000, 28, 28, 1) and dataset.test_images.shape == (10_000, 28, 28, 1)
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    np.testing.assert_array_equal(np.bincount(dataset.train_labels), counts)
    counts = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    np.testing.assert_array_equal(np.bincount(dataset.test_labels), counts)
    with pytest.raises(ValueError, match="those of mnist"):
        data.load("fashion_mnist", os.path.join(ROOT, "mnist"))  # noqa: PTH118


def test_cifar10():
    dataset = data.load("cifar10", ROOT)
    assert dataset.train_images.shape == (50_000, 32, 32, 3) and dataset.test_images.shape == (10_000, 32, 32, 3)
    np.testing.assert_array_equal(np.bincount(dataset.train_labels), np.full(10, 5_000))
    np.testing.assert_array_equal(np.bincount(dataset.test_labels), np.full(10, 1_000))
    mean = np.stack([dataset.train_images[..., c].mean() for c in range(3)]) / 255
    np.testing.assert_allclose(mean, [0.49139968, 0.48215841, 0.44653091], atol=1e-7)
    # The first batch file alone, whose counts are published: the order of the files is kept.
    counts = [1005, 974, 1032, 1016, 999, 937, 1030, 1001, 1025, 981]
    np.testing.assert_array_equal(np.bincount(dataset.train_labels[:10_000]), counts)
    assert dataset.class_names[:2] == ("airplane", "automobile")
    train = data.train_dataset(dataset.train_images, dataset.train_labels, 128)
    assert train.cardinality().numpy() == 390


def test_cifar100():
    dataset = data.load("cifar100", ROOT)
    assert dataset.test_images.shape == (10_000, 32, 32, 3) and dataset.num_classes == 100
    np.testing.assert_array_equal(np.bincount(dataset.test_labels), np.full(100, 100))
    assert len(np.unique(np.bincount(dataset.train_labels))) == 1  # a subset may have fewer than 500 of each
    assert dataset.class_names[0] == "apple"


def test_svhn_is_not_there():
    with pytest.raises(FileNotFoundError, match=r"train_32x32\.mat, test_32x32\.mat"):
        data.load("svhn", ROOT)
