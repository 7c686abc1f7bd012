"""Small files of every format, for the tests of the readers."""

import gzip
import io
import lzma
import pickle
import tarfile

import numpy as np


def images(n, shape=(32, 32, 3), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def labels(n, num_classes=10, seed=0):
    return np.random.default_rng(seed).integers(0, num_classes, n)


def idx_bytes(array):
    shape = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return b"\x00\x00\x08" + bytes([array.ndim]) + shape + array.astype(np.uint8).tobytes()


def write_idx(folder, n=(6, 4), pack=True):
    """Returns the four arrays that the four files hold."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = []
    for split, count in zip(("train", "t10k"), n, strict=True):
        for kind, array in (("images-idx3", images(count, (28, 28))), ("labels-idx1", labels(count))):
            data = idx_bytes(array)
            path = folder / f"{split}-{kind}-ubyte{'.gz' if pack else ''}"
            path.write_bytes(gzip.compress(data) if pack else data)
            arrays.append(array)
    return arrays


def cifar_files(num_classes, binary, per_file=3):
    """Returns the files of CIFAR by name, and the four arrays that they hold."""
    batches = [f"data_batch_{i}" for i in range(1, 6)] if num_classes == 10 else ["train"]
    names = [*batches, "test_batch" if num_classes == 10 else "test"]
    content, xs, ys = {}, [], []
    for i, name in enumerate(names):
        x, y = images(per_file, seed=i), labels(per_file, num_classes, seed=i)
        flat = x.transpose(0, 3, 1, 2).reshape(per_file, -1)
        if binary:
            coarse = np.zeros((per_file, 1 if num_classes == 100 else 0), np.uint8)
            record = np.concatenate([coarse, y[:, None].astype(np.uint8), flat], axis=1)
            content[name + ".bin"] = record.tobytes()
        else:
            key = b"labels" if num_classes == 10 else b"fine_labels"
            content[name] = pickle.dumps({b"data": flat, key: y.tolist(), b"filenames": [b"a.png"] * per_file}, 2)
        xs.append(x)
        ys.append(y)
    class_names = [f"class{i}" for i in range(num_classes)]
    if binary:
        content["batches.meta.txt" if num_classes == 10 else "fine_label_names.txt"] = "\n".join(class_names).encode()
    else:
        key = b"label_names" if num_classes == 10 else b"fine_label_names"
        content["batches.meta" if num_classes == 10 else "meta"] = pickle.dumps(
            {key: [name.encode() for name in class_names]}, 2
        )
    return content, (np.concatenate(xs[:-1]), np.concatenate(ys[:-1]), xs[-1], ys[-1])


def write_files(folder, content, pack_xz=False):
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in content.items():
        if pack_xz and "meta" not in name and not name.endswith(".txt"):
            (folder / f"{name}.xz").write_bytes(lzma.compress(data, preset=0))
        else:
            (folder / name).write_bytes(data)


def write_tar(path, folder_name, content):
    with tarfile.open(path, "w:gz") as archive:
        for name, data in content.items():
            member = tarfile.TarInfo(f"{folder_name}/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def assert_holds(dataset, arrays):
    """Checks that a data set holds these train images, train labels, test images and test labels."""
    np.testing.assert_array_equal(dataset.train_images, np.asarray(arrays[0]).reshape(dataset.train_images.shape))
    np.testing.assert_array_equal(dataset.train_labels, arrays[1])
    np.testing.assert_array_equal(dataset.test_images, np.asarray(arrays[2]).reshape(dataset.test_images.shape))
    np.testing.assert_array_equal(dataset.test_labels, arrays[3])
