"""The size of a network of plain Keras layers and its number of multiplications."""

import math
import tempfile
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np

from tf_robust_sparse.layers.kernel_seam import all_layers
from tf_robust_sparse.layers.topology import layer_graph


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
    """Returns the sizes of a functional or sequential network of plain dense and Conv2D layers and known image size.

    Raises:
        ValueError: if `network` is a subclassed model.
    """
    layer_graph(network)  # raises ValueError for subclassed models
    plain = (keras.layers.Dense, keras.layers.Conv2D)
    kernels = [layer for layer in all_layers(network) if isinstance(layer, plain)]
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "network.keras"
        network.save(file)
        file_bytes = file.stat().st_size
    return Sizes(
        parameters=sum(math.prod(variable.shape) for variable in network.variables),
        nonzero=sum(int(np.count_nonzero(keras.ops.convert_to_numpy(layer.kernel))) for layer in kernels),
        multiply_adds=sum(math.prod(layer.kernel.shape) * math.prod(layer.output.shape[1:-1]) for layer in kernels),
        file_bytes=file_bytes,
    )
