"""Images that stay in their files: what a batch shows of them, and ImageNet's folders and lists."""

import numpy as np
import pytest
import tensorflow as tf

from tf_robust_sparse import data
from tf_robust_sparse.data import image_files
from tf_robust_sparse.data.readers.imagenet import unpack as unpack_imagenet


def gradient_image(height, width, blue=128):
    """Red grows downwards, green to the right: every part of the image says where it is from."""
    image = np.full((height, width, 3), blue, np.uint8)
    image[..., 0] = np.linspace(0, 255, height)[:, None]
    image[..., 1] = np.linspace(0, 255, width)[None, :]
    return image


def write(path, image, kind="png"):
    path.parent.mkdir(parents=True, exist_ok=True)
    encode = tf.io.encode_png if kind == "png" else lambda image: tf.io.encode_jpeg(image, quality=100)
    path.write_bytes(encode(tf.constant(image)).numpy())
    return str(path)


def make_imagenet(root, classes=("n01", "n02", "n03"), train=4, val=2):
    """A folder in the layout of ImageNet, JPEG files of several sizes; blue is 40 times the class."""
    for split, count in (("train", train), ("val", val)):
        for label, name in enumerate(classes):
            for i in range(count):
                image = gradient_image(40 + 4 * i, 50 - 3 * i, blue=min(40 * label, 200))
                write(root / split / name / f"{name}_{i}.JPEG", image, "jpeg")
    return root


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_the_center_is_cut_out_of_the_scaled_image(tmp_path, kind):
    path = write(tmp_path / "a", gradient_image(64, 128), kind)
    image = image_files.center_crop(tf.constant(path), 28).numpy()
    assert image.dtype == np.uint8 and image.shape == (28, 28, 3)
    # The shorter side of 64 becomes 32; 28 of its rows are seen, and 28 of 64 columns around the middle.
    rows, columns = (np.arange(28) + 0.5 + 2) / 32 * 255, (np.arange(28) + 0.5 + 18) / 64 * 255
    assert np.abs(image[:, :, 0] - rows[:, None]).max() < 6
    assert np.abs(image[:, :, 1] - columns[None, :]).max() < 6


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_a_random_part_is_where_its_box_is(tmp_path, kind):
    path = write(tmp_path / "a", gradient_image(100, 80), kind)
    seen = set()
    for seed in range(20):
        uniform = tf.random.stateless_uniform([image_files.NUM_UNIFORMS], (seed, 0))
        top, left, height, width = (int(side) for side in image_files.box(tf.constant([100, 80]), uniform))
        image = image_files.random_resized_crop(tf.constant(path), uniform, 16).numpy()
        assert image.dtype == np.float32 and image.min() >= 0 and image.max() <= 1
        mirrored = bool(uniform[-1] < 0.5)
        seen.add(mirrored)
        columns = image[:, ::-1] if mirrored else image
        where = (np.arange(16) + 0.5) / 16
        assert np.abs(columns[:, :, 0] - ((top + where * height - 0.5) / 99)[:, None]).max() < 0.04
        assert np.abs(columns[:, :, 1] - ((left + where * width - 0.5) / 79)[None, :]).max() < 0.04
        unflipped = image_files.random_resized_crop(tf.constant(path), uniform, 16, flip=False).numpy()
        np.testing.assert_array_equal(unflipped, columns)
    assert seen == {True, False}


@pytest.mark.parametrize("shape", [(100, 80), (30, 300), (300, 30), (1, 1), (3, 200)])
def test_boxes_fit_and_have_the_areas_and_ratios_they_should(shape):
    draws = tf.random.stateless_uniform([300, image_files.NUM_UNIFORMS], (1, 2))
    boxes = tf.function(
        lambda: tf.map_fn(
            lambda draw: tf.stack(image_files.box(tf.constant(shape), draw)), draws, fn_output_signature=tf.int32
        ),
        autograph=False,
    )()
    boxes = boxes.numpy()
    top, left, height, width = boxes.T
    assert (top >= 0).all() and (left >= 0).all() and (height >= 1).all() and (width >= 1).all()
    assert (top + height <= shape[0]).all() and (left + width <= shape[1]).all()
    if min(shape) >= 30:
        ratio = width / height
        assert ratio.min() > 0.7 and ratio.max() < 1.43
    if shape == (100, 80):
        share = height * width / 8000
        assert share.min() < 0.12 and share.max() > 0.8 and 0.35 < share.mean() < 0.6
        assert len(set(top)) > 30


def test_stands_where_an_array_does(tmp_path):
    paths = [write(tmp_path / f"{i}.png", gradient_image(20, 20, blue=10 * i)) for i in range(6)]
    images = data.ImageFiles(paths, 8)
    assert images.shape == (6, 8, 8, 3) and images.dtype == np.uint8 and len(images) == 6
    some = np.asarray(images[np.array([4, 1])])
    assert [int(image[0, 0, 2]) for image in some] == [40, 10]
    assert len(images[:3]) == 3 and images[:0].shape == (0, 8, 8, 3)
    assert np.asarray(images[:0]).shape == (0, 8, 8, 3)
    with pytest.raises(TypeError, match="slice"):
        images[0]
    with pytest.raises(ValueError, match="height and width"):
        data.ImageFiles(paths, 0)


def test_batches_of_files(tmp_path):
    labels = np.arange(6)
    images = data.ImageFiles([write(tmp_path / f"{i}.png", gradient_image(20, 24, blue=10 * i)) for i in labels], 8)

    def batches(**arguments):
        return list(data.train_dataset(images, labels, 3, seed=1, **arguments).as_numpy_iterator())

    for augmentation in ("resized_crop", "crop", None):
        first = batches(epochs=2, augmentation=augmentation)
        again = batches(epochs=2, augmentation=augmentation) if augmentation == "resized_crop" else first
        resumed = batches(epochs=2, first_epoch=1, augmentation=augmentation)
        assert len(first) == 4
        for (x, y), (other, _) in zip(first, again, strict=True):
            np.testing.assert_array_equal(x, other)
            assert x.shape == (3, 8, 8, 3) and x.dtype == np.float32
            if augmentation != "crop":  # which pads with zeros
                np.testing.assert_allclose(
                    x[..., 2], np.broadcast_to(10 * y[:, None, None], (3, 8, 8)) / 255, atol=1e-5
                )
        for (x, _), (other, _) in zip(first[2:], resumed, strict=True):
            np.testing.assert_array_equal(x, other)
        if augmentation:
            assert not np.array_equal(first[0][0], first[2][0])
    tested = list(data.test_dataset(images, labels, 4).as_numpy_iterator())
    np.testing.assert_array_equal(np.concatenate([y for _, y in tested]), labels)
    np.testing.assert_allclose(np.concatenate([x for x, _ in tested]), np.asarray(images) / 255, atol=1e-6)
    with pytest.raises(ValueError, match="images in memory"):
        data.train_dataset(images, labels, 4, auxiliary=(np.zeros((4, 8, 8, 3), np.uint8), labels[:4]))
    with pytest.raises(ValueError, match="images of any size in files"):
        data.train_dataset(np.asarray(images), labels, 3, augmentation="resized_crop")


@pytest.mark.parametrize("sub", ["", "imagenet"])
def test_imagenet_from_its_folders(tmp_path, sub):
    make_imagenet(tmp_path / sub)
    found = data.load("imagenet", tmp_path, image_size=24)
    assert found.num_classes == 3 and found.class_names == ("n01", "n02", "n03") and found.flip
    assert found.train_images.shape == (12, 24, 24, 3) and found.test_images.shape == (6, 24, 24, 3)
    np.testing.assert_array_equal(found.train_labels, np.repeat([0, 1, 2], 4))
    blue = np.asarray(found.test_images)[..., 2].mean((1, 2))
    np.testing.assert_allclose(blue, 40 * found.test_labels, atol=4)
    rest, held_out, labels = found.take(8, 4).split_validation(3)
    assert len(rest.train_images) == 5 and len(held_out) == len(labels) == 3
    assert data.load("imagenet", tmp_path).train_images.shape == (12, 224, 224, 3)


def test_imagenet100_is_what_its_lists_say(tmp_path):
    make_imagenet(tmp_path)
    for split in ("train", "val"):
        lines = [f"{split}/n03/n03_1.JPEG 0", f"{split}/n01/n01_0.JPEG 1", "", f"{split}/n01/n01_1.JPEG 1"]
        (tmp_path / f"{split}_100.txt").write_text("\n".join(lines))
    found = data.load("imagenet100", tmp_path, image_size=16)
    assert found.class_names == ("n03", "n01") and found.train_images.shape == (3, 16, 16, 3)
    np.testing.assert_array_equal(found.train_labels, [0, 1, 1])
    blue = np.asarray(found.train_images)[..., 2].mean((1, 2))
    np.testing.assert_allclose(blue, [80, 0, 0], atol=4)
    for line, message in (
        ("n01/a.JPEG zero", "line 1: expected 'train/<class>/<file> <label>'"),
        ("train/n01/none.JPEG 0", "which does not exist"),
        ("train/n01/n01_0.JPEG 0", "one class for label 0"),
        ("train/n03/n03_0.JPEG 5", "expected the labels 0 to"),
        (f"train/n01/n01_0.JPEG {2**64}", "line 1: expected"),
    ):
        (tmp_path / "train_100.txt").write_text(line)
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            data.load("imagenet100", tmp_path)


def test_imagenet_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="too large to be downloaded"):
        data.load("imagenet")
    with pytest.raises(FileNotFoundError, match=r"no files of imagenet100 found.*Looked in"):
        data.load("imagenet100", tmp_path)
    make_imagenet(tmp_path, classes=[f"n{i:03d}" for i in range(101)], train=1, val=1)
    with pytest.raises(ValueError, match=r"train_100.txt and val_100.txt, which list the.*101 classes"):
        data.load("imagenet100", tmp_path)
    with pytest.raises(ValueError, match="one number"):
        data.load("imagenet", tmp_path, image_size=(8, 16))
    write(tmp_path / "val" / "other" / "a.png", gradient_image(8, 8))
    with pytest.raises(ValueError, match="only classes that train/ has too"):
        data.load("imagenet", tmp_path)


def prepare_imagenet(folder, classes=("n01", "n02")):
    """Prepares a small ImageNet as TensorFlow Datasets does; returns the version's folder and its encoded files."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import dataset_builders

    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names=list(classes)),
            "file_name": tfds.features.Text(),
        }
    )
    images = np.stack([gradient_image(40, 48, blue=100 * label) for label in (0, 1, 1)])
    splits = {
        split: tf.data.Dataset.from_tensor_slices(
            {"image": images, "label": [0, 1, 1], "file_name": [f"{split}_{i}.JPEG" for i in range(3)]}
        )
        for split in ("train", "validation")
    }
    dataset_builders.AdhocBuilder(
        name="imagenet2012", version="5.1.0", features=features, split_datasets=splits, data_dir=str(folder)
    ).download_and_prepare()
    return folder / "imagenet2012" / "5.1.0"


@pytest.mark.filterwarnings("ignore")  # TensorFlow Datasets warns of its own dependencies
def test_a_prepared_imagenet_is_unpacked_once(tmp_path):
    prepared = prepare_imagenet(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"unpack it once: python run_scripts/run_unpack_imagenet.py"):
        data.load("imagenet", tmp_path)
    seen = []
    unpack_imagenet(prepared, tmp_path / "imagenet", lambda *counts: seen.append(counts))
    assert seen == [(split, number, 3) for split in ("train", "validation") for number in (1, 2, 3)]
    found = data.load("imagenet", tmp_path, image_size=16)
    assert found.class_names == ("n01", "n02") and found.train_images.shape == (3, 16, 16, 3)
    np.testing.assert_allclose(np.asarray(found.test_images)[..., 2].mean((1, 2)), 100 * found.test_labels, atol=8)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "imagenet").rglob("*.JPEG")}
    missing = next(iter(times))
    missing.unlink()
    unpack_imagenet(prepared, tmp_path / "imagenet")
    assert missing.is_file()
    assert all(path.stat().st_mtime_ns == time for path, time in times.items() if path != missing)
    for path in prepared.glob("*-train.*"):
        path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ValueError, match="expected ImageNet as TensorFlow Datasets prepares it"):
        unpack_imagenet(prepared, tmp_path / "again")
