"""Random architectures with random dead and constant channels: the smaller network says the same, and is smallest."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.saving.networks import images
from tf_robust_sparse import layers, saving

SIZE, CLASSES = 9, 4
SEEDS = range(16)
SHORT = range(8)
TOLERANCE = 1e-5  # of the largest logit
ACTIVATIONS = ("relu", "tanh", "softplus", "leaky_relu")


class Builder:
    """Puts random layers one after the other, and lets random channels of them die."""

    def __init__(self, seed):
        self.random = np.random.default_rng(seed)
        keras.utils.set_random_seed(seed)

    def maybe(self, probability):
        return bool(self.random.random() < probability)

    def conv(self, x, channels, size=3, strides=1, alone=True):
        """A convolution of random padding, with or without batch norm, of which some channels die."""
        padding = str(self.random.choice(["same", "valid"])) if size > 1 and x.shape[1] > 3 and alone else "same"
        if padding == "valid" and self.maybe(0.4):
            x = keras.layers.ZeroPadding2D(((1, 0), (1, 2)))(x)
        batch_norm = self.maybe(0.5)
        layer = layers.MaskedConv2D(channels, size, strides=strides, padding=padding, use_bias=self.maybe(0.7))
        x = self.gate(layer(x))
        if self.maybe(0.3):
            x = keras.layers.Rescaling(np.where(self.random.random(channels) < 0.3, 0, 0.7).tolist())(x)
        x = keras.layers.BatchNormalization()(x) if batch_norm else x
        self.close(layer)
        return keras.layers.Activation(str(self.random.choice(ACTIVATIONS)))(x) if alone else x

    def close(self, layer):
        """Lets entries of all kinds go: single ones, the column of an output, the row of an input."""
        mask = self.random.random(layer.kernel_mask.shape) < 0.8
        mask[..., self.random.random(mask.shape[-1]) < 0.35] = False
        mask[..., self.random.random(mask.shape[-2]) < 0.25, :] = False
        layer.kernel_mask.assign(mask)
        if layer.bias is not None:
            bias = self.random.normal(size=layer.bias.shape)
            layer.bias.assign(np.where(self.random.random(bias.shape) < 0.3, 0, bias))

    def merge(self):
        return keras.layers.Add()

    def gate(self, x):
        return x

    def pool(self, x):
        kinds = (keras.layers.MaxPooling2D, keras.layers.AveragePooling2D)
        return kinds[self.random.integers(2)](2, padding=str(self.random.choice(["same", "valid"])))(x)

    def network(self):
        """Blocks of convolutions, sums, concatenations and pools, then a head."""
        x = inputs = keras.Input((SIZE, SIZE, 2))
        x = keras.layers.Rescaling(2.0, offset=-1.0)(x) if self.maybe(0.5) else x
        for _ in range(self.random.integers(2, 5)):
            channels, strides = int(self.random.integers(3, 8)), int(self.random.integers(1, 3))
            x = self.conv(x, channels, int(self.random.choice([1, 3])), strides if x.shape[1] > 3 else 1)
            kind = self.random.choice(["plain", "residual", "pre-activation", "concatenation"])
            if kind == "residual":
                branch = self.conv(x, channels + 1)
                if branch.shape[1:3] != x.shape[1:3]:
                    branch = self.conv(x, channels + 1, 1)
                branch = self.conv(branch, channels, alone=False)
                x = keras.layers.ReLU()(self.merge()([branch, x]))
            elif kind == "pre-activation":
                y = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
                x = self.merge()([self.conv(y, channels, alone=False), x])
            elif kind == "concatenation":
                parts = [x, self.conv(x, 3, alone=False), self.conv(x, 2, 1, alone=False)]
                x = keras.layers.ELU()(keras.layers.Concatenate()(parts))
            if x.shape[1] >= 3 and self.maybe(0.4):
                x = self.pool(x)
        if self.maybe(0.3):
            x = (keras.layers.GlobalAveragePooling2D if self.maybe(0.5) else keras.layers.GlobalMaxPooling2D)()(x)
        else:
            x = keras.layers.Flatten()(x) if self.maybe(0.8) else keras.layers.Reshape((-1,))(x)
        hidden = layers.MaskedDense(6, activation="relu")
        x = keras.layers.Dropout(0.3)(hidden(self.gate(x)))
        self.close(hidden)
        network = keras.Model(inputs, layers.MaskedDense(CLASSES)(x))
        for layer in network.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                gamma, beta, mean, variance = layer.get_weights()
                gamma = np.where(self.random.random(gamma.shape) < 0.2, 0, self.random.uniform(0.5, 1.5, gamma.shape))
                beta, mean = (self.random.normal(size=beta.shape) for _ in range(2))
                layer.set_weights([gamma, beta, mean, self.random.uniform(0.5, 1.5, variance.shape)])
        return network


class RicherBuilder(Builder):
    """Also puts gates, some of them closed, merges in all ways, enlarges and crops."""

    def merge(self):
        names = ("Subtract", "Multiply", "Average", "Maximum", "Minimum")
        return getattr(keras.layers, names[self.random.integers(len(names))])()

    def gate(self, x):
        if self.maybe(0.5):
            return x
        layer = layers.BetaBernoulliDropout()
        x = layer(x)
        closed = self.random.random(layer.a_raw.shape) < 0.3
        layer.a_raw.assign(np.where(closed, -12, self.random.normal(1, 1, closed.shape)))
        return x

    def pool(self, x):
        if x.shape[1] > 3 and self.maybe(0.5):
            return keras.layers.Cropping2D(((0, 1), (1, 1)))(x)
        return keras.layers.UpSampling2D(2)(x) if self.maybe(0.3) else super().pool(x)


class MobileBuilder(Builder):
    """Also puts depthwise and separable convolutions, groups, squeeze-and-excitation, and operations."""

    def conv(self, x, channels, size=3, strides=1, alone=True):
        if size == 1:
            return super().conv(x, channels, size, strides, alone)
        kind = str(self.random.choice(["depthwise", "separable", "groups"]))
        options = {"strides": strides, "padding": "same", "use_bias": self.maybe(0.5)}
        if kind == "separable":
            layer = keras.layers.SeparableConv2D(
                channels, 3, depth_multiplier=int(self.random.integers(1, 3)), **options
            )
            x = layer(x)
            self.thin(layer)
            return keras.layers.ReLU(6.0)(x + 3.0) * (1.0 / 6.0) if alone else x
        x = super().conv(x, 6, 1)
        if kind == "depthwise":
            layer = keras.layers.DepthwiseConv2D(3, depth_multiplier=int(self.random.integers(1, 3)), **options)
        else:
            layer = keras.layers.Conv2D(6, 3, groups=int(self.random.choice([2, 3])), **options)
        x = keras.ops.relu(layer(x))
        self.thin(layer)
        if self.maybe(0.5):
            gate = keras.layers.GlobalAveragePooling2D(keepdims=self.maybe(0.5))(x)
            gate = gate if len(gate.shape) == 4 else keras.layers.Reshape((1, 1, x.shape[-1]))(gate)
            x = keras.layers.Multiply()([x, super().conv(gate, x.shape[-1], 1)])
        return super().conv(x, channels, 1, 1, alone)

    def thin(self, layer):
        """Lets columns of outputs and rows of inputs go."""
        weights = layer.get_weights()
        for kernel in weights:
            if kernel.ndim == 4:
                kernel[..., self.random.random(kernel.shape[3]) < 0.2] = 0
                kernel[:, :, self.random.random(kernel.shape[2]) < 0.3] = 0
        layer.set_weights(weights)


BUILDERS = (Builder, RicherBuilder, MobileBuilder)


def logits(network, x):
    return network(x, training=False).numpy()


def gradient(network, x):
    """Where an attack would go: the gradient of a sum of the logits in the pixels."""
    pixels = tf.constant(x, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(pixels)
        total = tf.reduce_sum(network(pixels, training=False) * tf.range(1.0, CLASSES + 1))
    return tape.gradient(total, pixels).numpy()


def case(seed):
    """One builder, and batch norm folded or not, in turn."""
    return seed, seed % 4 >= 2, BUILDERS[seed % 3]


@functools.cache
def shrunk(seed, fold_batch_norm, builder):
    network = builder(seed).network()
    return network, *saving.shrink(network, fold_batch_norm)


ALL = [(seed, fold, builder) for seed in SEEDS for fold in (False, True) for builder in BUILDERS]


@pytest.mark.parametrize(
    ("seed", "fold_batch_norm", "builder"),
    [pytest.param(*each, marks=[] if each in map(case, SHORT[::2]) else pytest.mark.full) for each in ALL],
)
def test_logits_are_equal_and_nothing_more_can_go(seed, fold_batch_norm, builder):
    x = images(32, seed, (SIZE, SIZE, 2)) * 3 - 1
    network, small, report = shrunk(seed, fold_batch_norm, builder)
    expected = logits(network, x)
    assert np.abs(logits(small, x) - expected).max() <= TOLERANCE * max(1e-3, np.abs(expected).max())
    assert report.after.parameters <= report.before.parameters
    before, after = (gradient(each, x[:8]) for each in (network, small))
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-4 * max(1e-3, np.abs(before).max()))
    again, repeated = saving.shrink(small, fold_batch_norm)
    assert repeated.after.parameters == report.after.parameters
    assert {name: len(kept) for name, kept in repeated.kept.items()} == {
        name: len(kept) for name, kept in report.kept.items()
    }
    assert np.abs(logits(again, x) - expected).max() <= TOLERANCE * max(1e-3, np.abs(expected).max())


def test_the_random_networks_show_what_they_are_meant_to():
    """Of all of them together: channels went, some layers lost all, constants were carried over borders."""
    gone = carriers = emptied = folded = 0
    for seed in SHORT:
        _, _, report = shrunk(*case(seed))
        gone += sum(report.channels.values()) - sum(len(kept) for kept in report.kept.values())
        carriers += sum(len(found) for found in report.carriers.values())
        emptied += len(report.emptied)
        folded += any(name.startswith("rescaling") for name in report.removed)
    assert gone > 50 and carriers > 2 and emptied > 0 and folded > 0


@pytest.mark.parametrize("padding", ["same", "valid", "symmetric", "asymmetric"])
@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("constant", [-0.8, 0.8])
def test_a_constant_before_a_convolution(constant, strides, padding):
    """One channel of three is constant: it goes without padding, and where ReLU makes it 0; else it is the carrier."""
    x = inputs = keras.Input((7, 7, 2))
    first = layers.MaskedConv2D(3, 3, padding="same", activation="relu", name="first")
    x = first(x)
    if padding in ("symmetric", "asymmetric"):
        x = keras.layers.ZeroPadding2D(1 if padding == "symmetric" else ((0, 1), (0, 2)))(x)
    second = keras.layers.Conv2D(4, 3, strides, "same" if padding == "same" else "valid", name="second")
    x = keras.layers.Flatten()(second(x))
    network = keras.Model(inputs, keras.layers.Dense(3, name="end")(x))
    first.kernel_mask.assign(np.broadcast_to([True, False, True], (3, 3, 2, 3)))
    first.bias.assign([0.1, constant, 0.2])
    small, report = saving.shrink(network)
    pixels = images(16, shape=(7, 7, 2))
    np.testing.assert_allclose(logits(small, pixels), logits(network, pixels), atol=1e-5)
    stays = constant > 0 and padding != "valid"
    assert report.kept["first"] == ([0, 1, 2] if stays else [0, 2])
    assert report.carriers == ({"second": [1]} if stays else {})


def test_many_constants_need_one_carrier():
    x = inputs = keras.Input((6, 6, 2))
    first = layers.MaskedConv2D(8, 3, padding="same", name="first")
    x = keras.layers.ReLU()(first(x))
    x = keras.layers.Conv2D(5, 3, padding="same", activation="relu", name="second")(x)
    network = keras.Model(inputs, keras.layers.Dense(3, name="end")(keras.layers.Flatten()(x)))
    first.kernel_mask.assign(np.broadcast_to(np.arange(8) < 2, (3, 3, 2, 8)))
    first.bias.assign([0.1, -0.1, 0.3, -0.5, 0.9, 0.7, 0.0, 0.2])
    small, report = saving.shrink(network)
    assert report.kept["first"] == [0, 1, 4] and report.carriers == {"second": [4]}  # 0.9 is the largest
    pixels = images(16, shape=(6, 6, 2))
    np.testing.assert_allclose(logits(small, pixels), logits(network, pixels), atol=1e-5)
