"""A network of the toolkit in PyTorch, by way of its ONNX file: the same tensors, channels first."""

import tempfile
from pathlib import Path
from typing import Any

import keras
import onnx
import torch
import torch.nn.functional as F
from torch import nn

from tf_robust_sparse.saving import export_verifier_onnx


class TorchCopy(nn.Module):
    """Runs the operators that `export_verifier_onnx` writes; constants of floating type are parameters."""

    def __init__(self, network: keras.Model) -> None:
        super().__init__()
        with tempfile.TemporaryDirectory() as folder:
            graph = onnx.load(export_verifier_onnx(network, Path(folder) / "network.onnx")).graph
        self.steps = [_step(operator) for operator in graph.node]
        self.constants = nn.ParameterDict()
        for tensor in graph.initializer:
            value = torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy())
            self.constants[_key(tensor.name)] = nn.Parameter(value, requires_grad=value.is_floating_point())

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Returns the logits of `(batch, channels, height, width)`."""
        values = {"pixels": pixels}
        for kind, inputs, output, settings in self.steps:
            found = [values[name] if name in values else self.constants[_key(name)] for name in inputs]
            values[output] = _OPERATORS[kind](found, settings)
        return values["logits"]


def _key(name: str) -> str:
    return name.replace(".", "_").replace("/", "__")


def _step(operator: Any) -> tuple[str, list[str], str, dict[str, Any]]:
    settings = {each.name: onnx.helper.get_attribute_value(each) for each in operator.attribute}
    return operator.op_type, list(operator.input), operator.output[0], settings


def _conv(inputs: list[torch.Tensor], settings: dict[str, Any]) -> torch.Tensor:
    x, kernel, *bias = inputs
    top, left, bottom, right = settings["pads"]
    if (top, left) != (bottom, right):
        raise ValueError(f"PyTorch pads both sides alike. Received: {settings['pads']}")
    return F.conv2d(
        *(x, kernel, bias[0] if bias else None, settings["strides"], (top, left), settings["dilations"]),
        groups=settings["group"],
    )


_OPERATORS = {
    "Conv": _conv,
    "Gemm": lambda inputs, _: F.linear(*inputs),
    "Relu": lambda inputs, _: F.relu(inputs[0]),
    "Flatten": lambda inputs, _: inputs[0].flatten(1),
    "Add": lambda inputs, _: inputs[0] + inputs[1],
    "Mul": lambda inputs, _: inputs[0] * inputs[1],
    "MaxPool": lambda inputs, settings: F.max_pool2d(inputs[0], settings["kernel_shape"], settings["strides"]),
    "BatchNormalization": lambda inputs, settings: F.batch_norm(
        inputs[0], inputs[3], inputs[4], inputs[1], inputs[2], eps=settings["epsilon"]
    ),
}
