"""Files of corrupted images, as published and as TensorFlow Datasets prepares them, and files that are damaged."""

import numpy as np
import pytest

from tests.data import makers
from tf_robust_sparse.data.corruptions import (
    CORRUPTIONS,
    SEVERITIES,
    find_corruptions,
    read_corruptions,
)


def write_official(folder, names=("fog", "contrast"), n=4):
    """Writes small files in the layout of CIFAR-10-C; returns the images by name, and the labels."""
    folder.mkdir(parents=True, exist_ok=True)
    labels = np.tile(makers.labels(n), 5).astype(np.uint8)
    np.save(folder / "labels.npy", labels)
    content = {name: makers.images(5 * n, seed=seed) for seed, name in enumerate(names)}
    for name, images in content.items():
        np.save(folder / f"{name}.npy", images)
    return content, labels


def test_reads_official_files(tmp_path):
    content, labels = write_official(tmp_path)
    parts = list(read_corruptions(tmp_path, ["fog", "contrast"]))
    assert [part[:2] for part in parts] == [(name, s) for name in ("fog", "contrast") for s in SEVERITIES]
    for name, severity, x, y in parts:
        rows = slice(4 * (severity - 1), 4 * severity)
        assert x.dtype == np.float32 and y.dtype == np.int64
        np.testing.assert_array_equal(np.rint(x * 255), content[name][rows])
        np.testing.assert_allclose(x.max(), content[name][rows].max() / 255)
        np.testing.assert_array_equal(y, labels[rows])
    assert find_corruptions(tmp_path) == ("fog", "contrast")
    assert find_corruptions(tmp_path / "nowhere") == ()


def test_reads_only_what_is_asked_for_in_that_order(tmp_path):
    write_official(tmp_path)
    parts = read_corruptions(str(tmp_path), ["contrast", "fog", "fog"], severities=[5, 2])
    assert [part[:2] for part in parts] == [("contrast", 5), ("contrast", 2), ("fog", 5), ("fog", 2)]


def test_all_fifteen_are_the_default(tmp_path):
    write_official(tmp_path, CORRUPTIONS, n=1)
    assert [part[0] for part in read_corruptions(tmp_path, severities=[1])] == list(CORRUPTIONS)
    (tmp_path / "frost.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"labels\.npy and frost\.npy of CIFAR-10-C.*name only the corruptions"):
        read_corruptions(tmp_path)


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere: expected labels\.npy and fog\.npy"):
        read_corruptions(tmp_path / "nowhere", ["fog"])
    write_official(tmp_path)
    (tmp_path / "labels.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"expected labels\.npy and fog\.npy") as error:
        read_corruptions(tmp_path, ["fog"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            {"names": ["fog", "rain"]},
            r"must be a list of gaussian_noise, .*at least one. Received: names=\['fog', 'rain'",
        ),
        ({"names": "fog"}, "Received: names='fog'"),
        ({"names": []}, r"Received: names=\[\]"),
        ({"severities": []}, r"at least one. Received: \[\]"),
        ({"severities": [1, 6]}, r"Received: \[1, 6\]"),
    ],
)
def test_unknown_names_and_severities(tmp_path, arguments, message):
    write_official(tmp_path)
    with pytest.raises(ValueError, match=message):
        read_corruptions(tmp_path, **arguments)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def pack(path):
    with path.open("wb") as stream:
        np.savez(stream, images=np.zeros(3))


@pytest.mark.parametrize(
    "name, damage, message",
    [
        ("fog", truncate, "a complete .npy file of plain numbers.*bytes: "),
        ("fog", lambda path: path.write_bytes(b""), "a complete .npy file"),
        ("fog", lambda path: path.write_bytes(b"<html>not found</html>"), "a complete .npy file"),
        ("fog", lambda path: np.save(path, np.array([{}] * 20), allow_pickle=True), "a complete .npy file"),
        ("fog", pack, "a .npz archive"),
        ("fog", lambda path: np.save(path, np.zeros((20, 8, 8, 3))), r"uint8 images of shape \(20, .*dtype float64"),
        ("fog", lambda path: np.save(path, makers.images(19)), r"as many as there are labels.*shape \(19, 32, 32, 3\)"),
        ("fog", lambda path: np.save(path, makers.images(20, (32, 32))), r"Received: shape \(20, 32, 32\)"),
        ("labels", truncate, "a complete .npy file"),
        ("labels", lambda path: np.save(path, np.zeros(20)), r"shape \(5 \* n,\).*dtype float64"),
        ("labels", lambda path: np.save(path, np.zeros((20, 10), int)), r"Received: shape \(20, 10\)"),
        ("labels", lambda path: np.save(path, np.zeros(19, int)), r"Received: shape \(19,\)"),
        ("labels", lambda path: np.save(path, np.zeros(0, int)), r"Received: shape \(0,\)"),
        ("labels", lambda path: np.save(path, 3), r"Received: shape \(\)"),
    ],
)
def test_damaged_files(tmp_path, name, damage, message):
    write_official(tmp_path)
    path = tmp_path / f"{name}.npy"
    damage(path)
    with pytest.raises(ValueError, match=rf"{name}\.npy: expected .*{message}") as error:
        list(read_corruptions(tmp_path, ["fog"]))
    assert "download it again. Received: " in str(error.value) and "\n" not in str(error.value)


def prepare(folder, config, images, labels):
    """Prepares one corruption and severity as TensorFlow Datasets does."""
    import tensorflow as tf
    import tensorflow_datasets
    from tensorflow_datasets.core import dataset_builders

    features = {
        "image": tensorflow_datasets.features.Image(shape=images.shape[1:]),
        "label": tensorflow_datasets.features.ClassLabel(num_classes=10),
    }
    dataset_builders.AdhocBuilder(
        name="cifar10_corrupted",
        config=config,
        version="1.0.0",
        features=tensorflow_datasets.features.FeaturesDict(features),
        split_datasets={"test": tf.data.Dataset.from_tensor_slices({"image": images, "label": labels})},
        data_dir=str(folder),
    ).download_and_prepare()


@pytest.mark.filterwarnings("ignore")  # TensorFlow Datasets warns of its own dependencies
def test_reads_what_tensorflow_datasets_has_prepared(tmp_path):
    sets = {"frosted_glass_blur_2": 0, "frosted_glass_blur_3": 1, "elastic_2": 2}
    for config, seed in sets.items():
        prepare(tmp_path, config, makers.images(3, seed=seed), makers.labels(3, seed=seed))
    assert find_corruptions(tmp_path, [2]) == ("glass_blur", "elastic_transform")
    assert find_corruptions(tmp_path, [2, 3]) == ("glass_blur",)
    parts = list(read_corruptions(tmp_path, ["elastic_transform", "glass_blur"], [2]))
    assert [part[:2] for part in parts] == [("elastic_transform", 2), ("glass_blur", 2)]
    for (_, _, x, y), seed in zip(parts, [2, 0], strict=True):
        assert x.dtype == np.float32 and y.dtype == np.int64
        pairs = zip(np.rint(x * 255).astype(np.uint8), y, strict=True)
        expected = zip(makers.images(3, seed=seed), makers.labels(3, seed=seed), strict=True)
        # Preparing shuffles.
        assert sorted((a.tobytes(), b) for a, b in pairs) == sorted((a.tobytes(), b) for a, b in expected)
    with pytest.raises(FileNotFoundError, match="cifar10_corrupted/ prepared by TensorFlow Datasets"):
        read_corruptions(tmp_path, ["glass_blur"])
