"""From a network of this toolkit to the same network in plain Keras layers."""

from typing import Any

import keras


def strip(network: keras.Model) -> keras.Model:
    """Clones `network` to plain Keras layers that hold the effective kernels.

    Every kernel layer becomes a `keras.layers.Dense` or `keras.layers.Conv2D` whose kernel is the effective kernel,
    zeros where nothing is connected; every batch norm becomes that of Keras, and gates a `keras.layers.Rescaling`.
    All other weights are copied by layer name, and operations such as `keras.ops.relu` are kept as they are. The clone
    computes in float32 under every dtype policy, needs nothing of this package, and its logits equal those of a float32
    `network`. Layers of the user's own are copied from their configuration; the clone still needs their code, what
    `export_network` writes does not.

    Args:
        network: A functional or sequential model.

    Returns:
        A model with the same layer names and number of non-zero kernel entries; compiled if `network` is.

    Raises:
        ValueError: if `network` is not functional or sequential, or holds a layer that cannot be copied from its
            configuration.
    """
    if not isinstance(network, keras.Sequential) and not hasattr(network, "operations"):
        raise ValueError(
            "Only a functional or sequential keras.Model can be stripped; pass the network itself, not the model that "
            "trains it, and turn a subclassed model into keras.Model(inputs, outputs). "
            f"Received: {type(network).__name__}"
        )
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")  # that of the input layers and of the model itself
    try:
        inputs = None if isinstance(network, keras.Sequential) else _inputs(network)
        stripped = keras.models.clone_model(network, input_tensors=inputs, clone_function=_plain_layer, recursive=True)
    finally:
        keras.config.set_dtype_policy(policy)
    _copy_weights(network, stripped)
    return stripped


def _inputs(network: keras.Model) -> Any:
    """Returns new input tensors of the same names, in the same structure; Keras would rename unnamed ones."""
    names = {id(layer.output): layer.name for layer in network.layers if isinstance(layer, keras.layers.InputLayer)}
    return keras.tree.map_structure(
        lambda x: keras.Input(batch_shape=x.shape, dtype=x.dtype, name=names[id(x)]), network.input
    )


def _plain_layer(layer: Any) -> Any:
    package = type(layer).__module__.partition(".")[0]
    if hasattr(layer, "plain_class"):
        return layer.plain_class.from_config({**layer.plain_config(), "dtype": "float32"})
    if package == "tf_robust_sparse":
        raise ValueError(
            f"The layer {layer.name} has no equivalent in Keras, so a stripped network would need this package; leave "
            f"it out. Received: {type(layer).__name__}"
        )
    # The code of a Lambda layer that is in memory has run already, so nothing is gained by refusing it.
    options = {"safe_mode": False} if isinstance(layer, keras.layers.Lambda) else {}
    try:
        config = layer.get_config()
        if isinstance(layer, keras.layers.Layer):  # an operation such as `keras.ops.relu` has no dtype
            config["dtype"] = "float32"
        return type(layer).from_config(config, **options)
    # Keras raises NotImplementedError for arguments that it cannot write down; code of the user raises anything.
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"The layer {layer.name} of type {type(layer).__name__} cannot be copied from its configuration; give it a "
            f"`get_config` that returns the arguments of its constructor. Keras says: {reason}"
        ) from error


def _copy_weights(network: keras.Model, stripped: keras.Model) -> None:
    for layer in network.layers:
        if isinstance(layer, keras.layers.InputLayer):
            continue
        plain = stripped.get_layer(layer.name)
        if isinstance(layer, keras.Model):
            _copy_weights(layer, plain)
        elif hasattr(layer, "compute_effective_kernel"):
            bias = [] if layer.bias is None else [layer.bias]
            plain.set_weights([keras.ops.convert_to_numpy(value) for value in (layer.effective_kernel, *bias)])
        elif plain.weights:
            set_weights(plain, layer.get_weights())


def set_weights(layer: Any, weights: list[Any]) -> None:
    """Sets the weights of a Keras layer, and what it computed from them when it was built."""
    layer.set_weights(weights)
    if isinstance(layer, keras.layers.Normalization):
        layer.finalize_state()
