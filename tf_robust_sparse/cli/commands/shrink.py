"""Makes a network smaller: without the channels and units that cannot influence its output.

    python run_scripts/run_shrink.py --network=saved_models/run --output_dir=saved_models/small --fold_batch_norm

writes `network.keras` and `serve/` of plain Keras layers, and `shrink.json`: which channels stay, parameters,
multiply-adds, file sizes and latency before and after. With --data the accuracies of both networks on the test images
are counted, and on how many of them they agree:

    python run_scripts/run_shrink.py --network=saved_models/run --output_dir=saved_models/measured \\
        --data=fashion_mnist_sample
"""

import dataclasses
from typing import Any

import keras
import numpy as np

import tf_robust_sparse as trs
from tf_robust_sparse.cli import command_line, report, run_directory, settings
from tf_robust_sparse.cli.sections.data import Data
from tf_robust_sparse.cli.sections.latency import Latency, Target
from tf_robust_sparse.cli.sections.source import Source
from tf_robust_sparse.cli.settings import setting
from tf_robust_sparse.evaluation.latency import median_latency

_TOLERANCE = 1e-4  # of the largest logit; more than rounding


@dataclasses.dataclass
class Shrinking(Source):
    """The network, and what becomes of it."""

    fold_batch_norm: bool = setting(False, "Multiply batch norm into the kernels before it.")


def define() -> None:
    """Defines the flags."""
    Shrinking.define(needed=("network",))
    Latency.define()
    Data.define()
    Target.define(needed=("output_dir",))


def main() -> None:
    """Loads, shrinks, checks, measures, writes."""
    settings.check()
    source, latency = Shrinking.read(), Latency.read()
    directory = Target.read().place(source.path)
    network = source.load()
    run_directory.check(directory)
    with command_line.about("network"):
        small, done = trs.shrink(network, source.fold_batch_norm)
    difference, scale = _difference(network, small, _pixels(small))
    if difference > _TOLERANCE * scale:
        raise RuntimeError(f"The logits differ by {difference:g} of {scale:g}; keep {source.path} and report this")
    results = {
        "network": str(source.path),
        "fold_batch_norm": source.fold_batch_norm,
        **done.as_dict(),
        "largest_difference_of_logits": difference,
        "largest_logit": scale,
    }
    plain = trs.saving.strip(network)
    if settings.is_given("data"):
        results["accuracy"] = _accuracy(plain, small)
    results["latency"] = {
        str(size): median_latency({"before": plain, "after": small}, size, latency.latency_seconds)
        for size in latency.batch_sizes
    }
    run_directory.begin(directory)
    report.save(small, directory)
    run_directory.write_results(directory / "shrink.json", results)
    show(results)
    print(f"Network of plain Keras layers  {directory / 'network.keras'}")
    print(f"SavedModel                     {directory / 'serve'}")
    print(f"Record                         {directory / 'shrink.json'}", flush=True)


def show(results: dict[str, Any]) -> None:
    """Prints what stays of every layer, and sizes, latency and accuracy before and after."""
    width = max(len(name) for name in results["kept"])
    print(f"{'layer':{width}s}  {'kept':>6s}  {'of':>6s}")
    for name, kept in results["kept"].items():
        notes = ["nothing of it has an influence"] if name in results["emptied"] else []
        notes += [f"reads {len(results['carriers'][name])} constant"] if name in results["carriers"] else []
        print(f"{name:{width}s}  {len(kept):6d}  {results['channels'][name]:6d}  {', '.join(notes)}".rstrip())
    print(f"\n{'':24s}{'before':>14s}{'after':>14s}   ratio")
    rows = [
        (text, results["before"][key], results["after"][key], "d")
        for key, text in (
            ("parameters", "parameters"),
            ("nonzero", "non-zero kernel entries"),
            ("multiply_adds", "multiply-adds"),
            ("file_bytes", "bytes of network.keras"),
        )
    ]
    rows += [
        (f"ms for a batch of {size}", 1e3 * found["before"], 1e3 * found["after"], ".3f")
        for size, found in results["latency"].items()
    ]
    for text, before, after, form in rows:
        print(f"{text:24s}{before:14{form}}{after:14{form}}{before / max(after, 1e-9):8.2f}")
    if "accuracy" in results:
        found = results["accuracy"]
        print(f"{'accuracy in %':24s}{100 * found['before']:14.2f}{100 * found['after']:14.2f}")
        print(f"\nSame class for {found['agree']} of {found['images']} images")
    print(f"Largest difference of logits   {results['largest_difference_of_logits']:.2g}")


def _pixels(network: keras.Model) -> np.ndarray:
    return np.random.default_rng(Data.read().seed).random((256, *network.input_shape[1:]), "float32")


def _difference(one: keras.Model, two: keras.Model, x: np.ndarray) -> tuple[float, float]:
    """Returns the largest difference of logits, and the largest logit."""
    logits = [each.predict(x, batch_size=32, verbose=0).astype("float32") for each in (one, two)]
    return float(np.abs(logits[0] - logits[1]).max()), float(np.abs(logits[0]).max())


def _accuracy(before: keras.Model, after: keras.Model) -> dict[str, Any]:
    """Returns the accuracies of both networks on the test images, and on how many they agree."""
    data = Data.read()
    images = data.load()
    shape, taken = tuple(images.test_images.shape[1:]), tuple(before.input_shape[1:])
    if shape != taken:
        raise command_line.BadInput(f"--data={data.data} has images of shape {shape}; the network takes {taken}")
    batches = data.test_batches(images)
    labels = np.concatenate([np.asarray(y) for _, y in batches])
    logits = [each.predict(batches, verbose=0) for each in (before, after)]
    answers = [each.argmax(axis=-1) for each in logits]
    return {
        "before": float((answers[0] == labels).mean()),
        "after": float((answers[1] == labels).mean()),
        "agree": int((answers[0] == answers[1]).sum()),
        "images": len(labels),
        "largest_difference_of_logits": float(np.abs(logits[0] - logits[1]).max()),
        "data": {"name": images.name, "origin": images.origin},
    }
