import pickle

import numpy as np
import pytest

from tests.data import makers
from tf_robust_sparse import data

IMAGES, LABELS = makers.images(5), makers.labels(5)


def write(path, content, protocol=2):
    if path.suffix == ".npz":
        np.savez(path, **content)
    else:
        path.write_bytes(pickle.dumps(content, protocol))
    return path


@pytest.mark.parametrize("name", ["rst.npz", "ti_500K_pseudo_labeled.pickle"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_reads_both_layouts(tmp_path, name, protocol):
    path = write(tmp_path / name, {"data": IMAGES, "extrapolated_targets": LABELS, "prediction_model": 1}, protocol)
    images, labels = data.load_pseudo_labels(path)
    np.testing.assert_array_equal(images, IMAGES)
    np.testing.assert_array_equal(labels, LABELS)
    assert images.dtype == np.uint8 and labels.dtype == np.int64
    train = data.train_dataset(makers.images(8), makers.labels(8), 4, auxiliary=(images, labels), epochs=1)
    assert len(list(train)) == 4


def test_reads_a_list_of_labels(tmp_path):
    path = write(tmp_path / "a.pickle", {"data": IMAGES, "extrapolated_targets": LABELS.tolist()})
    np.testing.assert_array_equal(data.load_pseudo_labels(path)[1], LABELS)


@pytest.mark.parametrize("name", ["a.npz", "a.pickle"])
@pytest.mark.parametrize(
    "changes, message",
    [
        ({"data": IMAGES / 255}, r"uint8 \(n, 32, 32, 3\).*float64"),
        ({"data": IMAGES.reshape(5, -1)}, r"\(5, 3072\)"),
        ({"extrapolated_targets": LABELS + 9}, r"labels must be integers in \[0, 10\)"),
        ({"extrapolated_targets": LABELS[:4]}, "5 images, 4 labels"),
        ({"extrapolated_targets": LABELS / 2}, "n integers; convert it.*float64"),
        ({"extrapolated_targets": LABELS.astype(np.uint64) + 2**63}, "to 92233720368547758"),
    ],
)
def test_refuses(tmp_path, name, changes, message):
    path = write(tmp_path / name, {"data": IMAGES, "extrapolated_targets": LABELS, **changes})
    with pytest.raises(ValueError, match=message) as error:
        data.load_pseudo_labels(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["a.npz", "a.pickle"])
def test_damaged(tmp_path, name):
    path = write(tmp_path / name, {"data": IMAGES, "extrapolated_targets": LABELS})
    whole = path.read_bytes()
    for part in (whole[: len(whole) // 2], b"", b"<html>"):
        path.write_bytes(part)
        with pytest.raises(ValueError, match=r"expected a complete .*download it again"):
            data.load_pseudo_labels(path)
    write(path, {"data": IMAGES})
    with pytest.raises(ValueError, match="extrapolated_targets"):
        data.load_pseudo_labels(path)
    with pytest.raises(FileNotFoundError, match="check the path"):
        data.load_pseudo_labels(tmp_path / "none")


class Attack:
    def __reduce__(self):
        return eval, ("1",)


def test_malicious(tmp_path):
    path = write(tmp_path / "a.pickle", {"data": IMAGES, "extrapolated_targets": Attack()})
    with pytest.raises(ValueError, match="tries to import"):
        data.load_pseudo_labels(path)
    path = write(tmp_path / "b.pickle", [1])
    with pytest.raises(ValueError, match="expected a dictionary"):
        data.load_pseudo_labels(path)
