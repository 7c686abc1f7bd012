"""Compact files: every parametrization comes back with the same logits, and no damage goes unnoticed."""

import hashlib
import json
import struct
import zlib

import keras
import numpy as np
import pytest

import tf_robust_sparse as trs
from tests.saving.networks import images, residual_network
from tests.saving.test_network import small_files
from tf_robust_sparse import layers, models, saving
from tf_robust_sparse.saving.compact import COMPACT_VALUES, load_compact

START = struct.Struct("<8sHQQ")


def sparse_network(kernel):
    network = residual_network(kernel)
    for layer in layers.kernel_layers(network):
        if hasattr(layer, "keep_fraction"):
            layer.keep_fraction = 0.17
    return network


def kernels(network):
    return {layer.name: np.asarray(layer.effective_kernel) for layer in layers.kernel_layers(network)}


def parts(path):
    content = path.read_bytes()
    _, _, head, body = START.unpack_from(content)
    middle = START.size + head
    return json.loads(zlib.decompress(content[START.size : middle])), content[middle : middle + body]


def sealed(path, head, body, magic=b"\x93TRS\r\n\x1a\n", version=1):
    """Writes a file of any content with a right checksum."""
    head = head if isinstance(head, bytes) else zlib.compress(json.dumps(head).encode())
    content = START.pack(magic, version, len(head), len(body)) + head + body
    path.write_bytes(content + hashlib.sha256(content).digest())


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A compact network; not to be changed."""
    return saving.save_compact(sparse_network("subnet"), tmp_path_factory.mktemp("compact") / "network.trs")


@pytest.mark.parametrize("kernel", layers.KERNELS)
def test_logits_are_bit_equal(kernel, tmp_path):
    network = sparse_network(kernel)
    path = saving.save_compact(network, tmp_path / "network.trs")
    loaded = trs.load_network(path)
    assert [type(layer) for layer in loaded.layers] == [type(layer) for layer in network.layers]
    for (name, one), two in zip(kernels(network).items(), kernels(loaded).values(), strict=True):
        np.testing.assert_array_equal(one, two, err_msg=name)
    x = images(8)
    np.testing.assert_array_equal(network(x, training=False), loaded(x, training=False))
    assert not loaded.compiled
    before, after = (trs.sparsity.statistics.summary(each) for each in (network, loaded))
    assert before == after


@pytest.mark.parametrize("kernel", ["masked", "rewiring", "subnet", "signed"])
def test_kernels_of_one_magnitude_take_a_bit_each(kernel, tmp_path):
    network = sparse_network(kernel)
    for layer in layers.kernel_layers(network):
        sign = np.where(np.random.default_rng(1).random(layer.effective_kernel.shape) < 0.5, -1, 1)
        if hasattr(layer, "theta"):
            layer.theta.assign(np.where(layer.theta.numpy() > 0, 0.125, layer.theta.numpy()))
        elif kernel not in ("signed", "binary"):
            layer.kernel.assign(0.125 * sign)
    path = saving.save_compact(network, tmp_path / "network.trs")
    loaded = load_compact(path)
    x = images(8)
    np.testing.assert_array_equal(network(x, training=False), loaded(x, training=False))
    head, _ = parts(path)
    assert all(each["values"] == "signs" for each in head["arrays"] if each["name"].endswith("kernel"))
    kept = sum(np.count_nonzero(kernel) for kernel in kernels(network).values())
    row = saving.compact_sizes(network)
    assert row["bound"] <= row["compact"] < row["gzip"] <= row["dense"]
    entries = sum(kernel.size for kernel in kernels(network).values())
    in_kernels = sum(each["compact"] for each in row["layers"])
    assert in_kernels <= (entries + kept) / 8 + 6 * len(row["layers"])


def test_half_precision_rounds_kernels_alone(tmp_path):
    network = sparse_network("masked")
    loaded = load_compact(saving.save_compact(network, tmp_path / "network.trs", values="float16"))
    for one, two in zip(kernels(network).values(), kernels(loaded).values(), strict=True):
        np.testing.assert_array_equal(one.astype(np.float16), two)
    np.testing.assert_array_equal(network.get_layer("bn1").moving_mean, loaded.get_layer("bn1").moving_mean)
    np.testing.assert_array_equal(network.get_layer("hidden").bias, loaded.get_layer("hidden").bias)
    sizes = [saving.compact_sizes(network, values)["compact"] for values in COMPACT_VALUES]
    assert sizes[1] < sizes[0]
    again = load_compact(saving.save_compact(loaded, tmp_path / "again.trs", values="float16"))
    np.testing.assert_array_equal(loaded(images(4)), again(images(4)))


def test_keras_layers_and_nested_models(tmp_path):
    inner = saving.strip(residual_network("rewiring"))
    x = keras.Input((8, 8, 3))
    h = keras.layers.Dropout(0.5)(inner(x))
    network = keras.Model(x, keras.layers.Dense(3, activation="gelu", name="conv1")(h))  # a name of the inner one too
    loaded = load_compact(saving.save_compact(network, tmp_path / "network.trs"))
    np.testing.assert_array_equal(network(images(4)), loaded(images(4)))


def test_mixed_precision_stays(tmp_path):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        network = sparse_network("rewiring")
    finally:
        keras.config.set_dtype_policy("float32")
    loaded = load_compact(saving.save_compact(network, tmp_path / "network.trs"))
    np.testing.assert_array_equal(network(images(4), training=False), loaded(images(4), training=False))
    assert loaded.get_layer("conv1").compute_dtype == "bfloat16"


def test_a_published_size_shrinks(tmp_path):
    network = models.resnet18(kernel="rewiring", connectivity=0.01, seed=0, input_shape=(8, 8, 3))
    sizes = saving.compact_sizes(network)
    path = saving.save_compact(network, tmp_path / "network.trs")
    assert sizes["compact"] < path.stat().st_size < sizes["gzip"] < sizes["dense"] / 15
    assert path.stat().st_size == pytest.approx(sizes["compact"] + sizes["head"], rel=0.1)
    assert sizes["compact"] < 1.05 * sizes["bound"]


def test_a_network_goes_on_from_a_compact_file(tmp_path):
    from tests.networks import tiny_dataset, tiny_network

    loaded = load_compact(saving.save_compact(tiny_network("subnet"), tmp_path / "network.trs"))
    model = trs.RobustModel(loaded, trs.objectives.Natural())
    model.compile(keras.optimizers.SGD(0.1))
    loss = model.fit(tiny_dataset(), epochs=3, verbose=0).history["loss"]
    assert loss[-1] < loss[0]


def test_every_damaged_byte_is_noticed(file, tmp_path):
    content = file.read_bytes()
    random = np.random.default_rng(0)
    places = {*range(40), *range(len(content) - 40, len(content)), *random.integers(0, len(content), 400).tolist()}
    for place in sorted(places):
        damaged = bytearray(content)
        damaged[place] ^= 1 << random.integers(8)
        (tmp_path / "a.trs").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"damaged|newer"):
            load_compact(tmp_path / "a.trs")


def test_every_cut_is_noticed(file, tmp_path):
    content = file.read_bytes()
    for length in (0, 1, 7, 8, 25, 26, 27, len(content) // 2, len(content) - 1):
        (tmp_path / "a.trs").write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"no compact network|cut short"):
            load_compact(tmp_path / "a.trs")
    (tmp_path / "a.trs").write_bytes(content + b"\0")
    with pytest.raises(ValueError, match="cut short or damaged"):
        load_compact(tmp_path / "a.trs")


def test_foreign_and_newer_files(file, tmp_path):
    path = tmp_path / "a.trs"
    path.write_bytes(b"PK\x03\x04 a zip archive of some length, to be sure")
    with pytest.raises(ValueError, match=r"no compact network.*save_compact.*PK"):
        load_compact(path)
    sealed(path, *parts(file), version=2)
    with pytest.raises(ValueError, match=r"has version 2, this package reads up to 1"):
        load_compact(path)
    with pytest.raises(ValueError, match="There is no compact network at"):
        load_compact(tmp_path / "none.trs")
    for head in (b"[1, 2]", zlib.compress(b"[1, 2]"), zlib.compress(b"{}")[:-1], zlib.compress(b" " * (1 << 27))):
        sealed(path, head, b"")
        with pytest.raises(ValueError, match="head that cannot be read"):
            load_compact(path)


def leaves(tree, path=()):
    if isinstance(tree, (dict, list)) and tree:
        for key in tree if isinstance(tree, dict) else range(len(tree)):
            yield from leaves(tree[key], (*path, key))
    else:
        yield path


def test_made_up_heads_and_bodies_are_errors_or_networks(file, tmp_path):
    """With a right checksum: a ValueError, or a network; never another exception."""
    head, body = parts(file)
    random = np.random.default_rng(0)
    places = list(leaves(head["arrays"]))
    others = [None, -1, 0, 10**9, 2.5, "x", [], {}, True]
    outcomes = set()
    for number in range(16):
        changed, changed_body = json.loads(json.dumps(head)), bytearray(body)
        if number % 2:
            *path, last = places[random.integers(len(places))]
            target = changed["arrays"]
            for key in path:
                target = target[key]
            target[last] = others[random.integers(len(others))]
        else:
            changed_body[random.integers(len(body))] ^= 255
        sealed(tmp_path / "a.trs", changed, bytes(changed_body))
        try:
            outcomes.add(type(load_compact(tmp_path / "a.trs")).__name__)
        except ValueError as error:
            assert "cannot be rebuilt" in str(error)
            outcomes.add("error")
    assert outcomes == {"error", "Functional"}


@pytest.mark.parametrize(
    "change",
    [
        lambda entry: entry.update(module="os", class_name="system", registered_name=None),
        lambda entry: entry.update(module="keras.layers", class_name="Lambda", registered_name=None),
        lambda entry: entry.update(module="elsewhere", class_name="Odd", registered_name="elsewhere>Odd"),
        lambda entry: entry.update(registered_name="tf_robust_sparse>Odd"),
        lambda entry: entry.update(
            module="keras.utils", class_name="function", config="get_file", registered_name=None
        ),
        lambda entry: entry["config"].update(activation={"class_name": "__lambda__", "config": {"value": "x"}}),
        lambda entry: entry["config"].update(
            activation={"module": "builtins", "class_name": "function", "config": "eval", "registered_name": "eval"}
        ),
    ],
)
def test_names_of_other_code_are_refused(change, file, tmp_path):
    head, body = parts(file)
    change(head["network"]["config"]["layers"][1])
    sealed(tmp_path / "a.trs", head, body)
    with pytest.raises(ValueError, match=r"cannot be rebuilt.*only layers of Keras and tf_robust_sparse"):
        load_compact(tmp_path / "a.trs")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda x: keras.layers.Lambda(lambda x: x + 1, output_shape=(3,))(x),
            "only layers of Keras and .*lambda",
        ),
        (lambda x: _Odd()(x), "only layers of Keras and .*_Odd"),
    ],
)
def test_layers_with_code_of_their_own_are_not_saved(make, message, tmp_path):
    x = keras.Input((3,))
    with pytest.raises(ValueError, match=message):
        saving.save_compact(keras.Model(x, make(x)), tmp_path / "network.trs")
    assert not list(tmp_path.iterdir())


class _Odd(keras.layers.Layer):
    def call(self, x):
        return x


def test_bad_arguments(tmp_path):
    network = sparse_network("plain")
    with pytest.raises(ValueError, match=r"`values` must be one of float32, float16. Received: values='int8'"):
        saving.save_compact(network, tmp_path / "a.trs", values="int8")
    network.get_layer("conv2").kernel.assign(np.full(network.get_layer("conv2").kernel.shape, np.nan))
    with pytest.raises(ValueError, match=r"kernel of conv2 holds infinities or NaN"):
        saving.save_compact(network, tmp_path / "a.trs")
    with pytest.raises(ValueError, match=r"must be a built keras.Model"):
        saving.save_compact("network", tmp_path / "a.trs")


def test_full_disk_leaves_the_old_file(tmp_path):
    path = saving.save_compact(sparse_network("plain"), tmp_path / "network.trs")
    before = path.read_bytes()
    with small_files(), pytest.raises(OSError, match="too large"):
        saving.save_compact(residual_network("plain", seed=9), path)
    assert path.read_bytes() == before and [each.name for each in tmp_path.iterdir()] == ["network.trs"]
