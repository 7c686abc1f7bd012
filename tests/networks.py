"""Tiny networks and images that tests of several folders share."""

import dataclasses
import functools

import keras
import numpy as np
import tensorflow as tf

from tf_robust_sparse import layers


def tiny_network(kernel="rewiring", batch_norm=True, connectivity=0.2, seed=1, classes=10, synchronized=False):
    """A convolutional network of 2,664 kernel entries on 12x12x1 images."""
    dense, conv = layers.KERNELS[kernel]

    def arguments(name):
        if kernel == "rewiring":
            return {"initial_connectivity": connectivity, "seed": seed, "name": name}
        return {"kernel_initializer": keras.initializers.HeNormal(seed), "name": name}

    x = inputs = keras.Input((12, 12, 1))
    x = conv(8, 3, strides=2, padding="same", use_bias=not batch_norm, **arguments("conv1"))(x)
    if batch_norm:
        x = layers.BatchNormalization(momentum=0.9, epsilon=1e-5, synchronized=synchronized, name="bn1")(x)
    x = keras.layers.ReLU(name="relu1")(x)
    x = conv(16, 3, strides=2, padding="same", activation="relu", **arguments("conv2"))(x)
    x = keras.layers.Flatten(name="flatten")(x)
    outputs = dense(classes, **arguments("classifier"))(x)
    return keras.Model(inputs, outputs, name="tiny")


def tiny_images(count=64, classes=10, seed=0):
    """Images of class-dependent brightness patterns, learnable in a few steps: x in [0, 1], integer y."""
    generator = np.random.default_rng(seed)
    y = generator.integers(0, classes, count)
    patterns = np.random.default_rng(99).random((classes, 12, 12, 1))
    x = 0.7 * patterns[y] + 0.3 * generator.random((count, 12, 12, 1))
    return x.astype(np.float32), y.astype(np.int64)


def tiny_dataset(count=64, batch_size=16, classes=10, seed=0):
    """The images above as batches."""
    return tf.data.Dataset.from_tensor_slices(tiny_images(count, classes, seed)).batch(batch_size)


def resized(images, size):
    """The data set with images of so many pixels a side, each the mean of those that it covers."""

    def smaller(x):
        return np.asarray(tf.round(tf.image.resize(x, (size, size), "area")), "uint8")

    return dataclasses.replace(
        images, train_images=smaller(images.train_images), test_images=smaller(images.test_images)
    )


def fit_last_layer(network, images, noise_std=0.0):
    """Gives the last layer the weights that are best on the training images, without training; the others stay random.

    Its scores, too, so that the largest weights are kept.
    """
    x = np.asarray(images.train_images, "float32") / 255
    x += noise_std * np.random.default_rng(0).normal(size=x.shape)
    last = network.layers[-1]
    features = keras.Model(network.input, last.input)(x).numpy()
    targets = 10 * np.eye(network.output_shape[-1])[images.train_labels]
    kernel = np.linalg.solve(features.T @ features + np.eye(features.shape[1]), features.T @ targets)
    last.kernel.assign(kernel)
    last.scores.assign(np.abs(kernel))


def accuracy(network, images, attack=None):
    """The accuracy on all test images, or that under an attack, without a graph."""
    x, y = np.asarray(images.test_images, "float32") / 255, images.test_labels
    x = x if attack is None else attack(network, x, y)
    return float(np.mean(np.argmax(network(x, training=False), -1) == y))


@functools.cache
def mirrored():
    """The one MirroredStrategy over the two logical CPUs.

    It adds up without collective operations: those of a second strategy would mix with those of the first, and on few
    cores the replicas may starve each other while they wait.
    """
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], cross_device_ops=tf.distribute.ReductionToOneDevice())
