"""The steps of a network on the engine: from images to outputs, and back from their gradient to that of the images."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from tf_robust_sparse.engine.layout import MOST_FLOATS, Tensor
from tf_robust_sparse.engine.matrices import Rows
from tf_robust_sparse.engine.nodes import LINEAR, Activation, Node, Operation, fused


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
        if self.kind == "convolve":
            taps = [tap for tap in self.taps if tap is not None]
            _reserve(self.tensors["src"], self.grid, self.stride, [tap[0] for tap in taps], [tap[1] for tap in taps])
        elif self.kind == "split":
            (top, left), (height, width, _), (down, right) = self.origin, self.grid, self.stride
            _reserve(
                self.tensors["src"], (height, width, 0), self.stride, (top, top + down - 1), (left, left + right - 1)
            )
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


class Passes:
    """The passes of one network.

    Args:
        nodes: Of the network, inputs first, the output last.
        lanes: Images computed side by side.

    Attributes:
        operations: Those of the network, inputs first.
        tensors: What they make, by name.
        level: Pairs of tensors whose rows must be equally far apart.
    """

    def __init__(self, nodes: Sequence[Node], lanes: int) -> None:
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
        taps = [tap for tap in step.taps if tap is not None]
        shifts = [((i - top) // down, (j - left) // right) for i, j in taps]
        parts = [(i - top) % down * right + (j - left) % right for i, j in taps]
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
            for name in {each.source, each.add} - {"", None}:
                readers.setdefault(str(name), []).append(each)
        start = Tensor(last.node.shape, self.lanes)
        self.steps.append(Step("read", last.node.shape, {"dst": start}, gradient=True))
        made[last.name] = start if last.activation == LINEAR else self._passed(last, start)
        for each in reversed(self.operations[:-1]):
            parts = [(reader, name) for reader in reversed(readers[each.name]) for name in _uses(reader, each.name)]
            made[each.name] = self._gathered(each, parts, made)
        pixels = made[self.operations[0].name]
        self.steps.append(Step("write", pixels.shape, {"src": pixels}, gradient=True))
        steps, self.steps = self.steps, []
        return steps

    def _gathered(self, each: Operation, parts: Sequence[tuple[Operation, str]], made: Mapping[str, Tensor]) -> Tensor:
        """Sums the gradients that the readers of a tensor send back, and passes the sum through its activation."""
        sums = [(reader, use) for reader, use in parts if use == "add" or _is_plain(reader)]
        others = [part for part in parts if part not in sums]
        total: Any = None  # until the first of them
        for number, (reader, _) in enumerate([*sums, *others]):
            if number < len(sums) and total is None and (len(parts) > 1 or each.activation == LINEAR):
                total = made[reader.name]  # a sum sends back what it gets
                continue
            ends = {"dst": Tensor(each.node.shape, self.lanes), "src": made[reader.name]}
            if total is not None:
                ends["add"] = total
            activation = LINEAR
            if number == len(parts) - 1 and each.activation != LINEAR and not each.activation.is_smooth:
                activation = each.activation
                ends["mask"] = self.tensors[each.name]
            if number < len(sums):
                self.steps.append(Step("each", each.node.shape, ends, activation=activation, gradient=True))
            else:
                _BACKWARD[reader.node.kind](self, reader, ends, activation)
            total = ends["dst"]
        return self._passed(each, total) if each.activation.is_smooth else total

    def _passed(self, each: Operation, gradient: Tensor) -> Tensor:
        """Passes a gradient through the activation of an operation, in a step of its own."""
        ends = {"src": gradient, "dst": Tensor(each.node.shape, self.lanes)}
        ends["mask"] = self.tensors[each.source if each.activation.is_smooth else each.name]
        self.steps.append(Step("each", each.node.shape, ends, activation=each.activation, gradient=True))
        return ends["dst"]

    def _each_back(self, reader: Operation, ends: dict[str, Tensor], activation: Activation) -> None:
        rows = Rows(reader.node.name, "scale", reader.node.shape[2])
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
    "input": Passes._read,
    "convolution": Passes._convolve,
    "affine": Passes._each,
    "max_pool": Passes._pool,
    "mean_pool": Passes._pool,
    "flatten": Passes._flatten,
}
_BACKWARD = {
    "convolution": Passes._convolve_back,
    "affine": Passes._each_back,
    "max_pool": Passes._pool_back,
    "mean_pool": Passes._pool_back,
    "flatten": Passes._flatten_back,
}


def _uses(reader: Operation, name: str) -> list[str]:
    """The ways in which an operation reads a tensor."""
    return [use for use, read in (("source", reader.source), ("add", reader.add)) if read == name]


def _is_plain(reader: Operation) -> bool:
    """Whether an operation passes on what it reads as it is."""
    return reader.node.kind == "affine" and reader.weights is None
