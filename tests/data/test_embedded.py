import hashlib
from pathlib import Path

import numpy as np
import pytest

from tests.data import makers
from tf_robust_sparse import data
from tf_robust_sparse.data.embedded import make_sample, sample
from tf_robust_sparse.data.readers import idx

OFFICIAL = Path("/usr/share/datasets/fashion-mnist")  # Debian: dataset-fashion-mnist


def test_sample_is_whole_and_balanced():
    dataset = data.load("fashion_mnist_sample")
    assert dataset.train_images.shape == (8000, 28, 28, 1) and dataset.test_images.shape == (2000, 28, 28, 1)
    assert dataset.train_images.dtype == np.uint8 and dataset.flip and dataset.class_names[9] == "Ankle boot"
    np.testing.assert_array_equal(np.bincount(dataset.train_labels), np.full(10, 800))
    np.testing.assert_array_equal(np.bincount(dataset.test_labels), np.full(10, 200))
    assert sample.PATH.stat().st_size < 6e6


def test_readme_states_the_digest():
    readme = (sample.PATH.parent / "README.md").read_text()
    assert hashlib.sha256(sample.PATH.read_bytes()).hexdigest() == sample.SHA256
    assert sample.SHA256 in readme and "Zalando SE" in readme and "MIT License" in readme


def test_refuses_a_changed_file(tmp_path, monkeypatch):
    changed = tmp_path / "a.npz"
    changed.write_bytes(sample.PATH.read_bytes()[:-1])
    monkeypatch.setattr(sample, "PATH", changed)
    with pytest.raises(ValueError, match=r"sha256 .*install the package again.*4373409 bytes"):
        data.load("fashion_mnist_sample")
    monkeypatch.setattr(sample, "PATH", tmp_path / "none.npz")
    with pytest.raises(FileNotFoundError, match="install it again"):
        data.load("fashion_mnist_sample")


def test_maker_is_reproducible(tmp_path, monkeypatch):
    arrays = makers.write_idx(tmp_path / "idx", n=(200, 100))
    monkeypatch.setattr(make_sample, "_TRAIN_PER_CLASS", 5)
    monkeypatch.setattr(make_sample, "_TEST_PER_CLASS", 2)
    first = make_sample.make(tmp_path / "idx", tmp_path / "a.npz")
    assert make_sample.make(tmp_path / "idx", tmp_path / "b.npz") == first
    with np.load(tmp_path / "a.npz") as archive:
        assert archive["x_train"].shape == (50, 28, 28) and archive["x_test"].shape == (20, 28, 28)
        pairs = {(x.tobytes(), y) for x, y in zip(arrays[2], arrays[3], strict=True)}
        assert all((x.tobytes(), y) in pairs for x, y in zip(archive["x_test"], archive["y_test"], strict=True))
    with pytest.raises(FileNotFoundError):
        make_sample.make(tmp_path, tmp_path / "a.npz")


@pytest.mark.skipif(not OFFICIAL.is_dir(), reason="needs the Debian package dataset-fashion-mnist")
def test_sample_is_drawn_from_the_official_files(tmp_path):
    make_sample.make(OFFICIAL, tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as again, np.load(sample.PATH) as shipped:
        assert again.files == shipped.files
        for key in again.files:
            np.testing.assert_array_equal(again[key], shipped[key])


@pytest.mark.skipif(not OFFICIAL.is_dir(), reason="needs the Debian package dataset-fashion-mnist")
def test_finds_the_debian_package():
    dataset = data.load("fashion_mnist")
    assert len(dataset.train_labels) == 60_000 and dataset.origin == str(OFFICIAL)
    with pytest.raises(ValueError, match="expected the files of mnist"):
        data.load("mnist", OFFICIAL)
    assert idx.find(OFFICIAL) is not None
