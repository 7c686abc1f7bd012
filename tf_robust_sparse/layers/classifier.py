"""Which Keras models count as networks: one input of images, one output of logits."""

from typing import Any

import keras


def check_classifier(network: Any, in_structure: bool = False) -> None:
    """Checks that Keras knows the layers of a network and that they lead from images to logits.

    Args:
        network: What to check.
        in_structure: Whether the output may be a dictionary or a list of one tensor.

    Raises:
        ValueError: if it is not a built functional or sequential model from one input to `(batch, classes)`.
    """
    if not isinstance(network, keras.Model):
        raise ValueError(
            "`network` must be a built keras.Model, such as tf_robust_sparse.models.resnet18(). "
            f"Received: network={network!r}"
        )
    name = f"{type(network).__name__} {network.name}"
    try:
        inputs, outputs = network.inputs, network.outputs
    except AttributeError:
        if isinstance(network, keras.Sequential):
            inputs = None
        else:
            raise ValueError(
                "`network` must be a functional or sequential model, because a subclassed one hides how its layers are "
                "connected; pass keras.Model(x, network(x)) with x = keras.Input(shape). "
                f"Received: the subclassed model {name}"
            ) from None
    if not inputs:
        raise ValueError(f"`network` must be built; start it with keras.Input(shape). Received: {name}, not built")
    if len(inputs) != 1 or len(outputs) != 1:
        raise ValueError(
            "`network` must have one input, the images, and one output, the logits; pass for example "
            f"keras.Model(network.inputs, network.outputs[0]). Received: {name} with {len(inputs)} "
            f"inputs and {len(outputs)} outputs"
        )
    alone = in_structure or isinstance(network, keras.Sequential)
    if not alone and isinstance(network.output, (dict, list, tuple)):
        raise ValueError(
            "`network` must return the tensor of logits alone; pass keras.Model(network.inputs, network.outputs[0]). "
            f"Received: {name}, which returns it in a {type(network.output).__name__}"
        )
    if len(outputs[0].shape) != 2:
        raise ValueError(
            "`network` must return logits of shape (batch, classes); flatten or pool the features before the last "
            f"layer. Received: {name} with output_shape={tuple(outputs[0].shape)}"
        )
