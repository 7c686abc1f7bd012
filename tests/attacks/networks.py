"""A small network with batch norm, and images for it."""

import keras
import numpy as np

CLASSES = 5
SHAPE = (8, 8, 1)


def small_network(classes=CLASSES, shape=SHAPE):
    """Convolution, batch norm with statistics of its own, ReLU, logits."""
    network = keras.Sequential(
        [
            keras.layers.Input(shape),
            keras.layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.Dropout(0.5),
            keras.layers.Flatten(),
            keras.layers.Dense(classes),
        ]
    )
    norm = network.layers[1]
    rng = np.random.default_rng(0)
    norm.moving_mean.assign(rng.normal(0, 0.3, 8))
    norm.moving_variance.assign(rng.uniform(0.3, 1.0, 8))
    return network


def batch(size, seed=0, classes=CLASSES, shape=SHAPE):
    """Uniform images, some pixels at the ends of the range, and labels."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-0.1, 1.1, (size, *shape)).clip(0, 1).astype("float32")
    return x, rng.integers(0, classes, size)


def state(network):
    """All variables of a network as arrays."""
    return [np.array(v) for v in network.variables]
