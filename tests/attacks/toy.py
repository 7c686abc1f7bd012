"""A fixed network and a thousand fixed images, for which the answers of well-known attacks are on record."""

import numpy as np
import tensorflow as tf

IMAGES, SIDE, CHANNELS, CLASSES = 1000, 8, 3, 10


def toy_images():
    """`(1000, 8, 8, 3)`, float32, uniform in [0, 1)."""
    return np.random.RandomState(0).rand(IMAGES, SIDE, SIDE, CHANNELS).astype("float32")


def toy_network(scale=1.0):
    """Three dense layers without biases: a callable from images to logits, which are multiplied by `scale`."""
    sizes = (SIDE * SIDE * CHANNELS, 64, 64, CLASSES)
    gains = (2, 2, 1)
    first, second, third = (
        tf.constant(np.random.RandomState(n + 1).randn(*sizes[n : n + 2]) * np.sqrt(gain / sizes[n]), tf.float32)
        for n, gain in enumerate(gains)
    )

    def network(x):
        hidden = tf.nn.relu(tf.matmul(tf.reshape(x - 0.5, (-1, sizes[0])), first))
        return scale * tf.matmul(tf.nn.relu(tf.matmul(hidden, second)), third)

    return network


def toy_labels():
    """`(1000,)`, int64: what the network says, except for every twentieth image, so that 950 are right."""
    y = tf.argmax(toy_network()(toy_images()), axis=1).numpy()
    y[::20] = (y[::20] + 1) % CLASSES
    return y
