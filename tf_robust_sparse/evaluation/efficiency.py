"""The costs of a network with given numbers of units, by the formulas of neural pruning's publication."""

from collections.abc import Sequence
from typing import NamedTuple


class _Architecture(NamedTuple):
    """A chain of equal convolutions, some followed by a pooling of 2x2, and two dense layers.

    Attributes:
        input_shape: Shape of the images in the publication.
        channels: Number of channels of each convolution.
        hidden: Number of units of the first dense layer.
        kernel: Height and width of the kernels.
        padded: Whether convolutions keep the size of images.
        pooled: Numbers of the convolutions before a pooling, from 1.
        batch_norm: Whether convolutions and the first dense layer have batch norm.
        last_activation: Whether tables count an activation for the logits.
        repeats_in_table: How often tables count the dense layers.
    """

    input_shape: tuple[int, int, int]
    channels: tuple[int, ...]
    hidden: int
    kernel: int
    padded: bool
    pooled: tuple[int, ...]
    batch_norm: bool
    last_activation: bool
    repeats_in_table: int


class _Convolution(NamedTuple):
    """A convolution: positions of its output, positions after pooling (0 without pooling), and input channels."""

    positions: int
    pooled_positions: int
    inputs: int


_ARCHITECTURES = {
    "lenet_conv": _Architecture((28, 28, 1), (20, 50), 500, 5, False, (1, 2), False, False, 1),
    "vgg16_dropout": _Architecture(
        (32, 32, 3),
        (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512),
        *(512, 3, True, (2, 4, 7, 10, 13), True, True, 13),
    ),
}


class Efficiency(NamedTuple):
    """Costs of a network with fewer units, compared with the whole network.

    All costs depend only on the numbers of units. Inputs of the dense layer and the channels they come from count
    separately, as published. For the real size of a smaller network see `shrink`.

    Attributes:
        sparsity: Share of the units that are removed, in percent.
        flops: Additions and multiplications for one image, without batch norm and gates.
        speed_up: Flops of the whole network divided by `flops`.
        memory: Entries of kernels and of unrolled inputs of convolutions, in percent of the whole network.
        memory_in_table: `memory` as in the published table, where the dense layers of VGG16 count 13 times.
    """

    sparsity: float
    flops: int
    speed_up: float
    memory: float
    memory_in_table: float


def gated_units(architecture: str, input_shape: Sequence[int] | None = None) -> tuple[int, ...]:
    """Returns the number of units of each gate of the whole network, in forward order.

    Args:
        architecture: `"lenet_conv"` or `"vgg16_dropout"`.
        input_shape: `(height, width, channels)` of the images; `None` for the shape in the publication.

    Raises:
        ValueError: if there is no such architecture, or the images are too small for it.
    """
    found = _architecture(architecture)
    height, width = _sizes(found, input_shape)[-1]
    return (*found.channels, height * width * found.channels[-1], found.hidden)


def efficiency(
    architecture: str, units: Sequence[int], num_classes: int = 10, input_shape: Sequence[int] | None = None
) -> Efficiency:
    """Returns the costs of a gated network with given numbers of active units.

    Args:
        architecture: `"lenet_conv"` or `"vgg16_dropout"`.
        units: Number of active units of each gate, in forward order.
        num_classes: Number of classes.
        input_shape: `(height, width, channels)` of the images; `None` for the shape in the publication.

    Raises:
        ValueError: if there is no such architecture, the images are too small for it, or there are more
            units than the network has.

    Reference: [Madaan et al., 2020](https://arxiv.org/abs/1908.04355), section 5, and its published code.
    """
    found, whole = _architecture(architecture), gated_units(architecture, input_shape)
    units = tuple(int(number) for number in units)
    if len(units) != len(whole) or not all(0 <= a <= b for a, b in zip(units, whole, strict=True)):
        raise ValueError(f"`units` are at most {whole} of {architecture}. Received: units={units}")
    ours, theirs = (_flops(found, each, num_classes, input_shape) for each in (units, whole))
    memory = {
        repeats: 100
        * _memory(found, units, num_classes, repeats, input_shape)
        / _memory(found, whole, num_classes, repeats, input_shape)
        for repeats in (1, found.repeats_in_table)
    }
    return Efficiency(
        100 - 100 * sum(units) / sum(whole),
        ours,
        theirs / ours if ours else float("inf"),
        memory[1],
        memory[found.repeats_in_table],
    )


def _architecture(name: str) -> _Architecture:
    if name not in _ARCHITECTURES:
        options = ", ".join(_ARCHITECTURES)
        raise ValueError(f"`architecture` must be one of {options}. Received: architecture={name!r}")
    return _ARCHITECTURES[name]


def _sizes(found: _Architecture, input_shape: Sequence[int] | None) -> list[tuple[int, int]]:
    """Returns heights and widths after each convolution, before its pooling; the last one is for the dense layers."""
    height, width = (found.input_shape if input_shape is None else input_shape)[:2]
    sizes = []
    for number in range(1, len(found.channels) + 1):
        if not found.padded:
            height, width = height - found.kernel + 1, width - found.kernel + 1
        sizes.append((height, width))
        if number in found.pooled:
            height, width = height // 2, width // 2
        if height < 1 or width < 1:
            raise ValueError(f"`input_shape` is too small for the network. Received: input_shape={input_shape}")
    return [*sizes, (height, width)]


def _convolutions(found: _Architecture, units: Sequence[int], input_shape: Sequence[int] | None) -> list[_Convolution]:
    channels = (found.input_shape if input_shape is None else input_shape)[2]
    convolutions = []
    for number, (height, width) in enumerate(_sizes(found, input_shape)[:-1], 1):
        pooled = (height // 2) * (width // 2) if number in found.pooled else 0
        convolutions.append(_Convolution(height * width, pooled, channels if number == 1 else units[number - 2]))
    return convolutions


def _flops(
    found: _Architecture, units: Sequence[int], num_classes: int, input_shape: Sequence[int] | None = None
) -> int:
    total = 0
    for outputs, layer in zip(units, _convolutions(found, units, input_shape), strict=False):
        # 2 * kernel * inputs operations per output, with the bias, and one for the activation.
        total += outputs * layer.positions * (2 * found.kernel**2 * layer.inputs + 1)
        total += 4 * outputs * layer.pooled_positions
    flat, last = units[-2:]
    return total + last * (2 * flat + 1) + num_classes * (2 * last + found.last_activation)


def _memory(
    found: _Architecture,
    units: Sequence[int],
    num_classes: int,
    repeats: int,
    input_shape: Sequence[int] | None = None,
) -> int:
    total = 0
    for outputs, layer in zip(units, _convolutions(found, units, input_shape), strict=False):
        total += found.kernel**2 * layer.inputs * (layer.positions + outputs) + 2 * found.batch_norm * outputs
    flat, last = units[-2:]
    dense = flat * last + last + 2 * found.batch_norm * flat + (last + 1) * num_classes
    return total + repeats * dense
