import gzip
import os
import pickle
import shutil
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf

from tests.data import makers
from tf_robust_sparse import data
from tf_robust_sparse.data.readers import cifar, idx, svhn


def refuses(path, expected):
    """The one-line error that names a file, what it should hold, and what to do."""
    return pytest.raises(ValueError, match=rf"(?s){path}.*expected {expected}.*download it again\. Received: ")


@pytest.mark.parametrize("pack", [True, False])
def test_idx(tmp_path, pack):
    arrays = makers.write_idx(tmp_path, pack=pack)
    dataset = data.load("mnist", tmp_path)
    makers.assert_holds(dataset, arrays)
    assert dataset.train_images.shape == (6, 28, 28, 1) and dataset.num_classes == 10
    assert dataset.origin == str(tmp_path) and not dataset.flip


def test_idx_needs_all_four(tmp_path):
    makers.write_idx(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"put t10k-labels-idx1-ubyte\.gz there, too"):
        data.load("mnist", tmp_path)


@pytest.mark.parametrize(
    "damage, expected",
    [
        (lambda data: data[:-1], "4720 bytes for shape"),
        (lambda data: data + b"x", "4720 bytes for shape"),
        (lambda data: data[:10], "an IDX file, magic number 0x000008"),
        (lambda data: b"", "an IDX file"),
        (lambda data: b"<html>not found</html>", "an IDX file"),
        (lambda data: makers.idx_bytes(np.zeros(7)), "an array of 3 axes"),
    ],
)
def test_damaged_idx(tmp_path, damage, expected):
    makers.write_idx(tmp_path, pack=False)
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(damage(path.read_bytes()))
    with refuses(path, expected) as error:
        idx.read(idx.find(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: data[:40], lambda data: b"<html>"])
def test_damaged_gzip(tmp_path, damage):
    makers.write_idx(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with refuses(path, "a complete .gz file"):
        data.load("mnist", tmp_path)


CIFAR_FOLDERS = {
    (10, False): ("cifar-10-batches-py", "cifar-10-python.tar.gz"),
    (10, True): ("cifar-10-batches-bin", "cifar-10-binary.tar.gz"),
    (100, False): ("cifar-100-python", "cifar-100-python.tar.gz"),
    (100, True): ("cifar-100-binary", "cifar-100-binary.tar.gz"),
}


@pytest.mark.parametrize("place", ["folder", "itself", "xz", "archive"])
@pytest.mark.parametrize("num_classes, binary", list(CIFAR_FOLDERS))
def test_cifar(tmp_path, num_classes, binary, place):
    content, arrays = makers.cifar_files(num_classes, binary)
    folder_name, archive = CIFAR_FOLDERS[num_classes, binary]
    if place == "archive":
        makers.write_tar(tmp_path / archive, folder_name, content)
    else:
        makers.write_files(tmp_path if place == "itself" else tmp_path / folder_name, content, place == "xz")
    dataset = data.load(f"cifar{num_classes}", tmp_path)
    makers.assert_holds(dataset, arrays)
    assert dataset.train_images.shape[1:] == (32, 32, 3) and dataset.num_classes == num_classes
    assert dataset.class_names[-1] == f"class{num_classes - 1}" and dataset.flip


def test_cifar100_subset_folder(tmp_path):
    content, arrays = makers.cifar_files(100, False)
    makers.write_files(tmp_path / "cifar100" / "cifar-100-python-subset", content, pack_xz=True)
    makers.assert_holds(data.load("cifar100", tmp_path), arrays)


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch"])
@pytest.mark.parametrize(
    "damage, expected",
    [
        (lambda data: data[: len(data) // 2], "a complete pickle of plain data"),
        (lambda data: b"", "a complete pickle"),
        (lambda data: pickle.dumps([1]), "a dictionary with 'data' and 'labels'"),
        (lambda data: pickle.dumps({b"data": np.zeros((2, 9), np.uint8), b"labels": [1, 2]}), "uint8 'data' of shape"),
        (lambda data: pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": ["a"]}), "a list of integer"),
        (lambda data: pickle.dumps(np.load), "a complete pickle.*this pickle tries to import"),
    ],
)
def test_damaged_cifar_pickle(tmp_path, name, damage, expected):
    content, _ = makers.cifar_files(10, False)
    content[name] = damage(content[name])
    makers.write_files(tmp_path, content)
    with pytest.raises(ValueError, match=expected.split(".*")[-1]) as error:
        cifar.read(cifar.find(tmp_path, 10))
    assert str(tmp_path / name) in str(error.value) and "download it again" in str(error.value)
    assert "\n" not in str(error.value)


def test_damaged_cifar_binary(tmp_path):
    content, _ = makers.cifar_files(100, True)
    content["train.bin"] = content["train.bin"][:-1]
    makers.write_files(tmp_path, content)
    with refuses(tmp_path / "train.bin", "a multiple of 3074 bytes"):
        data.load("cifar100", tmp_path)


def test_cifar_labels_out_of_range(tmp_path):
    content, _ = makers.cifar_files(10, True)
    content["test_batch.bin"] = b"\x0a" + content["test_batch.bin"][1:]
    makers.write_files(tmp_path, content)
    with pytest.raises(ValueError, match=r"cifar10 \(.*\), test split: labels must be integers in \[0, 10\)"):
        data.load("cifar10", tmp_path)


def test_damaged_cifar_archive(tmp_path):
    content, _ = makers.cifar_files(10, True)
    path = tmp_path / "cifar-10-binary.tar.gz"
    makers.write_tar(path, "cifar-10-batches-bin", content)
    whole = path.read_bytes()
    for part in (whole[: len(whole) // 2], b"<html>", b""):
        path.write_bytes(part)
        with refuses(path, "a complete tar archive"):
            data.load("cifar10", tmp_path)
    del content["data_batch_2.bin"]
    makers.write_tar(path, "cifar-10-batches-bin", content)
    with refuses(path, "members data_batch_1.bin"):
        data.load("cifar10", tmp_path)


def test_damaged_xz(tmp_path):
    content, _ = makers.cifar_files(10, False)
    makers.write_files(tmp_path, content, pack_xz=True)
    path = tmp_path / "data_batch_1.xz"
    path.write_bytes(path.read_bytes()[:-20])
    with refuses(path, "a complete .xz file"):
        data.load("cifar10", tmp_path)


def write_svhn(folder, n=(5, 3)):
    import scipy.io

    arrays = []
    for name, count in zip(svhn.NAMES, n, strict=True):
        x, y = makers.images(count), makers.labels(count)
        y[0] = 0
        stored = np.where(y == 0, 10, y).astype(np.uint8)[:, None]
        scipy.io.savemat(folder / name, {"X": x.transpose(1, 2, 3, 0), "y": stored}, do_compression=True)
        arrays += [x, y]
    return arrays


def test_svhn(tmp_path):
    arrays = write_svhn(tmp_path)
    dataset = data.load("svhn", tmp_path)
    makers.assert_holds(dataset, arrays)
    assert dataset.train_images.shape == (5, 32, 32, 3) and not dataset.flip


def test_damaged_svhn(tmp_path):
    import scipy.io

    write_svhn(tmp_path)
    path = tmp_path / "test_32x32.mat"
    whole = path.read_bytes()
    for part in (whole[: len(whole) // 2], whole[:150], b"<html>", b""):
        path.write_bytes(part)
        with refuses(path, "a (complete )?MATLAB file"):
            svhn.read_split(path)
    for content, expected in (
        ({"a": 1}, "a MATLAB file with 'X' and 'y'"),
        ({"X": np.zeros((32, 32, 3, 2), np.uint8), "y": [[1]]}, "uint8 'X' of shape"),
        ({"X": np.zeros((32, 32, 3, 1), np.uint8), "y": [[11]]}, "labels 1..10"),
    ):
        scipy.io.savemat(path, content)
        with pytest.raises(ValueError, match=expected):
            svhn.read_split(path)


def npz_arrays(**changes):
    arrays = {
        "x_train": makers.images(6, (8, 8, 3)),
        "y_train": np.arange(6) % 3,
        "x_test": makers.images(4, (8, 8, 3)),
        "y_test": np.arange(4)[:, None] % 3,
    }
    return {**arrays, **changes}


def test_npz(tmp_path):
    arrays = npz_arrays()
    np.savez(tmp_path / "mine.npz", **arrays)
    dataset = data.load(tmp_path / "mine.npz")
    makers.assert_holds(dataset, [arrays["x_train"], arrays["y_train"], arrays["x_test"], arrays["y_test"][:, 0]])
    assert dataset.name == "mine" and dataset.num_classes == 3 and not dataset.flip


def test_npz_gray_floats(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", **npz_arrays(x_train=np.full((6, 8, 8), 0.5), x_test=np.ones((4, 8, 8))))
    dataset = data.load(str(tmp_path / "a.npz"))
    assert dataset.train_images.shape == (6, 8, 8, 1) and dataset.train_images.dtype == np.float32


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"x_train": np.full((6, 8, 8, 3), 150.0)}, "train split.*divide by 255"),
        ({"y_test": np.array([-1, 0, 1, 2])}, "test split.*from -1"),
        ({"y_test": np.zeros(4)}, "one for each image.*float64"),
        ({"x_test": np.array([None, 1])}, "a complete .npz file of plain arrays.*never unpickled"),
    ],
)
def test_npz_refuses(tmp_path, changes, message):
    np.savez(tmp_path / "a.npz", **npz_arrays(**changes))
    with pytest.raises(ValueError, match=message):
        data.load(tmp_path / "a.npz")


def test_damaged_npz(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, **npz_arrays())
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 0xFF
    for part in (whole[: len(whole) // 2], bytes(flipped), b"<html>", b""):
        path.write_bytes(part)
        with refuses(path, "a complete .npz file"):
            data.load(path)
    np.savez(path, x_train=np.zeros(2))
    with refuses(path, "a complete .npz.*y_train, x_test, y_test"):
        data.load(path)
    np.save(tmp_path / "b.npy", np.zeros(2))
    (tmp_path / "b.npy").rename(path)
    with pytest.raises(ValueError, match=r"one array, as np\.save writes"):
        data.load(path)
    with pytest.raises(FileNotFoundError, match="check the path"):
        data.load(tmp_path / "none.npz")


def write_folder(root, sizes=((8, 8),), test="test"):
    for split, count in (("train", 3), (test, 2)):
        for label, name in enumerate(("cat", "dog")):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                image = tf.fill([*sizes[i % len(sizes)], 3], tf.cast(100 * label + i, tf.uint8))
                encode = tf.io.encode_png if i else tf.io.encode_jpeg
                (root / split / name / f"{i}.{'png' if i else 'JPEG'}").write_bytes(encode(image).numpy())
    (root / "train" / "notes.txt").write_text("not an image")


def copy_image(root, target, source="train/dog/1.png"):
    (root / target).parent.mkdir(parents=True, exist_ok=True)
    (root / target).write_bytes((root / source).read_bytes())


@pytest.mark.parametrize("test", ["test", "val"])
def test_folder(tmp_path, test):
    write_folder(tmp_path, test=test)
    dataset = data.load(tmp_path)
    assert dataset.train_images.shape == (6, 8, 8, 3) and dataset.test_images.shape == (4, 8, 8, 3)
    assert dataset.class_names == ("cat", "dog") and dataset.train_labels.tolist() == [0, 0, 0, 1, 1, 1]
    np.testing.assert_array_equal(dataset.train_images[:, 0, 0, 0], [0, 1, 2, 100, 101, 102])


def test_folder_says_what_it_skips(tmp_path):
    write_folder(tmp_path)
    copy_image(tmp_path, "train/.ipynb_checkpoints/a.png")
    copy_image(tmp_path, "train/dog/.ipynb_checkpoints/1-checkpoint.png")
    copy_image(tmp_path, "train/dog/deeper/1.png")
    for name in ("a.webp", "b.WEBP", "c.gif", "._1.png"):
        copy_image(tmp_path, f"train/dog/{name}")
    copy_image(tmp_path, "train/alone.png")
    (tmp_path / "train" / "ant").mkdir()
    (tmp_path / "test" / "bee" / "__MACOSX").mkdir(parents=True)
    os.mkfifo(tmp_path / "train" / "cat" / "x.png")  # reading it would wait for ever
    with pytest.warns(UserWarning) as said:
        dataset = data.load(tmp_path)
    assert dataset.class_names == ("cat", "dog") and dataset.train_labels.tolist() == [0, 0, 0, 1, 1, 1, 1]
    text = " ".join(str(warning.message) for warning in said)
    for words in (
        "3 hidden (such as ",
        "2 files of type .webp",
        "1 files of type .gif",
        "1 empty folders",
        "train/ant)",
        "test/bee)",
        "1 outside of class folders",
        "1 that are no regular files",
        "x.png)",
    ):
        assert words in text, words
    with pytest.warns(UserWarning, match="skipped"):
        assert data.load("imagenet", tmp_path, image_size=8).train_images.shape == (7, 8, 8, 3)


def claims(width, height):
    """A PNG whose header, with a right checksum, claims another size."""
    header = b"IHDR" + struct.pack(">II", width, height) + b"\x08\x02\x00\x00\x00"
    whole = tf.io.encode_png(tf.zeros((4, 4, 3), tf.uint8)).numpy()
    return whole[:12] + header + struct.pack(">I", zlib.crc32(header)) + whole[33:]


def test_an_image_that_claims_too_many_pixels(tmp_path):
    write_folder(tmp_path)
    path = tmp_path / "train" / "dog" / "1.png"
    path.write_bytes(claims(4, 4))
    data.load(tmp_path, image_size=8)
    path.write_bytes(claims(20_000, 20_000))
    with refuses(path, "a complete .png image"):
        data.load(tmp_path, image_size=8)
    with refuses(path, "a complete .png image"):
        np.asarray(data.ImageFiles([str(path)], 8))


def test_folder_resizes(tmp_path):
    write_folder(tmp_path, sizes=((8, 8), (4, 6)))
    with pytest.raises(ValueError, match=r"1\.png: expected \(8, 8\).*pass `image_size`.*\(4, 6\)"):
        data.load(tmp_path)
    assert data.load(tmp_path, image_size=5).train_images.shape == (6, 5, 5, 3)
    resized = data.load(tmp_path, image_size=(8, 6)).train_images
    assert resized.shape == (6, 8, 6, 3)
    np.testing.assert_array_equal(resized[:, 3, 3, 0], [0, 1, 2, 100, 101, 102])


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"<html>"])
@pytest.mark.parametrize("name", ["0.JPEG", "1.png"])
def test_folder_names_a_damaged_image(tmp_path, name, damage):
    write_folder(tmp_path)
    path = tmp_path / "train" / "dog" / name
    path.write_bytes(damage(path.read_bytes()))
    with refuses(path, "a complete .* image"):
        data.load(tmp_path)


def test_folder_refuses(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected the folders train/<class>/"):
        data.load(tmp_path)
    write_folder(tmp_path)
    copy_image(tmp_path, "test/bird/1.png")
    with pytest.raises(ValueError, match=r"expected only classes that train/ has too.*'bird'"):
        data.load(tmp_path)
    shutil.rmtree(tmp_path / "test" / "bird")
    copy_image(tmp_path, "train/webp/1.webp")
    with pytest.raises(ValueError, match=r"webp: expected images as \.bmp.*convert them.*1 files of type \.webp"):
        data.load(tmp_path)
    shutil.rmtree(tmp_path / "train" / "webp")
    for path in (tmp_path / "test").rglob("*.*"):
        path.unlink()
    with pytest.raises(ValueError, match=r"expected \.png, \.jpg or .bmp images"):
        data.load(tmp_path)


def test_gzip_helper_writes_what_readers_read(tmp_path):
    (tmp_path / "a.gz").write_bytes(gzip.compress(makers.idx_bytes(np.arange(5))))
    np.testing.assert_array_equal(idx.read_array(tmp_path / "a.gz"), np.arange(5))
