"""Networks of neural pruning: published sizes, gates in their places, pixels normalized inside."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_robust_sparse import attacks, layers, models, saving
from tf_robust_sparse.models.vgg import INPUT_NORMS, vgg16_dropout
from tf_robust_sparse.saving.compact import load_compact

UNITS = {
    "lenet_conv": (20, 50, 800, 500),
    "vgg16_dropout": (64, 64, 128, 128, *[256] * 3, *[512] * 8),
}


@pytest.mark.parametrize(
    ("name", "trainable", "units"), [("lenet_conv", 431_080, 1_370), ("vgg16_dropout", 14_991_946, 5_248)]
)
def test_published_sizes(name, trainable, units):
    network = models.build(name)
    assert sum(int(np.prod(v.shape)) for v in network.trainable_variables) == trainable
    gated = models.build(name, gates=True)
    sizes = tuple(layer.a_raw.shape[0] for layer in layers.gates(gated))
    assert sizes == UNITS[name] and sum(sizes) == units
    assert sum(int(np.prod(v.shape)) for v in gated.trainable_variables) == trainable + 2 * units


def test_where_gates_and_dropout_stand():
    order = [layer.name for layer in vgg16_dropout(gates=True).layers]
    for number in range(1, 14):
        place = order.index(f"gate{number}")
        assert order[place - 1 : place + 3] == [f"conv{number}", f"gate{number}", f"bn{number}", f"relu{number}"]
    assert order[-6:] == ["gate14", "dense14", "bn14", "relu14", "gate15", "classifier"]
    base = vgg16_dropout()
    rates = {layer.name: layer.rate for layer in base.layers if isinstance(layer, layers.Dropout)}
    assert rates == {
        "dropout1": 0.3,
        **{f"dropout{n}": 0.4 for n in (3, 5, 6, 8, 9, 11, 12)},
        "dropout14": 0.5,
        "dropout15": 0.5,
    }
    assert [name for name in order if name.startswith("dropout1")] == ["dropout1", "dropout11", "dropout12"]
    lenet = [layer.name for layer in models.lenet_conv(gates=True).layers]
    assert [name for name in lenet if name.startswith(("gate", "relu", "pool", "flatten"))] == [
        *("gate1", "relu1", "pool1", "gate2", "relu2", "pool2", "flatten", "gate3", "relu3", "gate4"),
    ]


@pytest.mark.parametrize("input_norm", INPUT_NORMS)
def test_pixels_are_normalized_inside(input_norm):
    network = vgg16_dropout(input_norm=input_norm, seed=0)
    x = np.random.default_rng(0).random((3, 32, 32, 3), "float32")
    first = network.get_layer("conv1").input
    normalized = keras.Model(network.input, first)(x).numpy()
    if input_norm == "image":
        for contrast in (1, 0.1, 0.01):  # as the published code has it, on levels of 0 to 255
            dim = np.rint(255 * (0.3 + contrast * (x - 0.5))).astype("float32")
            found = keras.Model(network.input, first)(dim / 255)
            np.testing.assert_allclose(found, tf.image.per_image_standardization(dim), rtol=1e-3, atol=1e-3)
        assert all(
            layer.unbiased == (layer.name != "bn14")  # the fused operation, which dense layers do not have
            for layer in network.layers
            if isinstance(layer, layers.BatchNormalization)
        )
        flat = keras.Model(network.input, first)(np.full((1, 32, 32, 3), 0.3, "float32"))
        np.testing.assert_allclose(flat, np.zeros((1, 32, 32, 3)), atol=1e-2)  # the rounding of a mean in float32
    elif input_norm == "none":
        np.testing.assert_array_equal(normalized, x)
    else:
        assert np.abs(normalized.mean(axis=(0, 1, 2))).max() < 0.5


@pytest.mark.parametrize("name", ["lenet_conv", pytest.param("vgg16_dropout", marks=pytest.mark.full)])
def test_open_gates_change_nothing(name):
    base, gated = models.build(name, seed=0), models.build(name, gates=True, seed=1)
    saving.copy_weights(base, gated)
    for layer in layers.gates(gated):
        layer.a_raw.assign(np.full(layer.a_raw.shape, 1e9))
        np.testing.assert_array_equal(layer.inference_scale(), np.ones(layer.a_raw.shape))
    x = np.random.default_rng(0).random((2, *base.input_shape[1:]), "float32")
    np.testing.assert_allclose(gated(x, training=False), base(x, training=False), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "epsilon", "step"),
    [pytest.param("vgg16_dropout", 0.03, 0.007, marks=pytest.mark.full), ("lenet_conv", 0.3, 0.01)],
)
def test_attacks_stay_in_their_ball_of_pixels(name, epsilon, step):
    network = models.build(name, gates=True, seed=0)
    random, shape = np.random.default_rng(0), network.input_shape[1:]
    x = tf.constant(np.concatenate([random.random((2, *shape)), random.integers(0, 2, (1, *shape))]), tf.float32)
    clean = network(x, training=False)
    for attack in (attacks.LinfPGD(epsilon, step, 10), attacks.LinfFGSM(epsilon)):
        x_adv = attack(network, x, tf.argmax(clean, -1)).numpy()
        assert np.abs(x_adv - x).max() <= epsilon + 1e-6 and x_adv.min() >= 0 and x_adv.max() <= 1
        assert np.abs(network(x_adv, training=False) - clean).max() > 0


@pytest.mark.parametrize("name", ["lenet_conv", pytest.param("vgg16_dropout", marks=pytest.mark.full)])
def test_stripped_networks_answer_alike(name, tmp_path):
    network = models.build(name, gates=True, seed=0)
    random = np.random.default_rng(0)
    for layer in layers.gates(network):
        layer.a_raw.assign(random.normal(-2, 4, layer.a_raw.shape))
    x = random.random((2, *network.input_shape[1:]), "float32")
    stripped = saving.strip(network)
    assert all(type(layer).__module__.startswith("keras.") for layer in stripped.layers)
    expected = network(x, training=False)
    np.testing.assert_allclose(stripped(x, training=False), expected, rtol=1e-4, atol=1e-5)
    again = load_compact(saving.save_compact(network, tmp_path / "network.trs"))
    np.testing.assert_array_equal(again(x, training=False), expected)


def test_the_way_pixels_are_normalized_is_checked():
    with pytest.raises(ValueError, match="input_norm"):
        vgg16_dropout(input_norm="channels")
