"""Networks to bound, and points of the balls around their inputs."""

import itertools

import keras
import numpy as np
import tensorflow as tf

from tf_robust_sparse.certify import bounds

METHODS = [
    ("ibp", "adaptive"),
    ("alpha-crown", "adaptive"),
    ("zonotope", "adaptive"),
    *itertools.product(("crown-ibp", "crown"), bounds.SLOPES),
]


def dense_network(kernels, biases):
    x = inputs = keras.Input((np.shape(kernels[0])[1],))
    for i, (kernel, bias) in enumerate(zip(kernels, biases, strict=True)):
        last = i == len(kernels) - 1
        layer = keras.layers.Dense(len(bias), activation=None if last else "relu", name=f"dense{i}")
        x = layer(x)
        layer.set_weights([np.transpose(kernel).astype("float32"), np.asarray(bias, "float32")])
    return keras.Model(inputs, x)


GOLDEN = dense_network(
    [[[1, -1], [2, 1]], [[1, 1], [-1, 1]], [[1, -1], [-1, 2]]], [[0, -0.9], [-0.5, 0.25], [0.1, -0.2]]
)
POINT, LABEL = tf.constant([[0.6, 0.4]]), tf.constant([1])


def true_margins(network, x, y):
    logits = network(x, training=False).numpy()
    own = np.take_along_axis(logits, y[:, None], 1)
    others = np.stack([np.delete(row, label) for row, label in zip(logits, y, strict=True)])
    return own - others


def random_dense(sizes, seed, bias=0.3, relu=True):
    random = np.random.default_rng(seed)
    kernels = [random.normal(size=(b, a)) for a, b in itertools.pairwise(sizes)]
    biases = [random.normal(size=b) * 0.1 + bias for b in sizes[1:]]
    if relu:
        return dense_network(kernels, biases), kernels, biases
    x = inputs = keras.Input((sizes[0],))
    for kernel, bias_ in zip(kernels, biases, strict=True):
        layer = keras.layers.Dense(len(bias_))
        x = layer(x)
        layer.set_weights([kernel.T.astype("float32"), bias_.astype("float32")])
    return keras.Model(inputs, x), kernels, biases
