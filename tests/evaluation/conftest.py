"""A network trained for a second on blurred class patterns, good enough to be attacked."""

import keras
import numpy as np
import pytest

from tests.attacks.toy import toy_images, toy_labels
from tests.evaluation.auto_attacks import SOME

CLASSES = 5
SHAPE = (8, 8, 1)
EPSILON = 0.1


def patterns(size, seed):
    """Images of five fixed patterns in noise, so that classes overlap; pixels in [0, 1]."""
    prototypes = np.random.default_rng(99).uniform(0.3, 0.7, (CLASSES, *SHAPE))
    rng = np.random.default_rng(seed)
    y = rng.integers(0, CLASSES, size)
    x = prototypes[y] + rng.normal(0, 0.2, (size, *SHAPE))
    return x.clip(0, 1).astype("float32"), y


@pytest.fixture(scope="session")
def network():
    keras.utils.set_random_seed(0)
    network = keras.Sequential(
        [
            keras.layers.Input(SHAPE),
            keras.layers.Conv2D(8, 3, strides=2, padding="same"),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.Flatten(),
            keras.layers.Dense(CLASSES),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile(keras.optimizers.Adam(0.01), loss=loss)
    network.fit(*patterns(2000, 1), batch_size=100, epochs=4, verbose=0)
    return network


@pytest.fixture(scope="session")
def examples():
    return patterns(1000, 2)


@pytest.fixture(scope="module")
def some():
    """The first of the toy images, and their labels."""
    return toy_images()[:SOME], toy_labels()[:SOME]
