"""Writes a network in every form that other programs read, and compares size, speed, logits and accuracy.

    python run_scripts/run_export.py --network=saved_models/run --data=fashion_mnist_sample --output_dir=exported

writes a SavedModel (dense, packed), `.keras`, LiteRT (dense, sparse, int8), ONNX (dense, sparse), the compact `.trs`
and the engine's shared library, and prints a line for each: bytes, bytes after gzip, latency of a batch of 1 and of 32,
the largest difference of its logits, and its accuracy on the test images. `results.json` holds the same. Without
--output_dir nothing is kept; without --data logits are compared on random images, and LiteRT in int8, which needs
training images, is left out. Forms that lack a layer or a program are left out by name.
"""

import contextlib
import dataclasses
import functools
import gzip
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

import tf_robust_sparse as trs
from tf_robust_sparse.cli import command_line, run_directory, settings
from tf_robust_sparse.cli.command_line import BadFlag
from tf_robust_sparse.cli.sections.data import Data
from tf_robust_sparse.cli.sections.latency import Latency, Target
from tf_robust_sparse.cli.sections.run import Output
from tf_robust_sparse.cli.sections.source import Source
from tf_robust_sparse.cli.settings import like, setting
from tf_robust_sparse.evaluation.latency import median_durations
from tf_robust_sparse.evaluation.runtimes import Function, litert_function, onnx_function
from tf_robust_sparse.layers.engine_seam import threads

_TOLERANCE = 1e-4  # of logits, relative to the largest: float32 sums in another order
_CALIBRATED = "litert-int8"


class Form(NamedTuple):
    """How a network is written and run.

    Attributes:
        file: Name of what is written.
        write: From network and path to the file.
        read: From the file to a function from images to logits.
    """

    file: str
    write: Callable[[keras.Model, Path], Any]
    read: Callable[[Path], Function]


def _in_tensorflow(load: Callable[[Path], Any], path: Path) -> Function:
    network = load(path)
    signature = [tf.TensorSpec((None, *network.input_shape[1:]))]
    step = tf.function(lambda x: network(x, training=False), input_signature=signature, autograph=False)
    return lambda x: step(tf.constant(x)).numpy()


def _saved_model(path: Path) -> Function:
    network = trs.evaluation.load_saved_model(path)
    return lambda x: network(tf.constant(x)).numpy()


def _library(network: keras.Model, path: Path) -> None:
    trs.runtime.compile(network).save(path)


def _lite(path: Path) -> Function:
    return litert_function(path, threads())


def _onnx(path: Path) -> Function:
    return onnx_function(path, threads())


_DENSE_LITE = functools.partial(trs.export_litert, sparse=False)
_PACKED = functools.partial(trs.export_network, packed=True)
_SPARSE_ONNX = functools.partial(trs.export_onnx, sparse=True)
_LOADED = functools.partial(_in_tensorflow, trs.load_network)
FORMS = {
    "saved_model": Form("serve", trs.export_network, _saved_model),
    "saved_model-packed": Form("serve_packed", _PACKED, _saved_model),
    "keras": Form("network.keras", trs.save_network, _LOADED),
    "litert": Form("network.tflite", _DENSE_LITE, _lite),
    "litert-sparse": Form("network_sparse.tflite", trs.export_litert, _lite),
    _CALIBRATED: Form("network_int8.tflite", trs.export_litert, _lite),
    "onnx": Form("network.onnx", trs.export_onnx, _onnx),
    "onnx-sparse": Form("network_sparse.onnx", _SPARSE_ONNX, _onnx),
    "compact": Form("network.trs", trs.saving.save_compact, _LOADED),
    "engine": Form("network.so", _library, trs.runtime.load),
}


@dataclasses.dataclass
class Export(Source):
    """The network, and what is made of it."""

    forms: list[str] = setting(list(FORMS), f"Forms to write: {', '.join(FORMS)}.")
    calibration_images: int = setting(
        200, "Training images, drawn at random, that give LiteRT in int8 its ranges.", lower=1
    )

    def check(self) -> None:
        """Checks the forms."""
        for form in self.forms:
            if form not in FORMS:
                raise BadFlag(f"--forms={form}: expected some of {', '.join(FORMS)}")


@dataclasses.dataclass
class Place(Target):
    """Where the forms are kept."""

    output_dir: str | None = like(Output, "output_dir", help="Where to write; by default nothing is kept.")


def define() -> None:
    """Defines the flags."""
    Export.define(needed=("network",))
    Latency.define(latency_batch_sizes=["1", "32"])
    Data.define()
    Place.define()


def main() -> None:
    """Loads, writes, compares, measures, records."""
    settings.check()
    source, latency, data, target = Export.read(), Latency.read(), Data.read(), Place.read()
    directory = target.place(source.path) if target.output_dir else None
    network = source.load()
    if directory:
        run_directory.check(directory)
    images = data.load() if settings.is_given("data") else None
    x, labels = _test_images(network, images, data)
    with command_line.about("network"):
        plain = trs.saving.strip(network)
    expected = plain.predict(x, batch_size=data.batch_size, verbose=0)
    if directory:
        run_directory.begin(directory)
    with _place(directory) as place:
        rows: dict[str, dict[str, Any]] = {}
        functions: dict[str, Function] = {}
        left_out: dict[str, str] = {}
        for name in source.forms:
            try:
                functions[name] = _written(name, network, place, source, images)
            except (ImportError, ValueError, RuntimeError) as error:
                left_out[name] = str(error)
                continue
            rows[name] = {
                "file": FORMS[name].file,
                **_bytes(place / FORMS[name].file),
                **_answers(functions[name], x, labels, expected, data.batch_size),
            }
            _check(name, rows[name], expected)
        for size in latency.batch_sizes:
            batch = np.resize(x, (size, *x.shape[1:]))
            calls = {name: functools.partial(function, batch) for name, function in functions.items()}
            for name, seconds in median_durations(calls, latency.latency_seconds).items():
                rows[name].setdefault("latency", {})[str(size)] = seconds
    results = {
        "network": str(source.path),
        "bytes_of_weights": 4 * plain.count_params(),
        "connectivity": trs.sparsity.statistics.summary(network)["connectivity"],
        "largest_logit": float(np.abs(expected).max()),
        "images": len(x),
        "threads": threads(),
        "forms": rows,
        "left_out": left_out,
    }
    show(results)
    if directory:
        run_directory.write_results(directory / "results.json", results, images)
        print(f"Files and record    {directory}: results.json", flush=True)


def show(results: dict[str, Any]) -> None:
    """Prints a line for each form."""
    rows = list(results["forms"].values())
    sizes = list(rows[0].get("latency", {})) if rows else []
    has_labels = any("accuracy" in row for row in rows)
    heads = ["bytes", "gzipped", *(f"ms, batch {size}" for size in sizes), "difference"]
    heads += ["accuracy"] if has_labels else []
    print(f"{'form':18s}{''.join(f'{head:>13s}' for head in heads)}  file")
    for name, row in results["forms"].items():
        cells = [f"{row['bytes']:d}", f"{row['bytes_gzipped']:d}"]
        cells += [f"{1e3 * row['latency'][size]:.3f}" for size in sizes] + [
            f"{row['largest_difference_of_logits']:.2g}"
        ]
        cells += [f"{100 * row['accuracy']:.2f} %"] if has_labels else []
        print(f"{name:18s}{''.join(f'{cell:>13s}' for cell in cells)}  {row['file']}")
    for name, reason in results["left_out"].items():
        print(f"{name} is left out: {reason}")
    print(
        f"\nWeights take {results['bytes_of_weights']} bytes in float32. Logits of {results['images']} images, the "
        f"largest {results['largest_logit']:.3g}"
    )


@contextlib.contextmanager
def _place(directory: Path | None) -> Iterator[Path]:
    if directory:
        yield directory
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def _test_images(
    network: keras.Model, images: trs.data.ImageDataset | None, data: Data
) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns the test images and their labels, or random images."""
    taken = tuple(network.input_shape[1:])
    if images is None:
        return np.random.default_rng(data.seed).random((64, *(length or 32 for length in taken)), "float32"), None
    shape = tuple(images.test_images.shape[1:])
    if any(length not in (None, found) for length, found in zip(taken, shape, strict=True)):
        raise command_line.BadInput(f"--data={data.data} has images of shape {shape}; the network takes {taken}")
    batches = [(np.asarray(x), np.asarray(y)) for x, y in data.test_batches(images)]
    return np.concatenate([x for x, _ in batches]), np.concatenate([y for _, y in batches])


def _written(
    name: str, network: keras.Model, place: Path, source: Export, images: trs.data.ImageDataset | None
) -> Function:
    """Writes a form; returns the function that it computes.

    Raises:
        ImportError, RuntimeError, ValueError: if it cannot be written or run here.
    """
    form = FORMS[name]
    more: dict[str, Any] = {}
    if name == _CALIBRATED:
        if images is None:
            raise ValueError("it needs training images for its ranges; pass --data")
        number = min(source.calibration_images, len(images.train_labels))
        chosen = np.random.default_rng(Data.read().seed).choice(len(images.train_labels), number, replace=False)
        some = trs.data.test_dataset(images.train_images[np.sort(chosen)], np.zeros(number, int), number)
        more["int8"] = next(iter(some))[0].numpy()
    form.write(network, place / form.file, **more)
    return form.read(place / form.file)


def _bytes(path: Path) -> dict[str, int]:
    files = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())
    content = b"".join(file.read_bytes() for file in files)
    return {"bytes": len(content), "bytes_gzipped": len(gzip.compress(content, 6, mtime=0))}


def _answers(
    function: Function, x: np.ndarray, labels: np.ndarray | None, expected: np.ndarray, batch_size: int
) -> dict[str, float]:
    found = np.concatenate([function(x[start : start + batch_size]) for start in range(0, len(x), batch_size)])
    answers = {"largest_difference_of_logits": float(np.abs(found - expected).max())}
    return answers if labels is None else {**answers, "accuracy": float((found.argmax(-1) == labels).mean())}


def _check(name: str, row: dict[str, Any], expected: np.ndarray) -> None:
    difference, scale = row["largest_difference_of_logits"], max(1.0, float(np.abs(expected).max()))
    if name != _CALIBRATED and not difference <= _TOLERANCE * scale:
        raise RuntimeError(
            f"The logits of {row['file']} differ by {difference:.2g} of {scale:.3g}: the export is wrong; please "
            "report this network"
        )
