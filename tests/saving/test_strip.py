"""A stripped network is plain Keras and computes the same."""

import keras
import numpy as np
import pytest

from tests.saving.networks import images, residual_network
from tf_robust_sparse import layers, models, saving
from tf_robust_sparse.models.stacked import StackedDense

LOGIT_TOLERANCE = 1e-5  # the two networks multiply in the same order; only rounding of the kernel's product is left


@pytest.fixture
def float32_policy():
    yield
    keras.config.set_dtype_policy("float32")


def non_zeros(network):
    """Counts the non-zero kernel entries of a plain network."""
    return sum(
        np.count_nonzero(layer.kernel.numpy())
        for layer in network.layers
        if isinstance(layer, (keras.layers.Dense, keras.layers.Conv2D))
    )


def connected(network):
    """Counts the connected entries of a network of this package, from its own state."""
    count = 0
    for layer in layers.kernel_layers(network):
        if hasattr(layer, "theta"):
            count += np.count_nonzero(layer.theta.numpy() > 0)
        elif hasattr(layer, "kernel_mask"):
            count += np.count_nonzero(layer.kernel_mask.numpy())
        else:
            count += layer.kept if hasattr(layer, "scores") else layer.kernel.numpy().size
    return count


@pytest.mark.parametrize(
    ("name", "kernel"),
    [
        *[("residual", kernel) for kernel in layers.KERNELS],
        *[("small_cnn", kernel) for kernel in ("plain", "masked", "signed")],
        ("wrn28_2", "rewiring"),
        pytest.param("wrn28_2", "subnet", marks=pytest.mark.full),
        pytest.param("vgg16", "rewiring", marks=pytest.mark.full),
    ],
)
def test_logits_and_connections_are_equal(name, kernel):
    if name == "residual":
        network, x = residual_network(kernel), images(256)
    else:
        network = models.build(name, kernel=kernel, connectivity=0.1, seed=0)
        x = images(256 if name == "small_cnn" else 16, shape=(32, 32, 3))
    stripped = saving.strip(network)
    assert np.abs(network(x, training=False) - stripped(x, training=False)).max() <= LOGIT_TOLERANCE
    assert non_zeros(stripped) == connected(network)
    assert {type(layer).__module__.partition(".")[0] for layer in stripped.layers} == {"keras"}
    assert [layer.name for layer in stripped.layers] == [layer.name for layer in network.layers]
    assert stripped.name == network.name


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_stripped_network_is_float32(policy, float32_policy):
    keras.config.set_dtype_policy(policy)
    network = residual_network()
    stripped = saving.strip(network)
    assert {layer.dtype_policy.name for layer in (stripped, *stripped.layers)} == {"float32"}
    assert keras.config.dtype_policy().name == policy
    keras.config.set_dtype_policy("float32")
    same = residual_network()
    same.set_weights(network.get_weights())
    np.testing.assert_allclose(stripped(images(8)), same(images(8)), atol=LOGIT_TOLERANCE)


def test_stripping_leaves_the_network_alone():
    network = residual_network()
    before = network.get_weights()
    stripped = saving.strip(network)
    for layer in stripped.layers:
        layer.set_weights([np.zeros_like(w) for w in layer.get_weights()])
    for a, b in zip(before, network.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_nested_and_sequential_networks():
    inner = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.MaskedConv2D(4, 3, name="conv"),
            layers.BatchNormalization(name="bn"),
        ],
        name="features",
    )
    x = keras.Input((8, 8, 3))
    network = keras.Model(x, layers.RewiringDense(3, name="out")(keras.layers.Flatten(name="flat")(inner(x))))
    stripped = saving.strip(network)
    assert type(stripped.get_layer("features").get_layer("conv")) is keras.layers.Conv2D
    np.testing.assert_allclose(stripped(images(4)), network(images(4)), atol=LOGIT_TOLERANCE)
    np.testing.assert_allclose(saving.strip(inner)(images(4)), inner(images(4)), atol=LOGIT_TOLERANCE)


def test_adapted_normalization():
    x = images(64) * 5 + 2
    normalization = keras.layers.Normalization(name="normalization")
    normalization.adapt(x)
    inputs = keras.Input((8, 8, 3))
    flat = keras.layers.Flatten()(normalization(inputs))
    network = keras.Model(inputs, layers.MaskedDense(3, name="out")(flat))
    for plain in (saving.strip(network), saving.shrink(network).network):
        np.testing.assert_allclose(plain(x), network(x), atol=1e-4)


@keras.saving.register_keras_serializable(package="tests")
class Amplifier(keras.layers.Layer):
    """A layer of a user's own, with a weight and an argument."""

    def __init__(self, factor, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def build(self, input_shape):
        self.gain = self.add_weight(name="gain", shape=(input_shape[-1],), initializer="glorot_uniform")

    def call(self, x):
        return x * self.gain * self.factor

    def get_config(self):
        return {**super().get_config(), "factor": self.factor}


def foreign_network():
    """Operations, a shared layer, a nested model called twice, a slice, a Lambda and a layer of the user."""
    pixels = keras.Input((8, 8, 3), name="pixels")
    conv = layers.MaskedConv2D(3, 3, padding="same", name="conv")
    inner_pixels = keras.Input((8, 8, 3))
    h = layers.MaskedConv2D(3, 3, padding="same", name="conv")(inner_pixels)
    inner = keras.Model(inner_pixels, h + keras.ops.tanh(inner_pixels), name="inner")
    x = conv(inner(inner(conv(pixels))))
    x = x + keras.ops.relu(x) * 0.5
    x = keras.layers.Lambda(lambda x: x * 2.0, output_shape=(8, 8, 3), name="twice")(x)
    x = Amplifier(3.0, name="amplifier")(keras.ops.cast(x, "float32")[:, 1:])
    x = keras.ops.reshape(keras.ops.concatenate([x, -x], -1), (-1, 7 * 8 * 6))
    return keras.Model(pixels, layers.MaskedDense(5, name="classifier")(x))


def test_operations_and_layers_of_the_user():
    network = foreign_network()
    for layer in layers.kernel_layers(network):
        layer.kernel_mask.assign(np.random.default_rng(0).random(layer.kernel.shape) < 0.5)
    stripped = saving.strip(network)
    np.testing.assert_allclose(stripped(images(8)), network(images(8)), atol=LOGIT_TOLERANCE)
    convolutions = stripped.get_layer("conv"), stripped.get_layer("inner").get_layer("conv")
    assert {type(layer) for layer in convolutions} == {keras.layers.Conv2D}
    assert stripped.get_layer("amplifier") is not network.get_layer("amplifier")


def test_network_of_keras_applications():
    network = keras.applications.MobileNetV3Small((32, 32, 3), alpha=0.35, weights=None, classes=10)
    x = images(2, shape=(32, 32, 3))
    np.testing.assert_allclose(saving.strip(network)(x), network(x), atol=LOGIT_TOLERANCE)


def test_what_cannot_be_copied_is_named():
    class Trainer(keras.Model):
        pass

    with pytest.raises(ValueError, match=r"pass the network itself.*Received: Trainer"):
        saving.strip(Trainer())

    class Odd(keras.layers.Layer):
        def __init__(self, factor, **kwargs):
            super().__init__(**kwargs)

        def call(self, x):
            return x

    x = keras.Input((3,))
    with pytest.raises(ValueError, match="The layer odd of type Odd cannot be copied from its configuration; give it"):
        saving.strip(keras.Model(x, Odd(object(), name="odd")(x)))
    with pytest.raises(ValueError, match=r"The layer stacked has no equivalent in Keras.*Received: StackedDense"):
        saving.strip(keras.Model(x, StackedDense(2, 5, name="stacked")(x)))
