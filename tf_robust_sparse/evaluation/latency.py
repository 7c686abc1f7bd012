"""Latencies of networks, measured in turns."""

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
    """Measures the time of one batch of random pixels for each network, compiled, in inference mode.

    The networks take turns, so that other work of the machine disturbs all of them alike.

    Args:
        networks: Name -> functional or sequential model of known image size.
        batch_size: Number of images, positive.
        seconds: Time of each network, without compilation and warm-up.
        rounds: Number of turns that this time is divided into.

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
    """Measures the times of functions, which take turns.

    Args:
        calls: Name -> function of no arguments.
        seconds: Time of each function, without warm-up.
        rounds: Number of turns that this time is divided into.

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
        network: A network that `saving.export_onnx` supports.
        x: `(batch, ...)`, float32, inputs of the network.
        threads: Number of threads.

    Raises:
        ImportError: if ONNX or ONNX Runtime is not installed.
        ValueError: if there is no operator for a layer; names the layer.
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
