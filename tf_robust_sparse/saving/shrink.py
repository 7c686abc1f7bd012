"""Makes a smaller network of plain Keras layers that computes the same."""

from typing import Any, NamedTuple

import keras
import numpy as np

from tf_robust_sparse.layers.cloning import flattened, set_weights
from tf_robust_sparse.saving.channels import Channels, find_channels
from tf_robust_sparse.saving.sizes import Sizes, network_sizes
from tf_robust_sparse.saving.step_kinds import check_layers
from tf_robust_sparse.saving.steps import Step, fold, read_steps
from tf_robust_sparse.saving.strip import strip


class ShrinkReport(NamedTuple):
    """What `shrink` did.

    Attributes:
        kept: Layer with a kernel -> its channels or units that stay, by their numbers in the given network.
        channels: Layer with a kernel -> number of channels or units in the given network.
        carriers: Layer -> constant input channels that stay because zero padding changes their effect at borders.
        emptied: Layers without influence; one channel of them stays.
        removed: Layers that were removed, because they were folded into others or added nothing.
        before: Sizes of the given network, as plain Keras layers.
        after: Sizes of the smaller one.
    """

    kept: dict[str, list[int]]
    channels: dict[str, int]
    carriers: dict[str, list[int]]
    emptied: list[str]
    removed: list[str]
    before: Sizes
    after: Sizes

    def as_dict(self) -> dict[str, Any]:
        """Returns all fields, ready for JSON."""
        return {**self._asdict(), "before": self.before._asdict(), "after": self.after._asdict()}


class Shrunk(NamedTuple):
    """A smaller network and the report on it."""

    network: keras.Model
    report: ShrinkReport


def shrink(network: keras.Model, fold_batch_norm: bool = False) -> Shrunk:
    """Removes every channel and unit of `network` that cannot influence its output.

    Two kinds of channels are removed. Unread channels meet only zeros in later kernels. Constant channels have the same
    value for every image, because their own kernel entries are zero or their gate is closed; their constants move into
    later biases. If a later convolution pads with zeros, the effect of a constant differs at the border. Then one
    constant channel stays, the carrier, with the sum of the kernels of all. Removals that become possible by others are
    done, too. Gates are folded into adjacent kernels.

    Channels of a sum are removed if no reader needs them; an input of several layers keeps what any of them reads. All
    pixels and logits stay. Features of a flattened image are removed only with their whole channel. A depthwise
    convolution keeps a channel with its input. Groups of a convolution go as a whole, or each loses as many channels.

    Args:
        network: A functional or sequential model of any parametrization and known image size, with one input and one
            output: dense, Conv2D, depthwise and separable convolutions, batch norm, element-wise activations, gates,
            pooling, padding, flatten, adding and other merging, concatenation, rescaling, normalization, dropout, and
            sums, differences, products and quotients of `keras.ops`, also with a constant per channel.
        fold_batch_norm: Whether batch norm that follows a kernel becomes part of it.

    Returns:
        The smaller network, of plain Keras layers in float32 with the names of the original layers, and the report. Up
        to rounding, its logits are those of `network`. A separable convolution `x` becomes a depthwise one,
        `x_depthwise`, and a 1x1 convolution, `x`. Further training differs: pruned connections cannot come back, and
        folded batch norm is frozen. The layer `conv` of a nested model `block` is called `block_conv`.

    Raises:
        ValueError: if a layer is not supported; names it. A nested model must be functional or sequential, have one
            input and one output, and be called once.

    Reference: [Madaan et al., 2020](https://arxiv.org/abs/1908.04355), which counts the remaining units.
    """
    network = flattened(network)
    check_layers(network)
    plain = strip(network)
    steps = read_steps(plain)
    names = [step.name for step in steps]
    found = find_channels(fold(steps, fold_batch_norm))
    smaller = _build(found, network.name)
    staying = {layer.name for layer in smaller.layers}
    kernels = [step for step in found.steps if step.kind == "kernel"]
    report = ShrinkReport(
        kept={step.name: np.flatnonzero(found.present[step.name]).tolist() for step in kernels},
        channels={step.name: step.channels for step in kernels},
        carriers=found.carriers,
        emptied=[step.name for step in kernels if step.name in found.emptied],
        removed=[name for name in names if name not in staying],
        before=network_sizes(plain),
        after=network_sizes(smaller),
    )
    return Shrunk(smaller, report)


def _build(found: Channels, name: str) -> keras.Model:
    """Returns the network of the parts that stay."""
    tensors: dict[str, Any] = {}
    inputs = None
    for step in found.steps:
        if step.kind == "input":
            inputs = keras.Input(batch_shape=step.layer.batch_shape, dtype="float32", name=step.name)
            tensors[step.name] = inputs
            continue
        arguments = [tensors[each] for each in found.inputs[step.name]]
        if step.kind in ("merge", "concatenate") and len(arguments) == 1:
            tensors[step.name] = arguments[0]
            continue
        layer, weights = _layer(step, found)
        tensors[step.name] = layer(arguments if len(arguments) > 1 else arguments[0])
        if weights:
            set_weights(layer, weights)
    return keras.Model(inputs, tensors[found.steps[-1].name], name=name)


def _layer(step: Step, found: Channels) -> tuple[Any, list[np.ndarray]]:
    """Returns the remaining layer of a step, and its weights."""
    config, weights = step.layer.get_config(), step.layer.get_weights()
    present = found.present[step.name]
    if step.kind == "kernel":
        kernel, bias = found.kernels[step.name]
        kernel, groups = _remaining_groups(step, kernel, found.present[step.inputs[0]], present)
        bias = bias[present]
        config["use_bias"] = bool(config["use_bias"] or bias.any())
        if isinstance(step.layer, keras.layers.DepthwiseConv2D):
            kernel = kernel.reshape(*kernel.shape[:2], groups, -1)
            config["depth_multiplier"] = kernel.shape[3]
        elif step.is_image:
            config.update(filters=int(present.sum()), groups=groups)
        else:
            config["units"] = int(present.sum())
        weights = [kernel if step.is_image else kernel[0, 0], *([bias] if config["use_bias"] else [])]
    elif isinstance(step.layer, keras.layers.Rescaling):
        for key in ("scale", "offset"):
            if np.size(config[key]) > 1:
                config[key] = np.asarray(config[key])[present].tolist()
    elif isinstance(step.layer, keras.layers.BatchNormalization):
        weights = [weight[present] for weight in weights]
    elif isinstance(step.layer, keras.layers.Reshape):
        config["target_shape"] = (*step.shape[:-1], int(present.sum()))
    return type(step.layer).from_config(config), weights


def _remaining_groups(
    step: Step, kernel: np.ndarray, inputs: np.ndarray, outputs: np.ndarray
) -> tuple[np.ndarray, int]:
    """Returns the kernel of the channels that stay, and its number of groups."""
    parts = zip(
        *(np.split(kernel, step.groups, axis=3), np.split(inputs, step.groups), np.split(outputs, step.groups)),
        strict=True,
    )
    stay = [part[:, :, read][..., made] for part, read, made in parts if made.any()]
    return np.concatenate(stay, axis=3), len(stay)
