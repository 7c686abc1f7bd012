"""What a network with so many units would cost, by the formulas that neural pruning was published with."""

from collections.abc import Sequence
from typing import NamedTuple


class _Convolution(NamedTuple):
    size: int  # height and width of its output
    kernel: int
    channels: int | None  # of its input; None for the units of the layer before
    batch_norm: bool


class _Architecture(NamedTuple):
    """Convolutions in order, which of them a pooling of 2x2 follows, and how often tables count the dense layers."""

    units: tuple[int, ...]
    convolutions: tuple[_Convolution, ...]
    pooled: tuple[int, ...]
    dense_batch_norm: bool
    last_activation: bool
    repeats_in_table: int


_VGG_SIZES = (32, 32, 16, 16, 8, 8, 8, 4, 4, 4, 2, 2, 2)
_VGG_UNITS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512, 512, 512)
ARCHITECTURES = {
    "lenet_conv": _Architecture(
        (20, 50, 800, 500),
        (_Convolution(24, 5, 1, False), _Convolution(8, 5, None, False)),
        (1, 2),
        dense_batch_norm=False,
        last_activation=False,
        repeats_in_table=1,
    ),
    "vgg16_dropout": _Architecture(
        _VGG_UNITS,
        tuple(_Convolution(size, 3, None if i else 3, True) for i, size in enumerate(_VGG_SIZES)),
        (2, 4, 7, 10, 13),
        dense_batch_norm=True,
        last_activation=True,
        repeats_in_table=13,
    ),
}


class Efficiency(NamedTuple):
    """Costs of a network with fewer units beside those of the whole one.

    All are computed from the numbers of units alone, those of the inputs of the dense layer counted apart from the
    channels they come from, as published; what `shrink` leaves is counted by `shrink`.

    Attributes:
        sparsity: Share of the units that is gone, in per cent.
        flops: Additions and multiplications of one image; batch norm and gates not among them.
        speed_up: Those of the whole network by these.
        memory: Numbers of kernels and of the unrolled inputs of convolutions, in per cent of the whole network's.
        memory_in_table: The same as published: the dense layers of VGG16 count 13 times.
    """

    sparsity: float
    flops: int
    speed_up: float
    memory: float
    memory_in_table: float


def efficiency(architecture: str, units: Sequence[int], num_classes: int = 10) -> Efficiency:
    """Computes what a gated network with so many active units costs.

    Args:
        architecture: A key of `ARCHITECTURES`.
        units: Active units of each gate, in forward order.
        num_classes: Number of classes.

    Raises:
        ValueError: if there is no such architecture, or the units are not some of its units.

    Reference: [Madaan et al., 2020](https://arxiv.org/abs/1908.04355), section 5, and its published code.
    """
    if architecture not in ARCHITECTURES:
        options = ", ".join(ARCHITECTURES)
        raise ValueError(f"`architecture` must be one of {options}. Received: architecture={architecture!r}")
    found = ARCHITECTURES[architecture]
    units = tuple(int(number) for number in units)
    if len(units) != len(found.units) or not all(0 <= a <= b for a, b in zip(units, found.units, strict=True)):
        raise ValueError(f"`units` are at most {found.units} of {architecture}. Received: units={units}")
    ours, whole = (_flops(found, each, num_classes) for each in (units, found.units))
    memory = {
        repeats: 100 * _memory(found, units, num_classes, repeats) / _memory(found, found.units, num_classes, repeats)
        for repeats in (1, found.repeats_in_table)
    }
    return Efficiency(
        100 - 100 * sum(units) / sum(found.units),
        ours,
        whole / ours if ours else float("inf"),
        memory[1],
        memory[found.repeats_in_table],
    )


def _flops(found: _Architecture, units: Sequence[int], num_classes: int) -> int:
    total = 0
    for number, layer in enumerate(found.convolutions):
        channels = units[number - 1] if layer.channels is None else layer.channels
        total += units[number] * layer.size**2 * (2 * layer.kernel**2 * channels + 1)  # bias and activation among them
        if number + 1 in found.pooled:
            total += 4 * units[number] * (layer.size // 2) ** 2
    hidden, last = units[-2:]
    return total + last * (2 * hidden + 1) + num_classes * (2 * last + found.last_activation)


def _memory(found: _Architecture, units: Sequence[int], num_classes: int, repeats: int) -> int:
    total = 0
    for number, layer in enumerate(found.convolutions):
        channels = units[number - 1] if layer.channels is None else layer.channels
        total += layer.kernel**2 * channels * (layer.size**2 + units[number]) + 2 * layer.batch_norm * units[number]
    hidden, last = units[-2:]
    dense = hidden * last + last + 2 * found.dense_batch_norm * hidden + (last + 1) * num_classes
    return total + repeats * dense
