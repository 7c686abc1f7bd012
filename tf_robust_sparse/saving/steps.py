"""A network as steps that act on channels one by one or mix them; `shrink` works on these."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_robust_sparse.saving.step_kinds import Call, calls


@dataclasses.dataclass
class Step:
    """One layer, with weights in double precision.

    Attributes:
        layer: A plain Keras layer that is called once.
        kind: Its effect on channels.
        inputs: Names of the steps whose outputs it takes.
        shape: Shape of its output, without the batch, channels last.
        kernel: For a `kernel` step, `(height, width, inputs of a group, outputs)`; height and width are 1 for dense
            layers.
        bias: For a `kernel` step, `(outputs,)`.
        scale, shift: For an `affine` step, `(channels,)` each.
        groups: Of a `kernel` step, its groups of inputs and of outputs; a depthwise one has as many as inputs.
    """

    layer: Any
    kind: str
    inputs: tuple[str, ...]
    shape: tuple[int, ...]
    kernel: Any = None
    bias: Any = None
    scale: Any = None
    shift: Any = None
    groups: int = 1

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
        return isinstance(self.layer, (keras.layers.Conv2D, keras.layers.DepthwiseConv2D))

    @property
    def sources(self) -> np.ndarray:
        """The input that each entry of the kernel reads, `(inputs of a group, outputs)`; `(inputs, 1)` of one group."""
        inputs = np.arange(self.kernel.shape[2])[:, np.newaxis]
        if self.groups == 1:
            return inputs
        return inputs + len(inputs) * (np.arange(self.channels) // (self.channels // self.groups))

    def multiply(self, x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
        """Returns the product or convolution of one example with a kernel, in double precision.

        A kernel for fewer inputs than `x` has is one of groups.
        """
        if not self.is_image:
            return x @ kernel[0, 0]
        height, width, inputs, outputs = kernel.shape
        groups, layer = x.shape[-1] // inputs, self.layer
        image, padding = x[np.newaxis].astype(np.float64), layer.padding.upper()
        if groups > 1 and inputs == 1:
            product = tf.nn.depthwise_conv2d(
                image,
                kernel.reshape(height, width, groups, outputs // groups).astype(np.float64),
                (1, *layer.strides, 1),
                padding,
                dilations=layer.dilation_rate,
            )
            return product.numpy()[0]
        products = [
            tf.nn.conv2d(part, of_group.astype(np.float64), layer.strides, padding, dilations=layer.dilation_rate)
            for part, of_group in zip(np.split(image, groups, -1), np.split(kernel, groups, -1), strict=True)
        ]
        return np.concatenate(products, -1)[0]

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
    """Returns the steps of a stripped network, inputs first; the last step gives the output.

    A separable convolution becomes two of them: a depthwise one, whose name has the suffix `_depthwise`, and a 1x1
    convolution of its own name.
    """
    steps: dict[str, Step] = {}
    for call in calls(plain):
        if isinstance(plain, keras.Sequential) and not steps:
            pixels = keras.layers.InputLayer(batch_shape=plain.inputs[0].shape, name=_free_name(plain))
            steps[pixels.name] = Step(pixels, "input", (), tuple(plain.input_shape[1:]))
            call = call._replace(inputs=(pixels.name,))
        for step in _separated(call) if isinstance(call.layer, keras.layers.SeparableConv2D) else [_step(call)]:
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
                reader.kernel = reader.kernel * step.scale[reader.sources]
        else:
            continue
        for reader in readers:
            reader.inputs = tuple(before.name if name == step.name else name for name in reader.inputs)
        del left[step.name]
    return list(left.values())


def _step(call: Call) -> Step:
    layer = call.layer
    step = Step(layer, str(call.kind), call.inputs, call.shape)
    if step.kind == "kernel":
        kernel, *bias = (weight.astype(np.float64) for weight in layer.get_weights())
        if isinstance(layer, keras.layers.DepthwiseConv2D):
            step.groups = kernel.shape[2]
            kernel = kernel.reshape(*kernel.shape[:2], 1, -1)
        elif step.is_image:
            step.groups = layer.groups
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
    return step


def _separated(call: Call) -> list[Step]:
    """Returns the two convolutions of a separable one."""
    layer, groups = call.layer, call.given[0][-1]
    depthwise, pointwise, *bias = (weight.astype(np.float64) for weight in layer.get_weights())
    first = keras.layers.DepthwiseConv2D(
        layer.kernel_size,
        layer.strides,
        layer.padding,
        layer.depth_multiplier,
        dilation_rate=layer.dilation_rate,
        use_bias=False,
        name=f"{layer.name}_depthwise",
    )
    second = keras.layers.Conv2D(
        layer.filters, 1, activation=layer.activation, use_bias=layer.use_bias, name=layer.name
    )
    channels = depthwise.shape[2] * depthwise.shape[3]
    kernel = depthwise.reshape(*depthwise.shape[:2], 1, channels)
    shape = (*call.shape[:2], channels)
    given = Step(first, "kernel", call.inputs, shape, kernel, np.zeros(channels), groups=groups)
    return [
        given,
        Step(second, "kernel", (first.name,), call.shape, pointwise, bias[0] if bias else np.zeros(layer.filters)),
    ]


def _free_name(network: keras.Model) -> str:
    name = network.inputs[0].name.partition(":")[0]
    return name if name not in {layer.name for layer in network.layers} else f"{name}_pixels"
