"""Files for other runtimes answer as the network does, for every batch size, in few bytes, or name what they lack."""

import keras
import numpy as np
import pytest

import tf_robust_sparse as trs
from tests.conformance.test_users_models import mobile_net
from tests.saving.networks import disturb, images, residual_network
from tf_robust_sparse.evaluation.runtimes import litert_function, onnx_function

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

kl = keras.layers


def classifier(x, inputs):
    return keras.Model(inputs, kl.Dense(4)(kl.Flatten()(x)))


def by_channel():
    """Depthwise, separable, dilated and grouped convolutions, with strides and padding of both kinds."""
    x = inputs = keras.Input((11, 10, 3))
    x = kl.ZeroPadding2D(((0, 1), (0, 1)))(x)
    x = kl.DepthwiseConv2D(3, 2, depth_multiplier=2, activation="relu6", bias_initializer="normal")(x)
    x = kl.SeparableConv2D(8, 3, padding="same", activation="silu", bias_initializer="normal")(x)
    x = kl.Conv2D(8, 3, 2, padding="same", groups=4, bias_initializer="normal")(x)
    x = kl.DepthwiseConv2D(3, padding="same", dilation_rate=2)(kl.ReLU(6)(x))
    return keras.Model(inputs, kl.Dense(4)(kl.GlobalMaxPooling2D()(x)))


def combined(x):
    """Images of (6, 5, 4) with constants of every shape that broadcasts, on both sides of every operation."""
    random = np.random.default_rng(4)
    for shape in ((), (1,), (4,), (5, 1), (6, 1, 1), (6, 5, 4), (1, 6, 5, 4)):
        a, b, c = (np.float32(random.uniform(0.5, 1.5, shape)) for _ in "abc")
        x = keras.ops.subtract(a, x / b) + keras.ops.multiply(c, x)  # NumPy's operators take no symbols
    x = 2 / (x * x + 1.5) - 0.25
    small = kl.GlobalAveragePooling2D(keepdims=True)(x)
    return x - small * np.float32(random.uniform(-1, 1, (6, 5, 1)))  # the constant is larger than the image


def combined_vector(x):
    """A vector that is flattened channels last, with constants; and one of a single entry, which becomes as long."""
    (length,) = x.shape[1:]
    constants = np.float32(np.random.default_rng(5).uniform(0.5, 1.5, (3, length)))
    x = keras.ops.subtract(constants[:1], 3.0 * x / constants[1])
    return x + kl.Dense(1)(x) * constants[2]


def merged():
    """Gates on channels, every way to merge tensors and constants, and a network inside the network."""
    x = inputs = keras.Input((6, 5, 4))
    gate = kl.Reshape((1, 1, 4))(kl.Dense(4, "hard_sigmoid")(kl.GlobalAveragePooling2D()(x)))
    x = combined(kl.Multiply()([x, gate]))
    a, b = (keras.Sequential([keras.Input((6, 5, 4)), kl.Conv2D(4, 1), kl.LeakyReLU(0.1)], name=n)(x) for n in "ab")
    parts = [kind()([a, b, x]) for kind in (kl.Add, kl.Average, kl.Maximum, kl.Minimum, kl.Multiply)]
    x = kl.Concatenate()([*parts, kl.Subtract()([a, b]), keras.ops.relu(a) + b, (a - b) / (a * a + 1.0)])
    x = kl.Concatenate(axis=1)([kl.ELU(0.5)(x), x])
    flat = kl.Concatenate()([combined_vector(kl.Flatten()(x)), kl.GlobalMaxPooling2D()(x)])
    return keras.Model(inputs, kl.Softmax()(kl.Dense(3)(flat)))


def activations():
    names = "gelu selu mish tanh hard_tanh hard_silu softplus softsign sigmoid exponential elu leaky_relu log_softmax"
    x = inputs = keras.Input((3, 3, 2))
    for name in names.split():
        x = kl.Conv2D(3, 1, activation=name)(x)
    return classifier(x, inputs)


NETWORKS = {
    "residual": lambda: residual_network("masked"),
    "by_channel": by_channel,
    "merged": merged,
    "activations": activations,
    "mobile_net": mobile_net,
}


FULL = pytest.param("mobile_net", marks=pytest.mark.full)


@pytest.mark.parametrize("name", [FULL if name == "mobile_net" else name for name in NETWORKS])
def test_onnx_runtime_and_litert_agree(name, tmp_path):
    keras.utils.set_random_seed(1)
    network = NETWORKS[name]()
    disturb(network, 3)
    first, last = (
        onnx_function(trs.export_onnx(network, tmp_path / f"{axis}.onnx", channels_first=axis == "first"), 1)
        for axis in ("first", "last")
    )
    lite = litert_function(trs.export_litert(network, tmp_path / "network.tflite"), 1)
    for count in (1, 3):
        x = images(count, shape=network.input_shape[1:])
        expected = network(x, training=False).numpy()
        atol = 1e-4 * max(1, np.abs(expected).max())
        np.testing.assert_allclose(last(x), expected, atol=atol)
        np.testing.assert_allclose(first(np.ascontiguousarray(x.transpose(0, 3, 1, 2))), expected, atol=atol)
        np.testing.assert_allclose(lite(x), expected, atol=atol)


def test_few_connections_take_few_bytes_and_each_weight_is_stored_once(tmp_path):
    network = trs.models.build("dense_300_100", kernel="masked", seed=0)
    trs.sparsity.MagnitudePruning(0.05).attach(network)
    weights = sum(w.size for w in trs.saving.strip(network).get_weights()) * 4
    x = images(3, shape=(28, 28, 1))
    expected = network(x).numpy()
    written = {}
    for name, sparse in (("dense", False), ("sparse", True)):
        path = trs.export_litert(network, tmp_path / f"{name}.tflite", sparse=sparse)
        np.testing.assert_allclose(litert_function(path, 1)(x), expected, atol=1e-4)
        written[f"lite, {name}"] = path.stat().st_size
        path = trs.export_onnx(network, tmp_path / f"{name}.onnx", sparse=sparse)
        np.testing.assert_allclose(onnx_function(path, 1)(x), expected, atol=1e-4)
        written[f"onnx, {name}"] = path.stat().st_size
    path = trs.export_litert(network, tmp_path / "int8.tflite", int8=images(20, seed=1, shape=(28, 28, 1)))
    assert np.abs(litert_function(path, 1)(x) - expected).max() < 0.05 * np.abs(expected).max()
    assert path.stat().st_size < written["lite, sparse"] < 0.15 * weights and written["onnx, sparse"] < 0.65 * weights
    serve = trs.export_network(network, tmp_path / "serve")
    written["SavedModel"] = sum(file.stat().st_size for file in serve.rglob("*") if file.is_file())
    assert max(written.values()) <= 1.05 * weights, written


def ending(*stack, shape=(8, 8, 3)):
    return keras.Sequential([keras.Input(shape), *stack])


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (lambda: ending(kl.Flatten(), kl.PReLU(name="odd")), "the layer odd of type PReLU"),
        (lambda: ending(kl.Flatten(), kl.Dense(3, keras.activations.celu, name="odd")), "activation celu of odd"),
        (lambda: ending(kl.ReLU(threshold=1.0, name="r")), "Received: r"),
        (lambda: ending(kl.Softmax(axis=1, name="s")), "s is over axis 1"),
        (lambda: classifier(kl.Add()([a := keras.Input((4, 4, 2)), kl.Dense(2)(a)]), a), "acts on the last"),
        (lambda: classifier((a := keras.Input((4, 4, 2))) ** 2.0, a), r"the layer power\w* of type Power"),
        (
            lambda: classifier((a := keras.Input((4, 4, 2))) + np.ones((3, 1, 1, 1)), a),
            r"add.* of shape \(3, 1, 1, 1\)",
        ),
        (lambda: classifier((a := keras.Input((4, 4, 2))) * np.full(2, 1j), a), r"multiply\w* .* type complex128"),
    ],
)
def test_onnx_names_what_it_lacks_before_anything_is_written(network, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        trs.export_onnx(network(), tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


def test_litert_names_what_it_lacks_before_anything_is_written(tmp_path):
    x = inputs = keras.Input((4, 4, 1))
    network = classifier(keras.ops.erfinv(x), inputs)
    with pytest.raises(ValueError, match=r"LiteRT has no operators for all of .*: erfinv\w*$"):
        trs.export_litert(network, tmp_path / "a.tflite")
    with pytest.raises(ValueError, match=r"must end in \.tflite"):
        trs.export_litert(network, tmp_path / "a.onnx")
    for odd in (np.zeros((3, 4, 5, 1)), np.zeros((0, 4, 4, 1)), np.zeros((3, 4, 4, 1), "uint8")):
        with pytest.raises(ValueError, match=r"floating and of shape \(count, 4, 4, 1\)\. Received: "):
            trs.export_litert(network, tmp_path / "a.tflite", int8=odd)
    assert not list(tmp_path.iterdir())
