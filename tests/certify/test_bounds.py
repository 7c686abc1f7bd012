"""Bounds of neurons and margins: soundness, order, gradients, and what has none."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.certify.bounded_networks import GOLDEN, LABEL, METHODS, POINT, random_dense, true_margins
from tests.saving.networks import disturb, residual_network
from tf_robust_sparse import certify, layers, models
from tf_robust_sparse.certify import backward, bounds
from tf_robust_sparse.certify.bound_graph import bound_graph


def pooled_network():
    x = inputs = keras.Input((8, 8, 3))
    x = keras.layers.Rescaling(2.0, offset=-1.0)(x)
    x = layers.PlainConv2D(6, 3, padding="same", activation="relu")(x)
    x = keras.layers.MaxPooling2D(2)(x)
    x = layers.PlainConv2D(6, 3, strides=2, padding="same")(x)
    x = keras.layers.Activation("relu")(x)
    x = keras.layers.AveragePooling2D(2)(keras.layers.Dropout(0.5)(x))
    x = keras.layers.Reshape((6,))(x)
    return keras.Model(inputs, layers.PlainDense(5)(x))


def network_named(name):
    keras.utils.set_random_seed(3)
    if name == "pooled":
        return pooled_network()
    if name.startswith("residual"):
        return disturbed(residual_network(name.partition("-")[2]))
    return models.build(name, num_classes=5, input_shape=(8, 8, 3), kernel="subnet", connectivity=0.4, seed=1)


def disturbed(network):
    disturb(network, 1)
    return network


NETWORKS = ["pooled", "small_cnn", "residual-plain", "residual-rewiring", "residual-masked", "residual-subnet"]


# A parametrization shows in the linear maps alone, which all methods and norms share: one norm for each form.
@pytest.mark.parametrize(
    ("name", "norm"),
    [
        *(("pooled", "Linf"), ("small_cnn", "L2")),
        pytest.param("pooled", "L1", marks=pytest.mark.full),
        *(pytest.param("small_cnn", norm, marks=pytest.mark.full) for norm in ("Linf", "L1")),
        pytest.param("pooled", "L2", marks=pytest.mark.full),
        pytest.param("residual-plain", "Linf", marks=pytest.mark.full),
        ("residual-rewiring", "L1"),
        pytest.param("residual-masked", "L2", marks=pytest.mark.full),
        pytest.param("residual-subnet", "L2", marks=pytest.mark.full),
    ],
)
def test_no_point_of_the_ball_is_below_its_bound(name, norm):
    network, random = network_named(name), np.random.default_rng(0)
    x = random.random((2, 8, 8, 3)).astype("float32")
    y = network(x, training=False).numpy().argmax(1)
    epsilon = {"Linf": 0.03, "L2": 0.2, "L1": 1.0}[norm]
    noise = random.normal(size=(400, *x.shape))
    axes = (2, 3, 4)
    if norm == "Linf":
        noise = np.concatenate([random.uniform(-1, 1, noise.shape), np.sign(noise)]) * epsilon
    elif norm == "L2":
        noise = noise / np.sqrt((noise**2).sum(axes, keepdims=True)) * epsilon
    else:
        noise = noise / np.abs(noise).sum(axes, keepdims=True) * epsilon
    points = np.clip(x + noise, 0, 1).astype("float32")
    smallest = true_margins(network, points.reshape(-1, 8, 8, 3), np.tile(y, len(points))).reshape(len(points), 2, -1)
    smallest = smallest.min(0)
    some, many = METHODS[::4], METHODS[1:3] + METHODS[::4]
    for method, slope in {"pooled": METHODS, "residual-plain": many}.get(name, some) if norm == "Linf" else some:
        for tight in (False, True) if (method, slope) in some else (False,):
            found = certify.margins(network, x, tf.constant(y), epsilon, method, slope=slope, norm=norm, tight=tight)
            assert found.shape == (2, 4)
            assert (found.numpy() <= smallest + 1e-5).all(), (method, slope, tight)


@pytest.mark.parametrize("name", ["pooled", pytest.param("small_cnn", marks=pytest.mark.full), "residual-rewiring"])
def test_every_neuron_is_inside_its_bounds(name):
    network, random = network_named(name), np.random.default_rng(1)
    x = random.random((1, 8, 8, 3)).astype("float32")
    steps, around = bound_graph(network), bounds.ball(x, 0.05)
    intervals = bounds.interval_bounds(steps, around)
    linear = bounds.crown_intervals(steps, around, None, "adaptive", 50)
    points = np.clip(x + random.uniform(-0.05, 0.05, (300, 8, 8, 3)), 0, 1).astype("float32")
    for layer in network.layers[1:]:
        if layer.name not in intervals:
            continue
        activation = getattr(layer, "activation", None)
        if activation not in (None, keras.activations.linear):
            continue
        values = keras.Model(network.input, layer.output)(points, training=False).numpy()
        for found in (intervals, linear):
            if layer.name in found:
                assert (values >= found[layer.name].lower.numpy() - 1e-4).all()
                assert (values <= found[layer.name].upper.numpy() + 1e-4).all()


@pytest.mark.parametrize("name", NETWORKS)
def test_intervals_of_linear_steps_are_the_values_at_their_corners(name):
    steps = bound_graph(network_named(name))
    x = np.random.default_rng(2).random((2, 8, 8, 3)).astype("float32")
    intervals = bounds.interval_bounds(steps, bounds.ball(x, 0.05))
    linear = [step for step in steps if isinstance(step.rule, bounds.Linear)]
    for step in linear:
        (lower, upper), found = intervals[step.inputs[0]], intervals[step.name]
        apply, absolute, bias = step.rule[:3]
        # Positive coefficients times one side, negative ones times the other.
        least = (apply(lower) + absolute(lower) + apply(upper) - absolute(upper)) / 2
        most = (apply(upper) + absolute(upper) + apply(lower) - absolute(lower)) / 2
        for side, expected in zip(found, (least, most), strict=True):
            np.testing.assert_allclose(side, expected + (0 if bias is None else bias), rtol=1e-4, atol=1e-5)
        if apply is absolute:  # reshaped, padded or averaged, without rounding of a center and a radius
            np.testing.assert_array_equal(found.lower, apply(lower))
            np.testing.assert_array_equal(found.upper, apply(upper))
    assert any(step.rule.apply is step.rule.absolute for step in linear)
    assert any(step.rule.apply is not step.rule.absolute for step in linear)


@pytest.mark.parametrize("name", NETWORKS)
def test_without_a_radius_the_margin_is_exact(name):
    network = network_named(name)
    x = np.random.default_rng(0).random((3, 8, 8, 3)).astype("float32")
    y = np.array([0, 4, 2])
    expected = true_margins(network, x, y)
    for method, slope in METHODS if name == "pooled" else [("ibp", "adaptive"), ("crown-ibp", "adaptive")]:
        found = bounds.training_margins(network, x, tf.constant(y), 0.0, method, slope=slope)
        np.testing.assert_allclose(found, expected, atol=2e-5, err_msg=f"{method}, {slope}")


def test_order_of_the_methods():
    for seed in range(12):
        network, _, _ = random_dense((4, 10, 10, 3), seed, bias=0.0)
        x, y = np.random.default_rng(seed).random((2, 4)).astype("float32"), tf.constant([0, 1])

        def found(method, epsilon=0.1, network=network, x=x, y=y, **more):
            return certify.margins(network, x, y, epsilon, method, **more).numpy()

        by_interval = found("ibp")
        assert (found("crown-ibp", slope="zero-lb") >= by_interval - 1e-4).all()
        best = found("crown-ibp", tight=True)
        assert (best >= by_interval - 1e-5).all() and (best >= found("crown-ibp") - 1e-4).all()
        assert (found("ibp", 0.2) <= by_interval + 1e-5).all()


@pytest.mark.full
def test_moved_slopes_are_never_worse_and_often_better():
    gains = []
    for seed in range(2):
        network, _, _ = random_dense((4, 12, 12, 3), seed, bias=0.0)
        x, y = np.random.default_rng(seed).random((2, 4)).astype("float32"), tf.constant([0, 1])
        fixed, moved = (certify.margins(network, x, y, 0.1, method).numpy() for method in ("crown", "alpha-crown"))
        assert (moved >= fixed - 1e-6).all()
        gains.append((moved - fixed).mean())
    assert np.mean(gains) > 0.01


def test_moved_slopes_tighten_neurons_between_and_the_margins():
    network, _, _ = random_dense((4, 12, 12, 3), 2, bias=0.0)
    x, y = np.random.default_rng(0).random((2, 4)).astype("float32"), tf.range(2) % 3
    steps, around = bound_graph(network), bounds.ball(x, 0.1)
    fixed = bounds.crown_intervals(steps, around, None, "adaptive", 4096)
    moved = bounds.crown_intervals(steps, around, fixed, "adaptive", 24, moved=True)  # in two parts
    for number, name in enumerate(fixed):
        gained = [moved[name].lower - fixed[name].lower, fixed[name].upper - moved[name].upper]
        assert np.min(gained) >= 0
        assert (np.max(gained) > 0.01) == (number > 0)  # behind the first linear map there is no slope to move
    last, both = (
        certify.margins(network, x, y, 0.1, "alpha-crown", optimize_intermediate=choice).numpy()
        for choice in (False, True)
    )
    assert (both >= last).all() and (both - last).mean() > 0.01


def test_only_alpha_crown_moves_slopes():
    with pytest.raises(ValueError, match=r'requires method="alpha-crown".*Received: method=.crown.'):
        certify.margins(GOLDEN, POINT, LABEL, 0.2, "crown", optimize_intermediate=True)


@pytest.mark.parametrize("method", ["ibp", "crown-ibp"])
def test_gradients_reach_scores_and_kernels(method):
    network = network_named("small_cnn" if method == "ibp" else "residual-subnet")
    x, y = tf.random.stateless_uniform((2, 8, 8, 3), (1, 2)), tf.constant([0, 3])

    @tf.function(autograph=False)
    def gradients():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(certify.margins(network, x, y, 0.02, method))
        return tape.gradient(loss, network.trainable_variables)

    names = [variable.path for variable in network.trainable_variables]
    for name, gradient in zip(names, gradients(), strict=True):
        assert gradient is not None and np.isfinite(gradient).all(), name
        if "scores" in name or "kernel" in name:
            assert np.abs(gradient).max() > 0, name


def test_gradients_are_those_of_differences():
    network, _, _ = random_dense((4, 8, 8, 3), 7, bias=0.1)
    x, y = np.random.default_rng(0).random((3, 4)).astype("float32"), tf.constant([0, 1, 2])
    kernel = network.layers[1].kernel

    def loss():
        found = certify.margins(network, x, y, 0.05, "crown-ibp", slope="zero-lb")
        labels = tf.zeros(3, tf.int64)
        logits = tf.concat([tf.zeros((3, 1)), -found], axis=1)
        return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))

    with tf.GradientTape() as tape:
        value = loss()
    gradient = tape.gradient(value, kernel).numpy()
    start, direction = kernel.numpy(), np.random.default_rng(1).normal(size=kernel.shape).astype("float32")
    values = []
    for step in (-1e-3, 1e-3):
        kernel.assign(start + step * direction)
        values.append(float(loss()))
    assert (values[1] - values[0]) / 2e-3 == pytest.approx(float((gradient * direction).sum()), rel=2e-2, abs=2e-3)


def test_a_sequential_network_is_bounded_as_a_functional_one():
    stack = [keras.layers.Flatten(), keras.layers.Dense(6, activation="relu"), keras.layers.Dense(3)]
    network = keras.Sequential([keras.Input((4, 4, 1)), *stack])
    x, y = np.random.default_rng(0).random((2, 4, 4, 1)).astype("float32"), tf.constant([0, 2])
    functional = keras.Model(network.inputs, network.outputs[0])
    for method in bounds.METHODS:
        found = certify.margins(network, x, y, 0.05, method)
        np.testing.assert_allclose(found, certify.margins(functional, x, y, 0.05, method), atol=1e-6)


def test_the_chunk_changes_nothing_but_the_memory():
    network = network_named("small_cnn")
    x, y = np.random.default_rng(0).random((1, 8, 8, 3)).astype("float32"), tf.constant([1])
    for norm in bounds.NORMS:
        few, many = (certify.margins(network, x, y, 0.02, "crown", norm=norm, tight=True, chunk=c) for c in (60, 9999))
        np.testing.assert_allclose(few, many, atol=1e-5)


def windowed_network(kind):
    """Convolutions on images that are larger than what their neurons see."""
    keras.utils.set_random_seed(5)
    x = inputs = keras.Input((17, 14, 2))
    x = keras.layers.Rescaling(2.0, offset=-1.0)(x)
    padding = "valid" if kind == "symmetric" else "same"

    def conv(x, filters, side, strides=1):
        if kind == "symmetric" and side > 1:
            x = keras.layers.ZeroPadding2D(side // 2)(x)
        return layers.PlainConv2D(filters, side, strides, padding=padding)(x)

    x = keras.layers.ReLU()(conv(x, 4, 3))
    if kind == "pooled":
        x = keras.layers.AveragePooling2D(2)(x)
    y = conv(keras.layers.ReLU()(conv(x, 5, 3, 2)), 5, 3)
    y = layers.BatchNormalization()(y)
    x = keras.layers.ReLU()(keras.layers.Add()([y, conv(x, 5, 1, 2)]))
    x = keras.layers.Flatten()(conv(conv(x, 3, 2, 2), 3, 3))  # two in a row
    network = keras.Model(inputs, layers.PlainDense(3)(keras.layers.ReLU()(x)))
    return disturbed(network)


@pytest.mark.parametrize(
    ("kind", "norm"),
    [("pooled", "Linf"), ("symmetric", "L2"), pytest.param("same", "L1", marks=pytest.mark.full)],
)
def test_windows_give_the_bounds_of_whole_images(kind, norm, monkeypatch):
    network = windowed_network(kind)
    x = np.random.default_rng(0).random((2, 17, 14, 2)).astype("float32")
    steps, around = bound_graph(network), bounds.ball(x, {"Linf": 0.03, "L2": 0.3, "L1": 1.0}[norm], norm)
    targets = [i for i, step in enumerate(steps) if isinstance(step.rule, bounds.Linear) and len(step.shape) == 3]
    assert sum(bounds.views(steps, i) is not None for i in targets) >= 5
    chunks = (30, 400) if kind == "pooled" else (400,)
    by_windows = [bounds.crown_intervals(steps, around, None, "adaptive", chunk) for chunk in chunks]
    monkeypatch.setattr(bounds, "views", lambda *_: None)
    by_images = bounds.crown_intervals(steps, around, None, "adaptive", 400)
    for found in by_windows:
        for name, expected in by_images.items():
            for side in (0, 1):
                np.testing.assert_allclose(found[name][side], expected[side], rtol=1e-4, atol=1e-4)


def test_neurons_that_intervals_decide_keep_them_and_the_margins_do_not_change(monkeypatch):
    network = network_named("small_cnn")
    x, y = np.random.default_rng(0).random((2, 8, 8, 3)).astype("float32"), tf.constant([0, 3])
    steps, around = bound_graph(network), bounds.ball(x, 0.02)
    known = bounds.interval_bounds(steps, around)
    found = bounds.crown_intervals(steps, around, known, "adaptive", 64)
    everywhere = bounds.crown_intervals(steps, around, None, "adaptive", 64)
    both = {name: bounds.intersection(part, known[name]) for name, part in everywhere.items()}
    lower = [
        bounds.linear_lower_bounds(steps, len(steps) - 1, bounds.specification(y, 5), each, around, "adaptive")
        for each in (found, both)
    ]
    np.testing.assert_allclose(lower[0], lower[1], atol=1e-5)
    decided = (known["dense3"].lower >= 0) | (known["dense3"].upper <= 0)
    kept = tf.reduce_all(decided, axis=0)  # of both images
    assert tf.reduce_any(kept)
    for side in (0, 1):
        np.testing.assert_array_equal(found["dense3"][side].numpy()[:, kept], known["dense3"][side].numpy()[:, kept])


def test_gradients_of_lines_are_those_that_tensorflow_derives():
    random = np.random.default_rng(0)
    shapes = {"coefficients": (2, 3, 5), "above": (2, 1, 5), "intercept": (2, 1, 5)}
    for rows in (1, 3):
        values = [tf.constant(random.normal(size=s), tf.float32) for s in (*shapes.values(), (2, rows, 5))]

        def derived(coefficients, above, intercept, below):
            positive, negative = tf.maximum(coefficients, 0.0), tf.minimum(coefficients, 0.0)
            return below * positive + above * negative, tf.reduce_sum(negative * intercept, axis=2)

        results = []
        for function in (backward.by_lines, derived):
            with tf.GradientTape() as tape:
                tape.watch(values)
                passed, constant = function(*values)
                total = tf.reduce_sum(tf.sin(passed)) + tf.reduce_sum(tf.cos(constant))
            results.append([passed, constant, *tape.gradient(total, values)])
        for ours, theirs in zip(*results, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_mixed_precision_is_refused():
    x = inputs = keras.Input((4,))
    x = keras.layers.Dense(4, activation="relu", dtype="mixed_float16", name="half")(x)
    network = keras.Model(inputs, keras.layers.Dense(2, dtype="float32")(x))
    with pytest.raises(ValueError, match="half computes in float16"):
        certify.margins(network, np.zeros((1, 4), "float32"), tf.constant([0]), 0.1)


def test_what_has_no_rule_is_refused_by_name():
    def ending(*stack, shape=(8, 8, 3)):
        x = inputs = keras.Input(shape)
        for layer in stack:
            x = layer(x)
        return keras.Model(inputs, x)

    flat, dense = keras.layers.Flatten(), keras.layers.Dense(3)
    cases = [
        (ending(flat, keras.layers.Dense(4, activation="tanh", name="odd"), dense), "activation tanh of odd"),
        (
            ending(keras.layers.Flatten(), keras.layers.Dense(3, activation="softmax", name="p")),
            "activation softmax of p",
        ),
        (
            ending(keras.layers.Flatten(), keras.layers.Dense(3), keras.layers.Softmax(name="s")),
            "layer s of type Softmax",
        ),
        (ending(keras.layers.Flatten(), keras.layers.LayerNormalization(name="ln"), keras.layers.Dense(3)), "layer ln"),
        (
            ending(
                keras.layers.MaxPooling2D(3, padding="same", name="mp"), keras.layers.Flatten(), keras.layers.Dense(3)
            ),
            "mp pads",
        ),
        (
            ending(keras.layers.ReLU(max_value=6, name="r6"), keras.layers.Flatten(), keras.layers.Dense(3)),
            "r6 is another ReLU",
        ),
        (
            ending(
                lambda x: keras.layers.Add(name="a")([x, keras.layers.AveragePooling2D(8)(x)]),
                keras.layers.Flatten(),
                keras.layers.Dense(3),
            ),
            "the layer a repeats a smaller one",
        ),
        (ending(keras.layers.Flatten(), keras.layers.Dense(3), keras.layers.ReLU()), "must end in a dense layer"),
        (ending(keras.ops.tanh, keras.layers.Flatten(), keras.layers.Dense(3)), "the layer tanh.* of type Tanh"),
    ]
    x, y = np.zeros((1, 8, 8, 3), "float32"), tf.constant([0])
    for network, message in cases:
        with pytest.raises(ValueError, match=message):
            certify.margins(network, x, y, 0.1)
    good = ending(keras.layers.Flatten(), keras.layers.Dense(3))
    for arguments in ({"method": "milp"}, {"slope": "steep"}, {"norm": "L3"}):
        with pytest.raises(ValueError, match="must be one of"):
            certify.margins(good, x, y, 0.1, **arguments)


@pytest.mark.parametrize("method", ["ibp", "crown-ibp"])
def test_normalisation_of_the_input_inside_a_compiled_function(method):
    inputs = keras.Input((4, 4, 3))
    x = keras.layers.Normalization(mean=[0.4, 0.5, 0.6], variance=[0.04, 0.05, 0.06])(inputs)
    network = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Flatten()(x)))
    images, labels = np.random.default_rng(0).random((2, 4, 4, 3), "float32"), tf.constant([0, 2])
    compiled = tf.function(lambda x, y: certify.margins(network, x, y, 0.1, method), autograph=False)
    eager = certify.margins(network, images, labels, 0.1, method)
    np.testing.assert_allclose(compiled(images, labels), eager, atol=1e-5)
