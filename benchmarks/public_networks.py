"""Networks published with auto_LiRPA, alpha-beta-CROWN and convex_adversarial, from .npz files in PyTorch's layout.

Pixels are in [0, 1]; the normalization is part of the network. Convolutions pad symmetrically.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tf_robust_sparse.layers import PlainConv2D, PlainDense

NORM_1 = ((0.4914, 0.4824, 0.4467), (0.2471, 0.2435, 0.2616))
NORM_2 = ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))
NORM_3 = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
# file -> data, architecture, normalization, radius it was trained for or is measured at
NETWORKS = {
    "cifar_cnn_a_adv": ("cifar10", "cnn_a", NORM_1, 2 / 255),
    "cifar_cnn_a_mix": ("cifar10", "cnn_a", NORM_1, 2 / 255),
    "cifar_conv_small_pgd": ("cifar10", "conv_small", NORM_3, 2 / 255),
    "resnet2b": ("cifar10", "resnet", NORM_2, 2 / 255),
    "resnet4b": ("cifar10", "resnet", NORM_2, 1 / 255),
    "mnist_cnn_a_adv": ("mnist", "cnn_a", None, 0.1),
    "mnist_small_adv": ("mnist", "small", None, 0.1),
    "convex_mnist": ("mnist", "cnn_a", None, 0.1),
    "convex_fashion_mnist": ("fashion_mnist", "cnn_a", None, 0.1),
}
# Stride and padding of the convolutions of the plain architectures.
_CONVOLUTIONS = {"cnn_a": (2, 1), "conv_small": (2, 0), "small": (2, 2)}


class _Builder:
    """Puts layers on each other, and their tensors into them in the end."""

    def __init__(self, shape: tuple[int, ...], norm: Any) -> None:
        self.x = self.inputs = keras.Input(shape)
        self.weights: list[tuple[Any, list[np.ndarray]]] = []
        if norm is not None:
            self.x = keras.layers.Normalization(mean=norm[0], variance=np.square(norm[1]))(self.x)

    def conv(self, x: Any, kernel: np.ndarray, bias: np.ndarray, stride: int, padding: int) -> Any:
        if padding:
            x = keras.layers.ZeroPadding2D(padding)(x)
        layer = PlainConv2D(kernel.shape[0], kernel.shape[2:], stride, padding="valid")
        self.weights.append((layer, [kernel.transpose(2, 3, 1, 0), bias]))
        return layer(x)

    def dense(self, x: Any, kernel: np.ndarray, bias: np.ndarray) -> Any:
        kernel = kernel.T
        if len(x.shape) == 4:  # flattened with channels first
            height, width, channels = x.shape[1:]
            kernel = kernel.reshape(channels, height, width, -1).transpose(1, 2, 0, 3).reshape(kernel.shape)
            x = keras.layers.Flatten()(x)
        layer = PlainDense(kernel.shape[1])
        self.weights.append((layer, [kernel, bias]))
        return layer(x)

    def model(self, outputs: Any, name: str) -> keras.Model:
        for layer, values in self.weights:
            layer.set_weights(values)
        return keras.Model(self.inputs, outputs, name=name)


def read(path: Path, shape: tuple[int, ...]) -> keras.Model:
    """Returns the network of the file, whose name is one of `NETWORKS`."""
    _, architecture, norm, _ = NETWORKS[path.stem]
    with np.load(path, allow_pickle=False) as file:
        tensors = {name: file[name] for name in file.files}
    build = _Builder(shape, norm)
    if architecture == "resnet":
        return _resnet(build, tensors, path.stem)
    pairs = _pairs(tensors)
    x = build.x
    for kernel, bias in pairs[:-1]:
        is_conv = kernel.ndim == 4
        x = build.conv(x, kernel, bias, *_CONVOLUTIONS[architecture]) if is_conv else build.dense(x, kernel, bias)
        x = keras.layers.ReLU()(x)
    return build.model(build.dense(x, *pairs[-1]), path.stem)


def _pairs(tensors: dict[str, np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    values = iter(tensors.values())
    return list(zip(values, values, strict=True))


def _resnet(build: _Builder, tensors: dict[str, np.ndarray], name: str) -> keras.Model:
    """3x3 convolution of stride 2, stages of two blocks without batch norm, two dense layers."""

    def pair(prefix: str) -> tuple[np.ndarray, np.ndarray]:
        return tensors[f"{prefix}.weight"], tensors[f"{prefix}.bias"]

    relu = keras.layers.ReLU
    x = relu()(build.conv(build.x, *pair("conv1"), 2, 1))
    for block in _blocks(tensors):
        has_shortcut = f"{block}.shortcut.0.weight" in tensors
        stride = 2 if has_shortcut else 1
        y = relu()(build.conv(x, *pair(f"{block}.conv1"), stride, 1))
        y = build.conv(y, *pair(f"{block}.conv2"), 1, 1)
        if has_shortcut:
            x = build.conv(x, *pair(f"{block}.shortcut.0"), stride, 0)
        x = relu()(keras.layers.Add()([y, x]))
    x = relu()(build.dense(x, *pair("linear1")))
    return build.model(build.dense(x, *pair("linear2")), name)


def _blocks(tensors: dict[str, np.ndarray]) -> Iterator[str]:
    yield from dict.fromkeys(".".join(name.split(".")[:2]) for name in tensors if name.startswith("layer"))
