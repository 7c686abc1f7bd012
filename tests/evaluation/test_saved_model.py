import gc

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_robust_sparse.attacks import LinfPGD
from tf_robust_sparse.evaluation import load_saved_model, robust_accuracy


@pytest.fixture
def exported(network, tmp_path):
    network.export(str(tmp_path / "serve"), verbose=False)
    return tmp_path / "serve"


def test_logits_and_gradients_of_a_keras_export(network, examples, exported):
    model = load_saved_model(exported)
    gc.collect()
    x = tf.constant(examples[0][:7])
    np.testing.assert_allclose(model(x), network(x, training=False), atol=1e-5)
    with tf.GradientTape() as tape:
        tape.watch(x)
        logits = model(x)
    assert np.abs(tape.gradient(logits, x)).max() > 0
    assert model.input_shape == (None, 8, 8, 1) and model.num_classes == 5
    assert model.path == str(exported)


class Scaled(tf.Module):
    def __init__(self, dtype=tf.float32, batch=None):
        super().__init__()
        self.scale = tf.Variable(2.0)
        self.run = tf.function(
            lambda pixels: {"scores": tf.reshape(tf.cast(pixels, tf.float32), (-1, 4)) * self.scale},
            input_signature=[tf.TensorSpec((batch, 2, 2, 1), dtype, name="pixels")],
        )


def test_a_saved_model_with_only_a_signature(tmp_path):
    module = Scaled()
    tf.saved_model.save(module, str(tmp_path), signatures={"serving_default": module.run})
    model = load_saved_model(tmp_path)
    x = tf.ones((3, 2, 2, 1))
    np.testing.assert_array_equal(model(x), 2 * np.ones((3, 4)))
    assert model.num_classes == 4
    x_adv = LinfPGD(0.1, num_steps=2)(model, 0.5 * x, [0, 1, 2])
    assert np.abs(x_adv - 0.5 * x).max() > 0.05


def test_a_saved_model_that_can_only_be_called(tmp_path):
    class Callable(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((None, 4))])
        def __call__(self, x):
            return 3.0 * x

    tf.saved_model.save(Callable(), str(tmp_path), signatures={})
    model = load_saved_model(tmp_path)
    np.testing.assert_array_equal(model(tf.ones((2, 4))), 3 * np.ones((2, 4)))
    assert model.input_shape is None and model.num_classes is None


def test_a_fixed_batch_size_is_kept(tmp_path):
    module = Scaled(batch=3)
    tf.saved_model.save(module, str(tmp_path), signatures={"serving_default": module.run})
    x = np.random.default_rng(0).uniform(size=(8, 2, 2, 1)).astype("float32")
    y = x.reshape(8, 4).argmax(axis=1)
    assert robust_accuracy(load_saved_model(tmp_path), (x, y), LinfPGD(1e-6, num_steps=1)) == 1


def test_images_of_another_shape(exported):
    model = load_saved_model(exported)
    data = np.zeros((4, 28, 28, 1), "float32"), np.zeros(4, int)
    with pytest.raises(ValueError, match="The SavedModel takes images of 8x8x1, but the data has 28x28x1"):
        robust_accuracy(model, data)
    with pytest.raises(ValueError, match=r"takes images of shape \(None, 8, 8, 1\)"):
        model(data[0])


def one_line(error):
    return "\n" not in str(error.value)


def test_missing_directory(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no such directory") as error:
        load_saved_model(tmp_path / "nowhere")
    assert one_line(error)


def test_not_a_saved_model(tmp_path, network):
    with pytest.raises(ValueError, match=r"holds no saved_model\.pb") as error:
        load_saved_model(tmp_path)
    assert one_line(error)
    network.save(tmp_path / "network.keras")
    with pytest.raises(ValueError, match=r"passed as --network.*Received: the file .*network\.keras") as error:
        load_saved_model(tmp_path / "network.keras")
    assert one_line(error)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: (path / "saved_model.pb").write_bytes(b"not a protocol buffer"),
        lambda path: (path / "saved_model.pb").write_bytes(b""),
        lambda path: (path / "variables/variables.index").unlink(),
        lambda path: (path / "variables/variables.data-00000-of-00001").write_bytes(b"short"),
    ],
    ids=["garbage", "empty", "no index", "short data"],
)
def test_damaged_saved_model(exported, damage):
    damage(exported)
    with pytest.raises(ValueError, match="is damaged, export or copy it again") as error:
        load_saved_model(exported)
    assert one_line(error)


def test_signatures_that_are_no_classifier(tmp_path):
    class Two(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((None, 4)), tf.TensorSpec((None, 4))])
        def add(self, a, b):
            return {"sum": a + b}

    module = Two()
    tf.saved_model.save(module, str(tmp_path / "two"), signatures={"serving_default": module.add})
    with pytest.raises(ValueError, match=r"one input tensor.*\['a', 'b'\]"):
        load_saved_model(tmp_path / "two")
    module = Scaled(tf.uint8)
    tf.saved_model.save(module, str(tmp_path / "bytes"), signatures={"serving_default": module.run})
    with pytest.raises(ValueError, match="floating images"):
        load_saved_model(tmp_path / "bytes")
    tf.saved_model.save(tf.Module(), str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match="cannot be called"):
        load_saved_model(tmp_path / "nothing")


def test_half_precision_network(tmp_path):
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        network = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(3)])
    finally:
        keras.config.set_dtype_policy(policy)
    network.export(str(tmp_path), verbose=False)
    assert load_saved_model(tmp_path)(tf.ones((2, 4))).dtype == tf.float32
