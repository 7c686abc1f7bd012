"""A checkpoint restores every bit, under any name numbering, and refuses what does not fit before it assigns."""

import json
import os
import resource

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.saving.networks import IMAGE, images, residual_network
from tf_robust_sparse import saving
from tf_robust_sparse.saving.checkpoint import read_metadata


class Trainer(keras.Model):
    """Wraps a network as training does, and owns state of its own."""

    def __init__(self, network):
        super().__init__()
        self.network = network
        self.generator = keras.random.SeedGenerator(3)
        self.count = self.add_weight(name="count", shape=(), dtype="int64", initializer="zeros", trainable=False)

    def call(self, x, training=None):
        return self.network(x, training=training)


@pytest.fixture
def float32_policy():
    yield
    keras.config.set_dtype_policy("float32")


def trainer(kernel="rewiring", num_classes=5, optimizer=None, seed=7, steps=3, run_eagerly=False):
    keras.utils.set_random_seed(seed)
    model = Trainer(residual_network(kernel, num_classes, seed=seed))
    optimizer = optimizer or keras.optimizers.SGD(0.1, momentum=0.9)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss=loss, metrics=["accuracy"], run_eagerly=run_eagerly)
    model.build((None, *IMAGE))
    train(model, steps)
    return model


def train(model, steps, seed=0):
    if steps:
        y = np.arange(8 * steps) % 5
        model.fit(images(8 * steps, seed), y, batch_size=8, shuffle=False, verbose=0)


def state(model):
    return [v.numpy() for v in (*model.variables, *model.optimizer.variables)]


def assert_equal_state(first, second):
    for a, b in zip(state(first), state(second), strict=True):
        assert a.dtype == b.dtype
        assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize(("optimizer", "kernel"), [("sgd", "rewiring"), ("adam", "masked")])
def test_restored_run_goes_on_bit_by_bit(optimizer, kernel, tmp_path):
    def make(seed, steps):
        new = keras.optimizers.SGD(0.1, momentum=0.9) if optimizer == "sgd" else keras.optimizers.Adam(use_ema=True)
        return trainer(kernel, optimizer=new, seed=seed, steps=steps, run_eagerly=True)

    model = make(7, 3)
    model.count.assign(41)
    saving.save_checkpoint(tmp_path / "run.weights.h5", model, {"epoch": 3})
    before = state(model)
    # The other model has other weights, and its optimizer and wrapper another number in their names.
    other = make(8, 0)
    assert other.name != model.name
    assert saving.load_checkpoint(tmp_path / "run.weights.h5", other) == {"epoch": 3}
    for a, b in zip(before, state(other), strict=True):
        assert a.tobytes() == b.tobytes()
    train(model, 2, seed=1)
    train(other, 2, seed=1)
    assert_equal_state(model, other)
    assert [each.name for each in tmp_path.iterdir()] == ["run.weights.h5"]


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "bfloat16"])
def test_loss_scale_and_half_precision_are_restored(policy, float32_policy, tmp_path):
    keras.config.set_dtype_policy(policy)
    model = trainer(steps=3 if policy == "mixed_float16" else 0, run_eagerly=True)
    saving.save_checkpoint(tmp_path / "a.weights.h5", model, {})
    other = trainer(seed=8, steps=0)
    other.optimizer.build(other.trainable_variables)
    if policy == "mixed_float16":
        assert type(model.optimizer) is keras.optimizers.LossScaleOptimizer
        other.optimizer.dynamic_scale.assign(2.0)
    saving.load_checkpoint(tmp_path / "a.weights.h5", other)
    assert_equal_state(model, other)


def test_names_of_keras_own_numbering_do_not_matter(tmp_path):
    def automatic():
        inner = keras.Sequential([keras.Input((4,)), *[keras.layers.Dense(4) for _ in range(3)]])
        inner.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss="mse")
        inner.fit(np.eye(4), np.eye(4), verbose=0)
        return inner

    first, second = automatic(), automatic()
    assert first.variables[0].path != second.variables[0].path
    saving.save_checkpoint(tmp_path / "a.weights.h5", first, {})
    saving.load_checkpoint(tmp_path / "a.weights.h5", second)
    assert_equal_state(first, second)


def test_network_without_optimizer(tmp_path):
    first, second = residual_network(seed=1), residual_network(seed=2)
    saving.save_checkpoint(tmp_path / "a.weights.h5", first, {})
    saving.load_checkpoint(tmp_path / "a.weights.h5", second)
    np.testing.assert_array_equal(first(images(2)), second(images(2)))


def test_older_files_keep_their_attributes_as_text(tmp_path):
    first, second = residual_network(seed=1), residual_network(seed=2)
    path = tmp_path / "a.weights.h5"
    saving.save_checkpoint(path, first, {"epoch": 3})

    def as_text(_, item):
        for name, value in item.attrs.items():
            item.attrs[name] = value.decode()

    with h5py.File(path, "r+") as file:
        file.visititems(as_text)
        as_text("", file)
        assert h5py.h5a.open(file.id, b"format").get_type().is_variable_str()
    assert saving.load_checkpoint(path, second) == {"epoch": 3}
    np.testing.assert_array_equal(first(images(2)), second(images(2)))


def test_metadata(tmp_path):
    metadata = {"epoch": np.int64(4), "history": {"loss": [np.float32(0.5), 0.25]}, "k": np.arange(3), "name": "ö"}
    saving.save_checkpoint(tmp_path / "a.weights.h5", residual_network(), metadata)
    expected = {"epoch": 4, "history": {"loss": [0.5, 0.25]}, "k": [0, 1, 2], "name": "ö"}
    assert read_metadata(tmp_path / "a.weights.h5") == expected
    long = {"history": ["x" * 100_000] * 3}  # more than the 64 KiB of an HDF5 attribute
    saving.save_checkpoint(tmp_path / "a.weights.h5", residual_network(), long)
    assert read_metadata(str(tmp_path / "a.weights.h5")) == long


def test_metadata_that_is_not_json_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(TypeError, match=r"must hold JSON types alone.*Received: <object"):
        saving.save_checkpoint(tmp_path / "a.weights.h5", residual_network(), {"a": object()})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"num_classes": 7},
            r"the checkpoint holds classifier/\w+ of shape \(12, 5\), the network needs \(12, 7\); "
            "pass the flags of the run that wrote it",
        ),
        ({"kernel": "plain"}, "does not hold stem/kernel, which the network needs; pass the flags"),
        ({"optimizer": keras.optimizers.SGD}, r"holds optimizer/\w+_momentum, which the network does not have; pass"),
        ({"optimizer": keras.optimizers.Adam}, r"does not hold optimizer/\w+, which the network needs; pass"),
    ],
)
def test_other_network_is_refused_and_left_alone(other, message, tmp_path):
    saving.save_checkpoint(tmp_path / "a.weights.h5", trainer(steps=0), {})
    other = {**other, "optimizer": other["optimizer"]()} if "optimizer" in other else other
    model = trainer(**other, seed=9, steps=0)
    model.optimizer.build(model.trainable_variables)
    before = state(model)
    with pytest.raises(ValueError, match=message) as caught:
        saving.load_checkpoint(tmp_path / "a.weights.h5", model)
    assert "\n" not in str(caught.value)
    for a, b in zip(before, state(model), strict=True):
        assert a.tobytes() == b.tobytes()


def test_other_dtype_is_refused(tmp_path, float32_policy):
    saving.save_checkpoint(tmp_path / "a.weights.h5", residual_network(), {})
    keras.config.set_dtype_policy("float16")
    with pytest.raises(ValueError, match=r"holds \S+ of type float32, the network needs float16"):
        saving.load_checkpoint(tmp_path / "a.weights.h5", residual_network())


def test_every_flipped_byte_is_noticed(tmp_path):
    model = residual_network()
    path = tmp_path / "a.weights.h5"
    saving.save_checkpoint(path, model, {"epoch": 1})
    content = path.read_bytes()
    before = [v.numpy() for v in model.variables]
    unnoticed = 0
    for position in np.random.default_rng(0).integers(0, len(content), 60):
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        try:
            metadata = saving.load_checkpoint(path, model)
        except ValueError:
            continue
        unnoticed += 1  # a byte that HDF5 does not use: then everything must still be right
        assert metadata == {"epoch": 1}
        for a, v in zip(before, model.variables, strict=True):
            assert a.tobytes() == v.numpy().tobytes()
    assert unnoticed < 30


@pytest.mark.parametrize("keep", [0, 10, 0.3, 0.9, -1])
def test_truncated_file(keep, tmp_path):
    path = tmp_path / "a.weights.h5"
    saving.save_checkpoint(path, residual_network(), {})
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    for read in (read_metadata, lambda path: saving.load_checkpoint(path, residual_network())):
        with pytest.raises(ValueError, match=r"a\.weights\.h5' is damaged; resume from an earlier one"):
            read(path)


def test_damaged_value_is_named_as_damage(tmp_path):
    path = tmp_path / "a.weights.h5"
    saving.save_checkpoint(path, residual_network(), {})
    with h5py.File(path, "r+") as file:
        file["variables/stem/theta"][0, 0, 0, 0] += 1
    with pytest.raises(ValueError, match="does not match its checksum"):
        saving.load_checkpoint(path, residual_network())


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(ValueError, match=r"There is no checkpoint at '.*a\.weights\.h5'"):
        read_metadata(tmp_path / "a.weights.h5")
    residual_network().save_weights(tmp_path / "keras.weights.h5")
    with pytest.raises(ValueError, match="an HDF5 file but no checkpoint of this package"):
        read_metadata(tmp_path / "keras.weights.h5")


def test_unbuilt_model_is_refused(tmp_path):
    model = keras.Sequential([keras.layers.Dense(3)])
    with pytest.raises(ValueError, match=r"has no variables yet; build it.*Received: sequential"):
        saving.save_checkpoint(tmp_path / "a.weights.h5", model, {})


@pytest.mark.parametrize("limit", [4096, 60_000])
def test_full_disk_leaves_the_old_checkpoint(limit, tmp_path):
    path = tmp_path / "a.weights.h5"
    model = trainer(steps=0)
    saving.save_checkpoint(path, model, {"epoch": 1})
    size = path.stat().st_size
    assert limit < size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))  # a disk that is almost full
    try:
        with pytest.raises(OSError):
            saving.save_checkpoint(path, model, {"epoch": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [each.name for each in tmp_path.iterdir()] == ["a.weights.h5"]
    assert saving.load_checkpoint(path, model) == {"epoch": 1}
    saving.save_checkpoint(path, model, {"epoch": 3})
    assert saving.load_checkpoint(path, model) == {"epoch": 3}


def test_failing_flush_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    def no_space(descriptor):
        raise OSError(28, "No space left on device")

    path = tmp_path / "a.weights.h5"
    saving.save_checkpoint(path, residual_network(), {"epoch": 1})
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(os, "fsync", no_space)
        saving.save_checkpoint(path, residual_network(), {"epoch": 2})
    assert read_metadata(path) == {"epoch": 1}
    assert [each.name for each in tmp_path.iterdir()] == ["a.weights.h5"]


def test_replicas_are_restored_alike(tmp_path):
    single = trainer(run_eagerly=True)
    saving.save_checkpoint(tmp_path / "a.weights.h5", single, {})
    # Collectives of two strategies in one process get the same keys and clash; this reduction has none.
    reduction = tf.distribute.ReductionToOneDevice()
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], cross_device_ops=reduction)
    with strategy.scope():
        mirrored = trainer(seed=8, steps=0)
    saving.load_checkpoint(tmp_path / "a.weights.h5", mirrored)
    assert_equal_state(single, mirrored)
    for variable in (*mirrored.variables, *mirrored.optimizer.variables):
        first, *rest = strategy.experimental_local_results(variable.value)
        for value in rest:
            np.testing.assert_array_equal(first.numpy(), value.numpy())
    with strategy.scope():
        for variable in (*mirrored.variables, *mirrored.optimizer.variables):
            variable.assign(np.array(variable) + np.ones((), variable.dtype))
    saving.save_checkpoint(tmp_path / "b.weights.h5", mirrored, json.loads("{}"))
    saving.load_checkpoint(tmp_path / "b.weights.h5", single)
    assert_equal_state(single, mirrored)
