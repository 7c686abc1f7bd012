"""Generated images: mapped from the file, in their share of every batch, and damaged files."""

import numpy as np
import pytest

from tf_robust_sparse import data


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    image, label = rng.integers(0, 256, (40, 6, 6, 3), dtype=np.uint8), np.arange(40) % 10
    np.savez(tmp_path / "plain.npz", image=image, label=label)
    np.savez_compressed(tmp_path / "packed.npz", image=image, label=label)
    return tmp_path, image, label


def test_plain_files_stay_on_the_disk_and_packed_ones_are_read(files):
    folder, image, label = files
    for name, mapped in (("plain", True), ("packed", False)):
        x, y = data.load_generated(folder / f"{name}.npz")
        assert isinstance(x, np.memmap) == mapped and y.dtype == np.int64
        np.testing.assert_array_equal(x, image)
        np.testing.assert_array_equal(y, label)


def test_batches_have_their_share_and_are_the_same_from_the_disk(files):
    folder, *_ = files
    own = np.zeros((12, 6, 6, 3), np.uint8), np.zeros(12, np.int64)
    batches = []
    for name in ("plain", "packed"):
        found = data.load_generated(folder / f"{name}.npz")
        arguments = {"seed": 3, "augmentation": "crop", "auxiliary": found, "auxiliary_fraction": 0.7, "epochs": 2}
        batches.append(list(data.train_dataset(*own, 10, **arguments).as_numpy_iterator()))
    assert len(batches[0]) == 2 * 4 and all(np.count_nonzero(x.any((1, 2, 3))) == 7 for x, _ in batches[0])
    for (x, y), (other_x, other_y) in zip(*batches, strict=True):
        np.testing.assert_array_equal(x, other_x)
        np.testing.assert_array_equal(y, other_y)


def test_bad_files_are_one_line(files, tmp_path):
    folder, image, label = files
    whole = (folder / "plain.npz").read_bytes()
    (folder / "cut.npz").write_bytes(whole[:2000])
    (folder / "header.npz").write_bytes(whole.replace(b"(40, 6, 6, 3)", b"(90, 6, 6, 3)"))
    np.savez(folder / "floats.npz", image=image / 255, label=label)
    np.savez(folder / "labels.npz", image=image, label=label + 5)
    np.savez(folder / "other.npz", data=image)
    for name, message in (
        ("cut", "a complete .npz file"),
        ("header", "an array image.npy of 9720 bytes"),
        ("floats", "expected 'image' as uint8"),
        ("labels", "labels"),
        ("other", "image"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            data.load_generated(folder / f"{name}.npz")
        assert "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError, match="'image' and 'label'"):
        data.load_generated(folder / "none.npz")
