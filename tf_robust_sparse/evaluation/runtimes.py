"""Exported files as functions from images to logits, in the runtimes that are installed."""

import os
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tf_robust_sparse.startup import without_noise

Function = Callable[[np.ndarray], np.ndarray]


def litert_function(path: str | os.PathLike, threads: int) -> Function:
    """Returns a function that computes the logits of images in LiteRT, from a file of `saving.export_litert`."""
    with warnings.catch_warnings(), without_noise():
        warnings.simplefilter("ignore")  # that the class moves to a package of its own
        interpreter = tf.lite.Interpreter(model_path=str(path), num_threads=threads)
    [given], [wanted] = interpreter.get_input_details(), interpreter.get_output_details()
    shape: list[Any] = [None]

    def call(x: np.ndarray) -> np.ndarray:
        if shape[0] != x.shape:
            with without_noise():
                interpreter.resize_tensor_input(given["index"], x.shape)
                interpreter.allocate_tensors()
            shape[0] = x.shape
        interpreter.set_tensor(given["index"], x)
        interpreter.invoke()
        return interpreter.get_tensor(wanted["index"])

    return call


def onnx_function(path: str | os.PathLike, threads: int) -> Function:
    """Returns a function that computes the logits of images in ONNX Runtime, from a file of `saving.export_onnx`.

    Images have their channels last or first, as in the file.

    Raises:
        ImportError: if ONNX Runtime is not installed.
    """
    try:
        import onnxruntime
    except ImportError:
        raise ImportError("ONNX Runtime is missing: python -m pip install 'tf_robust_sparse[onnx]'") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x})[0]
