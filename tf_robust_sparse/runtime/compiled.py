"""Networks that run without TensorFlow, from NumPy arrays to NumPy arrays."""

import ctypes
import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tf_robust_sparse.engine import library
from tf_robust_sparse.engine.engine import Engine
from tf_robust_sparse.engine.nodes import Node
from tf_robust_sparse.engine.plan import make_plan
from tf_robust_sparse.layers.cloning import flattened
from tf_robust_sparse.layers.engine_seam import network_nodes, threads, weights_now
from tf_robust_sparse.runtime.c_source import PRECISIONS, c_source

_LANES = 16
_FEW = 4  # up to this number of images, a plan for exactly so many is faster than one for 16


class CompiledNetwork:
    """A network that computes logits from NumPy arrays, without TensorFlow. See `compile`.

    Attributes:
        input_shape: `(height, width, channels)` of an image, or `(features,)`.
        classes: Number of logits.
        num_threads: Threads that share a batch.
    """

    def __init__(
        self, nodes: Sequence[Node], weights: Mapping[str, Sequence[Any]], input_shape: tuple[int, ...], threads: int
    ) -> None:
        self._nodes, self._weights, self.num_threads = list(nodes), dict(weights), threads
        self._engines: dict[int, tuple[Engine, np.ndarray]] = {}
        self.input_shape = input_shape
        self.classes = self._engine(1)[0].plan.classes

    def __call__(self, images: Any) -> np.ndarray:
        """Returns the logits `(batch, classes)`, float32.

        Args:
            images: `(batch, *input_shape)` in [0, 1], or in the range that the network was trained on.

        Raises:
            ValueError: if the images have another shape.
        """
        images = np.asarray(images, np.float32)
        if images.shape[1:] != self.input_shape:
            raise ValueError(
                f"The network takes images of shape (batch, {', '.join(map(str, self.input_shape))}). "
                f"Received: {images.shape}"
            )
        engine, words = self._engine(len(images) if 1 <= len(images) <= _FEW else _LANES)
        return engine.logits(words, images)

    def export_c(self, path: str | os.PathLike[str], precision: str = "float32") -> Path:
        """Writes the network, including its weights, as one C file without dependencies.

        `cc -O2 network.c` makes a program that reads images as float32 from standard input and prints the logits; with
        `-DNO_MAIN` the file is a library with `network_run(images, count, logits)`. `-march=native` makes it faster.

        Args:
            path: File to write; must not exist.
            precision: Precision of the weights: `"float32"`, `"float16"`, or `"int8"` with a scale per filter. Kernels
                of signs, such as those of binary sub-networks, always take one bit per weight.

        Raises:
            ValueError: if `precision` is unknown, or the file exists.
        """
        if precision not in PRECISIONS:
            raise ValueError(f"`precision` must be one of {', '.join(PRECISIONS)}. Received: precision={precision!r}")
        path = _new_file(path)
        path.write_text(c_source(self._engine(1)[0].plan, self._weights, precision))
        return path

    def save(self, path: str | os.PathLike[str], precision: str = "float32") -> Path:
        """Writes the network as a shared library for `load`; needs a C compiler. See `export_c`.

        Raises:
            ValueError: see `export_c`.
            RuntimeError: if there is no C compiler, or it fails.
        """
        path = _new_file(path)
        with tempfile.TemporaryDirectory() as folder:
            source = self.export_c(Path(folder) / "network.c", precision)
            command = [
                *_compiler(),
                "-O3",
                "-march=native",
                "-DNO_MAIN",
                "-shared",
                "-fPIC",
                "-o",
                str(path),
                str(source),
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed: {(done.stderr.strip() or 'no message').splitlines()[0]}")
        return path

    def _engine(self, lanes: int) -> tuple[Engine, np.ndarray]:
        if lanes not in self._engines:
            engine = Engine(make_plan(self._nodes, lanes), self.num_threads)
            self._engines[lanes] = engine, engine.pack(self._weights)
        return self._engines[lanes]


def compile(network: keras.Model, num_threads: int | None = None) -> CompiledNetwork:
    """Compiles a network for the engine, which multiplies only its connections and needs no TensorFlow.

    ```python
    fast = trs.runtime.compile(trs.load_network("saved_models/run"))
    logits = fast(images)
    fast.save("network.so")
    fast.export_c("network.c")
    ```

    Args:
        network: A functional or sequential model, nested ones included, of dense, convolution, batch norm, ReLU, SiLU,
            pooling, padding, flatten, adding and dropout layers, of this toolkit or of Keras, from images or vectors to
            logits. Its weights are copied.
        num_threads: Number of threads that share a batch, 16 images at a time; `None` for as many as TensorFlow uses.

    Returns:
        A function from `(batch, ...)` images to `(batch, classes)` logits, NumPy arrays.

    Raises:
        ValueError: if the engine does not know a layer; names it.
        RuntimeError: if the engine's kernels are not compiled.
    """
    if not library.available():
        raise RuntimeError(f"{library.MISSING[0].upper()}{library.MISSING[1:]}")
    network = flattened(network)
    nodes = network_nodes(network)
    shape = tuple(network.input_shape[1:])
    return CompiledNetwork(nodes, weights_now(network, nodes), shape, num_threads or threads())


class LoadedNetwork:
    """A network in a shared library that `CompiledNetwork.save` wrote; it runs image by image on one thread."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._library = ctypes.CDLL(str(Path(path).resolve()))
        shape = (ctypes.c_int * 4)()
        self._library.network_shape(shape)
        self._library.network_run.argtypes = [ctypes.c_void_p, ctypes.c_long, ctypes.c_void_p]
        self.shape, self.classes = tuple(shape[:3]), int(shape[3])
        self._pixels = math.prod(self.shape)

    def __call__(self, images: Any) -> np.ndarray:
        """Returns the logits `(batch, classes)`, float32, of `(batch, height, width, channels)` images or vectors.

        Raises:
            ValueError: if the images have another shape.
        """
        images = np.ascontiguousarray(images, np.float32)
        if images.ndim < 2 or images.size != len(images) * self._pixels:
            raise ValueError(f"The network takes images of shape {self.shape}. Received: {images.shape}")
        logits = np.empty((len(images), self.classes), np.float32)
        self._library.network_run(images.ctypes.data, len(images), logits.ctypes.data)
        return logits


def load(path: str | os.PathLike[str]) -> LoadedNetwork:
    """Loads a network that `CompiledNetwork.save` wrote. Load only libraries that you trust: they are programs."""
    return LoadedNetwork(path)


def _compiler() -> list[str]:
    named = os.environ.get("CC")
    if named:
        return named.split()
    for name in ("cc", "gcc", "clang"):
        if shutil.which(name):
            return [name]
    raise RuntimeError("A shared library needs a C compiler: install gcc or clang, or set CC, or use export_c")


def _new_file(path: str | os.PathLike[str]) -> Path:
    path = Path(path).expanduser()
    if path.exists():
        raise ValueError(f"`path` must not exist; remove the file or choose another name. Received: {path}")
    return path
