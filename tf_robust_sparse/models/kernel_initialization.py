"""Kernels drawn anew, as the originals of other methods draw them."""

import math

import keras
import numpy as np

from tf_robust_sparse import layers

# Each with the gain of ReLU, the root of 2: PyTorch's initialisations of these names, and constants of random sign.
KERNEL_INITIALIZATIONS = ("kaiming_normal", "kaiming_uniform", "kaiming_normal_fan_out", "signed_const")


def initialize_kernels(network: keras.Model, distribution: str, seed: int = 0) -> None:
    """Draws every kernel of `network` anew and sets its biases to zero.

    Args:
        network: A network of plain, masked or subnet kernels.
        distribution: `"kaiming_normal"`: normal of variance 2 / fan_in. `"kaiming_uniform"`: uniform of that variance.
            `"kaiming_normal_fan_out"`: convolutions normal of variance 2 / (height * width * filters), dense kernels
            and biases uniform in +-1 / sqrt(fan_in); HYDRA's networks without batch norm. `"signed_const"`:
            +-sqrt(2 / fan_in).
        seed: Integer; each layer derives its own.

    Raises:
        ValueError: if the distribution is unknown, or a kernel is of a form without a variable `kernel`.

    Reference: [He et al., 2015](https://arxiv.org/abs/1502.01852), section 2.2;
        [Ramanujan et al., 2020](https://arxiv.org/abs/1911.13299), section 3.1 (constants of random sign).
    """
    if distribution not in KERNEL_INITIALIZATIONS:
        options = ", ".join(KERNEL_INITIALIZATIONS)
        raise ValueError(f"`distribution` must be one of {options}. Received: distribution={distribution!r}")
    found = layers.kernel_layers(network)
    for layer in found:
        if not hasattr(layer, "kernel"):
            raise ValueError(
                f"The layer {layer.name} has no kernel to draw; build the network with plain, masked or subnet "
                f"kernels. Received: {type(layer).__name__}"
            )
    for number, layer in enumerate(found):
        random = np.random.default_rng([seed, number])
        shape = tuple(layer.kernel.shape)
        fan_in = math.prod(shape[:-1])
        bias = np.zeros(shape[-1:])
        if distribution == "kaiming_uniform":
            kernel = random.uniform(-1, 1, shape) * math.sqrt(6 / fan_in)
        elif distribution == "signed_const":
            kernel = np.sign(random.uniform(-1, 1, shape)) * math.sqrt(2 / fan_in)
        elif distribution == "kaiming_normal":
            kernel = random.normal(size=shape) * math.sqrt(2 / fan_in)
        elif len(shape) == 4:
            kernel = random.normal(size=shape) * math.sqrt(2 / (shape[0] * shape[1] * shape[3]))
        else:
            kernel = random.uniform(-1, 1, shape) / math.sqrt(fan_in)
            bias = random.uniform(-1, 1, shape[-1:]) / math.sqrt(fan_in)
        layer.kernel.assign(kernel.astype("float32"))
        if layer.bias is not None:
            layer.bias.assign(bias.astype("float32"))
