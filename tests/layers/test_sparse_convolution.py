"""The sparse product is the dense convolution, in value and gradient, and is used where it is faster."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_robust_sparse import attacks, layers, models
from tf_robust_sparse.layers import kernel_seam
from tf_robust_sparse.layers.sparse_convolution import SparseKernel, is_faster, sparse_convolve, sparse_kernel
from tf_robust_sparse.models import resnet, vgg, wide_resnet


def random_kernel(*shape, connectivity=0.1):
    random = np.random.default_rng(0)
    return tf.constant((random.normal(size=shape) * (random.random(shape) < connectivity)).astype("float32"))


def convolved_and_gradient(convolve, x, kernel):
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = convolve(x, kernel)
        total = tf.reduce_sum(y * tf.cos(tf.reshape(tf.range(tf.size(y), dtype=tf.float32), tf.shape(y))))
    return y, tape.gradient(total, x)


def dense(x, kernel):
    return tf.nn.conv2d(x, kernel, 1, "SAME")


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    ("image", "kernel"),
    [
        ((8, 8), (3, 3, 6, 10)),
        ((2, 2), (3, 3, 5, 4)),
        ((1, 7), (3, 3, 4, 4)),
        ((5, 4), (1, 5, 3, 2)),
        ((4, 4), (1, 1, 8, 3)),
    ],
)
def test_product_is_the_convolution(image, kernel, compiled):
    kernel = random_kernel(*kernel)
    x = tf.constant(np.random.default_rng(1).normal(size=(3, *image, kernel.shape[2])).astype("float32"))

    def sparse(x, kernel):
        return convolved_and_gradient(lambda x, k: sparse_convolve(x, sparse_kernel(k)), x, kernel)

    found = (tf.function(sparse, autograph=False) if compiled else sparse)(x, kernel)
    for a, b in zip(found, convolved_and_gradient(dense, x, kernel), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_no_connection_is_a_kernel_too():
    kernel = sparse_kernel(tf.zeros((3, 3, 4, 5)))
    np.testing.assert_array_equal(sparse_convolve(tf.ones((2, 4, 4, 4)), kernel), np.zeros((2, 4, 4, 5)))


@pytest.mark.parametrize("shape", [(None, 6, 6, 4), (None, None, None, 4)])
def test_batch_and_image_may_be_of_unknown_size(shape):
    kernel = random_kernel(3, 3, 4, 4)

    @tf.function(input_signature=[tf.TensorSpec(shape)], autograph=False)
    def sparse(x):
        return convolved_and_gradient(sparse_convolve, x, sparse_kernel(kernel))

    for batch in (1, 5):
        x = tf.constant(np.random.default_rng(batch).normal(size=(batch, 6, 6, 4)).astype("float32"))
        for a, b in zip(sparse(x), convolved_and_gradient(dense, x, kernel), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)


def test_gradient_of_the_gradient():
    kernel = random_kernel(3, 3, 4, 4)
    x = tf.constant(np.random.default_rng(1).normal(size=(2, 4, 4, 4)).astype("float32"))
    results = []
    for convolve, k in ((sparse_convolve, sparse_kernel(kernel)), (dense, kernel)):
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                total = tf.reduce_sum(convolve(x, k) ** 3)
            gradient = inner.gradient(total, x)
        results.append(outer.gradient(gradient, x))
    np.testing.assert_allclose(*results, rtol=1e-4, atol=1e-4)


def test_few_connections_and_many_channels_pay():
    assert is_faster((3, 3, 512, 512), 0.01) and is_faster((3, 3, 256, 256), 0.01)
    assert not is_faster((3, 3, 512, 512), 0.1)
    assert not is_faster((3, 3, 64, 64), 0.01)
    assert not is_faster((3, 3, 3, 512), 0.01)


@pytest.fixture
def everything_pays(monkeypatch):
    monkeypatch.setattr(kernel_seam, "is_faster", lambda shape, connectivity: connectivity < 1)


def sparse_layers(network, **arguments):
    with layers.folded_kernels(network, **arguments):
        found = layers.kernel_layers(network)
        return [layer.name for layer in found if isinstance(kernel_seam.kernel_and_bias(layer).kernel, SparseKernel)]


@pytest.mark.parametrize(
    "name",
    [pytest.param("vgg16", marks=pytest.mark.full), "resnet18_p1", pytest.param("wrn28_2", marks=pytest.mark.full)],
)
def test_networks_are_the_same_with_sparse_products(name, everything_pays, monkeypatch):
    """With fewer blocks, or narrower ones, than published: there is every kind of layer still."""
    monkeypatch.setenv("TRS_ENGINE", "0")  # which would compute them otherwise
    logits_of = wide_resnet.wide_resnet_logits
    monkeypatch.setattr(wide_resnet, "wide_resnet_logits", lambda build, _, widening: logits_of(build, 10, widening))
    monkeypatch.setitem(resnet._BLOCKS, 18, (resnet._basic, (1, 1, 1, 1)))
    monkeypatch.setitem(vgg.VGG_WIDTHS, 16, ((16, 16), (32, 32), (32, 32), (64, 64), (64, 64)))
    network = models.build(name, kernel="rewiring", connectivity=0.1, seed=0)
    assert len(sparse_layers(network)) > 4 and not sparse_layers(network, allow_sparse=False)
    x = tf.constant(np.random.default_rng(1).random((2, 32, 32, 3), "float32"))
    y = tf.constant([1, 2], tf.int64)
    attack = attacks.LinfPGD(0.03, 0.01, num_steps=2)

    @tf.function(autograph=False)
    def logits_and_gradient(allow_sparse):
        with layers.cached_kernels(network), layers.folded_kernels(network, allow_sparse):
            with tf.GradientTape() as tape:
                tape.watch(x)
                logits = network(x, training=False)
                loss = attacks.cross_entropy(y, logits)
            return logits, tape.gradient(loss, x), attack(network, x, y, seed=(1, 2))

    (logits, gradient, x_adv), dense = logits_and_gradient(True), logits_and_gradient(False)
    np.testing.assert_allclose(logits, dense[0], atol=1e-4 * np.abs(dense[0]).max())
    np.testing.assert_allclose(gradient, dense[1], atol=1e-3 * np.abs(dense[1]).max())
    assert np.mean(np.abs(x_adv - dense[2]) > 1e-6) < 0.02  # a gradient near zero may change its sign


def test_layers_that_a_sparse_product_cannot_compute_stay_dense(everything_pays):
    def layer(name, **arguments):
        return layers.RewiringConv2D(8, **{"kernel_size": 3, "padding": "same", **arguments}, name=name)

    x = inputs = keras.Input((8, 8, 3))
    for one in (
        layer("sparse", initial_connectivity=0.1),
        layer("full"),
        layer("strided", initial_connectivity=0.1, strides=2),
        layer("valid", initial_connectivity=0.1, padding="valid"),
        layer("even", initial_connectivity=0.1, kernel_size=2),
        layer("half", initial_connectivity=0.1, dtype="mixed_float16"),
        layers.MaskedConv2D(8, 3, padding="same", name="masked"),
    ):
        x = one(x)
    assert sparse_layers(keras.Model(inputs, x)) == ["sparse"]


def test_rewired_connections_take_part(everything_pays):
    """The matrices are made from the kernel as it is, whatever the connectivity was when the step was traced."""
    layer = layers.RewiringConv2D(8, 3, padding="same", initial_connectivity=0.1, seed=0)
    network = keras.Sequential([keras.Input((6, 6, 4)), layer])
    x = tf.ones((2, 6, 6, 4))

    @tf.function(autograph=False)
    def output():
        with layers.folded_kernels(network):
            return network(x, training=False)

    for _ in range(2):
        np.testing.assert_allclose(output(), network(x), atol=1e-5)
        layer.theta.assign(tf.reverse(layer.theta, (0, 2)) * 2)
