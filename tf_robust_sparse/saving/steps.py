"""A network as steps that act on channels one by one or mix them; `shrink` works on these."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_robust_sparse.layers.protocols import HasPlainTwin, plain_class_of
from tf_robust_sparse.layers.topology import layer_graph

# The effect of a layer on channels: `kernel` mixes them by a matrix, `affine` scales and shifts each one, `each` acts
# on each one alone in another way, `merge` combines several inputs channel by channel, `flat` turns every position of
# an image into a feature, `whole` mixes them so that none can be removed.
_KINDS = {
    keras.layers.InputLayer: "input",
    **dict.fromkeys((keras.layers.Conv2D, keras.layers.Dense), "kernel"),
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


@dataclasses.dataclass
class Step:
    """One layer, with weights in double precision.

    Attributes:
        layer: A plain Keras layer that is called once.
        kind: Its effect on channels.
        inputs: Names of the steps whose outputs it takes.
        shape: Shape of its output, without the batch, channels last.
        kernel: For a `kernel` step, `(height, width, inputs, outputs)`; height and width are 1 for dense layers.
        bias: For a `kernel` step, `(outputs,)`.
        scale, shift: For an `affine` step, `(channels,)` each.
    """

    layer: Any
    kind: str
    inputs: tuple[str, ...]
    shape: tuple[int, ...]
    kernel: Any = None
    bias: Any = None
    scale: Any = None
    shift: Any = None

    @property
    def name(self) -> str:
        """Name of the layer."""
        return self.layer.name

    @property
    def channels(self) -> int:
        """Size of the last axis of the output."""
        return self.shape[-1]

    @property
    def is_image(self) -> bool:
        """Whether the step is a convolution."""
        return isinstance(self.layer, keras.layers.Conv2D)

    def multiply(self, x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
        """Returns the product or convolution of one example with a kernel, in double precision."""
        if not self.is_image:
            return x @ kernel[0, 0]
        layer = self.layer
        product = tf.nn.conv2d(
            x[np.newaxis].astype(np.float64),
            kernel.astype(np.float64),
            layer.strides,
            layer.padding.upper(),
            dilations=layer.dilation_rate,
        )
        return product.numpy()[0]

    def evaluate(self, inputs: Sequence[np.ndarray]) -> np.ndarray:
        """Returns the output for one example; `inputs` have no batch axis."""
        if self.kind == "kernel":
            x = self.multiply(inputs[0], self.kernel) + self.bias
            return np.asarray(self.layer.activation(tf.constant(x[np.newaxis])))[0]
        if self.kind == "affine":
            return inputs[0] * self.scale + self.shift
        batches = [tf.constant(x[np.newaxis], tf.float32) for x in inputs]
        result = self.layer(batches if self.kind in ("merge", "concatenate") else batches[0], training=False)
        return np.asarray(result)[0].astype(np.float64)


def read_steps(plain: keras.Model) -> list[Step]:
    """Returns the steps of a stripped network, inputs first; the last step gives the output."""
    steps: dict[str, Step] = {}
    for node in layer_graph(plain):
        inputs = node.inputs
        if isinstance(plain, keras.Sequential) and not steps:
            pixels = keras.layers.InputLayer(batch_shape=plain.inputs[0].shape, name=_free_name(plain))
            steps[pixels.name] = Step(pixels, "input", (), tuple(plain.input_shape[1:]))
            inputs = (pixels.name,)
        step = Step(node.layer, _KINDS[type(node.layer)], inputs, tuple(node.layer.output.shape[1:]))
        _read_weights(step, steps)
        steps[step.name] = step
    last = step.name if isinstance(plain, keras.Sequential) else plain.output_names[0]
    order = [each for each in steps.values() if each.name != last]
    return [*order, steps[last]]


def fold(steps: Sequence[Step], batch_norm: bool) -> list[Step]:
    """Multiplies gates, and optionally batch norm, into adjacent kernels.

    A scale is folded into the kernel that directly precedes it; without a shift it can also be folded into the kernels
    that follow, if nothing else reads it. The steps are changed in place.

    Args:
        steps: The result of `read_steps`.
        batch_norm: Whether batch norm is folded, too, or only gates.

    Returns:
        The remaining steps.
    """
    left = {step.name: step for step in steps}
    last = steps[-1].name
    for step in steps:
        if step.kind != "affine" or (not batch_norm and isinstance(step.layer, keras.layers.BatchNormalization)):
            continue
        before = left[step.inputs[0]]
        readers = [other for other in left.values() if step.name in other.inputs]
        alone = not any(before.name in other.inputs for other in left.values() if other is not step)
        if before.kind == "kernel" and before.layer.activation is keras.activations.linear and alone:
            before.kernel = before.kernel * step.scale
            before.bias = before.bias * step.scale + step.shift
        elif step.name != last and not step.shift.any() and all(reader.kind == "kernel" for reader in readers):
            for reader in readers:
                reader.kernel = reader.kernel * step.scale[:, np.newaxis]
        else:
            continue
        for reader in readers:
            reader.inputs = tuple(before.name if name == step.name else name for name in reader.inputs)
        del left[step.name]
    return list(left.values())


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
    for node in nodes:
        layer = node.layer
        if isinstance(layer, keras.Model):
            raise ValueError(
                f"The layer {layer.name} is a network itself; call its layers one by one, so that their channels show"
            )
        kind = _KINDS.get(plain_class_of(layer))
        if kind is None:
            raise ValueError(
                f"The layer {layer.name} is of type {type(layer).__name__}, whose use of channels is not known; "
                "replace it by dense, Conv2D, batch norm, activation, pooling, padding, flatten, merging, "
                "normalization or dropout layers"
            )
        if layer.name in seen:
            raise ValueError(f"The layer {layer.name} is called twice; its channels cannot be chosen for both calls")
        seen.add(layer.name)
        _check_layer(layer, kind)


def _check_layer(layer: Any, kind: str) -> None:
    shape = tuple(layer.output.shape[1:])
    rank = len(shape) + 1
    if None in shape or rank not in (2, 4):
        raise ValueError(
            f"Only images (height, width, channels) of known size and vectors are supported. Received: {shape} of the "
            f"layer {layer.name}"
        )
    if getattr(layer, "data_format", None) == "channels_first":
        raise ValueError(f"The layer {layer.name} has channels first; build the network with channels last")
    if getattr(layer, "groups", 1) != 1:
        raise ValueError(f"The convolution {layer.name} has groups, which tie channels together; use groups=1")
    activation = getattr(layer, "activation", keras.activations.linear)
    if activation not in _ELEMENTWISE:
        found = getattr(activation, "__name__", type(activation).__name__)
        raise ValueError(
            f"The activation {found} of the layer {layer.name} is not known to act on each channel alone; end the "
            "network in logits, and use activations such as relu inside"
        )
    plain = plain_class_of(layer)
    if plain is keras.layers.Dense and len(layer.input.shape) != 2:
        raise ValueError(f"The dense layer {layer.name} acts on the last of several axes; put a Flatten before it")
    if plain in (keras.layers.BatchNormalization, keras.layers.Concatenate) and layer.axis not in (-1, rank - 1):
        raise ValueError(f"The layer {layer.name} is over axis {layer.axis}; only the last, the channels, is supported")
    if kind == "flat" and rank != 2:
        raise ValueError(f"The layer {layer.name} reshapes images; only reshaping to vectors is supported")
    if kind == "merge" and len({tuple(x.shape) for x in layer.input}) > 1:
        raise ValueError(f"The layer {layer.name} merges different shapes; only equal shapes are supported")
    if plain is keras.layers.Rescaling and not isinstance(layer, HasPlainTwin):
        for name in ("scale", "offset"):
            if np.ndim(getattr(layer, name)) > 1 or np.size(getattr(layer, name)) not in (1, shape[-1]):
                raise ValueError(
                    f"The layer {layer.name} has one `{name}` per position; only one, or one per channel, is supported"
                )


def _read_weights(step: Step, before: dict[str, Step]) -> None:
    layer = step.layer
    if step.kind == "kernel":
        kernel, *bias = (weight.astype(np.float64) for weight in layer.get_weights())
        step.kernel = kernel if step.is_image else kernel[np.newaxis, np.newaxis]
        step.bias = bias[0] if bias else np.zeros(step.channels)
    elif isinstance(layer, keras.layers.Rescaling):
        step.scale, step.shift = (
            np.broadcast_to(np.asarray(value, np.float64), (step.channels,)) for value in (layer.scale, layer.offset)
        )
    elif isinstance(layer, keras.layers.BatchNormalization):
        gamma, beta, mean, variance = (
            default if value is None else keras.ops.convert_to_numpy(value).astype(np.float64)
            for value, default in (
                (layer.gamma, 1.0),
                (layer.beta, 0.0),
                (layer.moving_mean, None),
                (layer.moving_variance, None),
            )
        )
        step.scale = gamma / np.sqrt(variance + layer.epsilon)
        step.shift = beta - mean * step.scale


def _free_name(network: keras.Model) -> str:
    name = network.inputs[0].name.partition(":")[0]
    return name if name not in {layer.name for layer in network.layers} else f"{name}_pixels"
