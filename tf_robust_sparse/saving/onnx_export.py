"""Networks as ONNX files: for deployment, and for verifiers.

Keras writes ONNX, too (`model.export(path, format="onnx")`, through tf2onnx), also for layers that are refused here.
Our files store few connections in few bytes, take channels last or first, and an unknown layer is named before anything
is written. Verifiers need more: channels first without a transposition, where bounds in patch form would stop;
the same padding on both sides, without which auto_LiRPA refuses strided convolutions; all shapes known.
"""

import os
from pathlib import Path

import keras

from tf_robust_sparse.paths import user_path
from tf_robust_sparse.saving.atomic import replace_file
from tf_robust_sparse.saving.onnx_layers import DEPLOYMENT, VERIFIERS
from tf_robust_sparse.saving.onnx_writer import Dialect, Writer
from tf_robust_sparse.saving.strip import strip


def export_onnx(
    network: keras.Model, path: str | os.PathLike, channels_first: bool = False, sparse: bool = False
) -> Path:
    """Writes `network` as an ONNX file for ONNX Runtime and other programs.

    The file maps `pixels`, float32 `(batch, height, width, channels)` in [0, 1], or `(batch, features)`, to `logits`
    `(batch, classes)`, for every batch size. Kernels are the effective ones, batch norm uses its moving statistics.

    Args:
        network: A functional or sequential model of known image size, of every parametrization or of plain Keras:
            dense, convolution (also depthwise, separable, dilated, in groups), batch norm, activation, pooling,
            padding, flatten, reshape, merging, rescaling, normalization and dropout layers, networks of these, and
            sums, differences, products and quotients with constants, as in `1.0 - x / 2.0`.
        path: The file, ending in `.onnx`; it is written completely or not at all.
        channels_first: Whether `pixels` are `(batch, channels, height, width)`; otherwise the file transposes them.
        sparse: Whether kernels with less than a third of their entries are stored by these alone, 12 bytes each. ONNX
            Runtime reads such files and computes as before; other readers may not know sparse constants.

    Returns:
        The path.

    Raises:
        ImportError: if onnx is not installed.
        ValueError: if a layer is not supported; names it.
    """
    return _write(network, path, DEPLOYMENT._replace(channels_first=channels_first, sparse=sparse))


def export_verifier_onnx(network: keras.Model, path: str | os.PathLike) -> Path:
    """Writes `network` as an ONNX file for verifiers such as alpha-beta-CROWN.

    The file maps `pixels`, float32 `(1, channels, height, width)` in [0, 1], or `(1, features)`, to `logits`
    `(1, classes)`. Kernels are the effective ones, with rows of zeros where this makes the padding equal on both
    sides; batch norm uses its moving statistics. No operator fixes the batch size of 1.

    Args:
        network: A functional or sequential model of known image size: dense, convolution, batch norm, ReLU, pooling,
            padding, flatten, reshape, add, rescaling, normalization and dropout layers, in every parametrization.
        path: The file, ending in `.onnx`; it is written completely or not at all.

    Returns:
        The path.

    Raises:
        ImportError: if onnx is not installed.
        ValueError: if a layer is not supported; names it.
    """
    return _write(network, path, VERIFIERS)


def _write(network: keras.Model, path: str | os.PathLike, dialect: Dialect) -> Path:
    path = user_path(path)
    if path.suffix != ".onnx":
        raise ValueError(f"`path` must end in .onnx. Received: path={os.fspath(path)!r}")
    model = Writer(dialect).model(strip(network))
    with replace_file(path) as temporary:
        temporary.write_bytes(model.SerializeToString())
    return path
