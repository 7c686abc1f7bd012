"""Converts a network of this toolkit to plain Keras layers."""

from typing import Any

import keras

from tf_robust_sparse.layers.cloning import cloned, copy_of, set_weights
from tf_robust_sparse.layers.kernel_layer import KernelLayer
from tf_robust_sparse.layers.protocols import HasPlainTwin


def strip(network: keras.Model) -> keras.Model:
    """Clones `network` to plain Keras layers that hold the effective kernels.

    Every kernel layer becomes a `keras.layers.Dense` or `keras.layers.Conv2D` whose kernel is the effective kernel,
    zeros where nothing is connected. Every batch norm becomes that of Keras, gates become a `keras.layers.Rescaling`.
    All other weights are copied by layer name, and operations such as `keras.ops.relu` stay the same. The clone
    computes in float32 under every dtype policy, needs nothing of this package, and its logits equal those of a float32
    `network`. Custom layers are copied from their configuration; the clone still needs their code, unlike the files of
    `export_network`.

    Args:
        network: A functional or sequential model.

    Returns:
        A model with the same layer names and number of non-zero kernel entries; compiled if `network` is.

    Raises:
        ValueError: if `network` is not functional or sequential, or holds a layer that cannot be copied from its
            configuration.
    """
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")  # the policy of the input layers and of the model itself
    try:
        stripped = cloned(network, _plain_layer, "stripped")
    finally:
        keras.config.set_dtype_policy(policy)
    _copy_weights(network, stripped)
    return stripped


def _plain_layer(layer: Any) -> Any:
    package = type(layer).__module__.partition(".")[0]
    if isinstance(layer, HasPlainTwin):
        return layer.plain_class.from_config({**layer.plain_config(), "dtype": "float32"})
    if package == "tf_robust_sparse":
        raise ValueError(
            f"The layer {layer.name} has no equivalent in Keras, so a stripped network would need this package; leave "
            f"it out. Received: {type(layer).__name__}"
        )
    return copy_of(layer, dtype="float32")


def _copy_weights(network: keras.Model, stripped: keras.Model) -> None:
    for layer in network.layers:
        if isinstance(layer, keras.layers.InputLayer):
            continue
        plain = stripped.get_layer(layer.name)
        if isinstance(layer, keras.Model):
            _copy_weights(layer, plain)
        elif isinstance(layer, KernelLayer):
            bias: list[Any] = [] if layer.bias is None else [layer.bias]
            plain.set_weights([keras.ops.convert_to_numpy(value) for value in (layer.effective_kernel, *bias)])
        elif plain.weights:
            set_weights(plain, layer.get_weights())
