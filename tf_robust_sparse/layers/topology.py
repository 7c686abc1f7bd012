"""Which layer of a network feeds which, read from the public configuration of the model."""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import keras

from tf_robust_sparse.layers.protocols import RecordsGraph


class Node(NamedTuple):
    """One call of a layer.

    Attributes:
        layer: The layer, or operation of `keras.ops`.
        inputs: Names of the layers whose outputs it takes, in order.
        operands: Of an operation, the same with the constants between them, numbers and arrays, as in `1.0 - x`; empty
            for layers, and if the call has arguments of other kinds.
    """

    layer: Any
    inputs: tuple[str, ...]
    operands: tuple[Any, ...] = ()


def layer_graph(network: keras.Model) -> list[Node]:
    """Returns the calls of the layers of a functional or sequential `network` in the order of its configuration.

    A layer that is called twice appears twice. A nested model appears as one layer.

    Raises:
        ValueError: if `network` is a subclassed model, whose graph Keras does not record.
    """
    if isinstance(network, keras.Sequential):
        layers = network.layers
        return [Node(layer, (layers[i - 1].name,) if i else ()) for i, layer in enumerate(layers)]
    try:
        config = network.get_config() if isinstance(network, RecordsGraph) else {}
    except NotImplementedError:  # of a user's class whose arguments Keras cannot serialize
        config = {}
    if "layers" not in config:
        raise ValueError(
            "`network` must be a functional or sequential keras.Model, because Keras records no graph of others; pass "
            f"keras.Model(inputs, outputs). Received: {type(network).__name__}"
        )
    operations = {operation.name: operation for operation in network.operations}
    nodes = []
    for entry in config["layers"]:
        for call in entry["inbound_nodes"] or [{"args": (), "kwargs": {}}]:
            layer, origins = operations[entry["name"]], tuple(_tensor_origins((call["args"], call["kwargs"])))
            combines = not isinstance(layer, keras.layers.Layer) and not call["kwargs"]
            nodes.append(Node(layer, origins, _operands(call["args"]) if combines else ()))
    return nodes


def output_layer(network: keras.Model) -> Any:
    """Returns the layer or operation that computes the output of a functional or sequential `network` with one output.

    It need not be the last of `network.layers`: a layer that is called twice stands where it is called first.
    """
    if isinstance(network, keras.Sequential):
        return network.layers[-1]
    try:
        name = network.get_config()["output_layers"]
    except NotImplementedError:  # as in `layer_graph`
        return network.operations[-1]
    while not isinstance(name, str):
        (name, *_) = name.values() if isinstance(name, dict) else name
    return next(operation for operation in network.operations if operation.name == name)


def last_layers(network: keras.Model, wanted: Collection[int]) -> list[Any]:
    """Returns the layers of a model, nested ones included, with an `id` in `wanted` that no other such layer follows.

    If Keras records no graph of the model, it is the last of them in the order of the model.
    """

    def inside(layer: Any) -> list[Any]:
        return [each for each in layer._flatten_layers() if id(each) in wanted]

    try:
        nodes = layer_graph(network)
    except ValueError:
        return inside(network)[-1:]
    named = {node.layer.name: node.layer for node in nodes}
    inputs: dict[str, list[str]] = {}  # of all calls of a layer
    for node in nodes:
        inputs.setdefault(node.layer.name, []).extend(node.inputs)
    found: list[Any] = []
    seen: set[str] = set()
    ahead = list(getattr(network, "output_names", ())) or [network.layers[-1].name]
    while ahead:
        name = ahead.pop()
        if name in seen:
            continue
        seen.add(name)
        layer = named[name]
        parts = inside(layer) if isinstance(layer, keras.layers.Layer) else []
        if not parts:
            ahead.extend(inputs[name])
        found += last_layers(layer, wanted) if isinstance(layer, keras.Model) else parts
    return found


def chains(network: keras.Model) -> list[tuple[Any, Any]]:
    """Returns the pairs (layer, follower) in which `layer` is called once and its output feeds `follower` alone."""
    try:
        nodes = layer_graph(network)
    except ValueError:
        return []
    calls: dict[str, int] = {}
    consumers: dict[str, list[Node]] = {}
    for node in nodes:
        calls[node.layer.name] = calls.get(node.layer.name, 0) + 1
        for name in node.inputs:
            consumers.setdefault(name, []).append(node)
    outputs = set(getattr(network, "output_names", ()))  # a sequential model has none, but its last layer feeds nothing
    layers = {node.layer.name: node.layer for node in nodes}
    return [
        (layer, consumers[name][0].layer)
        for name, layer in layers.items()
        if calls[name] == 1
        and len(consumers.get(name, ())) == 1
        and calls[consumers[name][0].layer.name] == 1
        and name not in outputs
    ]


def input_ranks(network: keras.Model) -> dict[int, set[int]]:
    """Returns the ranks of the tensors that each layer is called with, by its `id`, nested models included."""
    ranks: dict[int, set[int]] = {}
    if isinstance(network, keras.Sequential):
        shape = network.input_shape
        for layer in network.layers:
            ranks.setdefault(id(layer), set()).add(len(shape))
            shape = layer.compute_output_shape(shape)
    elif isinstance(network, RecordsGraph):
        operations = {operation.name: operation for operation in network.operations}
        try:
            entries = network.get_config()["layers"]
        except NotImplementedError:  # as in `layer_graph`
            entries = []
        for entry in entries:
            tensors = _tensors([(call["args"], call["kwargs"]) for call in entry["inbound_nodes"]])
            ranks[id(operations[entry["name"]])] = {len(tensor["shape"]) for tensor in tensors}
    for layer in network.layers:
        if isinstance(layer, keras.Model):
            for inner, found in input_ranks(layer).items():
                ranks.setdefault(inner, set()).update(found)
    return ranks


def _tensor_origins(config: Any) -> list[str]:
    """Returns the names of the layers whose outputs appear anywhere in a serialized call."""
    return [tensor["keras_history"][0] for tensor in _tensors(config)]


def _operands(arguments: Sequence[Any]) -> tuple[Any, ...]:
    """Returns serialized arguments with names of layers in place of tensors; nothing if there are others."""
    operands: list[Any] = []
    for argument in arguments:
        kind = argument["class_name"] if isinstance(argument, dict) else None
        if kind == "__keras_tensor__":
            operands.append(argument["config"]["keras_history"][0])
        elif kind in ("__numpy__", "__tensor__"):
            operands.append(keras.ops.convert_to_numpy(keras.saving.deserialize_keras_object(argument)))
        elif isinstance(argument, (int, float)):
            operands.append(argument)
        else:
            return ()
    return tuple(operands)


def _tensors(config: Any) -> list[dict[str, Any]]:
    """Returns the configurations of the tensors that appear anywhere in a serialized call."""
    if isinstance(config, dict):
        if config.get("class_name") == "__keras_tensor__":
            return [config["config"]]
        config = list(config.values())
    if isinstance(config, (list, tuple)):
        return [tensor for item in config for tensor in _tensors(item)]
    return []
