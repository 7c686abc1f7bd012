"""A smaller network of plain layers says what the large one says."""

import itertools
import json
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.saving.networks import disturb, images, residual_network
from tf_robust_sparse import attacks, layers, models, saving
from tf_robust_sparse.models import resnet, vgg, wide_resnet
from tf_robust_sparse.models.resnet import small_resnet
from tf_robust_sparse.models.wide_resnet import wrn28_2

TOLERANCE = 1e-5  # of the largest logit: float32 sums in another order
GATED_TOLERANCE = 1e-4
CLOSED = -12.0  # of `a_raw`: its gate is exactly 0
NARROW = ((8, 8), (16, 16), (32, 32, 32), (64, 64, 64), (64, 64, 64))  # of VGG16: its layers and borders, less to count


@pytest.fixture
def narrow(monkeypatch):
    monkeypatch.setitem(vgg.VGG_WIDTHS, 16, NARROW)


def logits(network, x):
    return network(x, training=False).numpy()


def assert_equal_logits(one, two, x, tolerance=TOLERANCE):
    expected = logits(one, x)
    assert np.abs(expected).max() > 0 and np.ptp(expected, axis=0).max() > 0  # there is something to compare
    assert np.abs(logits(two, x) - expected).max() <= tolerance * np.abs(expected).max()


def gated(name, closed, seed=0, **how):
    """A gated network with a share of closed gates, or all but one, biases, and batch norm that has moved."""
    network = models.build(name, seed=seed, **(how or {"gates": True}))
    random = np.random.default_rng(seed)
    for layer in layers.gates(network):
        units = layer.a_raw.shape[0]
        is_open = random.random(units) >= closed
        if closed == 1:
            is_open[:] = False
            is_open[0] = True
        layer.a_raw.assign(np.where(is_open, random.normal(1, 1, units), CLOSED))
    for layer in network.layers:
        if isinstance(layer, layers.BatchNormalization):
            values = layer.get_weights()  # gamma, beta, mean, variance
            ranges = ((0.5, 1.5), (-1, 1), (-0.5, 0.5), (0.5, 1.5))
            values = [random.uniform(*each, value.shape) for each, value in zip(ranges, values, strict=True)]
            if closed == 1:  # the one path stays above 0
                values[1][0], values[2][0] = abs(values[1][0]), -abs(values[2][0])
            layer.set_weights(values)
        elif getattr(layer, "bias", None) is not None:
            layer.bias.assign(random.normal(0, 0.2, layer.bias.shape))
    if closed == 1:  # the one path must not end at a ReLU
        for layer in layers.kernel_layers(network):
            kernel = np.abs(layer.kernel.numpy())
            kernel[..., 0, 0] = 1 / kernel[..., 0, 0].size  # nor fade
            layer.kernel.assign(kernel)
            layer.bias.assign(np.abs(layer.bias))
    return network


@pytest.mark.parametrize("fold_batch_norm", [False, True])
@pytest.mark.parametrize("closed", [0.3, pytest.param(0.7, marks=pytest.mark.full), 1])
def test_gated_lenet(closed, fold_batch_norm):
    network = gated("lenet_conv", closed)
    x = images(256, shape=(28, 28, 1))
    small, report = saving.shrink(network, fold_batch_norm)
    assert np.abs(logits(small, x) - logits(network, x)).max() <= GATED_TOLERANCE
    assert_equal_logits(network, small, x)
    is_open = [np.flatnonzero(gate.inference_scale()).tolist() for gate in layers.gates(network)]
    used = np.unique(np.array(is_open[2]) % 50)  # channels of the flattened features, last in the layout
    assert report.kept["conv1"] == is_open[0]
    assert report.kept["conv2"] == sorted(set(is_open[1]) & set(used.tolist()))
    assert report.kept["dense3"] == is_open[3] and report.kept["classifier"] == list(range(10))
    assert not [layer for layer in small.layers if isinstance(layer, keras.layers.Rescaling)]
    assert [name for name in report.removed if name.startswith("gate")] == ["gate1", "gate2", "gate3", "gate4"]


@pytest.mark.full
@pytest.mark.parametrize(
    ("closed", "fold_batch_norm", "count"),
    [
        pytest.param(0.3, False, 256, marks=pytest.mark.full),
        (0.7, True, 16),
        pytest.param(1, True, 16, marks=pytest.mark.full),
    ],
)
@pytest.mark.parametrize("width", ["narrow", pytest.param("published", marks=pytest.mark.full)])
def test_gated_vgg16(width, closed, fold_batch_norm, count, request):
    if width == "narrow":
        request.getfixturevalue("narrow")
    network = gated("vgg16_dropout", closed)
    x = images(count, shape=(32, 32, 3))
    small, report = saving.shrink(network, fold_batch_norm)
    assert np.abs(logits(small, x) - logits(network, x)).max() <= GATED_TOLERANCE
    assert_equal_logits(network, small, x)
    np.testing.assert_array_equal(logits(small, x).argmax(-1), logits(network, x).argmax(-1))
    gates = [np.flatnonzero(gate.inference_scale()) for gate in layers.gates(network)]
    for number in range(1, 13):
        extra = set(report.kept[f"conv{number}"]) - set(gates[number - 1].tolist())
        assert extra == set(report.carriers.get(f"conv{number + 1}", [])) and len(extra) <= 1
    assert set(report.kept["conv13"]) == set(gates[12].tolist()) & set(gates[13].tolist())
    has_batch_norm = any(isinstance(layer, keras.layers.BatchNormalization) for layer in small.layers)
    assert has_batch_norm is not fold_batch_norm
    if closed == 0.7:
        assert np.abs(logits(with_constants_in_plain_biases(small, report), x) - logits(network, x)).max() > 1e-3


def with_constants_in_plain_biases(small, report):
    """The wrong way: constants that meet zero padding counted as if they met none."""
    naive = keras.models.clone_model(small)
    naive.set_weights(small.get_weights())
    assert report.carriers
    for name, (carrier,) in report.carriers.items():
        layer, before = naive.get_layer(name), f"conv{int(name[4:]) - 1}"
        place = report.kept[before].index(carrier)
        value = keras.Model(small.input, small.get_layer(name).input)(np.zeros((1, 32, 32, 3), "float32"))[..., place]
        kernel, bias = layer.get_weights()
        bias += kernel[:, :, place].sum(axis=(0, 1)) * float(np.unique(value.numpy().round(6))[0])
        kernel[:, :, place] = 0
        layer.set_weights([kernel, bias])
    return naive


def kill_channels(network, share, seed=0):
    """Zeroes the columns of a share of channels and units of every kernel but the last, in its own parametrization."""
    random = np.random.default_rng(seed)
    *kernels, _ = layers.kernel_layers(network)
    for layer in kernels:
        dead = random.random(layer.effective_kernel.shape[-1]) < share
        if hasattr(layer, "theta"):
            layer.theta.assign(np.where(dead, -1, layer.theta))
        elif hasattr(layer, "kernel_mask"):
            layer.kernel_mask.assign(~dead & layer.kernel_mask.numpy())
        elif hasattr(layer, "scores"):
            scores = np.where(dead, 0, 1 + random.random(layer.scores.shape))
            layer.scores.assign(scores)
            layer.keep_fraction = np.count_nonzero(scores) / scores.size
        else:
            layer.kernel.assign(np.where(dead, 0, layer.kernel))


@pytest.mark.parametrize(
    ("kernel", "fold_batch_norm"),
    zip([kernel for kernel in layers.KERNELS if kernel != "binary"], itertools.cycle([False, True])),
)
def test_every_parametrization(kernel, fold_batch_norm):
    network = residual_network(kernel)
    kill_channels(network, 0.5)
    small, report = saving.shrink(network, fold_batch_norm)
    assert_equal_logits(network, small, images(64))
    assert {type(layer).__module__.partition(".")[0] for layer in small.layers} == {"keras"}
    assert report.after.parameters < 0.7 * report.before.parameters
    assert report.after.multiply_adds < report.before.multiply_adds
    assert small.name == network.name


def test_binary_kernels_have_dead_outputs_where_nothing_reads_them():
    network = residual_network("binary")
    gate = layers.BetaBernoulliDropout(2.0, name="gate")
    x = gate(network.get_layer("hidden").output)
    network = keras.Model(network.input, layers.BinaryDense(3, name="end")(x))
    gate.a_raw.assign(np.where(np.arange(12) < 7, CLOSED, 2.0))
    small, report = saving.shrink(network)
    assert report.kept["hidden"] == list(range(7, 12))
    assert_equal_logits(network, small, images(64))


@pytest.mark.parametrize("padding_mode", [pytest.param("tf_same", marks=pytest.mark.full), "symmetric"])
def test_residual_networks(padding_mode, monkeypatch):
    """A block or two of each group: with a shortcut of its own, and with none."""
    monkeypatch.setitem(resnet._BLOCKS, 18, (resnet._basic, (2, 1, 1, 1)))
    logits_of = wide_resnet.wide_resnet_logits
    monkeypatch.setattr(wide_resnet, "wide_resnet_logits", lambda build, _, widening: logits_of(build, 10, widening))
    for network in (
        small_resnet(18, "p1", kernel="masked", padding_mode=padding_mode, seed=0, imagenet=True),
        wrn28_2(kernel="masked", padding_mode=padding_mode, seed=0),
    ):
        kill_channels(network, 0.4)
        disturb_batch_norm(network)
        x = images(8, shape=network.input_shape[1:])
        small, report = saving.shrink(network)
        assert_equal_logits(network, small, x)
        assert report.after.parameters < 0.75 * report.before.parameters
        assert report.after.multiply_adds < 0.9 * report.before.multiply_adds


def disturb_batch_norm(network, seed=3):
    random = np.random.default_rng(seed)
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            gamma, beta, mean, variance = (random.uniform(0.5, 1.5, w.shape) for w in layer.get_weights())
            layer.set_weights([gamma, beta - 1, mean - 1, variance])


def test_channels_of_a_sum_go_if_no_summand_needs_them():
    x = inputs = keras.Input((6, 6, 2))
    x = keras.layers.Conv2D(4, 3, padding="same", name="stem")(x)
    h = keras.layers.Conv2D(4, 3, padding="same", use_bias=False, name="branch")(x)
    x = keras.layers.ReLU()(keras.layers.Add()([h, x]))
    network = keras.Model(inputs, keras.layers.Dense(3, name="end")(keras.layers.GlobalAveragePooling2D()(x)))
    stem, branch, end = (network.get_layer(name) for name in ("stem", "branch", "end"))

    def close(layer, channels, axis):
        kernel = layer.kernel.numpy()
        np.moveaxis(kernel, axis, 0)[channels] = 0
        layer.kernel.assign(kernel)

    close(stem, [0, 1], -1)
    close(branch, [0, 2], -1)
    assert saving.shrink(network).report.kept["stem"] == [1, 2, 3]  # 0 is constant in both
    close(branch, [1], 2)
    close(end, [3], 0)
    small, report = saving.shrink(network)
    assert_equal_logits(network, small, images(8, shape=(6, 6, 2)))
    assert report.kept["stem"] == report.kept["branch"] == [1, 2, 3]  # 3 is read by the branch
    close(branch, [3], 2)
    small, report = saving.shrink(network)
    assert report.kept["stem"] == report.kept["branch"] == [1, 2]
    assert_equal_logits(network, small, images(8, shape=(6, 6, 2)))


def test_a_branch_of_zeros_is_gone():
    network = residual_network("masked")
    network.get_layer("bn2").set_weights([np.zeros(16), np.zeros(16), np.ones(16), np.ones(16)])
    small, report = saving.shrink(network)
    assert_equal_logits(network, small, images(16))
    assert {"conv1", "bn1", "relu1", "conv2", "bn2", "add"} <= set(report.removed)


def test_a_layer_without_influence_keeps_one_unit_and_is_named():
    network = residual_network("masked")
    network.get_layer("hidden").kernel_mask.assign(np.zeros((256, 12), bool))
    small, report = saving.shrink(network)
    np.testing.assert_allclose(logits(small, images(4)), logits(network, images(4)), atol=1e-5)
    assert {"stem", "hidden"} <= set(report.emptied) and "classifier" not in report.emptied
    assert all(len(report.kept[name]) == 1 for name in report.emptied)


@pytest.mark.full
def test_attacks_give_the_same():
    network = gated("lenet_conv", 0.5)
    x = images(64, shape=(28, 28, 1))
    bias = network.get_layer("classifier").bias
    bias.assign(bias - logits(network, x).mean(axis=0))  # so that it answers differently
    small, _ = saving.shrink(network)
    y = logits(network, x).argmax(axis=-1)
    found = []
    for epsilon in (0.001, 0.003, 0.01):
        attack = attacks.LinfPGD(epsilon, epsilon / 4, 5, random_start=False)
        found.append([np.mean(logits(each, attack(each, x, y)).argmax(-1) == y) for each in (network, small)])
    np.testing.assert_allclose(*np.transpose(found), atol=1 / 64)
    assert any(0.1 < one < 0.9 for one, _ in found)


@pytest.mark.parametrize("name", ["lenet_conv", pytest.param("vgg16_dropout", marks=pytest.mark.full)])
@pytest.mark.usefixtures("narrow")
def test_gradients_in_the_pixels_are_the_same(name):
    network = gated(name, 0.5)
    small, _ = saving.shrink(network)
    gradients = []
    for each in (network, small):
        with tf.GradientTape() as tape:
            pixels = tf.constant(images(8, shape=network.input_shape[1:]))
            tape.watch(pixels)
            total = tf.reduce_sum(each(pixels, training=False) * tf.range(10, dtype=tf.float32))
        gradients.append(tape.gradient(total, pixels).numpy())
    largest = np.abs(gradients[0]).max()
    assert largest > 0
    away = np.abs(gradients[0] - gradients[1]).max(axis=(1, 2, 3)) / largest
    # Rounding, another one on each processor, decides a unit that is 0 but for it in now and then an image.
    assert (away < 1e-5).sum() >= 6 and away.max() < 0.1


_CONSUMER = """
import sys
import keras
import numpy as np
network = keras.saving.load_model(sys.argv[1])
np.save(sys.argv[3], network.predict(np.load(sys.argv[2]), verbose=0))
assert not [name for name in sys.modules if name.startswith("tf_robust_sparse")], "it must not need this package"
"""


@pytest.mark.full
def test_the_file_loads_without_this_package(tmp_path):
    network = residual_network("rewiring")
    kill_channels(network, 0.5)
    small, report = saving.shrink(network)
    file = saving.save_network(small, tmp_path)
    assert abs(file.stat().st_size - report.after.file_bytes) < 100
    np.save(tmp_path / "x.npy", images(16))
    arguments = [str(file), str(tmp_path / "x.npy"), str(tmp_path / "y.npy")]
    done = subprocess.run([sys.executable, "-c", _CONSUMER, *arguments], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), logits(network, images(16)), atol=1e-4)


def test_the_report_is_plain_and_counts_right():
    network = gated("lenet_conv", 0.5)
    small, report = saving.shrink(network)
    found = report.as_dict()
    assert json.loads(json.dumps(found)) == found
    one, two, three = (len(report.kept[name]) for name in ("conv1", "conv2", "dense3"))
    after = found["after"]
    assert after["multiply_adds"] == one * 25 * 24**2 + one * two * 25 * 8**2 + two * 16 * three + three * 10
    assert after["parameters"] == 25 * one + one + 25 * one * two + two + (16 * two + 1) * three + (three + 1) * 10
    assert after["nonzero"] == sum(
        np.count_nonzero(layer.kernel) for layer in small.layers if getattr(layer, "kernel", None) is not None
    )
    assert found["before"]["parameters"] == 431_080 and found["before"]["file_bytes"] > after["file_bytes"]


def test_a_sequential_network_and_what_is_there_before_the_first_kernel():
    network = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Normalization(mean=[0.4, 0.5, 0.6], variance=[0.1, 0.2, 0.3]),
            layers.MaskedConv2D(6, 3, activation="tanh", name="conv"),
            keras.layers.LayerNormalization(axis=(1, 2, 3), center=False, scale=False, name="standardization"),
            layers.MaskedConv2D(5, 3, padding="same", activation="softplus", name="second"),
            keras.layers.GlobalMaxPooling2D(),
            layers.MaskedDense(3, name="end"),
        ]
    )
    disturb(network, 1)
    mask = network.get_layer("second").kernel_mask.numpy()
    mask[..., 2:] = False
    network.get_layer("second").kernel_mask.assign(mask)
    network.get_layer("end").kernel_mask.assign(np.ones((5, 3), bool))
    small, report = saving.shrink(network)
    assert report.kept == {"conv": list(range(6)), "second": [0, 1], "end": [0, 1, 2]}  # all of what is normalized
    assert_equal_logits(network, small, images(16))


class _Squares(keras.layers.Layer):
    def call(self, x):
        return x * x


def _called_twice(layer):
    return lambda x: layer(layer(x))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (_Squares(name="squares"), "layer squares is of type _Squares, whose use of channels is not known"),
        (keras.layers.Conv2DTranspose(4, 3, name="up"), "up is of type Conv2DTranspose"),
        (keras.layers.DepthwiseConv2D(3, activation="softmax", name="by_channel"), "softmax of the layer by_channel"),
        (keras.layers.Conv2D(4, 3, activation="softmax", name="odd"), "activation softmax of the layer odd"),
        (keras.layers.BatchNormalization(axis=1, name="rows"), "rows is over axis 1"),
        (keras.layers.Dense(4, name="last_axis"), "dense layer last_axis acts on the last"),
        (keras.layers.Reshape((2, 32, 4), name="folded"), "folded reshapes images"),
        (keras.layers.Rescaling(np.ones((8, 8, 4)), name="map"), "map has one `scale` per position"),
        (_called_twice(keras.Sequential([keras.layers.ReLU()], name="inner")), "inner is a network itself"),
    ],
)
def test_other_layers_are_refused_by_name(layer, message, monkeypatch):
    inputs = keras.Input((8, 8, 3))
    x = layer(layers.MaskedConv2D(4, 3, padding="same")(inputs))
    network = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(x)))
    monkeypatch.setattr(keras.models, "clone_model", lambda *_, **__: pytest.fail("something was built"))
    with pytest.raises(ValueError, match=message):
        saving.shrink(network)


def test_networks_that_are_refused():
    x = keras.Input((8, 8, 4))
    twice = keras.layers.Conv2D(4, 3, padding="same", name="twice")
    with pytest.raises(ValueError, match="twice is called twice"):
        saving.shrink(keras.Model(x, keras.layers.Flatten()(twice(twice(x)))))
    anywhere = keras.Input((None, None, 3))
    with pytest.raises(ValueError, match="of known size"):
        saving.shrink(keras.Model(anywhere, keras.layers.GlobalMaxPooling2D()(anywhere)))
    with pytest.raises(ValueError, match="1 inputs and 2 outputs"):
        saving.shrink(keras.Model(x, [keras.layers.Flatten()(x), twice(x)]))
