"""Random architectures of every kind of layer: no sampled point and no attack leaves the bounds of any neuron."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.saving.networks import disturb
from tf_robust_sparse import certify, layers
from tf_robust_sparse.certify import bounds
from tf_robust_sparse.certify.bound_graph import ReLU, bound_graph

CLASSES, EPSILON, POINTS = 4, 0.06, 10_000


def random_network(seed):
    """Two or three blocks, each a convolution of random form, then maybe batch norm, a residual sum and pooling."""
    random = np.random.default_rng(seed)
    keras.utils.set_random_seed(seed)

    def kernel_layer(kind, *arguments, **more):
        form = random.choice(sorted(layers.KERNELS))
        if form == "rewiring":
            more |= {"initial_connectivity": 0.6, "seed": seed}
        return layers.KERNELS[form][0 if kind == "dense" else 1](*arguments, **more)

    x = inputs = keras.Input((6, 6, 2))
    if random.random() < 0.5:
        x = keras.layers.Rescaling(2.0, offset=-1.0)(x)
    for _ in range(random.integers(1, 4)):
        channels, stride = int(random.integers(2, 5)), int(random.integers(1, 3)) if x.shape[1] > 2 else 1
        padding = "same" if x.shape[1] < 4 else str(random.choice(["same", "valid"]))
        bias = bool(random.random() < 0.7)
        if random.random() < 0.3:
            x = keras.layers.ZeroPadding2D(1)(x)
        x = kernel_layer("conv", channels, 3, strides=stride, padding=padding, use_bias=bias)(x)
        if random.random() < 0.5:
            x = layers.BatchNormalization()(x)
        x = keras.layers.ReLU()(x)
        if random.random() < 0.5:
            branch = kernel_layer("conv", channels, 3, padding="same", activation="relu")(x)
            x = keras.layers.ReLU()(keras.layers.Add()([x, kernel_layer("conv", channels, 1)(branch)]))
        if x.shape[1] >= 2 and random.random() < 0.4:
            x = (keras.layers.MaxPooling2D if random.random() < 0.5 else keras.layers.AveragePooling2D)(2)(x)
    x = keras.layers.GlobalAveragePooling2D()(x) if random.random() < 0.3 else keras.layers.Flatten()(x)
    x = kernel_layer("dense", 6, activation="relu")(x)
    network = keras.Model(inputs, kernel_layer("dense", CLASSES)(keras.layers.Dropout(0.2)(x)))
    disturb(network, seed)
    return network


def points_of_the_ball(network, x, seed):
    """Uniform points, corners, and where descent on each margin ends."""
    random = np.random.default_rng(seed)
    noise = np.concatenate([random.uniform(-1, 1, (POINTS, *x.shape)), random.choice([-1, 1], (1024, *x.shape))])
    found = [np.clip(x + EPSILON * noise, 0, 1).astype("float32")]
    lower, upper = np.maximum(x - EPSILON, 0), np.minimum(x + EPSILON, 1)
    descent = tf.convert_to_tensor(np.repeat(x[np.newaxis], CLASSES * CLASSES, 0))
    pairs = np.array([(a, b) for a in range(CLASSES) for b in range(CLASSES)])
    for _ in range(30):
        with tf.GradientTape() as tape:
            tape.watch(descent)
            logits = network(descent, training=False)
            margins = tf.gather(logits, pairs[:, 0], batch_dims=1) - tf.gather(logits, pairs[:, 1], batch_dims=1)
        descent = tf.clip_by_value(descent - EPSILON / 8 * tf.sign(tape.gradient(margins, descent)), lower, upper)
    return np.concatenate([*found, descent.numpy()])


@pytest.mark.parametrize(
    "seed",
    [2, pytest.param(3, marks=pytest.mark.full), *[pytest.param(seed, marks=pytest.mark.full) for seed in (0, 1, 4)]],
)
def test_random_architectures(seed):
    network = random_network(seed)
    x = np.random.default_rng(seed).random((6, 6, 2)).astype("float32")
    points = points_of_the_ball(network, x, seed)
    steps = bound_graph(network)
    around = bounds.ball(x[np.newaxis], EPSILON, rounding=bounds.Rounding(steps))
    inner = [
        layer for layer in network.layers if getattr(layer, "activation", None) in (None, keras.activations.linear)
    ]
    values = keras.Model(network.input, [layer.output for layer in inner])(points, training=False)
    intervals = bounds.interval_bounds(steps, around)
    by_lines = bounds.crown_intervals(steps, around, None, "adaptive", 500)
    is_optimized = sum(isinstance(step.rule, ReLU) for step in steps) <= 3  # each takes seconds
    by_moved_lines = {}
    if is_optimized:
        by_moved_lines = bounds.crown_intervals(steps, around, by_lines, "adaptive", 500, moved=True)
    for layer, value in zip(inner, values, strict=True):
        for found in (intervals, by_lines, by_moved_lines):
            if layer.name in found:
                least, most = (side.numpy()[0] for side in found[layer.name])
                assert (value.numpy().min(0) >= least).all(), layer.name
                assert (value.numpy().max(0) <= most).all(), layer.name
    logits = network(points, training=False).numpy()
    smallest = np.array([(logits[:, [y]] - np.delete(logits, y, 1)).min(0) for y in range(CLASSES)])
    images, labels = np.repeat(x[np.newaxis], CLASSES, 0), tf.range(CLASSES)
    choices = [(method, False) for method in bounds.METHODS] + [("alpha-crown", True)] * is_optimized
    for method, optimized in choices:
        found = certify.margins(network, images, labels, EPSILON, method, optimize_intermediate=optimized)
        assert (found.numpy() <= smallest).all(), method
