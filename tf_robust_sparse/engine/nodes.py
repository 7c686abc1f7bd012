"""A network as the engine sees it: few kinds of operations on images, without Keras and without weights."""

import collections
import dataclasses
from collections.abc import Sequence

# What is done to each value after a sum: none, max(x, 0), the same up to `top`, `slope * x` below 0, or x * sigmoid(x).
ACTIVATIONS = ("none", "relu", "clip", "leaky", "silu")


@dataclasses.dataclass(frozen=True)
class Activation:
    """An activation of one of the kinds that `ACTIVATIONS` names."""

    kind: str = "none"
    slope: float = 0.0
    top: float = 0.0

    @property
    def is_smooth(self) -> bool:
        """Whether its derivative needs what goes in, as what comes out does not tell it."""
        return self.kind == "silu"


LINEAR = Activation()


@dataclasses.dataclass(frozen=True)
class Node:
    """One operation and the tensor that it makes, which has its name.

    Attributes:
        kind: `input`, `convolution` (also dense layers, on images of one pixel), `affine` (scale and shift of each
            channel), `activation`, `add`, `max_pool`, `mean_pool`, `flatten`, `pad` (zeros around the image) or
            `identity`.
        name: Of the node, unlike all others.
        inputs: Names of the nodes whose tensors it reads.
        shape: `(height, width, channels)` of its tensor; a vector has height and width 1.
        window: Height and width of a kernel or a pooling window.
        stride: Of a kernel or window.
        dilation: Of a kernel.
        padding: Rows above and columns to the left of the image that the first window covers; of a `pad` node the rows
            above, columns to the left, rows below and columns to the right.
        groups: Of a convolution; a depthwise one has one for each channel.
        activation: Of a `convolution` or `activation` node.
        margin: Of pooling, the zeros around the image that belong to it: above, left, below, right.
    """

    kind: str
    name: str
    inputs: tuple[str, ...]
    shape: tuple[int, int, int]
    window: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    padding: tuple[int, ...] = (0, 0)
    groups: int = 1
    activation: Activation = LINEAR
    margin: tuple[int, int, int, int] = (0, 0, 0, 0)


@dataclasses.dataclass(frozen=True)
class Operation:
    """What is computed in one pass over a tensor: a node, a sum with another tensor, and an activation.

    Attributes:
        node: What is computed; an `add` of two tensors that no convolution takes up is a node of kind `affine` that
            scales by 1.
        name: Of the tensor that it makes.
        source: Name of the tensor that it reads.
        add: Name of the tensor added to the result, or `None`.
        activation: Applied to the sum.
        weights: Name of the node whose weights it has, or `None`.
        scaled: Names of the `affine` nodes that its kernel takes up, in order.
    """

    node: Node
    name: str
    source: str
    add: str | None = None
    activation: Activation = LINEAR
    weights: str | None = None
    scaled: tuple[str, ...] = ()

    def takes_more(self) -> bool:
        """Returns whether this is a convolution whose result is neither added to nor activated so far."""
        return self.node.kind == "convolution" and self.add is None and self.activation == LINEAR


def fused(nodes: Sequence[Node]) -> list[Operation]:
    """Returns the operations of a network, inputs first, with sums and activations taken up by what precedes them.

    Smooth activations stay operations of their own. The last one makes the output.

    Raises:
        ValueError: naming a node, if padding does not stand before a convolution or pooling.
    """
    nodes = _without_padding(_without_identities(nodes))
    readers = collections.Counter(name for node in nodes for name in node.inputs)
    readers[nodes[-1].name] += 1
    made: dict[str, Operation] = {}
    for node in nodes:
        single = [made.get(name) if readers[name] == 1 else None for name in node.inputs]
        before = single[0] if single else None
        if node.kind == "add":
            made[node.name] = _sum(node, single, made)
        elif node.kind == "affine" and before is not None and before.takes_more():
            del made[before.name]
            made[node.name] = dataclasses.replace(before, name=node.name, scaled=(*before.scaled, node.name))
        elif node.kind != "activation":
            weights = node.name if node.kind in ("convolution", "affine") else None
            source = node.inputs[0] if node.inputs else ""
            if node.activation.is_smooth:
                linear = f"{node.name}/sum"
                made[linear] = Operation(node, linear, source, weights=weights)
                made[node.name] = _activated(node, linear)
            else:
                made[node.name] = Operation(node, node.name, source, activation=node.activation, weights=weights)
        elif (
            before is not None
            and before.activation == LINEAR
            and not node.activation.is_smooth
            and before.node.kind in ("convolution", "affine")
        ):
            del made[before.name]
            made[node.name] = dataclasses.replace(before, name=node.name, activation=node.activation)
        else:
            made[node.name] = _activated(node, node.inputs[0])
    return list(made.values())


def _activated(node: Node, source: str) -> Operation:
    """Applies the activation of a node to a tensor, in a pass of its own."""
    return Operation(dataclasses.replace(node, kind="affine"), node.name, source, activation=node.activation)


def _sum(node: Node, single: list[Operation | None], made: dict[str, Operation]) -> Operation:
    """Adds tensors; the last convolution among them that nothing else reads takes up another one."""
    rest = list(node.inputs)
    total: Operation | None = None
    for place in reversed(range(len(rest))):
        before = single[place]
        if before is not None and before.takes_more():
            del rest[place], made[before.name]
            total = dataclasses.replace(before, add=rest.pop(0))
            break
    plain = dataclasses.replace(node, kind="affine")
    if total is None:
        total = Operation(plain, "", rest.pop(0), add=rest.pop(0))
    for number, name in enumerate(rest):  # three tensors or more: one pass for each
        part = f"{node.name}/{number}"
        made[part] = dataclasses.replace(total, name=part)
        total = Operation(plain, "", part, add=name)
    return dataclasses.replace(total, name=node.name)


def _without_identities(nodes: Sequence[Node]) -> list[Node]:
    """Has the readers of `identity` nodes read what these read."""
    source: dict[str, str] = {}
    left = []
    for node in nodes:
        inputs = tuple(source.get(name, name) for name in node.inputs)
        if node.kind == "identity":
            source[node.name] = inputs[0]
        else:
            left.append(dataclasses.replace(node, inputs=inputs))
    return left


def _without_padding(nodes: Sequence[Node]) -> list[Node]:
    """Has convolutions and pooling take up the zeros that a `pad` node before them adds."""
    pads = {node.name: node for node in nodes if node.kind == "pad"}
    left = []
    for node in nodes:
        if node.kind == "pad":
            continue
        read = [pads[name] for name in node.inputs if name in pads]
        if read:
            pad = read[0]
            if node.kind not in ("convolution", "max_pool", "mean_pool") or pad.inputs[0] in pads:
                raise ValueError(
                    f"The zeros that {pad.name} adds must go into a convolution or pooling. Received: {node.kind} "
                    f"{node.name}"
                )
            top, left_side, bottom, right = pad.padding
            padding = (node.padding[0] + top, node.padding[1] + left_side)
            margin = (top, left_side, bottom, right)
            node = dataclasses.replace(node, inputs=pad.inputs, padding=padding, margin=margin)
        left.append(node)
    return left
