"""The size of a network of plain Keras layers and its number of multiplications."""

import math
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np

from tf_robust_sparse.layers.kernel_seam import all_layers
from tf_robust_sparse.layers.topology import layer_graph

_WITH_KERNEL = (keras.layers.Dense, keras.layers.Conv2D, keras.layers.DepthwiseConv2D)


class Sizes(NamedTuple):
    """Sizes of a network.

    Attributes:
        parameters: Number of all weights, including moving statistics.
        nonzero: Number of nonzero kernel entries.
        multiply_adds: Multiplications, each with an addition, of kernels for one image, including zeros but not batch
            norm, activations and pooling.
        file_bytes: Size of its `.keras` file.
    """

    parameters: int
    nonzero: int
    multiply_adds: int
    file_bytes: int


def network_sizes(network: keras.Model) -> Sizes:
    """Returns the sizes of a functional or sequential network of plain Keras layers and known image size.

    Kernels are those of dense layers and of two-dimensional convolutions, depthwise and separable ones among them.

    Raises:
        ValueError: if `network` is a subclassed model.
    """
    layer_graph(network)  # raises ValueError for subclassed models
    kernels = [
        (keras.ops.convert_to_numpy(kernel), math.prod(layer.output.shape[1:-1]))
        for layer in all_layers(network)
        for kernel in _kernels(layer)
    ]
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "network.keras"
        network.save(file)
        file_bytes = file.stat().st_size
    return Sizes(
        parameters=sum(math.prod(variable.shape) for variable in network.variables),
        nonzero=sum(int(np.count_nonzero(kernel)) for kernel, _ in kernels),
        multiply_adds=sum(kernel.size * positions for kernel, positions in kernels),
        file_bytes=file_bytes,
    )


def _kernels(layer: Any) -> list[Any]:
    if isinstance(layer, keras.layers.SeparableConv2D):
        return [layer.depthwise_kernel, layer.pointwise_kernel]
    return [layer.kernel] if isinstance(layer, _WITH_KERNEL) else []
