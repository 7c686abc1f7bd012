import socket
import time

import numpy as np
import pytest
import tensorflow as tf

from tests.data import makers
from tf_robust_sparse import data
from tf_robust_sparse.data import catalog
from tf_robust_sparse.data.readers import tfds

IN_MEMORY = data.DATASETS[:5]  # of those that have official files


@pytest.fixture
def no_system_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    monkeypatch.setattr(catalog, "_SYSTEM_FOLDERS", {})


def refuse_network(*args, **kwargs):
    raise socket.gaierror("no network in tests")


@pytest.mark.parametrize("sub", ["", "mnist", "MNIST/raw"])
def test_looks_in_the_usual_sub_folders(tmp_path, sub):
    arrays = makers.write_idx(tmp_path / sub)
    makers.assert_holds(data.load("mnist", tmp_path), arrays)
    makers.assert_holds(data.load("mnist", str(tmp_path)), arrays)


def test_a_sub_folder_of_that_name_comes_first(tmp_path):
    makers.write_idx(tmp_path, n=(6, 4))
    makers.write_idx(tmp_path / "fashion-mnist", n=(7, 4))
    assert len(data.load("fashion_mnist", tmp_path).train_labels) == 7
    assert len(data.load("mnist", tmp_path).train_labels) == 6


def test_tells_mnist_from_fashion_mnist():
    balanced = np.repeat(np.arange(10), 6000)
    with pytest.raises(ValueError, match=r"expected the files of mnist.*those of fashion_mnist"):
        catalog._check_is_digits(balanced, "mnist", "somewhere")
    digits = np.concatenate([balanced[1:], [9]])
    with pytest.raises(ValueError, match=r"expected the files of fashion_mnist.*those of mnist"):
        catalog._check_is_digits(digits, "fashion_mnist", "somewhere")
    catalog._check_is_digits(digits, "mnist", "somewhere")


def test_unknown_name():
    with pytest.raises(ValueError, match=r"expected one of mnist, fashion_mnist, cifar10.*Received: 'cifar11'"):
        data.load("cifar11")


def test_image_size_is_for_folders(tmp_path):
    for name in ("cifar10", tmp_path / "a.npz"):
        with pytest.raises(ValueError, match="`image_size` resizes a folder"):
            data.load(name, image_size=32)


@pytest.mark.parametrize("name", IN_MEMORY)
def test_empty_data_dir_fails_at_once(tmp_path, name, monkeypatch):
    monkeypatch.setattr(tfds, "reachable", lambda name: pytest.fail("asked the network"))
    start = time.monotonic()
    with pytest.raises(FileNotFoundError, match=f"no files of {name} found; get the official .*Looked in") as error:
        data.load(name, tmp_path)
    assert time.monotonic() - start < 1
    for place in (tmp_path / name, tmp_path):
        assert str(place) in str(error.value)


@pytest.mark.parametrize("name", IN_MEMORY)
def test_offline_fails_within_seconds(name, no_system_folders, tmp_path, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", refuse_network)
    start = time.monotonic()
    with pytest.raises(FileNotFoundError, match=r"host did not answer.*get the official .*Looked in") as error:
        data.load(name)
    assert time.monotonic() - start < 2
    assert str(tmp_path / "tfds") in str(error.value)


def test_a_silent_name_server_fails_within_seconds(no_system_folders, monkeypatch):
    def silent(*args, **kwargs):
        time.sleep(8)
        refuse_network()

    monkeypatch.setattr(socket, "getaddrinfo", silent)
    start = time.monotonic()
    with pytest.raises(FileNotFoundError):
        data.load("cifar10")
    assert time.monotonic() - start < 5


def test_downloads_only_if_the_host_answers(no_system_folders, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(tfds, "reachable", lambda name: True)
    monkeypatch.setattr(tfds, "download", lambda name: asked.append(name) or tmp_path)
    arrays = (makers.images(3), makers.labels(3), makers.images(2), makers.labels(2))
    monkeypatch.setattr(tfds, "read", lambda folder: arrays)
    makers.assert_holds(data.load("svhn"), arrays)
    assert asked == ["svhn"]


def write_prepared(folder, name, num_classes=10):
    """Prepares a small set as TensorFlow Datasets does; returns its arrays."""
    import tensorflow_datasets
    from tensorflow_datasets.core import dataset_builders

    arrays = (makers.images(5), makers.labels(5), makers.images(3), makers.labels(3))
    features = tensorflow_datasets.features.FeaturesDict(
        {
            "image": tensorflow_datasets.features.Image(shape=(32, 32, 3)),
            "label": tensorflow_datasets.features.ClassLabel(num_classes=num_classes),
        }
    )
    splits = {}
    for split, x, y in (("train", *arrays[:2]), ("test", *arrays[2:])):
        splits[split] = tf.data.Dataset.from_tensor_slices({"image": x, "label": y})
    builder = dataset_builders.AdhocBuilder(
        name=name, version="3.1.0", features=features, split_datasets=splits, data_dir=str(folder)
    )
    builder.download_and_prepare()
    return arrays


def by_image(images, labels):
    return sorted((image.tobytes(), label) for image, label in zip(images, labels, strict=True))


@pytest.mark.filterwarnings("ignore")  # TensorFlow Datasets warns of its own dependencies
@pytest.mark.parametrize("given", [True, False])
def test_reads_a_prepared_set(tmp_path, given, monkeypatch):
    arrays = write_prepared(tmp_path, "svhn_cropped")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(socket, "getaddrinfo", refuse_network)
    dataset = data.load("svhn", tmp_path if given else None)
    # Preparing shuffles.
    assert by_image(dataset.train_images, dataset.train_labels) == by_image(*arrays[:2])
    assert by_image(dataset.test_images, dataset.test_labels) == by_image(*arrays[2:])
    assert "svhn_cropped" in dataset.origin

    for path in (tmp_path / "svhn_cropped" / "3.1.0").glob("*-train.*"):
        path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ValueError, match="expected a set prepared by TensorFlow Datasets; delete the folder"):
        data.load("svhn", tmp_path)


def test_takes_the_newest_prepared_version(tmp_path):
    for version in ("3.0.2", "3.0.10", "incomplete"):
        (tmp_path / "cifar10" / version).mkdir(parents=True)
        if version != "incomplete":
            (tmp_path / "cifar10" / version / "dataset_info.json").touch()
    assert tfds.find(tmp_path, "cifar10").name == "3.0.10"
    assert tfds.find(tmp_path, "svhn") is None
