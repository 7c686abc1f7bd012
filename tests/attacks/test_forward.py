import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.attacks.networks import batch, small_network, state
from tf_robust_sparse.layers.forward import inference_forward

X, _ = batch(4)


def test_keras_model_is_called_in_inference_mode():
    network = small_network()
    before = state(network)
    np.testing.assert_array_equal(inference_forward(network)(X), network(X, training=False))
    for was, now in zip(before, state(network), strict=True):
        np.testing.assert_array_equal(was, now)


class WithoutTraining(keras.Model):
    def call(self, x):
        return keras.ops.reshape(x, (-1, 64))


@pytest.mark.parametrize(
    "model",
    [
        WithoutTraining(),
        keras.layers.Flatten(),
        lambda x: tf.reshape(x, (-1, 64)),
        lambda x: {"logits": tf.reshape(x, (-1, 64))},
        lambda x: [tf.reshape(x, (-1, 64))],
    ],
    ids=["model", "layer", "function", "dictionary", "list"],
)
def test_any_callable(model):
    np.testing.assert_array_equal(inference_forward(model)(X), X.reshape(4, 64))


def test_half_precision_logits_become_float32():
    network = small_network()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        half = keras.models.clone_model(network, clone_function=lambda layer: _in_policy(layer))
    finally:
        keras.config.set_dtype_policy("float32")
    assert half(X, training=False).dtype == tf.float16
    assert inference_forward(half)(X).dtype == tf.float32


def _in_policy(layer):
    return type(layer).from_config({**layer.get_config(), "dtype": "mixed_float16"})


def test_not_callable():
    with pytest.raises(TypeError, match="load_saved_model"):
        inference_forward("saved_models/run/serve")


def test_several_outputs():
    with pytest.raises(ValueError, match=r"one tensor of logits.*\['a', 'b'\]"):
        inference_forward(lambda x: {"a": x, "b": x})(X)


def test_output_of_wrong_rank():
    with pytest.raises(ValueError, match=r"\(batch, classes\)"):
        inference_forward(lambda x: tf.identity(x))(X)


@pytest.mark.parametrize("outside", [np.asarray, lambda x: x.numpy()], ids=["numpy", "pytorch"])
def test_a_model_outside_of_tensorflow_is_told_its_way_in(outside):
    x = np.zeros((2, 3, 3, 1), "float32")
    forward = inference_forward(lambda images: outside(images)[:, 0, :, 0])
    assert forward(tf.constant(x)).shape == (2, 3)
    with pytest.raises(TypeError, match=r"tf.numpy_function\(model"):
        tf.function(forward, autograph=False)(x)
