"""Receptive fields: the windows of earlier layers that a neuron of a convolution depends on.

The neuron at position `i` of a layer sees `size` entries of an earlier layer, from `i * stride - before` on, in height
and width. A backward pass over windows multiplies few entries; one over whole images multiplies mostly zeros. The
positions take the place of the images of a batch.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import tensorflow as tf

from tf_robust_sparse.certify.bound_graph import Input, Linear, ReLU, Step, Sum, Window

_Pair = tuple[int, int]


class View(NamedTuple):
    """The entries of a layer that each position of a later layer sees, in height and width.

    Attributes:
        strides: Distance between the windows of neighboring positions.
        before: Number of entries by which the first window begins before the layer; entries outside are 0.
        size: Size of the window.
    """

    strides: _Pair
    before: _Pair
    size: _Pair


def views(steps: list[Step], number: int) -> dict[str, View] | None:
    """Returns the view of each earlier step that the neurons of a step depend on.

    Returns `None` if they see some step not through windows, or if windows have no advantage over whole images.
    """
    if len(steps[number].shape) != 3:
        return None
    found = {steps[number].name: View((1, 1), (0, 0), (1, 1))}
    seen = {}
    entries = images = 0
    for step in reversed(steps[: number + 1]):
        view = found.get(step.name)
        if view is None:
            continue
        seen[step.name] = view
        entries += math.prod(view.size) * step.shape[-1]
        images += math.prod(step.shape)
        if isinstance(step.rule, Input):
            continue
        if isinstance(step.rule, Linear):
            window = step.rule.window
            if window is None:
                return None
            view = through(view, window)
        elif not isinstance(step.rule, (ReLU, Sum)):
            return None
        for name in step.inputs:
            both = union(found[name], view) if name in found else view
            if both is None:
                return None
            found[name] = both
    return seen if 2 * entries < images else None  # cutting windows costs, so they must be less than half as large


def through(view: View, window: Window) -> View:
    """Returns the view of the input of a linear map, given the view of its output."""
    return View(
        _pair(s * t for s, t in zip(view.strides, window.strides, strict=True)),
        _pair(b * t + o for b, t, o in zip(view.before, window.strides, window.before, strict=True)),
        _pair((k - 1) * t + w for k, t, w in zip(view.size, window.strides, window.size, strict=True)),
    )


def union(first: View, second: View) -> View | None:
    """Returns the smallest windows that contain both views; `None` if their strides differ."""
    if first.strides != second.strides:
        return None
    before = _pair(map(max, first.before, second.before))
    ends = [max(k - b, m - c) for k, b, m, c in zip(first.size, first.before, second.size, second.before, strict=True)]
    return View(first.strides, before, _pair(end + b for end, b in zip(ends, before, strict=True)))


def widened(x: tf.Tensor, view: View, wanted: View) -> tf.Tensor:
    """Pads windows `(..., height, width, channels)` of `view` with zeros to those of `wanted`."""
    if view == wanted:
        return x
    top, left = (w - v for w, v in zip(wanted.before, view.before, strict=True))
    bottom, right = (w - v - first for w, v, first in zip(wanted.size, view.size, (top, left), strict=True))
    return tf.pad(x, [(0, 0)] * (len(x.shape) - 3) + [(top, bottom), (left, right), (0, 0)])


def cut(x: tf.Tensor, view: View, positions: _Pair) -> tf.Tensor:
    """Returns the windows of `x` `(batch, height, width, channels)`: `(batch, positions, size, size, channels)`."""
    pads = []
    for size, count, stride, before, side in zip(
        x.shape[1:3], positions, view.strides, view.before, view.size, strict=True
    ):
        end = (count - 1) * stride - before + side
        pads.append((before, max(0, end - size)))
    padded = tf.pad(x, [(0, 0), *pads, (0, 0)])
    needed = [(n - 1) * s + k for n, s, k in zip(positions, view.strides, view.size, strict=True)]
    padded = padded[:, : needed[0], : needed[1]]
    found = tf.image.extract_patches(padded, (1, *view.size, 1), (1, *view.strides, 1), (1, 1, 1, 1), "VALID")
    return tf.reshape(found, (tf.shape(x)[0], math.prod(positions), *view.size, x.shape[-1]))


def sticks_out(view: View, positions: _Pair, shape: tuple[int, ...]) -> bool:
    """Returns whether some window contains entries outside of the layer."""
    sides = zip(view.strides, view.before, view.size, positions, shape[:2], strict=True)
    return any(b > 0 or (n - 1) * s - b + k > size for s, b, k, n, size in sides)


def _pair(values: Iterable[int]) -> _Pair:
    first, second = values
    return first, second
