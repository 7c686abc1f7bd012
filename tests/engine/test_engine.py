"""Plans of random networks against TensorFlow: outputs, and gradients by the images."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_robust_sparse import layers, models
from tf_robust_sparse.engine import library
from tf_robust_sparse.engine.engine import Engine
from tf_robust_sparse.engine.plan import make_plan
from tf_robust_sparse.evaluation import AutoAttack
from tf_robust_sparse.layers.engine_costs import Costs, costs
from tf_robust_sparse.layers.engine_seam import network_nodes, weights_now
from tf_robust_sparse.layers.kernel_seam import inference_logits

pytestmark = pytest.mark.skipif(not library.available(), reason="the kernels are not compiled: no C compiler")

WIDTHS = [width for width in (16, 8, 4) if library.available() and width <= library.library().trs_width()]


def make_engine(network, lanes, gradient=False, width=None, threads=1):
    """The engine of a network, and its weights."""
    nodes = network_nodes(network)
    engine = Engine(make_plan(nodes, lanes, gradient), threads, width)
    return engine, engine.pack(weights_now(network, nodes))


def assert_close(found, expected):
    assert np.abs(found - expected).max() <= 1e-5 * max(np.abs(expected).max(), 1e-30)


def check(network, lanes, gradient, width, images=None):
    """Compares with TensorFlow, the second time on a workspace that is in use."""
    engine, words = make_engine(network, lanes, gradient, width)
    rng = np.random.default_rng(1)
    x = rng.random((images or lanes, *network.input_shape[1:]), np.float32)
    upstream = rng.normal(size=(len(x), network.output_shape[1])).astype(np.float32)
    pixels = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(pixels)
        logits = network(pixels, training=False)
    expected = tape.gradient(logits, pixels, output_gradients=tf.constant(upstream)).numpy()
    for _ in range(2):
        if gradient:
            found, spaces = engine.logits_and_spaces(words, x)
            assert_close(engine.gradient(words, spaces, upstream), expected)
        else:
            found = engine.logits(words, x)
        assert_close(found, logits.numpy())


def sparse_weights(network, density, rng):
    """Sets random weights of which a fraction is not 0; some filters are empty."""
    for layer in network.layers:
        weights = layer.get_weights()
        for place, each in enumerate(weights):
            weights[place] = rng.random(each.shape).astype(np.float32) + 0.1  # variances are positive
            if each.ndim > 1:
                weights[place] = rng.normal(size=each.shape) * (rng.random(each.shape) < density)
        layer.set_weights(weights)


@pytest.mark.parametrize("case", range(200))
def test_a_convolution_of_any_shape_equals_that_of_tensorflow(case):
    """Kernels of 1, 3 and 5, strides, padding, sizes, channels, batches, densities; empty rows and empty kernels."""
    rng = np.random.default_rng(case)
    side, stride = int(rng.choice([1, 3, 5])), int(rng.choice([1, 2]))
    height, width = (int(rng.integers(side, 12)) for _ in range(2))
    channels, filters = int(rng.integers(1, 10)), int(rng.integers(1, 15))
    density = float(rng.choice([0, 0.02, 0.1, 0.3, 0.6, 1]))
    padding = str(rng.choice(["same", "valid", "symmetric"]))
    x = image = keras.Input((height, width, channels))
    if padding == "symmetric":
        x = keras.layers.ZeroPadding2D(side // 2)(x)
    x = keras.layers.Conv2D(filters, side, stride, "same" if padding == "same" else "valid")(x)
    network = keras.Model(image, keras.layers.Flatten()(x))
    sparse_weights(network, density, rng)
    lanes, gradient = [(1, False), (3, False), (16, True), (32, True)][case % 4]
    check(network, lanes, gradient, WIDTHS[case // 4 % len(WIDTHS)])


def branched():
    """Every operation, sums of all kinds, and tensors that are read several times."""
    conv = keras.layers.Conv2D
    image = keras.Input((11, 10, 3))
    x = keras.layers.Rescaling(2.0, -0.5)(image)
    x = keras.layers.LeakyReLU(0.1)(keras.layers.BatchNormalization()(conv(6, 3, padding="same", use_bias=False)(x)))
    left = keras.layers.BatchNormalization()(conv(6, 3, padding="same")(x))
    x = keras.layers.ReLU()(keras.layers.Add()([x, left]))
    x = keras.layers.Add()([x, keras.layers.Dropout(0.5)(x), conv(6, 1)(x)])
    x = keras.layers.Activation("silu")(keras.layers.BatchNormalization()(x))
    x = keras.layers.ReLU(6.0)(keras.layers.Add()([x, conv(6, 3, padding="same", activation="silu")(x)]))
    x = keras.layers.MaxPooling2D(3, 2, padding="same")(x)
    x = keras.layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2, activation="relu6")(x)
    x = keras.layers.SeparableConv2D(8, 3, padding="same", depth_multiplier=2, activation="relu")(x)
    x = conv(8, 3, 2, padding="same", groups=4, activation="relu")(x)
    x = keras.layers.Add()([keras.layers.AveragePooling2D(2, 1, padding="same")(x), x])
    flat = keras.layers.Dense(7, activation="relu")(keras.layers.Reshape((-1,))(x))
    pooled = conv(7, 1, activation="silu")(keras.layers.GlobalAveragePooling2D(keepdims=True)(x))
    x = keras.layers.Add()([flat, keras.layers.Reshape((7,))(keras.ops.silu(pooled))])
    other = keras.layers.Dense(7)(keras.layers.GlobalMaxPooling2D()(keras.layers.MaxPooling2D(2)(image)))
    return keras.Model(image, keras.layers.Dense(5)(keras.layers.Activation("relu")(keras.layers.Add()([x, other]))))


@pytest.mark.parametrize("width", WIDTHS)
def test_silu_is_exact_from_end_to_end(width):
    image = keras.Input((1, 1, 4001))
    network = keras.Model(image, keras.layers.Flatten()(keras.layers.Activation("silu")(image)))
    x = np.tile(np.linspace(-100, 100, 4001, dtype=np.float32), (16, 1, 1, 1))
    engine, words = make_engine(network, 16, True, width)
    found, spaces = engine.logits_and_spaces(words, x)
    slopes = engine.gradient(words, spaces, np.ones_like(found)).ravel()
    exact = x.ravel().astype(np.float64)
    sigmoid = 1 / (1 + np.exp(-exact))
    np.testing.assert_allclose(found.ravel(), exact * sigmoid, rtol=4e-7, atol=1e-35)
    np.testing.assert_allclose(slopes, sigmoid * (1 + exact * (1 - sigmoid)), rtol=1e-6, atol=2e-7)


@pytest.mark.parametrize(
    ("density", "width"),
    [
        pytest.param(*each, marks=pytest.mark.full if each in itertools.product((1.0,), WIDTHS[1:]) else ())
        for each in itertools.product((0.3, 1.0), WIDTHS)
    ],
)
def test_networks_of_all_operations_equal_tensorflow(density, width):
    network = branched()
    sparse_weights(network, density, np.random.default_rng(1))  # with 0 an image has a value on the edge of ReLU6
    for lanes, gradient, images in ((1, False, 3), (5, False, 5), (16, True, 21), (32, True, 32)):
        check(network, lanes, gradient, width, images)


def test_threads_and_another_run_change_nothing():
    network = branched()
    sparse_weights(network, 0.3, np.random.default_rng(0))
    x = np.random.default_rng(1).random((70, 11, 10, 3), np.float32)
    results = []
    for threads in (1, 3, 3):
        engine, words = make_engine(network, 16, True, threads=threads)
        logits, spaces = engine.logits_and_spaces(words, x)
        results.append((logits, engine.gradient(words, spaces, logits), words))
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(one, two)


def test_parts_of_the_input_channels_change_nothing(monkeypatch):
    """Many channels: the sums of a tile are stored and loaded again between parts of them."""
    image = keras.Input((9, 8, 40))
    x = keras.layers.Conv2D(50, 3, 2, padding="same", activation="relu")(image)
    network = keras.Model(image, keras.layers.Flatten()(keras.layers.Conv2D(30, 3, padding="same")(x)))
    sparse_weights(network, 0.3, np.random.default_rng(0))
    check(network, 16, True, None)
    x = np.random.default_rng(1).random((16, 9, 8, 40), np.float32)
    found = []
    for limit in (8192, 10**9, 1):
        monkeypatch.setattr("tf_robust_sparse.engine.plan._FIRST_LEVEL", limit)
        engine, words = make_engine(network, 16, True)
        logits, spaces = engine.logits_and_spaces(words, x)
        found.append((len(words), logits, engine.gradient(words, spaces, logits)))
    assert found[2][0] > found[0][0] > found[1][0]
    for other in found[1:]:
        for one, two in zip(found[0][1:], other[1:], strict=True):
            assert_close(two, one)


def test_kernels_of_another_version_are_not_used(monkeypatch):
    monkeypatch.setattr(library, "_VERSION", -1)
    library.library.cache_clear()
    assert not library.available()
    library.library.cache_clear()


def test_lists_and_blocks_of_a_kernel_agree(monkeypatch):
    network = branched()
    sparse_weights(network, 0.5, np.random.default_rng(0))
    x = np.random.default_rng(1).random((16, 11, 10, 3), np.float32)
    found = []
    for limit in (0.0, 2.0):
        monkeypatch.setattr("tf_robust_sparse.engine.matrices.BLOCKED_FROM", limit)
        engine, words = make_engine(network, 16)
        found.append(engine.logits(words, x))
    assert_close(*found)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x: keras.layers.Dense(3)(x), "last of several axes"),
        (lambda x: keras.layers.LayerNormalization(name="norm")(x), "does not know the layer norm"),
        (lambda x: keras.layers.Conv2D(2, 3, activation="gelu", name="first")(x), "gelu of the layer first"),
        (lambda x: keras.layers.Add()([x, keras.layers.ZeroPadding2D(0)(x)]), "must go into a convolution"),
        (lambda x: keras.ops.relu(x) + 3.0, "the layer add.* adds a constant or"),
        (
            lambda x: keras.layers.Add(name="a")([x, keras.layers.AveragePooling2D(6)(x)]),
            "the layer a adds a constant or",
        ),
    ],
)
def test_what_the_engine_does_not_know_is_named(make, message):
    image = keras.Input((6, 6, 3))
    network = keras.Model(image, keras.layers.Flatten()(make(image)))
    with pytest.raises(ValueError, match=message):
        make_plan(network_nodes(network), 1)


def test_gradients_need_whole_vectors_of_images():
    with pytest.raises(ValueError, match=r"multiple of 16 images\. Received: lanes=3"):
        make_plan(network_nodes(branched()), 3, gradient=True)


def test_a_forward_pass_uses_buffers_again():
    network = keras.Sequential(
        [keras.Input((8, 8, 16)), *(keras.layers.Conv2D(16, 3, padding="same", activation="relu") for _ in range(9))]
    )
    network = keras.Model(network.inputs, keras.layers.Flatten()(network.outputs[0]))
    whole, alone = (make_plan(network_nodes(network), 16, gradient=wanted).space for wanted in (True, False))
    assert alone < whole / 3


def test_the_seam_computes_attacks_and_evaluation(monkeypatch):
    """Inside `folded_kernels` the engine stands in for the network, outside and after other kernels it does not."""
    monkeypatch.setattr(Costs, "is_faster", lambda *given: True)
    network = branched()
    sparse_weights(network, 0.5, np.random.default_rng(0))
    x = tf.constant(np.random.default_rng(1).random((20, 11, 10, 3), np.float32))

    @tf.function(autograph=False)
    def both(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            logits = inference_logits(network, x)
        return logits, tape.gradient(logits, x)

    @tf.function(autograph=False)
    def inside(x):
        with layers.folded_kernels(network):
            return both.python_function(x)

    for found, expected in zip(inside(x), both(x), strict=True):
        assert_close(found.numpy(), expected.numpy())
    operations = {op.type for f in (inside, both) for op in f.get_concrete_function(x).graph.get_operations()}
    assert "PyFuncStateless" in operations
    assert "PyFunc" not in {op.type[:6] for op in both.get_concrete_function(x).graph.get_operations()}
    with layers.folded_kernels(network):
        eager = inference_logits(network, x)
        with layers.cached_kernels(network):
            np.testing.assert_array_equal(inference_logits(network, x), network(x, training=False))
    assert_close(eager.numpy(), both(x)[0].numpy())


def test_a_gradient_whose_activations_made_room_is_computed_again(monkeypatch):
    monkeypatch.setattr(Costs, "is_faster", lambda *given: True)
    network = branched()
    x = tf.constant(np.random.default_rng(1).random((20, 11, 10, 3), np.float32))
    with layers.folded_kernels(network), tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        first = inference_logits(network, x)
        for _ in range(4):
            inference_logits(network, x)
    found = [tape.gradient(first, x) for _ in range(2)]
    with tf.GradientTape() as tape:
        tape.watch(x)
        logits = network(x, training=False)
    expected = tape.gradient(logits, x).numpy()
    for each in found:
        assert_close(each.numpy(), expected)


def test_without_kernels_one_line_says_what_is_missing():
    assert "\n" not in library.MISSING and "compiler" in library.MISSING


def test_the_engine_is_used_where_it_is_estimated_to_be_faster():
    """Sparse networks in attacks, and in one pass if the batch is large; not a few images, nor tiny networks."""
    network = models.build("small_cnn", kernel="rewiring", connectivity=0.1, seed=0)
    sparse = costs(network_nodes(network), {layer.name: 0.1 for layer in network.layers})
    dense = costs(network_nodes(network), {layer.name: 1.0 for layer in network.layers})
    assert sparse.lane < dense.lane and sparse.image == dense.image and sparse.packing < dense.packing
    assert sparse.is_faster(64, 16, 2, repeated=True)
    assert not sparse.is_faster(1, 16, 2, repeated=True)
    assert not sparse.is_faster(16, 16, 2, repeated=False)
    assert not sparse.is_faster(64, 16, 64, repeated=True)  # TensorFlow has a thread for each image
    network = models.build("dense_300_100", seed=0)
    tiny = costs(network_nodes(network), {layer.name: 1.0 for layer in network.layers})
    assert not tiny.is_faster(64, 16, 2, repeated=True)


def test_an_attack_gives_the_same_verdicts_with_and_without_the_engine(monkeypatch):
    monkeypatch.setattr(Costs, "is_faster", lambda *given: True)
    image = keras.Input((6, 6, 1))
    x = keras.layers.Conv2D(8, 3, 2, activation="relu")(image)
    network = keras.Model(image, keras.layers.Dense(4)(keras.layers.Flatten()(x)))
    sparse_weights(network, 0.5, np.random.default_rng(0))
    pixels = np.random.default_rng(1).random((40, 6, 6, 1), np.float32)
    labels = network.predict(pixels, verbose=0).argmax(1)
    verdicts = []
    for setting in ("1", "0"):
        monkeypatch.setenv("TRS_ENGINE", setting)
        attack = AutoAttack(network, epsilon=0.04, version="custom", attacks=["apgd-ce"], batch_size=40, verbose=False)
        verdicts.append(attack.run_standard_evaluation(pixels, labels)["broken_by"])
    assert 0 < np.mean(verdicts[0] == -1) < 1
    np.testing.assert_array_equal(*verdicts)
