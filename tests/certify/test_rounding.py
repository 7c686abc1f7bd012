"""Certificates hold for float32: no image of the ball that the float32 network gets wrong is inside a verified ball."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_robust_sparse import certify
from tf_robust_sparse.certify import bounds, rounding
from tf_robust_sparse.certify.bound_graph import Linear, Step, Sum, Window, bound_graph

METHODS = ("ibp", "crown-ibp", "crown", "alpha-crown", "zonotope")


def full(*values):
    return [pytest.param(value, marks=pytest.mark.full) for value in values]


def linear_network(seed, size=28):
    """Weights N(0, 1), as an array too."""
    kernel = np.random.default_rng(seed).normal(size=(size * size, 10)).astype("float32")
    network = keras.Sequential([keras.Input((size, size, 1)), keras.layers.Flatten(), keras.layers.Dense(10)])
    network.layers[-1].set_weights([kernel, np.zeros(10, "float32")])
    return network, kernel.astype("float64")


def exact_radii(kernel, x, y):
    """Returns the radius at which the first other class is as high, and that class, by bisection in float64."""
    rows = kernel[:, [y]] - kernel
    flat, low, high = x.reshape(-1, 1).astype("float64"), np.zeros(10), np.ones(10)
    for _ in range(60):
        middle = (low + high) / 2
        margins = (rows * np.clip(flat - middle * np.sign(rows), 0, 1)).sum(0)
        low, high = np.where(margins > 0, middle, low), np.where(margins > 0, high, middle)
    low[y] = 1
    return low.min(), low.argmin()


def inside(x, epsilon, direction):
    """Returns the float32 image at the corner of the ball, no pixel of it farther than `epsilon` in real numbers."""
    found = np.clip(x.astype("float64") + epsilon * np.sign(direction), 0, 1).astype("float32")
    return np.where(np.abs(found.astype("float64") - x) > epsilon, np.nextafter(found, x), found)


@pytest.mark.parametrize("method", ["ibp", "crown", *full("crown-ibp", "alpha-crown", "zonotope")])
def test_no_linear_network_is_verified_beyond_its_radius(method, request):
    images = 200 if request.config.getoption("-m") == "full" else 40
    network, kernel = linear_network(0)
    x = np.random.default_rng(1).random((images, 28, 28, 1), "float32")
    y = network(x).numpy().argmax(1)
    wrong = violations = 0
    for image, label in zip(x, y, strict=True):
        radius, other = exact_radii(kernel, image, label)
        for beyond in (1e-7, 1e-5):
            epsilon = float(radius * (1 + beyond))
            worst = inside(image, epsilon, (kernel[:, other] - kernel[:, label]).reshape(image.shape))
            is_wrong = network(worst[np.newaxis]).numpy().argmax() != label
            wrong += is_wrong
            if is_wrong:
                verified = certify.Verifier(epsilon, method, tight=False)(network, image[np.newaxis], [label])
                violations += bool(verified[0])
    assert wrong > images / 2 and violations == 0


def relu_network(scale):
    """Convolution, batch norm, ReLU, dense, ReLU, dense; all weights times `scale`."""
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False)(x)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    x = keras.layers.Dense(32, activation="relu")(keras.layers.Flatten()(x))
    network = keras.Model(inputs, keras.layers.Dense(4)(x))
    random = np.random.default_rng(3)
    for weight in network.weights:
        if "variance" in weight.path:
            weight.assign(random.uniform(0.5, 2, weight.shape) * scale**2)
        else:
            spread = 1.0 if "kernel" in weight.path or "gamma" in weight.path else 0.1
            weight.assign(random.normal(size=weight.shape) * spread * scale)
    return network


@pytest.mark.parametrize(
    ("scale", "method"),
    [
        *((1e4, method) for method in ("ibp", "crown-ibp")),
        *(
            pytest.param(scale, method, marks=pytest.mark.full)
            for scale in (1e-3, 1.0, 30.0, 1e4)
            for method in METHODS
            # Optimized slopes take a minute, so for one scale only.
            if (scale, method) not in ((1e4, "ibp"), (1e4, "crown-ibp")) and (method != "alpha-crown" or scale == 1)
        ),
    ],
)
def test_no_relu_network_is_verified_where_a_corner_is_wrong(scale, method):
    """Images close to where two classes meet, whose balls are so small that linear bounds are exact up to rounding."""
    network = relu_network(scale)
    random = np.random.default_rng(4)
    both = np.float32(0.1) + random.integers(0, 2, (2, 24, 8, 8, 3)).astype("float32") * np.float32(0.8)
    bias = network.layers[-1].bias
    bias.assign(bias - tf.reduce_mean(network(both.reshape(-1, 8, 8, 3), training=False), 0))  # no class always wins
    first, second = both
    y, others = (network(each, training=False).numpy().argmax(1) for each in (first, second))
    first, second, y = (each[y != others] for each in (first, second, y))
    low, high = np.zeros((len(y), 1, 1, 1)), np.ones((len(y), 1, 1, 1))
    for _ in range(40):
        middle = (low + high) / 2
        stays = network(first + (middle * (second - first)).astype("float32"), training=False).numpy().argmax(1) == y
        stays = stays[:, None, None, None]
        low, high = np.where(stays, middle, low), np.where(stays, high, middle)
    wrong = 0
    for back in (1e-3, 1e-4):
        x = first + ((low - back) * (second - first)).astype("float32")
        with tf.GradientTape() as tape:
            tape.watch(points := tf.constant(x))
            logits = network(points, training=False)
            own = tf.gather(logits, y, batch_dims=1)
            margin = own - tf.reduce_max(tf.where(tf.one_hot(y, 4) > 0, -np.inf, logits), 1)
        gradient = tape.gradient(margin, points).numpy()
        for i, radius in enumerate(margin.numpy() / np.abs(gradient).sum((1, 2, 3))):
            for beyond in (-1e-6, 1e-6, 1e-4):
                epsilon = float(radius * (1 + beyond))
                worst = inside(x[i], epsilon, -gradient[i])
                if epsilon > 0 and network(worst[np.newaxis], training=False).numpy().argmax() != y[i]:
                    wrong += 1
                    assert not certify.Verifier(epsilon, method, tight=False)(network, x[i : i + 1], y[i : i + 1])[0]
    assert wrong > 10


@pytest.mark.full
def test_how_tight_certificates_of_linear_networks_are():
    """Half hold at 0.996 of the exact radius. At 0.9999 none could: some order of the sums gives another class."""
    network, kernel = linear_network(0)
    x = np.random.default_rng(1).random((40, 28, 28, 1), "float32")
    y = network(x).numpy().argmax(1)
    verified = 0
    for image, label in zip(x, y, strict=True):
        radius, other = exact_radii(kernel, image, label)
        verified += bool(certify.Verifier(float(0.996 * radius), "ibp")(network, image[np.newaxis], [label])[0])
        worst = inside(image, 0.9999 * radius, (kernel[:, other] - kernel[:, label]).reshape(image.shape))
        own, others = kernel.astype("float32")[:, [label, other]].T * worst.ravel()
        assert extreme_sum(own, -1) <= extreme_sum(others, 1)
    assert verified >= 20


def extreme_sum(products, sign):
    """Returns the float32 sum in a greedy order: always the next product whose addition rounds farthest to one side."""
    total = np.float32(0)
    for left in (products[products > 0], products[products <= 0]):
        while len(left):
            sums = total + left
            best = np.argmax(sign * (sums.astype("float64") - (float(total) + left.astype("float64"))))
            total, left = sums[best], np.delete(left, best)
    return total


def test_the_errors_hold_for_any_order_of_a_sum():
    """The logits of one image stay inside their intervals, whatever the order of the sums."""
    random = np.random.default_rng(0)
    network, kernel = linear_network(5, size=12)
    steps = bound_graph(network)
    x = random.random((1, 12, 12, 1), "float32")
    around = bounds.ball(x, 0.0, rounding=bounds.Rounding(steps))
    lower, upper = (side.numpy()[0] for side in bounds.interval_bounds(steps, around)[steps[-1].name])
    products = kernel.astype("float32") * x.reshape(-1, 1)
    for column, least, most in zip(products.T, lower, upper, strict=True):
        found = [extreme_sum(column, -1), extreme_sum(column, 1), np.cumsum(np.sort(column), dtype=np.float32)[-1]]
        assert least <= min(found) and max(found) <= most
        assert most - least < 1e-3 * np.abs(column).sum()


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_the_ball_is_rounded_outward(norm):
    x = np.random.default_rng(0).random((1, 5, 5, 3), "float32")
    for epsilon in (1e-9, 2 / 255, 0.3, np.float32(0.1)):
        around = bounds.ball(x, epsilon, norm, rounding=bounds.Rounding([Step("x", None, (), (5, 5, 3))]))
        exact = x.astype("float64"), np.float64(epsilon)
        lower, upper = around.lower.numpy(), around.upper.numpy()
        assert (lower <= np.maximum(exact[0] - exact[1], 0)).all() and (
            upper >= np.minimum(exact[0] + exact[1], 1)
        ).all()
        assert (lower <= x - np.float32(epsilon)).all() or (lower == 0).any()
        assert float(around.radius) >= exact[1]
        assert np.abs(upper - np.minimum(exact[0] + exact[1], 1)).max() < 2e-7 + 1e-4 * epsilon * (norm != "Linf")


def test_no_sum_of_coefficients_has_more_than_two_terms():
    def step(name, *inputs):
        return Step(name, Sum(), inputs, (1,))

    before = [step("a"), step("b", "a"), step("c", "a", "b"), step("d", "a", "a", "c")]
    found = rounding.with_pairs_of_readers(before)
    readers = [name for each in found for name in each.inputs]
    assert max(map(readers.count, readers)) == 2
    assert [each.name for each in found] == ["a", "a/copy0", "a/copy1", "b", "c", "d"]
    assert found[-1].inputs == ("a/copy1", "a/copy1", "c") and rounding.with_pairs_of_readers(before[:3]) == before[:3]


def test_products_with_pruned_connections_are_not_counted():
    kernel = np.zeros((3, 3, 4, 5), "float32")
    kernel[1, 1, :2] = kernel[0, 0, :2] = 1
    for stride, back in ((1, 10), (2, 10), (3, 5)):
        rule = Linear(
            tf.identity, tf.identity, None, False, Window(tf.identity, (3, 3), (stride, stride)), tf.constant(kernel)
        )
        found = rounding._terms(rule)
        assert found[0].numpy().tolist() == [4] * 5 and float(found[1]) == back


def test_a_gpu_that_drops_digits_is_refused(monkeypatch):
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind=None: ["GPU:0"])
    network, _ = linear_network(0)
    with pytest.raises(ValueError, match=r"TF32; call .*enable_tensor_float_32_execution\(False\)"):
        certify.margins(network, np.zeros((1, 28, 28, 1), "float32"), [0], 0.1, "ibp")
