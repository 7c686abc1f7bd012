"""How long networks take for a batch, measured side by side."""

import functools
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_robust_sparse.saving import export_onnx


def median_latency(
    networks: Mapping[str, keras.Model], batch_size: int, seconds: float = 1.0, rounds: int = 5
) -> dict[str, float]:
    """Measures how long one batch of random pixels takes each network, compiled, in inference mode.

    The networks take turns, so that what else the machine does meets all of them.

    Args:
        networks: Name -> functional or sequential model of known image size.
        batch_size: Number of images, positive.
        seconds: How long each network runs, compilation and warming up apart.
        rounds: How many turns that time is split into.

    Returns:
        Name -> median over all calls, in seconds.

    Raises:
        ValueError: if a number is not positive.
    """
    for name, value in (("batch_size", batch_size), ("seconds", seconds), ("rounds", rounds)):
        if not value > 0:
            raise ValueError(f"`{name}` must be positive. Received: {name}={value!r}")
    calls = {}
    for name, network in networks.items():
        shape = (batch_size, *network.input_shape[1:])
        step = tf.function(
            lambda x, network=network: network(x, training=False), autograph=False
        ).get_concrete_function(tf.TensorSpec(shape, tf.float32))
        calls[name] = step, tf.random.stateless_uniform(shape, (0, 1))
    return median_durations({name: functools.partial(_take, *each) for name, each in calls.items()}, seconds, rounds)


def median_durations(calls: Mapping[str, Callable[[], Any]], seconds: float = 1.0, rounds: int = 5) -> dict[str, float]:
    """Measures how long functions take, which take turns.

    Args:
        calls: Name -> function of no arguments.
        seconds: How long each of them runs, warming up apart.
        rounds: How many turns that time is split into.

    Returns:
        Name -> median over all calls, in seconds.
    """
    durations: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            for _ in range(2):
                call()
            end = time.perf_counter() + seconds / rounds
            while True:
                begin = time.perf_counter()
                call()
                durations[name].append(time.perf_counter() - begin)
                if time.perf_counter() > end:
                    break
    return {name: statistics.median(found) for name, found in durations.items()}


def _take(step: Callable[[tf.Tensor], tf.Tensor], x: tf.Tensor) -> None:
    step(x).numpy()


def onnx_runtime(network: keras.Model, x: np.ndarray, threads: int) -> Callable[[], np.ndarray]:
    """Returns a function that computes the logits of `x` in ONNX Runtime.

    Args:
        network: A network that `saving.export_onnx` takes.
        x: `(batch, ...)`, float32, as for the network.
        threads: Number of threads.

    Raises:
        ImportError: if ONNX or ONNX Runtime is not installed.
        ValueError: naming a layer, if there is no operator for it.
    """
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    with tempfile.TemporaryDirectory() as folder:
        written = onnx.load(export_onnx(network, Path(folder) / "network.onnx"))
    for each in (*written.graph.input, *written.graph.output):
        each.type.tensor_type.shape.dim[0].dim_param = "batch"
    session = onnxruntime.InferenceSession(written.SerializeToString(), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    pixels = np.ascontiguousarray(x.transpose(0, 3, 1, 2)) if x.ndim == 4 else x  # channels are first in the file
    return lambda: session.run(None, {name: pixels})[0]
