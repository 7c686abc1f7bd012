"""A network as a list of the engine's operations: the logits, and the gradient by the images."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from tf_robust_sparse.engine.layout import MOST_FLOATS, level_borders, level_pitches, place
from tf_robust_sparse.engine.matrices import Rows
from tf_robust_sparse.engine.nodes import ACTIVATIONS, Node
from tf_robust_sparse.engine.passes import Passes, Step

KINDS = (
    *("read", "write", "convolve", "each", "max_pool", "mean_pool", "max_pool_gradient", "mean_pool_gradient"),
    *("flatten", "split"),
)
_FIRST_LEVEL = 8192  # floats of the first-level cache that the input of a tile may fill
_TILE = 128  # floats of a tile of the widest vectors
_TENSORS = ("src", "dst", "add", "mask", "in", "out")
# The fields of `op_t` in plan.h, eight bytes each.
_FIELDS = (
    *("kind", "act", "gradient", "matrix", "chunk", "lanes", "channels", "height", "width"),
    *(f"{tensor}{part}" for tensor in _TENSORS for part in ("", "_plane", "_row", "_step")),
    *("in_height", "in_width", "window_y", "window_x", "stride_y", "stride_x", "pad_y", "pad_x"),
    *("margin_top", "margin_left", "margin_bottom", "margin_right"),
)
OP = np.dtype([(name, np.int64) for name in _FIELDS] + [("slope", np.float32), ("top", np.float32)])
_NAMES = (*_FIELDS, "slope", "top")


@dataclasses.dataclass
class Plan:
    """What the engine runs.

    Attributes:
        lanes: Images that one call computes.
        shape: `(height, width, channels)` of an image.
        classes: Number of outputs.
        forward: Operations from images to outputs, an array of `OP`.
        backward: Operations from the gradient of the outputs to that of the images; empty unless wanted.
        space: Floats of the workspace. It holds zeros before its first use.
        stencils: Place, number of positions, pitch and width of rows of ones and zeros that stand in the workspace from
            the start: a convolution whose images are computed as one row keeps the zeros between their rows.
        matrices: What the weights are packed into.
    """

    lanes: int
    shape: tuple[int, int, int]
    classes: int
    forward: np.ndarray
    backward: np.ndarray
    space: int
    stencils: list[tuple[int, int, int, int]]
    matrices: list[Rows]


def make_plan(nodes: Sequence[Node], lanes: int, gradient: bool = False) -> Plan:
    """Plans a network.

    Args:
        nodes: Of the network, inputs first, the output last.
        lanes: Images computed side by side: 16 or 32, or for outputs alone any number from 1.
        gradient: Whether the gradient by the images is planned as well. Tensors of the forward pass then keep their
            places until it has used them.

    Raises:
        ValueError: naming a node whose place in the network the engine does not know.
    """
    if gradient and lanes % MOST_FLOATS:
        raise ValueError(f"Gradients are computed for a multiple of {MOST_FLOATS} images. Received: lanes={lanes}")
    passes = Passes(nodes, lanes)
    forward = passes.forward()
    backward = passes.backward() if gradient else []
    steps = [*forward, *backward]
    for step in steps:
        step.reserve()
    level_pitches(passes.level)
    if gradient:  # tensors of one size share their places
        level_borders([tensor for step in steps for tensor in step.tensors.values()])
    space = place([list(step.tensors.values()) for step in steps])
    matrices: list[Rows] = []
    stencils: list[tuple[int, int, int, int]] = []
    records = [_record(step, lanes, matrices) for step in steps]
    for step, record in zip(steps, records, strict=True):
        if step.kind == "convolve" and passes.flat:
            space = _run_on(step, record, stencils, space)
    table = np.array([tuple(record[name] for name in _NAMES) for record in records], OP)
    result = passes.operations[-1].node
    shape = passes.operations[0].node.shape
    return Plan(
        *(lanes, shape, int(np.prod(result.shape)), table[: len(forward)], table[len(forward) :]),
        *(space + 1024, stencils, matrices),
    )


def _record(step: Step, lanes: int, matrices: list[Rows]) -> dict[str, Any]:
    """The fields of `op_t`."""
    record: dict[str, Any] = dict.fromkeys(_NAMES, 0)
    record |= dict.fromkeys(_TENSORS, -1)
    record |= {"kind": KINDS.index(step.kind), "gradient": step.gradient, "lanes": lanes, "matrix": -1}
    record |= dict(zip(("height", "width", "channels"), step.grid, strict=True))
    activation = step.activation
    record |= {"act": ACTIVATIONS.index(activation.kind), "slope": activation.slope, "top": activation.top}
    for name, tensor in step.tensors.items():
        strides, start = (step.stride, step.origin) if name == "src" else (step.spread, step.phase)
        if step.kind == "split":
            strides = (1, 1)
        record |= {name: tensor.at(*start), f"{name}_plane": tensor.plane}
        record |= {f"{name}_row": tensor.row * strides[0], f"{name}_step": lanes * strides[1]}
    record |= {"stride_y": step.stride[0], "stride_x": step.stride[1]}
    if step.pooling is not None:
        node, pooled = step.pooling, step.tensors["in" if step.gradient else "src"]
        record |= {"in_height": pooled.shape[0], "in_width": pooled.shape[1]}
        record |= dict(zip(("window_y", "window_x"), node.window, strict=True))
        record |= dict(zip(("stride_y", "stride_x"), node.stride, strict=True))
        record |= dict(zip(("pad_y", "pad_x"), node.padding, strict=True))
        record |= dict(zip(("margin_top", "margin_left", "margin_bottom", "margin_right"), node.margin, strict=True))
    if step.rows is not None:
        record["matrix"] = len(matrices)
        matrices.append(_with_offsets(step, step.rows))
        if step.rows.kind == "kernel":  # groups read inputs of their own
            groups = max(1, step.tensors["src" if step.gradient else "dst"].shape[2] // step.rows.group)
            record["chunk"] = max(1, step.rows.rows // groups)
    return record


def _with_offsets(step: Step, rows: Rows) -> Rows:
    if rows.kind == "scale":
        return rows
    source, (planes, parts) = step.tensors["src"], step.planes
    offset = tuple(
        0 if tap is None else part * source.plane + source.offset(*tap)
        for tap, part in zip(step.taps, parts, strict=True)
    )
    used = tuple(-1 if tap is None else 0 for tap in step.taps)
    part = 0
    if source.lanes % MOST_FLOATS == 0 and offset:  # of a plane, a tile of eight vectors reads about this many floats
        shifts = [tap for tap in step.taps if tap is not None]
        down = len({tap[0] for tap in shifts}) or 1
        right = max((tap[1] for tap in shifts), default=0) - min((tap[1] for tap in shifts), default=0)
        part = max(4, _FIRST_LEVEL // (down * (_TILE + right * source.lanes)))
    return dataclasses.replace(rows, channel_offset=planes * source.plane, used=used, offset=offset, part=part)


def _run_on(step: Step, record: dict[str, Any], stencils: list[tuple[int, int, int, int]], space: int) -> int:
    """Computes an image as one row, and gives it a stencil."""
    height, width, _ = step.grid
    pitch, lanes = step.tensors["dst"].pitch, record["lanes"]
    positions = ((height - 1) * pitch + width) * lanes
    stencils.append((space, positions, pitch * lanes, width * lanes))
    record |= {"height": 1, "width": positions // lanes, "mask": space}
    return space + (positions // MOST_FLOATS + 2) * MOST_FLOATS
