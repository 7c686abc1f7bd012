"""Makes a program of a sparse network that needs no TensorFlow, and measures how fast it is.

    python run_scripts/run_compile.py --network=saved_models/run --output_dir=saved_models/compiled --benchmark

writes `network.c`, one file without dependencies, its weights inside; `network.so`, which `trs.runtime.load` reads,
where there is a C compiler; and `compile.json`: file sizes, the largest difference of logits, and with --benchmark the
latency of the engine, of TensorFlow, of LiteRT and of ONNX Runtime where it is installed.
"""

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import tf_robust_sparse as trs
from tf_robust_sparse.cli import command_line, run_directory, settings
from tf_robust_sparse.cli.sections.latency import Latency, Target
from tf_robust_sparse.cli.sections.source import Source
from tf_robust_sparse.cli.settings import setting
from tf_robust_sparse.evaluation.latency import median_durations
from tf_robust_sparse.evaluation.runtimes import litert_function, onnx_function
from tf_robust_sparse.runtime.compiled import CompiledNetwork


@dataclasses.dataclass
class Program(Source):
    """The network, and what is made of it."""

    precision: str = setting("float32", "Weights in network.c and network.so.", choices=("float32", "float16", "int8"))
    benchmark: bool = setting(False, "Measure latency next to TensorFlow, LiteRT and ONNX Runtime.")


def define() -> None:
    """Defines the flags."""
    Program.define(needed=("network",))
    Latency.define(latency_batch_sizes=["1", "32"])
    Target.define(needed=("output_dir",))


def main() -> None:
    """Loads, compiles, compares, measures, writes."""
    settings.check()
    source, latency = Program.read(), Latency.read()
    directory = Target.read().place(source.path)
    network = source.load()
    run_directory.check(directory)
    with command_line.about("network"):
        fast = trs.runtime.compile(network)
    x = np.random.default_rng(0).random((64, *network.input_shape[1:]), "float32")
    expected = network.predict(x, verbose=0)
    run_directory.begin(directory)
    files = {"network.c": fast.export_c(directory / "network.c", source.precision)}
    found = {"engine": fast(x)}
    try:
        files["network.so"] = fast.save(directory / "network.so", source.precision)
        found["network.so"] = trs.runtime.load(files["network.so"])(x)
    except RuntimeError as error:
        print(f"network.so is left out: {error}", flush=True)
    results: dict[str, Any] = {
        "network": str(source.path),
        "precision": source.precision,
        "bytes": {name: path.stat().st_size for name, path in files.items()},
        "largest_logit": float(np.abs(expected).max()),
        "largest_difference_of_logits": {
            name: float(np.abs(logits - expected).max()) for name, logits in found.items()
        },
        "latency": {},
    }
    if source.benchmark:
        for size in latency.batch_sizes:
            calls = _calls(network, fast, files.get("network.so"), x[:1].repeat(size, axis=0))
            results["latency"][str(size)] = median_durations(calls, latency.latency_seconds)
    run_directory.write_results(directory / "compile.json", results)
    show(results)
    print(f"Record                      {directory / 'compile.json'}", flush=True)


def show(results: dict[str, Any]) -> None:
    """Prints sizes, differences and latencies."""
    for name, size in results["bytes"].items():
        print(f"{name:26s}{size:12d} bytes")
    for name, difference in results["largest_difference_of_logits"].items():
        print(f"largest difference, {name:12s}{difference:9.2g} of {results['largest_logit']:.3g}")
    for size, found in results["latency"].items():
        for name, seconds in found.items():
            ratio = found["TensorFlow"] / seconds
            print(f"batch of {size:4s} {name:14s}{1e3 * seconds:10.3f} ms {ratio:8.2f} times TensorFlow's speed")


def _calls(
    network: keras.Model, fast: CompiledNetwork, shared: Path | None, x: np.ndarray
) -> dict[str, Callable[[], Any]]:
    """What is measured: functions that compute the logits of `x`."""
    plain = trs.saving.strip(network)
    step = tf.function(lambda pixels: plain(pixels, training=False), autograph=False)
    pixels = tf.constant(x)
    calls: dict[str, Callable[[], Any]] = {"engine": lambda: fast(x), "TensorFlow": lambda: step(pixels).numpy()}
    if shared is not None and len(x) == 1:
        loaded = trs.runtime.load(shared)
        calls["network.so"] = lambda: loaded(x)
    with tempfile.TemporaryDirectory() as folder:
        lite = litert_function(trs.export_litert(plain, Path(folder) / "network.tflite"), fast.num_threads)
        lite(x)  # reads the file
        calls["LiteRT"] = lambda: lite(x)
        try:
            onnx = onnx_function(trs.export_onnx(plain, Path(folder) / "network.onnx"), fast.num_threads)
            calls["ONNX Runtime"] = lambda: onnx(x)
        except (ImportError, ValueError) as error:
            print(f"ONNX Runtime is left out: {error}", flush=True)
    return calls
