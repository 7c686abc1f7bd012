import numpy as np
import pytest

from tests.data import makers
from tf_robust_sparse import data


def make(**changes):
    arguments = {
        "name": "toy",
        "train_images": makers.images(20, (4, 4, 1)),
        "train_labels": np.arange(20) % 5,
        "test_images": makers.images(8, (4, 4, 1)),
        "test_labels": np.arange(8, dtype=np.uint8) % 5,
        "num_classes": 5,
    }
    return data.ImageDataset(**{**arguments, **changes})


def test_labels_become_int64_and_floats_float32():
    dataset = make(test_images=np.full((8, 4, 4, 1), 0.5))
    assert dataset.train_labels.dtype == dataset.test_labels.dtype == np.int64
    assert dataset.train_images.dtype == np.uint8
    assert dataset.test_images.dtype == np.float32


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"train_labels": np.arange(20)}, r"toy, train split: labels must be integers in \[0, 5\).*from 0 to 19"),
        ({"test_labels": np.arange(8) - 1}, r"toy, test split: labels must be.*from -1"),
        ({"train_labels": np.zeros(20)}, "one for each image.*float64"),
        ({"train_labels": np.zeros((20, 5), int)}, r"argmax.*\(20, 5\)"),
        ({"train_labels": np.zeros(19, int)}, "20 images, 19 labels"),
        ({"train_images": makers.images(20, (4, 4))}, r"a channel axis to gray ones.*\(20, 4, 4\)"),
        ({"train_images": makers.images(0, (4, 4, 1))}, r"at least one image.*\(0, 4, 4, 1\)"),
        ({"train_images": makers.images(20, (4, 4, 1)) / 1.0}, "divide by 255.*to 25"),
        ({"train_images": np.full((20, 4, 4, 1), -0.1)}, r"\[0, 1\].*-0.1"),
        ({"train_images": np.full((20, 4, 4, 1), np.nan)}, "NaN or infinite"),
        ({"train_images": np.zeros((20, 4, 4, 1), np.int32)}, "uint8.*int32"),
        ({"train_images": makers.images(20, (5, 4, 1))}, "resize"),
        ({"train_images": makers.images(20, (1, 28, 28))}, r"transpose\(0, 2, 3, 1\).*\(20, 1, 28, 28\)"),
        ({"train_images": makers.images(20, (3, 5, 6)) / 255}, r"transpose\(0, 2, 3, 1\)"),
        ({"num_classes": 1}, "2 to 100000"),
        ({"num_classes": 2**62, "train_labels": np.full(20, 2**62 - 1)}, r"100000.*num_classes=4611686018427387904"),
        ({"test_labels": np.full(8, 2**63 + 3, np.uint64)}, "labels from 9223372036854775811"),
        ({"class_names": ("a",)}, "1 names"),
    ],
)
def test_refuses_with_one_line(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        make(**changes)
    assert "\n" not in str(error.value)


def test_take_draws_train_by_seed_and_the_first_of_test():
    dataset = make()
    part, again, other = dataset.take(6, 3, seed=1), dataset.take(6, 3, seed=1), dataset.take(6, 3, seed=2)
    np.testing.assert_array_equal(part.train_images, again.train_images)
    assert not np.array_equal(part.train_images, other.train_images)
    np.testing.assert_array_equal(part.test_images, dataset.test_images[:3])
    assert len(part.train_labels) == 6 and part.name == "toy"
    pairs = {(x.tobytes(), y) for x, y in zip(dataset.train_images, dataset.train_labels, strict=True)}
    assert all((x.tobytes(), y) in pairs for x, y in zip(part.train_images, part.train_labels, strict=True))
    assert dataset.take().train_images is dataset.train_images


@pytest.mark.parametrize("counts", [{"train_examples": 21}, {"test_examples": 9}, {"train_examples": 0}])
def test_take_refuses_more_than_there_are(counts):
    with pytest.raises(ValueError, match=r"must be in 1\.\.\d+, the number of examples"):
        make().take(**counts)


def test_split_validation_divides_train():
    dataset = make()
    rest, x, y = dataset.split_validation(5, seed=3)
    assert len(rest.train_labels) == 15 and x.shape == (5, 4, 4, 1) and len(y) == 5
    joined = sorted(image.tobytes() for image in np.concatenate([rest.train_images, x]))
    assert joined == sorted(image.tobytes() for image in dataset.train_images)
    np.testing.assert_array_equal(dataset.split_validation(5, seed=3)[1], x)
    assert not np.array_equal(dataset.split_validation(5, seed=4)[1], x)
    with pytest.raises(ValueError, match=r"must be in 1\.\.19"):
        dataset.split_validation(20)


def test_labels_without_a_bound_do_not_wrap():
    images = makers.images(2, (4, 4, 1))
    for label in (2**63, 2**64 - 1, 2**40):
        with pytest.raises(ValueError, match=rf"in \[0, 100000\).*to {label}"):
            data.test_dataset(images, np.array([0, label], np.uint64), 2)
