"""Small networks with everything that is saved: kernels of one form, batch norm that has moved, biases."""

import keras
import numpy as np

from tf_robust_sparse import layers

IMAGE = (8, 8, 3)


def residual_network(kernel="rewiring", num_classes=5, name="residual", seed=7):
    """A network with a strided shortcut, a batch norm before its convolution, and biases."""
    dense, conv = layers.KERNELS[kernel]
    start = {"initial_connectivity": 0.3} if kernel == "rewiring" else {}
    x = inputs = keras.Input(IMAGE, name="pixels")
    x = conv(8, 3, padding="same", use_bias=False, name="stem", **start)(x)
    x = layers.BatchNormalization(name="stem_bn", momentum=0.9, epsilon=1e-5)(x)
    x = keras.layers.ReLU(name="stem_relu")(x)
    h = conv(16, 3, strides=2, padding="same", use_bias=False, name="conv1", **start)(x)
    h = layers.BatchNormalization(name="bn1")(h)
    h = keras.layers.ReLU(name="relu1")(h)
    h = conv(16, 3, padding="same", use_bias=False, name="conv2", **start)(h)
    h = layers.BatchNormalization(name="bn2")(h)
    s = conv(16, 1, strides=2, use_bias=False, name="shortcut", **start)(x)
    s = layers.BatchNormalization(name="shortcut_bn")(s)
    x = keras.layers.Add(name="add")([h, s])
    x = keras.layers.ReLU(name="relu2")(layers.BatchNormalization(name="last_bn")(x))
    x = keras.layers.Flatten(name="flatten")(x)
    x = dense(12, activation="relu", name="hidden", **start)(x)
    network = keras.Model(inputs, dense(num_classes, name="classifier", dtype="float32", **start)(x), name=name)
    disturb(network, seed)
    return network


def disturb(network, seed):
    """Moves biases, batch norm and masks away from their initial values."""
    random = np.random.default_rng(seed)
    for layer in network.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.set_weights([random.uniform(0.5, 1.5, w.shape) for w in layer.get_weights()])
        if getattr(layer, "bias", None) is not None:
            layer.bias.assign(random.normal(size=layer.bias.shape))
        if hasattr(layer, "kernel_mask"):
            layer.kernel_mask.assign(random.random(layer.kernel_mask.shape) < 0.3)
        if hasattr(layer, "theta"):
            theta = layer.theta.numpy()
            theta[theta == 0] = -random.random(np.count_nonzero(theta == 0))  # dormant, and not at zero
            layer.theta.assign(theta)


def images(count, seed=0, shape=IMAGE):
    return np.random.default_rng(seed).random((count, *shape), "float32")
