"""Bounds with golden numbers, and those that are exact: of linear networks, without a radius, on a grid."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.certify.bounded_networks import GOLDEN, LABEL, METHODS, POINT, random_dense, true_margins
from tf_robust_sparse import certify
from tf_robust_sparse.certify import bounds
from tf_robust_sparse.certify.bound_graph import bound_graph


@pytest.mark.parametrize(
    ("method", "slope", "expected"),
    [
        ("ibp", "adaptive", -3.1),
        ("crown-ibp", "adaptive", -0.8277778),
        ("crown-ibp", "zero-lb", -2.6333333),
        ("crown-ibp", "same-slope", -1.0569444),
        ("crown", "adaptive", -0.6807692),
        ("zonotope", "adaptive", -0.6870370),
    ],
)
def test_golden_dense_network(method, slope, expected):
    found = bounds.training_margins(GOLDEN, POINT, LABEL, 0.2, method, slope=slope)
    np.testing.assert_allclose(found, [[expected]], atol=1e-5)


@pytest.mark.parametrize(
    ("method", "slope", "upper"),
    [
        ("crown-ibp", "adaptive", 3.2),
        ("crown-ibp", "zero-lb", 4.35),
        ("crown-ibp", "same-slope", 2.9041667),
        ("crown", "adaptive", 2.95),
        ("zonotope", "adaptive", 2.6444444),
    ],
)
def test_golden_upper_bounds_are_lower_bounds_of_the_negated_rows(method, slope, upper):
    steps = bound_graph(GOLDEN)
    around = bounds.ball(POINT, 0.2)
    intervals = bounds.interval_bounds(steps, around)
    if method != "crown-ibp":
        slope = "same-slope" if method == "zonotope" else slope
        intervals = bounds.crown_intervals(steps, around, None, slope, 7)
    rows = -bounds.specification(LABEL, 2)
    lower = bounds.linear_lower_bounds(steps, len(steps) - 1, rows, intervals, around, slope)
    np.testing.assert_allclose(-lower, [[upper]], atol=1e-5)


def test_golden_intervals():
    steps = bound_graph(GOLDEN)
    found = bounds.interval_bounds(steps, bounds.ball(POINT, 0.2))
    np.testing.assert_allclose(found["dense0"].lower, [[-0.2, 0.1]], atol=1e-6)
    np.testing.assert_allclose(found["dense0"].upper, [[0.6, 1.3]], atol=1e-6)
    np.testing.assert_allclose(found["dense1"].lower, [[-0.4, -0.25]], atol=1e-6)
    np.testing.assert_allclose(found["dense1"].upper, [[1.4, 1.55]], atol=1e-6)


def conv_network(padding, batch_norm=False):
    x = inputs = keras.Input((4, 4, 1))
    if padding == "symmetric":
        x = keras.layers.ZeroPadding2D(1)(x)
    conv = keras.layers.Conv2D(2, 3, strides=2, padding="same" if padding == "same" else "valid")
    x = conv(x)
    if batch_norm:
        norm = keras.layers.BatchNormalization(epsilon=1e-5)
        x = norm(x)
    x = keras.layers.Flatten()(keras.layers.ReLU()(x))
    dense = keras.layers.Dense(3)
    network = keras.Model(inputs, dense(x))
    n = np.arange(18)
    conv.set_weights(
        [(((7 * n % 11) - 5) / 10).reshape(3, 3, 1, 2).astype("float32"), np.array([0.1, -0.1], "float32")]
    )
    n = np.arange(24)
    dense.set_weights([(((5 * n % 13) - 6) / 10).reshape(8, 3).astype("float32"), np.array([0, 0.1, -0.1], "float32")])
    if batch_norm:
        norm.set_weights([np.array(v, "float32") for v in ([1.2, 0.8], [0.05, -0.05], [0.1, -0.2], [0.5, 2])])
    h, w = np.mgrid[:4, :4]
    return network, tf.constant((((3 * h + 5 * w) % 7) / 7).reshape(1, 4, 4, 1), tf.float32)


@pytest.mark.parametrize(
    ("padding", "batch_norm", "logits", "expected"),
    [
        (
            "symmetric",
            False,
            (-0.291429, 0.267143, 0.005714),
            {("ibp", "adaptive"): (-0.177429, -0.380571), ("crown-ibp", "adaptive"): (0.079820, -0.065541)},
        ),
        (
            "same",
            False,
            (-0.245714, 0.14, 0.058571),
            {
                ("ibp", "adaptive"): (-0.028, -0.309571),
                ("crown-ibp", "adaptive"): (0.096143, -0.190653),
                ("crown-ibp", "zero-lb"): (0.076857, -0.189316),
                ("crown-ibp", "same-slope"): (0.110028, -0.168436),
            },
        ),
        (
            "symmetric",
            True,
            (-0.218343, 0.284907, -0.142172),
            {
                ("ibp", "adaptive"): (-0.328976, -0.306043),
                ("crown-ibp", "adaptive"): (-0.102584, -0.094477),
                ("crown-ibp", "zero-lb"): (-0.215264, -0.094477),
            },
        ),
    ],
)
def test_golden_convolutional_network(padding, batch_norm, logits, expected):
    network, x = conv_network(padding, batch_norm)
    np.testing.assert_allclose(network(x, training=False), [logits], atol=2e-5)
    for (method, slope), margins in expected.items():
        found = bounds.training_margins(network, x, tf.constant([1]), 0.1, method, slope=slope)
        np.testing.assert_allclose(found, [margins], atol=2e-5)


def test_of_a_linear_network_linear_bounds_are_exact():
    network, kernels, _ = random_dense((6, 8, 7, 4), 0, relu=False)
    x, y = np.random.default_rng(0).random((5, 6)).astype("float32") * 0.5 + 0.25, np.arange(5) % 4
    collapsed = kernels[2] @ kernels[1] @ kernels[0]
    rows = bounds.specification(tf.constant(y), 4).numpy()
    exact = true_margins(network, x, y) - 0.1 * np.abs(rows @ collapsed).sum(-1)
    for method in ("crown-ibp", "crown", "zonotope"):
        np.testing.assert_allclose(bounds.training_margins(network, x, y, 0.1, method), exact, atol=1e-4)
    assert (certify.margins(network, x, tf.constant(y), 0.1, "ibp").numpy() <= exact + 1e-4).all()


def test_of_neurons_that_are_always_on_linear_bounds_are_exact():
    network, kernels, _ = random_dense((5, 6, 3), 1, bias=30.0)
    x, y = np.full((2, 5), 0.5, "float32"), np.array([0, 2])
    rows = bounds.specification(tf.constant(y), 3).numpy()
    exact = true_margins(network, x, y) - 0.2 * np.abs(rows @ kernels[1] @ kernels[0]).sum(-1)
    for method, slope in METHODS[1:]:
        found = bounds.training_margins(network, x, tf.constant(y), 0.2, method, slope=slope)
        np.testing.assert_allclose(found, exact, atol=1e-4)


def zonotope_margins(kernels, biases, x, y, epsilon):
    """Symbolic intervals carried forward, in NumPy: center, generators, one fresh error per undecided neuron."""
    lower, upper = np.maximum(x - epsilon, 0), np.minimum(x + epsilon, 1)
    center, generators = (lower + upper) / 2, np.diag((upper - lower) / 2)
    for number, (kernel, bias) in enumerate(zip(kernels, biases, strict=True)):
        center, generators = kernel @ center + bias, kernel @ generators
        if number == len(kernels) - 1:
            break
        radius = np.abs(generators).sum(1)
        low, high = np.minimum(center - radius, 0), np.maximum(center + radius, 0)
        slope = np.where(high > low, high / np.maximum(high - low, 1e-30), 0)
        slope = np.where(center - radius >= 0, 1.0, np.where(center + radius <= 0, 0.0, slope))
        error = np.where((low < 0) & (high > 0), -slope * low / 2, 0)
        center = slope * center + error
        generators = np.concatenate([slope[:, None] * generators, np.diag(error)], axis=1)
    others = [j for j in range(len(center)) if j != y]
    return [center[y] - center[j] - np.abs(generators[y] - generators[j]).sum() for j in others]


def test_parallel_lines_are_symbolic_intervals():
    for seed in range(3):
        network, kernels, biases = random_dense((5, 9, 8, 7, 4), seed, bias=0.0)
        x = np.random.default_rng(seed).random((3, 5)).astype("float32")
        y = np.array([0, 3, 1])
        expected = [zonotope_margins(kernels, biases, *each, 0.05) for each in zip(x, y, strict=True)]
        found = bounds.training_margins(network, x, tf.constant(y), 0.05, "zonotope", chunk=4)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_exhaustively_on_a_grid():
    grid = np.stack(np.meshgrid(*[np.linspace(-0.1, 0.1, 401)] * 2), -1).reshape(-1, 2)
    network, _, _ = random_dense((2, 12, 12, 3), 5, bias=0.0)
    x, y = np.array([[0.4, 0.6]], "float32"), np.array([1])
    smallest = true_margins(network, (x + grid).astype("float32"), np.full(len(grid), 1)).min(0)
    for method, slope in METHODS:  # all of them: nothing else is as sharp a test of soundness
        found = certify.margins(network, x, tf.constant(y), 0.1, method, slope=slope).numpy()[0]
        assert (found <= smallest).all()
    assert (smallest - certify.margins(network, x, tf.constant(y), 0.1, "crown").numpy()[0]).max() < 3
