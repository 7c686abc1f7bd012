"""A network as a list of the engine's operations: the logits, and the gradient by the images."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from tf_robust_sparse.engine.layout import MOST_FLOATS, Tensor, level_pitches, place
from tf_robust_sparse.engine.matrices import Rows
from tf_robust_sparse.engine.nodes import ACTIVATIONS, LINEAR, Activation, Node, Operation, fused

KINDS = (
    *("read", "write", "convolve", "each", "max_pool", "mean_pool", "max_pool_gradient", "mean_pool_gradient"),
    *("flatten", "split"),
)
_TENSORS = ("src", "dst", "add", "mask", "in", "out")
# The fields of `op_t` in plan.h, eight bytes each.
_FIELDS = (
    *("kind", "act", "gradient", "matrix", "chunk", "lanes", "channels", "height", "width"),
    *(f"{tensor}{part}" for tensor in _TENSORS for part in ("", "_plane", "_row", "_step")),
    *("in_height", "in_width", "window_y", "window_x", "stride_y", "stride_x", "pad_y", "pad_x"),
    *("margin_top", "margin_left", "margin_bottom", "margin_right"),
)
OP = np.dtype([(name, np.int64) for name in _FIELDS] + [("slope", np.float32), ("top", np.float32)])



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
        constants: Values that stand in the workspace from the start, by place.
        matrices: What the weights are packed into.
    """

    lanes: int
    shape: tuple[int, int, int]
    classes: int
    forward: np.ndarray
    backward: np.ndarray
    space: int
    constants: dict[int, np.ndarray]
    matrices: list[Rows]


@dataclasses.dataclass
class Step:
    """One operation of the engine while tensors have no places yet. See `op_t` in plan.h.

    Attributes:
        kind: One of `KINDS`.
        grid: `(height, width, channels)` of the positions to compute.
        tensors: What it reads and writes, by the names of the fields.
        stride: Of the positions read from `src`.
        spread: Of the positions written to `dst`, and read from `add` and `mask`.
        phase: First of these positions.
        origin: First of the positions read from `src`.
        taps: Shift, rows and columns, of each tap of a kernel; `None` for one that is left out.
        planes: Planes between one channel and the next that a kernel reads, and the plane of each tap.
        rows: The matrix, its offsets still missing.
        activation: Applied to the sum, or passed backward.
        gradient: Whether this belongs to the backward pass.
        pooling: The node, of pooling.
    """

    kind: str
    grid: tuple[int, int, int]
    tensors: dict[str, Tensor]
    stride: tuple[int, int] = (1, 1)
    spread: tuple[int, int] = (1, 1)
    phase: tuple[int, int] = (0, 0)
    origin: tuple[int, int] = (0, 0)
    taps: Sequence[tuple[int, int] | None] = ()
    planes: tuple[int, Sequence[int]] = (1, ())
    rows: Rows | None = None
    activation: Activation = LINEAR
    gradient: bool = False
    pooling: Node | None = None

    def reserve(self) -> None:
        """Makes room for the zeros around the image that this reads."""
        source = self.tensors["src"] if "src" in self.tensors else None
        if self.kind == "convolve":
            taps = [tap for tap in self.taps if tap is not None]
            _reserve(source, self.grid, self.stride, [tap[0] for tap in taps], [tap[1] for tap in taps])
        elif self.kind == "split":
            (top, left), (height, width, _), (down, right) = self.origin, self.grid, self.stride
            _reserve(source, (height, width, 0), self.stride, (top, top + down - 1), (left, left + right - 1))
        elif self.pooling is not None:
            self.tensors["in" if self.gradient else "src"].widen(self.pooling.margin)
        for tensor in self.tensors.values():
            tensor.widen((0, 0, 0, 0))


def _reserve(
    tensor: Tensor, grid: tuple[int, int, int], stride: tuple[int, int], down: Sequence[int], right: Sequence[int]
) -> None:
    """Widens the border of a tensor to all that shifts of a grid of positions read."""
    border = [0, 0, 0, 0]
    for axis, shifts in enumerate((down, right)):
        if shifts:
            last = (grid[axis] - 1) * stride[axis] + max(shifts)
            border[axis], border[axis + 2] = max(0, -min(shifts)), max(0, last - tensor.shape[axis] + 1)
    tensor.widen(border)


class _Planner:
    """Builds one plan."""

    def __init__(self, nodes: Sequence[Node], lanes: int, gradient: bool) -> None:
        if gradient and lanes % MOST_FLOATS:
            raise ValueError(f"Gradients are computed for a multiple of {MOST_FLOATS} images. Received: lanes={lanes}")
        self.operations = fused(nodes)
        self.lanes = lanes
        self.flat = lanes % MOST_FLOATS != 0
        self.tensors = {each.name: Tensor(each.node.shape, lanes) for each in self.operations}
        self.steps: list[Step] = []
        self.level: list[tuple[Tensor, Tensor]] = []

    def forward(self) -> list[Step]:
        """Returns the steps from images to outputs."""
        for each in self.operations:
            _FORWARD[each.node.kind](self, each)
        result = self.tensors[self.operations[-1].name]
        self.steps.append(Step("write", result.shape, {"src": result}))
        steps, self.steps = self.steps, []
        return steps

    def _read(self, each: Operation) -> None:
        self.steps.append(Step("read", each.node.shape, {"dst": self.tensors[each.name]}))

    def _ends(self, each: Operation) -> dict[str, Tensor]:
        """The tensors of an operation on positions."""
        tensors = {"src": self.tensors[each.source], "dst": self.tensors[each.name]}
        return tensors if each.add is None else tensors | {"add": self.tensors[each.add]}

    def _each(self, each: Operation) -> None:
        rows = None if each.weights is None else Rows(each.weights, "scale", each.node.shape[2])
        self.steps.append(Step("each", each.node.shape, self._ends(each), rows=rows, activation=each.activation))

    def _pool(self, each: Operation) -> None:
        self.steps.append(Step(each.node.kind, each.node.shape, self._ends(each), pooling=each.node))

    def _flatten(self, each: Operation) -> None:
        tensors = self._ends(each)
        self.steps.append(Step("flatten", tensors["src"].shape, tensors))

    def _convolve(self, each: Operation) -> None:
        node, tensors = each.node, self._ends(each)
        filters = node.shape[2]
        taps = [
            (i * node.dilation[0] - node.padding[0], j * node.dilation[1] - node.padding[1])
            for i in range(node.window[0])
            for j in range(node.window[1])
        ]
        step = Step(
            "convolve",
            node.shape,
            tensors,
            node.stride,
            taps=taps,
            planes=(1, [0] * len(taps)),
            rows=Rows(node.name, "kernel", filters, filters // node.groups, scaled=each.scaled),
            activation=each.activation,
        )
        if self.flat and node.stride != (1, 1):
            step = self._split(step, node)
        if self.flat:
            self.level += [(step.tensors[name], step.tensors["dst"]) for name in step.tensors]
        self.steps.append(step)

    def _split(self, step: Step, node: Node) -> Step:
        """Puts a copy of the input, every `stride`-th position in a plane of its own, before a convolution."""
        (down, right), (top, left) = node.stride, (-node.padding[0], -node.padding[1])
        shifts = [((i - top) // down, (j - left) // right) for i, j in step.taps]
        parts = [(i - top) % down * right + (j - left) % right for i, j in step.taps]
        height = node.shape[0] + max(i for i, _ in shifts)
        width = node.shape[1] + max(j for _, j in shifts)
        source = step.tensors["src"]
        split = Tensor((height, width, source.shape[2] * down * right), self.lanes)
        grid = (height, width, source.shape[2])
        self.steps.append(Step("split", grid, {"src": source, "dst": split}, node.stride, origin=(top, left)))
        return dataclasses.replace(
            step,
            tensors=step.tensors | {"src": split},
            stride=(1, 1),
            taps=shifts,
            planes=(down * right, parts),
        )

    def backward(self) -> list[Step]:
        """Returns the steps from the gradient of the outputs to that of the images."""
        last = self.operations[-1]
        made: dict[str, Tensor] = {}
        readers: dict[str, list[Operation]] = {}
        for each in self.operations:
            for name in (each.source, each.add):
                if name:
                    readers.setdefault(name, []).append(each)
        start = Tensor(last.node.shape, self.lanes)
        self.steps.append(Step("read", last.node.shape, {"dst": start}, gradient=True))
        if last.activation != LINEAR:
            passed = Tensor(last.node.shape, self.lanes)
            tensors = {"src": start, "dst": passed, "mask": self.tensors[last.name]}
            self.steps.append(
                Step("each", last.node.shape, tensors, activation=last.activation, gradient=True)
            )
            start = passed
        made[last.name] = start
        for each in reversed(self.operations[:-1]):
            parts = [(reader, name) for reader in reversed(readers[each.name]) for name in _uses(reader, each.name)]
            made[each.name] = self._gathered(each, parts, made)
        pixels = made[self.operations[0].name]
        self.steps.append(Step("write", pixels.shape, {"src": pixels}, gradient=True))
        steps, self.steps = self.steps, []
        return steps

    def _gathered(
        self, each: Operation, parts: Sequence[tuple[Operation, str]], made: Mapping[str, Tensor]
    ) -> Tensor:
        """Sums the gradients that the readers of a tensor send back, and passes the sum through its activation."""
        sums = [(reader, use) for reader, use in parts if use == "add" or _is_plain(reader)]
        others = [part for part in parts if part not in sums]
        total: Tensor | None = None
        for number, (reader, _) in enumerate([*sums, *others]):
            if number < len(sums) and total is None and len(parts) > 1:
                total = made[reader.name]  # a sum sends back what it gets
                continue
            ends = {"dst": Tensor(each.node.shape, self.lanes), "src": made[reader.name]}
            if total is not None:
                ends["add"] = total
            activation = LINEAR
            if number == len(parts) - 1 and each.activation != LINEAR:
                activation = each.activation
                ends["mask"] = self.tensors[each.name]
            if number < len(sums):
                self.steps.append(Step("each", each.node.shape, ends, activation=activation, gradient=True))
            else:
                _BACKWARD[reader.node.kind](self, reader, ends, activation)
            total = ends["dst"]
        return total

    def _each_back(self, reader: Operation, ends: dict[str, Tensor], activation: Activation) -> None:
        rows = Rows(reader.weights, "scale", reader.node.shape[2])
        self.steps.append(Step("each", ends["dst"].shape, ends, rows=rows, activation=activation, gradient=True))

    def _pool_back(self, reader: Operation, ends: dict[str, Tensor], activation: Activation) -> None:
        ends = ends | {"in": self.tensors[reader.source], "out": self.tensors[reader.name]}
        node = reader.node
        self.steps.append(
            Step(f"{node.kind}_gradient", node.shape, ends, activation=activation, gradient=True, pooling=node)
        )

    def _flatten_back(self, reader: Operation, ends: dict[str, Tensor], activation: Activation) -> None:
        shape = ends["dst"].shape
        if len(ends) == 2:
            self.steps.append(Step("flatten", shape, ends, gradient=True))
            return
        image = Tensor(shape, self.lanes)
        self.steps.append(Step("flatten", shape, {"src": ends["src"], "dst": image}, gradient=True))
        self.steps.append(Step("each", shape, ends | {"src": image}, activation=activation, gradient=True))

    def _convolve_back(self, reader: Operation, ends: dict[str, Tensor], activation: Activation) -> None:
        """The transposed convolution: one for each phase of the stride, written to every `stride`-th position."""
        node, shape = reader.node, ends["dst"].shape
        rows = Rows(node.name, "kernel", shape[2], node.shape[2] // node.groups, transposed=True, scaled=reader.scaled)
        for a in range(min(node.stride[0], shape[0])):
            for b in range(min(node.stride[1], shape[1])):
                shifts = [
                    (a + node.padding[0] - i * node.dilation[0], b + node.padding[1] - j * node.dilation[1])
                    for i in range(node.window[0])
                    for j in range(node.window[1])
                ]
                taps = [
                    None if i % node.stride[0] or j % node.stride[1] else (i // node.stride[0], j // node.stride[1])
                    for i, j in shifts
                ]
                grid = (-(-(shape[0] - a) // node.stride[0]), -(-(shape[1] - b) // node.stride[1]), shape[2])
                self.steps.append(
                    Step(
                        "convolve",
                        grid,
                        ends,
                        spread=node.stride,
                        phase=(a, b),
                        taps=taps,
                        planes=(1, [0] * len(taps)),
                        rows=rows,
                        activation=activation,
                        gradient=True,
                    )
                )


_FORWARD = {
    "input": _Planner._read,
    "convolution": _Planner._convolve,
    "affine": _Planner._each,
    "max_pool": _Planner._pool,
    "mean_pool": _Planner._pool,
    "flatten": _Planner._flatten,
}
_BACKWARD = {
    "convolution": _Planner._convolve_back,
    "affine": _Planner._each_back,
    "max_pool": _Planner._pool_back,
    "mean_pool": _Planner._pool_back,
    "flatten": _Planner._flatten_back,
}


def _uses(reader: Operation, name: str) -> list[str]:
    """The ways in which an operation reads a tensor."""
    return [use for use, read in (("source", reader.source), ("add", reader.add)) if read == name]


def _is_plain(reader: Operation) -> bool:
    """Whether an operation passes on what it reads as it is."""
    return reader.node.kind == "affine" and reader.weights is None


def make_plan(nodes: Sequence[Node], lanes: int, gradient: bool = False) -> Plan:
    """Plans a network.

    Args:
        nodes: Of the network, inputs first, the output last.
        lanes: Images computed side by side: 16 or 32, or for outputs alone any number from 1.
        gradient: Whether the gradient by the images is planned as well. All tensors of the forward pass then keep
            their places.

    Raises:
        ValueError: naming a node whose place in the network the engine does not know.
    """
    planner = _Planner(nodes, lanes, gradient)
    forward = planner.forward()
    backward = planner.backward() if gradient else []
    steps = [*forward, *backward]
    for step in steps:
        step.reserve()
    level_pitches(planner.level)
    space = place([list(step.tensors.values()) for step in steps], planner.tensors.values() if gradient else ())
    matrices: list[Rows] = []
    constants: dict[int, np.ndarray] = {}
    records = [_record(step, lanes, matrices) for step in steps]
    for step, record in zip(steps, records, strict=True):
        if step.kind == "convolve" and planner.flat:
            space = _run_on(step, record, constants, space)
    table = np.array([tuple(record[name] for name in OP.names) for record in records], OP)
    result = planner.operations[-1].node
    shape = planner.operations[0].node.shape
    return Plan(
        *(lanes, shape, int(np.prod(result.shape)), table[: len(forward)], table[len(forward) :]),
        *(space + 1024, constants, matrices),
    )


def _record(step: Step, lanes: int, matrices: list[Rows]) -> dict[str, int | float]:
    """The fields of `op_t`."""
    record: dict[str, int | float] = dict.fromkeys(OP.names, 0)
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
        matrices.append(_with_offsets(step))
        if step.rows.kind == "kernel":  # groups read inputs of their own
            groups = max(1, step.tensors["src" if step.gradient else "dst"].shape[2] // step.rows.group)
            record["chunk"] = max(1, step.rows.rows // groups)
    return record


def _with_offsets(step: Step) -> Rows:
    if step.rows.kind == "scale":
        return step.rows
    source, (planes, parts) = step.tensors["src"], step.planes
    offset = tuple(
        0 if tap is None else part * source.plane + source.offset(*tap)
        for tap, part in zip(step.taps, parts, strict=True)
    )
    used = tuple(-1 if tap is None else 0 for tap in step.taps)
    return dataclasses.replace(step.rows, channel_offset=planes * source.plane, used=used, offset=offset)


def _run_on(step: Step, record: dict[str, int | float], constants: dict[int, np.ndarray], space: int) -> int:
    """Computes an image as one row, with a stencil that keeps the zeros between its rows."""
    result = step.tensors["dst"]
    height, width, _ = step.grid
    positions = (height - 1) * result.pitch + width
    stencil = np.zeros(positions * record["lanes"] + MOST_FLOATS, np.float32)
    inside = np.arange(positions) % result.pitch < width
    stencil[: positions * record["lanes"]] = np.repeat(inside, record["lanes"])
    constants[space] = stencil
    record |= {"height": 1, "width": positions, "mask": space}
    return space + -(-len(stencil) // MOST_FLOATS) * MOST_FLOATS
