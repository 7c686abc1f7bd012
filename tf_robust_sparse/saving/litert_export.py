"""Networks as LiteRT files, for phones and other small machines."""

import os
import re
import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_robust_sparse.paths import user_path
from tf_robust_sparse.saving.atomic import replace_file
from tf_robust_sparse.saving.network import export_network
from tf_robust_sparse.startup import without_noise

_LAYER = re.compile(r'"[^"/@]+/([^"@]+)/[^"/@]+@__inference')  # in the place of an operation that has no operator


def export_litert(network: keras.Model, path: str | os.PathLike, sparse: bool = True, int8: Any = None) -> Path:
    """Writes `network` as a LiteRT file (formerly TensorFlow Lite).

    The file maps images `(batch, height, width, channels)`, float32 in [0, 1], to logits `(batch, classes)`, float32,
    for every batch size: `resize_tensor_input` sets it, 1 at first. Kernels are the effective ones.

    ```python
    trs.export_litert(network, "network.tflite")
    trs.export_litert(network, "network_int8.tflite", int8=train_images[:200])
    ```

    Args:
        network: A functional or sequential model of any layers that LiteRT has operators for.
        path: The file, ending in `.tflite`; it is written completely or not at all.
        sparse: Whether kernels with few connections are stored by these alone. The interpreter unpacks them when it
            loads the file and is as fast as before. `False` for readers that do not know sparse tensors, such as
            LiteRT for Microcontrollers.
        int8: Images `(count, height, width, channels)` as in training, in [0, 1]. If given, weights and features are
            rounded to 8 bits, with ranges from these images; a few hundred suffice. Inputs and logits stay float32.

    Returns:
        The path.

    Raises:
        ValueError: if LiteRT has no operator for something in the network, or the images do not fit it.
    """
    path = user_path(path)
    if path.suffix != ".tflite":
        raise ValueError(f"`path` must end in .tflite. Received: path={os.fspath(path)!r}")
    images = None if int8 is None else _checked(int8, network)
    with tempfile.TemporaryDirectory() as folder, without_noise():
        converter = tf.lite.TFLiteConverter.from_saved_model(str(export_network(network, Path(folder) / "serve")))
        optimizations = [tf.lite.Optimize.EXPERIMENTAL_SPARSITY] if sparse else []
        if images is not None:
            optimizations.append(tf.lite.Optimize.DEFAULT)
            converter.representative_dataset = lambda: ([image[np.newaxis]] for image in images)
        converter.optimizations = optimizations
        try:
            content = converter.convert()
        except Exception as error:  # a class of the converter that is not public
            text = str(error)
            unknown = ", ".join(sorted(set(_LAYER.findall(text)))) or text.strip().partition("\n")[0]
            raise ValueError(
                f"LiteRT has no operators for all of {network.name}; replace what it cannot hold: {unknown:.300}"
            ) from error
    with replace_file(path) as temporary:
        temporary.write_bytes(content)
    return path


def _checked(images: Any, network: keras.Model) -> np.ndarray:
    images, expected = np.asarray(images), tuple(network.input_shape[1:])
    matches = images.ndim == len(expected) + 1 and all(
        length in (None, found) for length, found in zip(expected, images.shape[1:], strict=True)
    )
    if not matches or not len(images) or not np.issubdtype(images.dtype, np.floating):
        raise ValueError(
            "`int8` must be images of the training data, floating and of shape "
            f"(count, {', '.join(map(str, expected))}). Received: {images.dtype.name} of shape {images.shape}"
        )
    return images.astype(np.float32)
