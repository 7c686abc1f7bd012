"""Normalization of pixels has the values and gradients of Keras's; moving variances of batches are PyTorch's."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.networks import mirrored, tiny_network
from tf_robust_sparse.layers import BatchNormalization, Normalization
from tf_robust_sparse.layers.normalization import use_unbiased_variance
from tf_robust_sparse.saving import strip


def value_and_gradient(layer, x):
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x)
        total = tf.reduce_sum(y**3)
    return y, tape.gradient(total, x)


@pytest.mark.parametrize(
    ("shape", "arguments"),
    [
        ((2, 5, 4, 3), {"mean": [0.4, 0.5, 0.6], "variance": [0.1, 0.2, 0.0]}),
        ((2, 5, 4, 1), {"mean": [0.4], "variance": [0.1]}),
        ((2, 5, 4, 3), {"mean": 0.4, "variance": 0.3}),
        ((2, 5, 4, 3), {"mean": [0.4, 0.5, 0.6], "variance": [0.1, 0.2, 0.3], "invert": True}),
        ((2, 5, 4, 3), {"mean": 0.4, "variance": 0.3, "axis": None}),
        ((2, 5, 4, 3), {"mean": [0.1, 0.2, 0.3, 0.4], "variance": [1.0, 2.0, 3.0, 4.0], "axis": 2}),
        ((2, 5), {"mean": [0.1, 0.2, 0.3, 0.4, 0.5], "variance": [1.0, 2.0, 3.0, 4.0, 5.0]}),
    ],
)
def test_values_and_gradients_equal_those_of_keras(shape, arguments):
    x = tf.constant(np.random.default_rng(0).uniform(size=shape).astype("float32"))
    found = value_and_gradient(Normalization(**arguments), x)
    expected = value_and_gradient(keras.layers.Normalization(**arguments), x)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_adapted_statistics_are_used_and_the_batch_may_be_of_unknown_size():
    x = np.random.default_rng(0).uniform(size=(8, 3, 3, 2)).astype("float32")
    layer, expected = Normalization(), keras.layers.Normalization()
    layer.adapt(x)
    expected.adapt(x)
    compiled = tf.function(layer, input_signature=[tf.TensorSpec((None, 3, 3, 2))], autograph=False)
    np.testing.assert_allclose(compiled(x), expected(x), rtol=1e-6)


def test_images_of_unknown_size_are_normalized():
    arguments = {"mean": [0.4, 0.5], "variance": [0.1, 0.2]}
    x = tf.random.stateless_uniform((2, 4, 3, 2), (0, 0))
    compiled = tf.function(
        Normalization(**arguments), input_signature=[tf.TensorSpec((None, None, None, 2))], autograph=False
    )
    np.testing.assert_allclose(compiled(x), keras.layers.Normalization(**arguments)(x), rtol=1e-6)


@pytest.mark.parametrize("shape", [(16, 10), (4, 3, 2, 5)])
def test_the_moving_variance_follows_the_unbiased_one(shape):
    x = np.random.default_rng(0).normal(1, 3, shape).astype("float32")
    biased, unbiased = BatchNormalization(momentum=0.9), BatchNormalization(momentum=0.9, unbiased=True)
    outputs = [layer(x, training=True) for layer in (biased, unbiased, unbiased)]
    np.testing.assert_array_equal(outputs[0], outputs[1])  # batches themselves are divided by the biased one
    axes = tuple(range(x.ndim - 1))
    variance, first = x.var(axes, ddof=1, dtype=np.float64), np.ones(shape[-1])
    for _ in range(2):
        first = 0.9 * first + 0.1 * variance
    np.testing.assert_allclose(unbiased.moving_variance, first, rtol=1e-6)
    unbiased.trainable = False
    unbiased(x, training=True)
    np.testing.assert_allclose(unbiased.moving_variance, first, rtol=1e-6)
    if x.ndim == 4:  # as the fused operation gives it
        fused = tf.compat.v1.nn.fused_batch_norm(x, np.ones(5, "f"), np.zeros(5, "f"), is_training=True)[2]
        np.testing.assert_allclose(variance, fused, rtol=1e-5)


def test_of_one_entry_there_is_no_variance():
    layer = BatchNormalization(momentum=0.9, unbiased=True)
    layer(np.ones((1, 4), "float32"), training=True)
    np.testing.assert_allclose(layer.moving_variance, 0.9)


def test_the_kind_of_variance_is_part_of_a_network_and_older_files_have_the_biased_one():
    network = tiny_network("plain")
    use_unbiased_variance(network)
    config = network.get_layer("bn1").get_config()
    assert BatchNormalization.from_config(config).unbiased
    assert not BatchNormalization.from_config({name: config[name] for name in config if name != "unbiased"}).unbiased
    x = np.random.default_rng(0).random((4, *network.input_shape[1:]), "float32")
    network(x, training=True)
    np.testing.assert_allclose(strip(network)(x), network(x, training=False), atol=1e-6)


def test_replicas_exchange_moments_at_once_and_equal_one_device(monkeypatch):
    """Parts of 5 and 3 images: outputs, gradients and moving statistics are those of Keras's layer on all 8."""
    generator = np.random.default_rng(0)
    x, upstream = (generator.normal(3, 2, (8, 3, 2, 4)).astype("float32") for _ in range(2))
    arguments = {"momentum": 0.9, "gamma_initializer": "random_normal", "epsilon": 1e-3}
    exchanges = []
    all_reduce = tf.distribute.ReplicaContext.all_reduce
    monkeypatch.setattr(
        tf.distribute.ReplicaContext, "all_reduce", lambda *args: exchanges.append(1) or all_reduce(*args)
    )

    @tf.function(autograph=False)
    def replica(layer, x, upstream):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
        return y, *tape.gradient(y, [x, layer.gamma.value, layer.beta.value], upstream)

    alone, strategy = BatchNormalization(unbiased=True, **arguments), mirrored()
    alone.build(x.shape)
    expected = replica(alone, tf.constant(x), tf.constant(upstream))
    with strategy.scope():
        layer = BatchNormalization(unbiased=True, synchronized=True, **arguments)
        layer.build(x.shape)
        layer.gamma.assign(alone.gamma)

    def part(context, values):
        number = context.replica_id_in_sync_group
        return tf.constant(values[:5] if number == 0 else values[5:])

    @tf.function(autograph=False)
    def run():
        parts = [
            strategy.experimental_distribute_values_from_function(lambda c, v=v: part(c, v)) for v in (x, upstream)
        ]
        return strategy.run(replica.python_function, args=(layer, *parts))

    y, of_x, *weights = (strategy.experimental_local_results(each) for each in run())
    assert len(exchanges) == 2 * 2  # of each replica: one forward, one backward
    for found, value in zip((y, of_x), expected, strict=False):
        np.testing.assert_allclose(np.concatenate(found), value, atol=1e-5)
    for found, value in zip(weights, expected[2:], strict=True):
        np.testing.assert_allclose(found[0] + found[1], value, atol=1e-4)
    for found, value in zip(layer.non_trainable_variables, alone.non_trainable_variables, strict=True):
        copies = [np.array(copy) for copy in strategy.experimental_local_results(found.value)]
        np.testing.assert_array_equal(*copies)
        np.testing.assert_allclose(copies[0], value, rtol=1e-5)
