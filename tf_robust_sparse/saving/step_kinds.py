"""What layers do to channels, and which of them `shrink` supports."""

import math
from typing import Any, NamedTuple

import keras
import numpy as np

from tf_robust_sparse.layers.operations import as_layer
from tf_robust_sparse.layers.protocols import HasPlainTwin, plain_class_of
from tf_robust_sparse.layers.topology import layer_graph

# The effect of a layer on channels: `kernel` mixes them by a matrix, or those of each group by one, `affine` scales and
# shifts each one, `each` acts on each one alone in another way, `merge` combines several inputs channel by channel,
# `flat` turns every position of an image into a feature, `whole` mixes them so that none can be removed.
_KINDS = {
    keras.layers.InputLayer: "input",
    **dict.fromkeys((keras.layers.Conv2D, keras.layers.Dense), "kernel"),
    **dict.fromkeys((keras.layers.DepthwiseConv2D, keras.layers.SeparableConv2D), "kernel"),
    **dict.fromkeys((keras.layers.BatchNormalization, keras.layers.Rescaling), "affine"),
    **dict.fromkeys(
        (
            *(keras.layers.ReLU, keras.layers.LeakyReLU, keras.layers.ELU, keras.layers.Activation),
            *(keras.layers.Dropout, keras.layers.SpatialDropout2D, keras.layers.Identity),
            *(keras.layers.GaussianNoise, keras.layers.GaussianDropout),
            *(keras.layers.MaxPooling2D, keras.layers.AveragePooling2D),
            *(keras.layers.GlobalMaxPooling2D, keras.layers.GlobalAveragePooling2D),
            *(keras.layers.ZeroPadding2D, keras.layers.Cropping2D, keras.layers.UpSampling2D),
        ),
        "each",
    ),
    **dict.fromkeys(
        (
            *(keras.layers.Add, keras.layers.Subtract, keras.layers.Multiply),
            *(keras.layers.Average, keras.layers.Maximum, keras.layers.Minimum),
        ),
        "merge",
    ),
    keras.layers.Concatenate: "concatenate",
    **dict.fromkeys((keras.layers.Flatten, keras.layers.Reshape), "flat"),
    **dict.fromkeys((keras.layers.Normalization, keras.layers.LayerNormalization), "whole"),
}
_ELEMENTWISE = frozenset(
    getattr(keras.activations, name)
    for name in (
        *("linear", "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "exponential"),
        *("tanh", "sigmoid", "hard_tanh", "hard_sigmoid", "hard_silu", "softplus", "softsign", "log_sigmoid"),
    )
)


class Call(NamedTuple):
    """A call of a layer.

    Attributes:
        layer: The layer; one of Keras in place of an operation of `keras.ops`.
        inputs: Names of the layers whose outputs it takes; empty for the first layer of a sequential model.
        given: Shapes of its inputs, without the batch.
        shape: Shape of its output, without the batch.
    """

    layer: Any
    inputs: tuple[str, ...]
    given: tuple[tuple[int, ...], ...]
    shape: tuple[int, ...]

    @property
    def kind(self) -> str | None:
        """Its effect on channels; `None` if it is not known."""
        kind = _KINDS.get(plain_class_of(self.layer))
        sizes = {math.prod(shape) for shape in (*self.given, self.shape) if None not in shape}
        return "each" if kind == "flat" and sizes == {self.shape[-1]} == {self.given[0][-1]} else kind


def calls(network: keras.Model) -> list[Call]:
    """Returns the calls of a functional or sequential network, see `layer_graph`."""
    found = []
    for node in layer_graph(network):
        given = node.layer.input if isinstance(node.layer.input, (list, tuple)) else [node.layer.input]
        shapes = tuple(tuple(tensor.shape[1:]) for tensor in given)
        found.append(Call(as_layer(node), node.inputs, shapes, tuple(node.layer.output.shape[1:])))
    return found


def check_layers(network: keras.Model) -> None:
    """Checks that all layers of a functional or sequential network, stripped or not, are supported.

    Raises:
        ValueError: naming the layer, if its kind is unknown, its activation mixes channels, it is called twice or is a
            network itself, if a shape is unknown, or if there are several inputs or outputs.
    """
    nodes = layer_graph(network)
    if len(network.inputs) != 1 or len(network.outputs) != 1:
        raise ValueError(
            "Only networks with one input and one output can be made smaller. "
            f"Received: {len(network.inputs)} inputs and {len(network.outputs)} outputs"
        )
    seen = set()
    for layer in (node.layer for node in nodes):
        if isinstance(layer, keras.Model):
            raise ValueError(
                f"The layer {layer.name} is a network itself; call its layers one by one, so that their channels show"
            )
        if layer.name in seen:
            raise ValueError(f"The layer {layer.name} is called twice; its channels cannot be chosen for both calls")
        seen.add(layer.name)
    for call in calls(network):
        if call.kind is None:
            raise ValueError(
                f"The layer {call.layer.name} is of type {type(call.layer).__name__}, whose use of channels is not "
                "known; replace it by dense, Conv2D, depthwise or separable convolution, batch norm, activation, "
                "pooling, padding, flatten, merging, normalization or dropout layers"
            )
        _check_call(call)


def _check_call(call: Call) -> None:
    layer, shape, rank = call.layer, call.shape, len(call.shape) + 1
    if None in shape or rank not in (2, 4):
        raise ValueError(
            f"Only images (height, width, channels) of known size and vectors are supported. Received: {shape} of the "
            f"layer {layer.name}"
        )
    if getattr(layer, "data_format", None) == "channels_first":
        raise ValueError(f"The layer {layer.name} has channels first; build the network with channels last")
    activation = getattr(layer, "activation", keras.activations.linear)
    if activation not in _ELEMENTWISE:
        found = getattr(activation, "__name__", type(activation).__name__)
        raise ValueError(
            f"The activation {found} of the layer {layer.name} is not known to act on each channel alone; end the "
            "network in logits, and use activations such as relu inside"
        )
    plain = plain_class_of(layer)
    if plain is keras.layers.Dense and len(call.given[0]) != 1:
        raise ValueError(f"The dense layer {layer.name} acts on the last of several axes; put a Flatten before it")
    if plain in (keras.layers.BatchNormalization, keras.layers.Concatenate) and layer.axis not in (-1, rank - 1):
        raise ValueError(f"The layer {layer.name} is over axis {layer.axis}; only the last, the channels, is supported")
    if call.kind == "flat" and rank != 2:
        raise ValueError(f"The layer {layer.name} reshapes images; only reshaping to vectors is supported")
    if call.kind == "merge" and {(len(given), given[-1]) for given in call.given} != {(len(shape), shape[-1])}:
        raise ValueError(f"The layer {layer.name} merges images and vectors, or different numbers of channels")
    if plain is keras.layers.Rescaling and not isinstance(layer, HasPlainTwin):
        for name in ("scale", "offset"):
            if np.ndim(getattr(layer, name)) > 1 or np.size(getattr(layer, name)) not in (1, shape[-1]):
                raise ValueError(
                    f"The layer {layer.name} has one `{name}` per position; only one, or one per channel, is supported"
                )
