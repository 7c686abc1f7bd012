"""Which channels of a network influence its output, and the kernels that remain without the others.

The graph has no cycles, so one forward sweep finds every channel whose value is constant, and one backward sweep every
channel whose value is needed; after these, no removal makes another one possible. Constants are stored for each
position, because zero padding changes them at borders.
"""

import dataclasses
from collections.abc import Sequence

import keras
import numpy as np

from tf_robust_sparse.saving.steps import Step

_SAME = 1e-6  # relative difference below which two float32 results count as equal


@dataclasses.dataclass
class Channels:
    """The parts of each step that stay, by its name.

    Attributes:
        steps: The steps that stay, in order.
        present: Whether each channel of the output stays, bool `(channels,)`.
        inputs: Names of the inputs that stay.
        kernels: Kernel and bias in full size, with zeros where nothing is needed.
        carriers: Constant input channels that stay because zero padding changes their effect at borders.
        emptied: Steps whose output has no influence; one channel of them stays.
    """

    steps: list[Step]
    present: dict[str, np.ndarray]
    inputs: dict[str, tuple[str, ...]]
    kernels: dict[str, tuple[np.ndarray, np.ndarray]]
    carriers: dict[str, list[int]]
    emptied: list[str]


@dataclasses.dataclass
class _Constants:
    """Which channels of a step's output are the same for every image, bool `(channels,)`, and their values."""

    known: np.ndarray
    values: np.ndarray  # in the shape of the output; arbitrary where not known

    @property
    def at_known(self) -> np.ndarray:
        return np.where(self.known, self.values, 0)

    @property
    def zero(self) -> np.ndarray:
        axes = tuple(range(self.values.ndim - 1))
        return self.known & ~self.values.any(axis=axes)


def find_channels(steps: Sequence[Step]) -> Channels:
    """Returns the parts of a network that stay.

    Args:
        steps: The result of `read_steps`, folded or not; the last step is the output, whose channels all stay.
    """
    constants = _constants(steps)
    by_name = {step.name: step for step in steps}
    needed = {step.name: np.zeros(step.channels, bool) for step in steps}
    needed[steps[-1].name][:] = True
    found = Channels([], {}, {}, {}, {}, [])
    reached = {steps[-1].name}
    # Backward: a step is visited after all steps that read it, so `needed` of its output is complete by then.
    for step in reversed(steps):
        if step.name not in reached:
            continue
        found.steps.insert(0, step)
        wanted = needed[step.name]
        if step.kind == "kernel":
            reads = _read(step, wanted, constants[step.inputs[0]], found)
            found.inputs[step.name] = step.inputs
            needed[step.inputs[0]] |= reads
        else:
            found.inputs[step.name] = _pass_on(step, wanted, constants, needed, by_name)
        reached.update(found.inputs[step.name])
    found.present = {step.name: needed[step.name].copy() for step in found.steps}
    _align(found, by_name)
    for step in found.steps:
        if not found.present[step.name].any():
            found.present[step.name][0] = True
            found.emptied.append(step.name)
            _align(found, by_name)
    return found


def _constants(steps: Sequence[Step]) -> dict[str, _Constants]:
    """Returns the constants of each step, computed from the first step to the last."""
    found: dict[str, _Constants] = {}
    for step in steps:
        inputs = [found[name] for name in step.inputs]
        if step.kind in ("input", "whole"):
            found[step.name] = _Constants(np.zeros(step.channels, bool), np.zeros(step.shape))
            continue
        values = step.evaluate([each.at_known for each in inputs])
        if step.kind == "kernel":
            # An output is constant if it reads constant inputs alone.
            known = ~((step.kernel != 0) & ~inputs[0].known[step.sources]).any(axis=(0, 1, 2))
        elif step.kind == "affine":
            known = inputs[0].known | (step.scale == 0)
        elif step.kind == "concatenate":
            known = np.concatenate([each.known for each in inputs])
        elif step.kind == "flat":
            known = _spread(inputs[0].known, inputs[0].values.shape)
        else:
            known = np.all([each.known for each in inputs], axis=0)
            if isinstance(step.layer, keras.layers.Multiply):
                known |= np.any([each.zero for each in inputs], axis=0)
        found[step.name] = _Constants(known, values)
    return found


def _spread(channels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Returns the entry of its channel for each feature of a flattened image, which is laid out as the image."""
    return np.broadcast_to(channels, shape).reshape(-1)


def _gather(features: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Returns for each channel of an image whether any of its features is set."""
    return np.asarray(features.reshape(shape).any(axis=tuple(range(len(shape) - 1))))


def _pass_on(
    step: Step,
    wanted: np.ndarray,
    constants: dict[str, _Constants],
    needed: dict[str, np.ndarray],
    by_name: dict[str, Step],
) -> tuple[str, ...]:
    """Marks what a step without a kernel needs of its inputs, given `wanted`; returns the inputs that it keeps."""
    names = step.inputs
    if step.kind == "merge" and isinstance(step.layer, keras.layers.Add):  # zeros add nothing
        names = tuple(name for name in names if (wanted & ~constants[name].zero).any()) or names[:1]
    start = 0
    for name in names:
        channels = by_name[name].channels
        if step.kind == "affine":
            asked = wanted & (step.scale != 0)
        elif step.kind == "concatenate":
            asked = wanted[start : start + channels]
            start += channels
        elif step.kind == "flat":
            asked = _gather(wanted, by_name[name].shape)
        elif step.kind == "whole":
            asked = np.ones(channels, bool)
        else:
            asked = wanted
        needed[name] |= asked
    return names


def _read(step: Step, wanted: np.ndarray, given: _Constants, found: Channels) -> np.ndarray:
    """Computes the remaining kernel and bias of a step; returns the inputs it still needs, bool `(inputs,)`.

    A constant input moves into the bias if its contribution is the same at every position. Others meet zero padding:
    of those with proportional values, one stays, the carrier, and its kernel makes the contribution of all.
    """
    kernel = np.where(wanted, step.kernel, 0)
    bias = np.where(wanted, step.bias, 0)
    remaining = np.zeros_like(kernel)
    asked = np.zeros(len(given.known), bool)
    movable = given.known & ~given.zero
    carriers = []
    parts = zip(*(np.split(np.arange(size), step.groups) for size in (len(asked), step.channels)), strict=True)
    for inputs, outputs in parts:
        of_group = kernel[..., outputs]
        reads = of_group.any(axis=(0, 1, 3))
        asked[inputs] = reads & ~given.known[inputs]
        remaining[..., outputs] = np.where(asked[inputs, np.newaxis], of_group, 0)
        constants = inputs[reads & movable[inputs]]
        for members, factors, pattern in _proportional(given.values, constants, step.is_image):
            together = np.einsum("k,hwkj->hwj", factors, of_group[:, :, members - inputs[0]])
            added = step.multiply(pattern[..., np.newaxis], together[:, :, np.newaxis])
            if added.ndim == 1 or _is_uniform(added, together, pattern):
                bias[outputs] += added if added.ndim == 1 else added[added.shape[0] // 2, added.shape[1] // 2]
                continue
            # The member of largest value carries the sum, which keeps the division accurate.
            strongest = int(np.argmax(np.abs(factors)))
            carrier = int(members[strongest])
            remaining[:, :, carrier - inputs[0], outputs] = together / factors[strongest]
            asked[carrier] = True
            carriers.append(carrier)
    found.kernels[step.name] = remaining, bias
    if carriers:
        found.carriers[step.name] = sorted(carriers)
    return asked


def _proportional(
    values: np.ndarray, which: np.ndarray, is_image: bool
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Groups the constant channels `which` by proportional maps: numbers, factors, and a map; values are products."""
    if not len(which):
        return []
    values = values[..., which]
    if not is_image:
        return [(which, values, np.ones(()))]
    flat = values.reshape(-1, len(which))
    factors = flat[np.abs(flat).argmax(axis=0), np.arange(len(which))]
    # Divided by their largest value, proportional maps are equal up to rounding.
    patterns = np.round(flat / factors, 6)
    _, first, group = np.unique(patterns, axis=1, return_index=True, return_inverse=True)
    group = group.reshape(-1)
    return [
        (which[group == number], factors[group == number], values[..., place] / factors[place])
        for number, place in enumerate(first)
    ]


def _is_uniform(added: np.ndarray, kernel: np.ndarray, pattern: np.ndarray) -> bool:
    """Returns whether a map `(height, width, outputs)` is the same at every position, up to rounding."""
    spread = added.max(axis=(0, 1)) - added.min(axis=(0, 1))
    return bool((spread <= _SAME * np.abs(kernel).sum(axis=(0, 1)) * np.abs(pattern).max()).all())


def _align(found: Channels, by_name: dict[str, Step]) -> None:
    """Extends `present` until channels that share a place stay together, at the input and output of every step."""
    # Each pass spreads channels through the steps in both directions; it ends when a pass adds nothing.
    present = found.present
    count = -1
    while count != (count := sum(int(each.sum()) for each in present.values())):
        for step in [*reversed(found.steps), *found.steps]:
            mine, names = present[step.name], found.inputs[step.name]
            if step.kind == "input":
                mine[:] = True
            elif step.groups > 1:
                _align_groups(step.groups, present[names[0]], mine)
            elif step.kind == "flat":
                shape = by_name[names[0]].shape
                present[names[0]] |= _gather(mine, shape)
                mine |= _spread(present[names[0]], shape)
            elif step.kind == "concatenate":
                ends = np.cumsum([by_name[name].channels for name in names])[:-1]
                for name, part in zip(names, np.split(mine, ends), strict=True):
                    present[name] |= part
                mine |= np.concatenate([present[name] for name in names])
            elif step.kind != "kernel":
                for name in names:
                    mine |= present[name]
                for name in names:
                    present[name] |= mine
                if step.kind == "whole":
                    mine[:] = True


def _align_groups(groups: int, inputs: np.ndarray, outputs: np.ndarray) -> None:
    """Extends what stays of a convolution in groups until all groups that stay have as many inputs, and outputs."""
    sides = inputs.reshape(groups, -1), outputs.reshape(groups, -1)
    stays = np.any([side.any(axis=1) for side in sides], axis=0)
    for side in sides:
        size = max(1, side.sum(axis=1).max())
        for number in np.flatnonzero(stays):
            group = side[number]
            group[np.flatnonzero(~group)[: size - group.sum()]] = True
