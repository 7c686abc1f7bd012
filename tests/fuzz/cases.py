"""Every reader of files, with a small file that it reads: what is damaged, and what a read returns."""

import dataclasses
import gzip
import hashlib
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import scipy.io
import tensorflow as tf
import yaml

from tests.attacks.toy import toy_images, toy_labels, toy_network
from tests.data import makers
from tf_robust_sparse import data, layers, saving
from tf_robust_sparse.attacks import Square
from tf_robust_sparse.certify import table
from tf_robust_sparse.certify.certification import _COLUMNS, _parse
from tf_robust_sparse.cli import settings_file
from tf_robust_sparse.data import image_files, restricted_pickle
from tf_robust_sparse.data.readers import idx, npz, svhn
from tf_robust_sparse.evaluation import AutoAttack
from tf_robust_sparse.saving.checkpoint import read_metadata


@dataclasses.dataclass(frozen=True)
class Case:
    """One reader and one of its files.

    Args:
        content: Bytes of the part of the file that is damaged.
        write: From a folder and that part to the path of the whole file.
        read: From the path to the content, as arrays, numbers and text.
        sealed: Whether a checksum stands over what is damaged: what is read then is what was written.
        share: Share of the 1,500 mutations, less for the second part of a file.
        few: Mutations in every run of the tests, fewer for slow readers.
    """

    content: bytes
    write: Callable[[Path, bytes], Path]
    read: Callable[[Path], Any]
    sealed: bool = False
    share: float = 1.0
    few: int = 60


def as_file(name):
    def write(folder, content):
        (folder / name).write_bytes(content)
        return folder / name

    return write


def _dataset(folder_of, name=None):
    def read(path):
        found = data.load(name or path, folder_of(path) if name else None)
        return [found.train_images, found.train_labels, found.test_images, found.test_labels]

    return read


def _cifar(packed):
    content, _ = makers.cifar_files(10, False, per_file=1)

    def write(folder, part):
        if packed:
            return as_file("cifar-10-python.tar.gz")(folder, part)
        makers.write_files(folder, {**content, "data_batch_2": part})
        return folder / "data_batch_2"

    if packed:
        buffer = Path(packed) / "whole.tar.gz"
        makers.write_tar(buffer, "cifar-10-batches-py", content)
        part = buffer.read_bytes()
    else:
        part = content["data_batch_2"]
    return Case(part, write, _dataset(lambda path: path.parent, "cifar10"), sealed=bool(packed))


def _mat(folder, compressed):
    path = folder / "whole.mat"
    x, y = makers.images(2), np.array([[1], [10]], np.uint8)
    scipy.io.savemat(path, {"X": x.transpose(1, 2, 3, 0), "y": y}, do_compression=compressed)
    return Case(path.read_bytes(), as_file("train_32x32.mat"), svhn.read_split, sealed=compressed)


def _zipped(members, name, method=zipfile.ZIP_DEFLATED, **changed):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for member, content in {**members, **changed}.items():
            archive.writestr(member, content)
    return as_file(name), buffer.getvalue()


def _npz():
    arrays = {
        "x_train": makers.images(2, (8, 8, 3)),
        "y_train": np.arange(2),
        "x_test": makers.images(2, (8, 8, 3)),
        "y_test": np.arange(2),
    }
    members = {}
    for name, array in arrays.items():
        stream = io.BytesIO()
        np.save(stream, array)
        members[f"{name}.npy"] = stream.getvalue()
    write, whole = _zipped(members, "a.npz")

    def write_member(folder, part):
        return write(folder, _zipped(members, "a.npz", **{"y_train.npy": part})[1])

    read = _dataset(None)
    return Case(whole, write, read, sealed=True), Case(members["y_train.npy"], write_member, read)


def _pickle():
    import pickle

    content = {"data": makers.images(1), "extrapolated_targets": [3], "more": (1, 2.5, {"a": {1}, (1, 2): None})}
    return Case(pickle.dumps(content, 2), as_file("a.pickle"), lambda path: list(data.load_pseudo_labels(path)))


def _any_pickle():
    import pickle

    value = [{"a": (1, [2, (3,)]), b"b": frozenset({1, "x"}), (1, (2,)): np.ones((2, 2), ">f4")}, [np.float32(1)] * 3]

    def read(path):
        try:
            return restricted_pickle.load(path)
        except pickle.UnpicklingError as error:
            raise ValueError(f"{path}: {error}") from error

    return Case(pickle.dumps(value, 4), as_file("b.pickle"), lambda path: repr(read(path))[:100])


def _network(kernel="masked"):
    dense, conv = layers.KERNELS[kernel]
    x = inputs = keras.Input((4, 4, 1), name="pixels")
    x = conv(2, 3, use_bias=False, name="conv")(x)
    x = layers.BatchNormalization(name="bn")(x)
    x = dense(3, name="classifier")(keras.layers.Flatten(name="flatten")(x))
    return keras.Model(inputs, x, name="tiny")


def _weights(network):
    return [np.asarray(weight) for weight in network.weights]


def _pytorch(ending):
    network = _network("plain")
    kernel, gamma, beta, mean, variance, dense, bias = (np.asarray(weight, np.float32) for weight in _weights(network))
    state = {
        "0.weight": kernel.transpose(3, 2, 0, 1),
        **{"1.weight": gamma, "1.bias": beta, "1.running_mean": mean, "1.running_var": variance},
        **{"4.weight": dense.T, "4.bias": bias},
    }
    state = {name: np.ascontiguousarray(value) for name, value in state.items()}
    if ending == "safetensors":
        from safetensors.numpy import save

        content = save(state)
    else:
        stream = io.BytesIO()
        np.savez_compressed(stream, **state)
        content = stream.getvalue()

    def read(path):
        saving.import_pytorch_weights(path, network)
        return _weights(network)

    return Case(content, as_file(f"a.{ending}"), read, sealed=ending == "npz", few=30)


def _checkpoint(folder):
    model = _network()
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9))
    path = folder / "whole.h5"
    saving.save_checkpoint(path, model, {"epoch": 3, "name": "a"})

    def read(path):
        read_metadata(path)
        metadata = saving.load_checkpoint(path, model)
        return [*_weights(model), json.dumps(metadata)]

    return Case(path.read_bytes(), as_file("a.weights.h5"), read, sealed=True)


def _keras(folder):
    path = saving.save_network(_network(), folder / "whole.keras")
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}

    def read(path):
        return _weights(saving.load_network(path))

    def write_member(member):
        return lambda place, part: as_file("a.keras")(place, _zipped({**members, member: part}, "")[1])

    yield Case(path.read_bytes(), as_file("a.keras"), read, sealed=True)
    for member in ("config.json", "model.weights.h5"):
        yield Case(members[member], write_member(member), read, share=0.1, few=6)


def _compact(folder):
    whole = saving.save_compact(_network(), folder / "whole.trs").read_bytes()
    start = struct.Struct("<8sHQQ")
    magic, version, head, _ = start.unpack_from(whole)
    text, body = zlib.decompress(whole[start.size : start.size + head]), whole[start.size + head : -32]

    def sealed(head_text, rest):
        packed = zlib.compress(head_text)
        content = start.pack(magic, version, len(packed), len(rest)) + packed + rest
        return content + hashlib.sha256(content).digest()

    def read(path):
        return _weights(saving.load_network(path))

    yield Case(whole, as_file("a.trs"), read, sealed=True)
    yield Case(text, lambda place, part: as_file("a.trs")(place, sealed(part, body)), read, share=0.1, few=6)
    yield Case(body, lambda place, part: as_file("a.trs")(place, sealed(text, part)), read, share=0.1, few=6)


def _yaml():
    settings = {
        "dataset": "cifar10",
        "lr": 0.1,
        "normalize": None,
        "attack": {"name": "PGD", "step_size": 2, "aug_policy": ["crop", "vflip"]},
        "when": 20200102,
    }
    text = yaml.safe_dump(settings).encode() + b"date: 2020-01-02\ntime: 1:20:30\n"
    return Case(text, as_file("a.yaml"), lambda path: str(settings_file.read(path, "config")))


def _image(ending):
    pixels = tf.constant(makers.images(1, (9, 7, 3))[0])
    content = (tf.io.encode_png if ending == "png" else tf.io.encode_jpeg)(pixels).numpy()
    read = lambda path: [image_files.decode(path, 3).numpy()]  # noqa: E731
    return Case(content, as_file(f"a.{ending}"), read, sealed=ending == "png")


def _table(folder):
    settings = {"sigma": 0.25, "seed": 0, "of": "abcd"}
    path = folder / "whole.tsv"

    def read(path):
        return str(table.begin(path, settings, _COLUMNS, _parse))

    read(path)
    for row in ((0, 3, 3, 0.51, 1, 0.1), (2, 4, -1, 0.0, 0, 0.2), (4, 1, 1, 1.25, 1, 0.2)):
        table.append(path, row)
    return Case(path.read_bytes(), as_file("a.tsv"), read)


def _state(folder):
    """AutoAttack's state is two files, of which one is damaged at a time."""
    x, y = toy_images()[:6], toy_labels()[:6]
    attack = AutoAttack(
        toy_network(), "Linf", 0.01, "custom", attacks=[Square(0.01, num_queries=20)], batch_size=6, verbose=False
    )

    def read(path):
        attack.state_path = folder_of_state = path.with_name("state.json")
        result = attack.run_standard_evaluation(x, y, callback=lambda *_: never(folder_of_state))
        return [result["x_adv"], result["broken_by"]]

    def never(path):
        raise AssertionError(f"{path} was taken for the state of an unfinished run")

    attack.state_path = folder / "state.json"
    attack.run_standard_evaluation(x, y)
    whole = {name: (folder / name).read_bytes() for name in ("state.json", "state.json.npz")}

    def writer(name):
        def write(place, part):
            for each, content in {**whole, name: part}.items():
                (place / each).write_bytes(content)
            return place / name

        return write

    for name, content in whole.items():
        yield Case(content, writer(name), read, sealed=True, share=0.5, few=5)


def make(folder):
    """Returns the cases by name."""
    raw = makers.idx_bytes(makers.images(2, (5, 4)))
    npz_whole, npz_member = _npz()
    keras_cases, compact_cases = list(_keras(folder)), list(_compact(folder))
    state, examples = _state(folder)
    stream = io.BytesIO()
    np.save(stream, np.ones((3, 2), "float32"))
    return {
        "idx": Case(raw, as_file("train-images-idx3-ubyte"), lambda path: [idx.read_array(path)]),
        "idx, gzip": Case(gzip.compress(raw), as_file("a.gz"), lambda path: [idx.read_array(path)], sealed=True),
        "cifar": _cifar(packed=None),
        "cifar, tar.gz": _cifar(packed=folder),
        "mat": _mat(folder, False),
        "mat, packed": _mat(folder, True),
        "npy": Case(stream.getvalue(), as_file("a.npy"), lambda path: [npz.read_array(path)]),
        "npz": npz_whole,
        "npz, a member": npz_member,
        "pickle": _pickle(),
        "pickle of anything": _any_pickle(),
        "safetensors": _pytorch("safetensors"),
        "npz of weights": _pytorch("npz"),
        "h5": _checkpoint(folder),
        "keras": keras_cases[0],
        "keras, its configuration": keras_cases[1],
        "keras, its weights": keras_cases[2],
        "trs": compact_cases[0],
        "trs, its head": compact_cases[1],
        "trs, its body": compact_cases[2],
        "yaml": _yaml(),
        "png": _image("png"),
        "jpeg": _image("jpeg"),
        "tsv": _table(folder),
        "state": state,
        "state, its examples": examples,
    }
