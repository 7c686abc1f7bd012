"""Networks survive the disk, damaged files are told apart, and a SavedModel needs nothing of this package."""

import contextlib
import json
import re
import resource
import subprocess
import sys
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.saving.networks import IMAGE, images, residual_network
from tests.saving.test_strip import foreign_network
from tf_robust_sparse import data, layers, saving
from tf_robust_sparse.models.wide_resnet import wrn28_2
from tf_robust_sparse.saving.checkpoint import read_metadata


def names(path):
    return sorted(each.name for each in path.iterdir())


@contextlib.contextmanager
def small_files():
    """Lets files grow to 4 KiB only, as on a disk that is almost full; not for long: pytest's own log is a file too."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("kernel", layers.KERNELS)
def test_round_trip_is_exact(kernel, tmp_path):
    network = residual_network(kernel)
    file = saving.save_network(network, tmp_path / "run")
    assert file == tmp_path / "run" / "network.keras"
    for path in (tmp_path / "run", str(file)) if kernel == "rewiring" else (file,):
        loaded = saving.load_network(path)
        for a, b in zip(network.variables, loaded.variables, strict=True):
            assert (a.path, a.dtype) == (b.path, b.dtype)
            np.testing.assert_array_equal(a.numpy(), b.numpy())
        np.testing.assert_array_equal(network(images(4)), loaded(images(4)))
        orders = [[layer.name for layer in layers.kernel_layers(each)] for each in (network, loaded)]
        assert orders[0] == orders[1]
        assert orders[0] == ["stem", "conv1", "conv2", "shortcut", "hidden", "classifier"]
    assert not loaded.compiled


def test_the_home_directory_is_understood_everywhere(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    network = residual_network("plain")
    file = saving.save_network(network, "~/run")
    assert file == tmp_path / "home" / "run" / "network.keras"
    saving.save_compact(network, "~/run/network.trs")
    model = keras.Model(network.inputs, network.outputs)
    saving.save_checkpoint("~/run/last.weights.h5", model, {"epoch": 1})
    assert saving.load_checkpoint("~/run/last.weights.h5", model) == read_metadata("~/run/last.weights.h5")
    np.savez(tmp_path / "home" / "run" / "labels.npz", x=np.zeros((2, 1)))
    for path in ("~/run", "~/run/network.keras", "~/run/network.trs"):
        assert saving.load_network(path).name == network.name
    with pytest.raises(ValueError, match=r"expected|holds"):
        data.load("~/run/labels.npz")
    assert names(tmp_path) == ["home"]


def test_file_name_is_free(tmp_path):
    file = saving.save_network(residual_network(), tmp_path / "a" / "best.keras")
    assert file == tmp_path / "a" / "best.keras"
    assert saving.load_network(file).name == "residual"
    assert names(tmp_path / "a") == ["best.keras"]


def test_every_architecture_loads_in_the_same_layer_order(tmp_path):
    network = wrn28_2(kernel="rewiring", connectivity=0.1, seed=0)
    saving.save_network(network, tmp_path)
    loaded = saving.load_network(tmp_path)
    assert [layer.name for layer in layers.kernel_layers(loaded)] == [
        layer.name for layer in layers.kernel_layers(network)
    ]


def test_full_disk_leaves_the_old_network(tmp_path):
    network = residual_network()
    saving.save_network(network, tmp_path)
    before = (tmp_path / "network.keras").read_bytes()
    with small_files(), pytest.raises(OSError, match="too large"):
        saving.save_network(residual_network(seed=9), tmp_path)
    assert names(tmp_path) == ["network.keras"]
    assert (tmp_path / "network.keras").read_bytes() == before


def damage(path, kind):
    content = path.read_bytes()
    if kind == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "flipped":
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :])
    elif kind == "text":
        path.write_text("not a network")


@pytest.mark.parametrize("kind", ["truncated", "empty", "flipped", "text"])
def test_damaged_file(kind, tmp_path):
    file = saving.save_network(residual_network(), tmp_path)
    damage(file, kind)
    with pytest.raises(ValueError, match=r"network\.keras is damaged or not a \.keras file"):
        saving.load_network(tmp_path)


def test_missing_file(tmp_path):
    with pytest.raises(ValueError, match=r"There is no network at .*network\.keras.*Received: path="):
        saving.load_network(tmp_path)


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("net.onnx", "an ONNX file is made for other programs"),
        *[(name, "run_import_weights.py --weights") for name in ("net.pth", "net.pth.tar", "net.npz", "a.pickle")],
        ("last.weights.h5", "network.keras that its run left"),
        ("serve/saved_model.pb", "trs.evaluation.load_saved_model and passed as --network"),
    ],
)
def test_files_of_other_kinds_are_told_the_way(name, way, tmp_path):
    file = tmp_path / name
    given = file.parent if name.startswith("serve") else file
    with pytest.raises(ValueError, match=f"There is no network at {re.escape(str(given))};"):
        saving.load_network(given)
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"x")
    with pytest.raises(ValueError, match=re.escape(way)):
        saving.load_network(given)


def test_zip_of_something_else(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.keras", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(ValueError, match=r"no \.keras file.*readme\.txt"):
        saving.load_network(tmp_path / "a.keras")


def rewrite_config(file, change):
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(members["config.json"])
    change(config)
    members["config.json"] = json.dumps(config)
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def test_unknown_layer(tmp_path):
    file = saving.save_network(residual_network(), tmp_path)

    def change(config):
        entry = config["config"]["layers"][1]
        entry.update(module="elsewhere", class_name="Odd", registered_name="elsewhere>Odd")

    rewrite_config(file, change)
    with pytest.raises(ValueError, match="cannot be rebuilt; if it has custom layers, register them"):
        saving.load_network(tmp_path)


def test_code_in_the_file_is_refused(tmp_path):
    x = keras.Input((3,))
    network = keras.Model(x, keras.layers.Lambda(lambda x: x + 1, output_shape=(3,))(x))
    saving.save_network(network, tmp_path)
    with pytest.raises(ValueError, match="cannot be rebuilt"):
        saving.load_network(tmp_path)


def test_wrong_architecture_of_weights(tmp_path):
    file = saving.save_network(residual_network(), tmp_path)
    rewrite_config(file, lambda config: config["config"]["layers"][-1]["config"].update(units=6))
    with pytest.raises(ValueError, match="cannot be rebuilt"):
        saving.load_network(tmp_path)


_CONSUMER = """
import sys
import numpy as np
import tensorflow as tf

x = tf.constant(np.load(sys.argv[1]))
for path in sys.argv[2:]:
    loaded = tf.saved_model.load(path)
    with tf.GradientTape() as tape:
        tape.watch(x)
        logits = loaded.serve(x)
        total = tf.reduce_sum(logits * tf.range(logits.shape[1], dtype=tf.float32))
    signature = loaded.signatures["serving_default"]
    (name,) = signature.structured_input_signature[1]
    (output,) = signature(**{name: x}).values()
    gradient, one = tape.gradient(total, x), loaded.serve(x[:1])
    np.savez(path + ".npz", logits=logits, gradient=gradient, output=output, one=one)
    print(name, signature.structured_input_signature[1][name].shape)
assert not [name for name in sys.modules if name.startswith("tf_robust_sparse")], "it must not need this package"
"""


def test_saved_models_are_free_of_this_package(tmp_path, capfd):
    networks, x = {}, images(256)
    for policy in ("float32", "mixed_bfloat16"):
        keras.config.set_dtype_policy(policy)
        try:
            network = residual_network()
        finally:
            keras.config.set_dtype_policy("float32")
        capfd.readouterr()
        path = tmp_path / policy / "serve"
        assert saving.export_network(network, path) == path
        assert capfd.readouterr().out == ""
        assert names(path.parent) == ["serve"]
        networks[path] = network
    np.save(tmp_path / "x.npy", x)
    arguments = [tmp_path / "x.npy", *networks]
    done = subprocess.run(
        [sys.executable, "-c", _CONSUMER, *arguments], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == 2 * ["pixels", "(None,", "8,", "8,", "3)"]
    x = tf.constant(x)
    for path, network in networks.items():
        results = np.load(f"{path}.npz")
        same = residual_network()
        same.set_weights(network.get_weights())
        with tf.GradientTape() as tape:
            tape.watch(x)
            logits = same(x, training=False)
            total = tf.reduce_sum(logits * tf.range(5, dtype=tf.float32))
        np.testing.assert_allclose(results["logits"], logits, atol=1e-5)
        np.testing.assert_allclose(results["output"], results["logits"], atol=1e-6)
        np.testing.assert_allclose(results["one"], logits[:1], atol=1e-5)
        np.testing.assert_allclose(results["gradient"], tape.gradient(total, x), atol=1e-4)
        assert results["logits"].dtype == np.float32


def test_each_weight_is_exported_once_and_layers_of_the_user_need_no_code(tmp_path):
    network = foreign_network()
    path = saving.export_network(network, tmp_path / "serve")
    loaded = tf.saved_model.load(str(path))
    np.testing.assert_allclose(loaded.serve(images(2)), network(images(2)), atol=1e-5)
    weights = [weight for weight in saving.strip(network).weights if weight.dtype == "float32"]
    names = [name for name, shape in tf.train.list_variables(str(path / "variables" / "variables")) if shape]
    assert len(names) == len(weights) == len(loaded.variables)


def test_packed_kernels_are_small_and_give_the_same_logits_and_gradients(tmp_path):
    network, x = residual_network("rewiring"), tf.constant(images(4))
    found = []
    for packed in (False, True):
        path = saving.export_network(network, tmp_path / "serve", packed=packed)
        loaded = tf.saved_model.load(str(path))
        with tf.GradientTape() as tape:
            tape.watch(x)
            logits = loaded.serve(x)
        stored = sum(each.shape.num_elements() for each in loaded.variables)
        found.append((logits.numpy(), tape.gradient(logits, x).numpy(), stored))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    np.testing.assert_array_equal(found[0][1], found[1][1])
    kernels = [np.asarray(layer.effective_kernel) for layer in layers.kernel_layers(network)]
    sparse = [kernel for kernel in kernels if 2 * np.count_nonzero(kernel) < kernel.size]
    assert sparse and len(loaded.variables) == len(saving.strip(network).weights) + len(sparse)
    assert found[0][2] - found[1][2] == sum(kernel.size - 2 * np.count_nonzero(kernel) for kernel in sparse)


def test_the_optimizer_is_left_out(tmp_path):
    network = residual_network("plain")
    before = saving.save_network(network, tmp_path / "before.keras").stat().st_size
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile(keras.optimizers.Adam(), loss, run_eagerly=True)
    network.fit(images(4), np.zeros(4), verbose=0)
    file = saving.save_network(network, tmp_path / "after.keras")
    assert file.stat().st_size < 1.1 * before  # the slots of Adam are twice as large as the weights
    assert network.compiled and network.optimizer.iterations == 1
    np.testing.assert_array_equal(saving.load_network(file)(images(2)), network(images(2)))


def test_no_layer_has_an_export_train(tmp_path):
    """Resizing of Keras calls what follows it in training mode, unless its caller says otherwise."""
    flat = [keras.layers.Flatten(), keras.layers.Dense(3)]
    inside = keras.Sequential([keras.Input((6, 6, 1)), keras.layers.BatchNormalization(), *flat])
    network = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Resizing(6, 6), inside])
    x = np.random.default_rng(0).random((5, 4, 4, 1), "float32")
    served = tf.saved_model.load(saving.export_network(network, tmp_path / "serve"))
    np.testing.assert_allclose(served.serve(x), network(x, training=False), rtol=1e-5)
    assert np.abs(network(x, training=True) - served.serve(x)).max() > 0.1


def test_export_replaces_a_directory_as_a_whole(tmp_path, monkeypatch):
    first, second = residual_network(), residual_network(seed=8)
    saving.export_network(first, tmp_path / "serve")
    (tmp_path / "serve" / "note.txt").write_text("from the first export")

    def failing(trackable, path, **kwargs):
        Path(path).mkdir()
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(tf.saved_model, "save", failing)
        with pytest.raises(OSError, match="No space"):
            saving.export_network(second, tmp_path / "serve")
    loaded = tf.saved_model.load(str(tmp_path / "serve"))
    np.testing.assert_allclose(loaded.serve(images(2)), first(images(2)), atol=1e-5)
    saving.export_network(second, tmp_path / "serve")
    loaded = tf.saved_model.load(str(tmp_path / "serve"))
    np.testing.assert_allclose(loaded.serve(images(2)), second(images(2)), atol=1e-5)
    assert names(tmp_path) == ["serve"]
    assert "note.txt" not in names(tmp_path / "serve")
    assert loaded.serve(np.zeros((3, *IMAGE), "float32")).shape == (3, 5)
