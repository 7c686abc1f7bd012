"""Writes networks as ONNX, layer by layer, with channels first inside the file.

`onnx_layers` holds what each kind of layer becomes. Images are transposed at most once, where they come in: the rows of
a dense kernel after a flatten are reordered to channels first, and zero padding becomes part of the convolution.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from tf_robust_sparse.layers.topology import layer_graph

_INPUT, _OUTPUT = "pixels", "logits"
_OPSET, _IR_VERSION = 13, 8  # old enough for the ONNX readers of verifiers
_SPARSE_BYTES = 12  # of an entry of a sparse constant: its value and its place
Pads = tuple[tuple[int, int], tuple[int, int]]  # rows before and after, columns before and after
NO_PADS: Pads = ((0, 0), (0, 0))


class Tensor(NamedTuple):
    """The output of a layer.

    Attributes:
        name: Its name in the file.
        shape: Its shape in Keras, without the batch: `(height, width, channels)` or `(features,)`.
        order: For a vector: entry i in the file is entry `order[i]` in Keras; `None` if the orders agree.
        pads: Zeros around an image that belong to its shape but are not yet written.
    """

    name: str
    shape: tuple[int, ...]
    order: np.ndarray | None = None
    pads: Pads = NO_PADS


class Dialect(NamedTuple):
    """What a file may hold.

    Attributes:
        layers: Class of a layer, or name of the class of an operation -> function of the writer, the layer and its
            inputs, for operations also numbers and arrays, that appends its operators and returns its output.
        activations: Activation -> function of the writer, a name and an input that does the same.
        takes_pads: Layers that take over zeros around their input.
        known: The layers in words, for messages.
        batch: Number of images; `None` for any.
        channels_first: Whether images come in with their channels first.
        equal_pads: Whether convolutions pad both sides alike; a kernel then gets rows of zeros where it must.
        sparse: Whether constants of few nonzero entries are stored by these alone.
    """

    layers: Mapping[Any, Callable[..., Tensor]]
    activations: Mapping[Any, Callable[..., str]]
    takes_pads: tuple[Any, ...]
    known: str
    batch: int | None = None
    channels_first: bool = False
    equal_pads: bool = False
    sparse: bool = False


class Writer:
    """Collects operators and constants.

    Args:
        dialect: What the file may hold.
    """

    def __init__(self, dialect: Dialect) -> None:
        try:
            import onnx
        except ImportError:
            raise ImportError(
                "Writing ONNX needs onnx: python -m pip install 'tf_robust_sparse[onnx]', or onnx itself"
            ) from None
        self.dialect = dialect
        self._onnx = onnx
        self._prefix = ""  # of names in a network inside the network
        self._operators: list[Any] = []
        self._constants: list[Any] = []
        self._padded: dict[tuple[str, Pads], str] = {}

    def model(self, network: keras.Model) -> Any:
        """Returns the checked ONNX model of a network of plain layers."""
        if len(network.inputs) != 1 or len(network.outputs) != 1:
            raise ValueError(
                f"Only networks with one input and one output are exported. Received: {len(network.inputs)} inputs and "
                f"{len(network.outputs)} outputs"
            )
        pixels = Tensor(_INPUT, known_shape(network.inputs[0], "The input"))
        x = pixels
        if len(pixels.shape) == 3 and not self.dialect.channels_first:
            x = pixels._replace(name=self.operator("Transpose", _INPUT, [_INPUT], perm=(0, 3, 1, 2)))
        logits = self._network(network, x)
        if len(logits.shape) != 1:
            raise ValueError(f"The network must end in logits `(batch, classes)`. Received: {logits.shape}")
        logits = self.ordered(_OUTPUT, logits, None)
        if logits.name == _INPUT:
            logits = logits._replace(name=self.operator("Identity", _OUTPUT, [_INPUT]))
        for operator in self._operators:
            operator.input[:] = [_OUTPUT if name == logits.name else name for name in operator.input]
            operator.output[:] = [_OUTPUT if name == logits.name else name for name in operator.output]
        return self._checked(network.name, pixels, logits)

    def _network(self, network: keras.Model, x: Tensor) -> Tensor:
        found: dict[str, Tensor] = {}
        for node in layer_graph(network):
            if node.layer.name in found:
                raise ValueError(f"The layer {node.layer.name} is called twice; only layers called once are exported")
            inputs = [found[each] if isinstance(each, str) else each for each in node.operands or node.inputs]
            found[node.layer.name] = self._layer(node.layer, inputs or [x])
        return found[node.layer.name if isinstance(network, keras.Sequential) else network.output_names[0]]

    def _layer(self, layer: Any, inputs: list[Any]) -> Tensor:
        """Appends the operators of a layer; returns its output. Inputs are tensors, or constants of an operation."""
        if isinstance(layer, keras.Model):
            outer, self._prefix = self._prefix, f"{self._prefix}{layer.name}/"
            x = self._network(layer, inputs[0])
            self._prefix = outer
            return x
        if getattr(layer, "data_format", "channels_last") != "channels_last":
            raise ValueError(f"The layer {layer.name} has channels first; only channels last are exported")
        kind = type(layer) if isinstance(layer, keras.layers.Layer) else type(layer).__name__
        make = self.dialect.layers.get(kind)
        if make is None:
            raise ValueError(
                f"There is no ONNX operator here for the layer {layer.name} of type {type(layer).__name__}; replace it "
                f"by {self.dialect.known} layers"
            )
        if kind not in self.dialect.takes_pads:
            inputs = [self.padded(each) if isinstance(each, Tensor) else each for each in inputs]
        return make(self, layer, inputs)

    def _checked(self, name: str, pixels: Tensor, logits: Tensor) -> Any:
        helper, real = self._onnx.helper, self._onnx.TensorProto.FLOAT
        batch = self.dialect.batch or "batch"
        shape = (*pixels.shape[-1:], *pixels.shape[:-1]) if self.dialect.channels_first else pixels.shape
        graph = helper.make_graph(
            self._operators,
            name,
            [helper.make_tensor_value_info(_INPUT, real, (batch, *shape))],
            [helper.make_tensor_value_info(_OUTPUT, real, (batch, *logits.shape))],
            self._constants,
        )
        model = helper.make_model(
            graph,
            producer_name="tf_robust_sparse",
            opset_imports=[helper.make_opsetid("", _OPSET)],
            ir_version=_IR_VERSION,
        )
        self._onnx.checker.check_model(model, full_check=True)
        if self.dialect.sparse:  # the checker does not infer the type of a sparse constant
            self._pack(model.graph)
        return model

    def _pack(self, graph: Any) -> None:
        """Stores constants by their nonzero entries where this takes fewer bytes."""
        dense, numpy_helper = [], self._onnx.numpy_helper
        for constant in graph.initializer:
            value = numpy_helper.to_array(constant)
            (places,) = np.nonzero(value.ravel())
            if value.dtype != np.float32 or value.ndim < 2 or _SPARSE_BYTES * len(places) >= value.nbytes:
                dense.append(constant)
                continue
            entries = numpy_helper.from_array(value.ravel()[places], constant.name)
            places = numpy_helper.from_array(places.astype(np.int64), f"{constant.name}/places")
            graph.sparse_initializer.append(self._onnx.helper.make_sparse_tensor(entries, places, value.shape))
        del graph.initializer[:]
        graph.initializer.extend(dense)

    def operator(self, kind: str, name: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Appends an operator; returns the name of its output."""
        output = f"{self._prefix}{name}/{kind}"
        self._operators.append(self._onnx.helper.make_node(kind, list(inputs), [output], name=output, **attributes))
        return output

    def constant(self, name: str, value: Any, dtype: type = np.float32) -> str:
        """Adds a constant; returns its name."""
        name = f"{self._prefix}{name}"
        self._constants.append(self._onnx.numpy_helper.from_array(np.ascontiguousarray(value, dtype), name))
        return name

    def activated(self, name: str, activation: Any, x: Tensor) -> Tensor:
        """Applies an activation of Keras."""
        if activation is keras.activations.linear:
            return x
        make = self.dialect.activations.get(activation)
        if make is None:
            found = getattr(activation, "__name__", type(activation).__name__)
            known = " and ".join(sorted({each.__name__ for each in self.dialect.activations}))
            raise ValueError(f"The activation {found} of {name} is not exported; linear, {known} are")
        return x._replace(name=make(self, name, x.name))

    def flat(self, name: str, x: Tensor) -> Tensor:
        """Turns an image into a vector."""
        if len(x.shape) == 1:
            return x
        order = channels_first_order(x.shape)
        return Tensor(self.operator("Flatten", name, [x.name], axis=1), order.shape, order)

    def padded(self, x: Tensor) -> Tensor:
        """Adds the zeros that no convolution has taken over."""
        if x.pads == NO_PADS:
            return x
        if (x.name, x.pads) not in self._padded:
            (top, bottom), (left, right) = x.pads
            name = f"{x.name}/{top}_{bottom}_{left}_{right}"
            amounts = self.constant(f"{name}/pads", [0, 0, top, left, 0, 0, bottom, right], np.int64)
            self._padded[x.name, x.pads] = self.operator("Pad", name, [x.name, amounts], mode="constant")
        return x._replace(name=self._padded[x.name, x.pads], pads=NO_PADS)

    def ordered(self, name: str, x: Tensor, order: np.ndarray | None) -> Tensor:
        """Reorders the entries of a vector; `None` is the order of Keras."""
        natural = np.arange(x.shape[0])
        found, wanted = (natural if each is None else each for each in (x.order, order))
        if (found == wanted).all():
            return x
        indices = self.constant(f"{name}/order", np.argsort(found)[wanted], np.int64)
        return Tensor(self.operator("Gather", name, [x.name, indices], axis=1), x.shape, order)


def known_shape(tensor: Any, name: str) -> tuple[int, ...]:
    """Returns the shape of a tensor of Keras without the batch.

    Raises:
        ValueError: if it is neither an image of known size nor a vector.
    """
    shape = tuple(tensor.shape[1:])
    if None in shape or len(shape) not in (1, 3):
        raise ValueError(
            "Only images `(height, width, channels)` of known size and vectors are exported. Received: "
            f"{shape} of {name}"
        )
    return shape


def channels_first_order(shape: tuple[int, ...]) -> np.ndarray:
    """Returns for each entry of a flattened image with channels first its place with channels last."""
    return np.arange(math.prod(shape)).reshape(shape).transpose(2, 0, 1).ravel()
