"""From a network to a smaller one of plain Keras layers that computes the same."""

from typing import Any, NamedTuple

import keras
import numpy as np

from tf_robust_sparse.layers.cloning import set_weights
from tf_robust_sparse.saving.channels import Channels, find_channels
from tf_robust_sparse.saving.sizes import Sizes, network_sizes
from tf_robust_sparse.saving.steps import Step, check_layers, fold, read_steps
from tf_robust_sparse.saving.strip import strip


class ShrinkReport(NamedTuple):
    """What `shrink` did.

    Attributes:
        kept: Layer with a kernel -> which of its channels or units stay, by their numbers in the network given.
        channels: Layer with a kernel -> how many it had.
        carriers: Layer -> input channels that stay because they carry constants over zero-padded borders.
        emptied: Layers without any influence, of which one channel stays.
        removed: Layers that are gone: folded into others, or added nothing.
        before: Sizes of the network given, as plain Keras layers.
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
        """Returns everything, ready for JSON."""
        return {**self._asdict(), "before": self.before._asdict(), "after": self.after._asdict()}


class Shrunk(NamedTuple):
    """A smaller network, and what was done."""

    network: keras.Model
    report: ShrinkReport


def shrink(network: keras.Model, fold_batch_norm: bool = False) -> Shrunk:
    """Removes every channel and unit of `network` that cannot influence its output.

    Two kinds go. Nothing reads the one: all entries of later kernels are zero. The other is constant, whatever the
    image: its own entries are zero, or its gate is closed. Its constant becomes part of later biases. Where a later
    convolution pads with zeros, its effect differs at the border, and one constant channel stays as the carrier of
    all of them, with the sum of their kernels. What a removal makes possible up- and downstream is done, too. Gates
    become part of the kernels beside them.

    Channels of a sum are removed if no summand needs them; layers of one input keep what any of them reads. All pixels
    and all logits stay. Features of a flattened image go only with their whole channel.

    Args:
        network: A functional or sequential model of any parametrization and known image size, with one input and one
            output: dense, Conv2D, batch norm, element-wise activations, gates, pooling, padding, flatten, adding and
            other merging, concatenation, rescaling, normalization and dropout.
        fold_batch_norm: Whether batch norm that follows a kernel becomes part of it.

    Returns:
        The smaller network, of plain Keras layers in float32 under the names of those they come from, and the report.
        Its logits are those of `network` but for rounding. Training goes on differently: dropped connections cannot
        come back, and folded batch norm is frozen.

    Raises:
        ValueError: if a layer is not supported; names it.

    Reference: [Madaan et al., 2020](https://arxiv.org/abs/1908.04355), which counts what would be left.
    """
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
    """Returns the network of what stays."""
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
    """Returns the layer that stays of a step, and its weights."""
    config, weights = step.layer.get_config(), step.layer.get_weights()
    present = found.present[step.name]
    if step.kind == "kernel":
        kernel, bias = (value[..., present] for value in found.kernels[step.name])
        kernel = kernel[:, :, found.present[found.inputs[step.name][0]]]
        config["filters" if step.is_image else "units"] = int(present.sum())
        config["use_bias"] = bool(config["use_bias"] or bias.any())
        weights = [kernel if step.is_image else kernel[0, 0], *([bias] if config["use_bias"] else [])]
    elif isinstance(step.layer, keras.layers.Rescaling):
        for key in ("scale", "offset"):
            if np.size(config[key]) > 1:
                config[key] = np.asarray(config[key])[present].tolist()
    elif isinstance(step.layer, keras.layers.BatchNormalization):
        weights = [weight[present] for weight in weights]
    elif isinstance(step.layer, keras.layers.Reshape):
        config["target_shape"] = (int(present.sum()),)
    return type(step.layer).from_config(config), weights
