"""Certifies a network: the share of test images whose class no perturbation within a radius can change.

    python run_scripts/run_certify.py --saved_model_or_network=runs/compact --data=cifar10 --data_dir=DIR --sigma=0.25
    python run_scripts/run_certify.py --saved_model_or_network=runs/compact --data=cifar10 --data_dir=DIR \\
        --method=crown-ibp --epsilon=2/255

Randomized smoothing certifies l2 radii of the classifier that asks the network many times under Gaussian noise, each
certificate true with probability 1 - alpha; train for it with --trainer=smooth. The other methods bound every neuron of
the network itself over a ball of radius epsilon, without a chance of error, and stand beside PGD on the same images.
Writes a table with a line per image, from which an interrupted certification goes on, and the accuracies as JSON; of
smoothing also the curve over radii, where matplotlib is installed.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
from absl import flags

import tf_robust_sparse as trs
from tf_robust_sparse.cli import (
    certify_originals,
    command_line,
    run_directory,
    run_lock,
    settings,
)
from tf_robust_sparse.cli.sections.data import Data
from tf_robust_sparse.cli.sections.robustness import GRADIENT_ATTACKS
from tf_robust_sparse.evaluation.progress import Progress

FLAGS = flags.FLAGS
IF_INTERRUPTED = "lines of the table are kept, the same command goes on"
_BOUNDS = ("ibp", "crown-ibp", "crown", "alpha-crown", "mixtrain")
_OF_SMOOTHING = ("sigma", "n0", "n", "alpha", "radii")
_OF_BOUNDS = ("epsilon", "norm", "slope", "tight", "chunk")
_OF_CROWN = ("slope", "tight")
_OF_ALPHA = ("optimize_intermediate",)
_MOST = trs.certify.smoothing.MOST_ANSWERS
_RADII = (0.0, 0.25, 110 / 255, 0.5, 0.75, 1.0)  # 110/255 in l2 is about a ball of 2/255 in l-infinity of CIFAR


def define() -> None:
    """Defines the flags."""
    Data.define()
    with command_line.section("Certificates"):
        flags.DEFINE_enum("method", "smoothing", ["smoothing", *_BOUNDS], "How certificates are found.")
        command_line.define_number("epsilon", None, "Of bounds: radius in pixels of [0, 1], such as 2/255.", excluded=0)
        flags.DEFINE_enum("norm", "Linf", ["Linf", "L2", "L1"], "Of bounds: norm of the ball.")
        flags.DEFINE_enum(
            "slope",
            "adaptive",
            ["adaptive", "zero-lb", "one-lb", "same-slope"],
            "Of CROWN: lower line of undecided ReLUs.",
        )
        flags.DEFINE_bool(
            "optimize_intermediate",
            False,
            "Of alpha-crown: move the slopes behind the bounds of neurons between too; tighter, and many times slower.",
        )
        flags.DEFINE_bool("tight", True, "Of CROWN: intersect with intervals, and take the better of both.")
        flags.DEFINE_integer("chunk", 4096, "Of CROWN: rows carried back at once; fewer take less memory.", 1)
        command_line.define_number("sigma", 0.25, "Standard deviation of the noise, in pixels of [0, 1].", excluded=0)
        flags.DEFINE_integer("n0", 100, "Answers under noise that select the class.", 1, _MOST)
        flags.DEFINE_integer("n", 10_000, "Further answers that estimate its probability.", 1, _MOST)
        command_line.define_number("alpha", 0.001, "Probability that a certificate is wrong.", 0, 1, excluded=0)
        flags.DEFINE_integer("skip", 1, "Certify every skip-th test image.", 1)
        flags.DEFINE_integer("max_examples", None, "Certify at most so many images; -1 for all.", -1)
        command_line.define_numbers("radii", "Radii of the accuracies that are printed, such as 0.25,0.5.")
        command_line.define_aliases({"noise_std": "sigma", "N0": "n0", "N": "n", "max": "max_examples"})
    with command_line.section("Files"):
        flags.DEFINE_string(
            "saved_model_or_network",
            None,
            "Directory of a run, SavedModel from pixels to logits, network.keras, or PyTorch checkpoint of --arch.",
        )
        flags.DEFINE_string(
            "results_file",
            None,
            "Where to write; by default certified.json, of bounds certified_METHOD.json, beside the network.",
        )
        flags.DEFINE_string("outfile", None, "Table with a line per image; by default beside the results, as .tsv.")
    certify_originals.define()


def main() -> None:
    """Loads, certifies, reports."""
    certify_originals.translate()
    settings.check()
    _check()
    path = _path()
    early = None if certify_originals.is_checkpoint(path) else _load(path)
    results_file, table = _files(path)
    run_lock.take_beside(table, f"--outfile={table}")
    images = Data.read().load()
    model = certify_originals.load(path, images) if early is None else early
    x, y = np.asarray(images.test_images), images.test_labels
    x = x.astype(np.float32) / 255 if x.dtype == np.uint8 else x
    begin = time.perf_counter()
    found = (_smooth if FLAGS.method == "smoothing" else _verify)(model, x, y, table)
    results = {
        "method": FLAGS.method,
        **found,
        "seconds": time.perf_counter() - begin,
        "seed": FLAGS.seed,
        "network": str(path),
        "data": {"name": images.name, "origin": images.origin},
        "versions": run_directory.versions(),
    }
    run_directory.write_json(results_file, results)
    show(results)
    print(f"Table               {table}")
    print(f"Record              {results_file}")
    if FLAGS.method == "smoothing":
        try:
            trs.evaluation.draw_certified(results["curve"], FLAGS.sigma, results_file.with_suffix(".png"))
        except ValueError as error:  # without matplotlib there is no figure
            print(f"Note: {error}")


def _check() -> None:
    if FLAGS.n < FLAGS.n0:
        raise command_line.BadFlag(f"--n={FLAGS.n}: expected at least --n0. Received: --n0={FLAGS.n0}")
    if FLAGS.alpha == 1:
        raise command_line.BadFlag("--alpha=1: expected a probability below 1")
    if FLAGS.method != "smoothing" and FLAGS.epsilon is None:
        raise command_line.BadFlag(
            f"--method={FLAGS.method}: expected --epsilon=2/255 or the like. Received: no such flag"
        )
    if FLAGS.method != "smoothing" and FLAGS.norm == "Linf" and FLAGS.epsilon >= 1:
        raise command_line.BadFlag(f"--epsilon={FLAGS.epsilon:g}: expected a radius below 1, such as 2/255")
    unused: tuple[str, ...] = _OF_SMOOTHING if FLAGS.method != "smoothing" else _OF_BOUNDS
    unused += _OF_CROWN if FLAGS.method in ("ibp", "mixtrain") else ()
    unused += _OF_ALPHA if FLAGS.method != "alpha-crown" else ()
    for name in unused:
        if FLAGS[name].present:
            raise command_line.BadFlag(
                f"--{name}: expected another --method with it. Received: --method={FLAGS.method}"
            )


def _smooth(model: Callable[..., Any], x: np.ndarray, y: np.ndarray, table: Path) -> dict[str, Any]:
    """Certifies by smoothing; returns the entries of the record."""
    smoothed = trs.certify.SmoothedClassifier(model, FLAGS.sigma, FLAGS.batch_size, FLAGS.seed)
    with _bar(len(x)) as bar, command_line.about("saved_model_or_network", "data", "outfile"):
        rows = trs.certify.certify_images(
            smoothed,
            x,
            y,
            table,
            n0=FLAGS.n0,
            n=FLAGS.n,
            alpha=FLAGS.alpha,
            skip=FLAGS.skip,
            max_examples=FLAGS.max_examples,
            progress=lambda _: bar.advance(1),
        )
    radii = sorted({0.0, *(FLAGS.radii or _RADII)})
    accuracies = trs.certify.certified_accuracy(rows, radii)
    sure = [trs.certify.high_probability_accuracy(value, len(rows), FLAGS.alpha) for value in accuracies]
    return {
        **{name: FLAGS[name].value for name in ("sigma", "n0", "n", "alpha", "skip", "batch_size")},
        "images": len(rows),
        "certified_accuracy": [
            {"radius": radius, "accuracy": accuracy, "with_probability_0.999": max(0.0, least)}
            for radius, accuracy, least in zip(radii, accuracies, sure, strict=True)
        ],
        "abstained": sum(row.prediction == trs.certify.ABSTAIN for row in rows) / len(rows),
        "seconds_per_image": float(np.mean([row.seconds for row in rows])),
        "curve": _curve(rows),
    }


def _verify(network: Any, x: np.ndarray, y: np.ndarray, table: Path) -> dict[str, Any]:
    """Verifies by bounds, and attacks the same images; returns the entries of the record."""
    if not isinstance(network, keras.Model):
        raise command_line.BadFlag(
            f"--method={FLAGS.method}: expected a network.keras or the directory of a run, whose layers can be read. "
            "Received: a SavedModel"
        )
    method = "zonotope" if FLAGS.method == "mixtrain" else FLAGS.method
    chosen = (x[:: FLAGS.skip][: FLAGS.max_examples], y[:: FLAGS.skip][: FLAGS.max_examples])
    with command_line.about("saved_model_or_network", "data"):  # images and labels are checked first
        suite = trs.evaluation.RobustnessSuite(network, chosen, FLAGS.batch_size, progress=False)
    with _bar(len(x)) as bar, command_line.about("saved_model_or_network", "data", "outfile", "epsilon"):
        rows = trs.certify.verify_images(
            network,
            x,
            y,
            FLAGS.epsilon,
            method,
            table,
            slope=FLAGS.slope,
            norm=FLAGS.norm,
            tight=FLAGS.tight and method != "ibp",
            chunk=FLAGS.chunk,
            optimize_intermediate=FLAGS.optimize_intermediate,
            batch_size=FLAGS.batch_size,
            skip=FLAGS.skip,
            max_examples=FLAGS.max_examples,
            progress=lambda _: bar.advance(1),
        )
    verified = np.array([row.verified for row in rows])
    record = {
        **{name: FLAGS[name].value for name in ("epsilon", "norm", "skip", "batch_size")},
        **({name: FLAGS[name].value for name in _OF_CROWN} if FLAGS.method not in ("ibp", "mixtrain") else {}),
        **({name: FLAGS[name].value for name in _OF_ALPHA} if FLAGS.method == "alpha-crown" else {}),
        "images": len(rows),
        "clean_accuracy": float(np.mean([row.prediction == row.label for row in rows])),
        "verified_accuracy": float(verified.mean()),
        "seconds_per_image": float(np.mean([row.seconds for row in rows])),
    }
    if FLAGS.norm in GRADIENT_ATTACKS:
        attack = GRADIENT_ATTACKS[FLAGS.norm][1](FLAGS.epsilon, num_steps=50, seed=FLAGS.seed)
        suite.gradient_attack("pgd", attack)
        stands = suite.standing["pgd"]
        record["pgd_accuracy"] = float(stands.mean())
        if (verified & ~stands).any():
            first = rows[int(np.flatnonzero(verified & ~stands)[0])].image
            raise RuntimeError(
                f"image {first} is verified and yet an attack breaks it: the bounds are wrong; please report this "
                "network"
            )
    return record


def _bar(images: int) -> Progress:
    return Progress(FLAGS.method, len(range(0, images, FLAGS.skip)[: FLAGS.max_examples]), shown=True)


def show(results: dict[str, Any]) -> None:
    """Prints the certified accuracies."""
    print()
    pace = f"{results['seconds_per_image']:.3g} s per image"
    for row in results.get("certified_accuracy", ()):
        print(
            f"Certified at l2 {row['radius']:.3f}  {100 * row['accuracy']:6.2f} %   of {results['images']} images; at "
            f"least {100 * row['with_probability_0.999']:.2f} % with probability 0.999"
        )
    if "abstained" in results:
        print(f"Abstained           {100 * results['abstained']:6.2f} %   {pace}")
        return
    print(f"Clean accuracy      {100 * results['clean_accuracy']:6.2f} %   on {results['images']} test images")
    if "pgd_accuracy" in results:
        print(
            f"PGD-50              {100 * results['pgd_accuracy']:6.2f} %   {results['norm']}, epsilon "
            f"{results['epsilon']:.4g}"
        )
    print(f"Verified            {100 * results['verified_accuracy']:6.2f} %   {results['method']}, {pace}")


def _path() -> Path:
    if FLAGS.saved_model_or_network is None:
        raise command_line.BadFlag(
            "--saved_model_or_network: expected the directory of a run or SavedModel, or network.keras. "
            "Received: no such flag"
        )
    path = certify_originals.network_path(Path(FLAGS.saved_model_or_network).expanduser())
    if not path.exists():
        raise command_line.BadFlag(
            f"--saved_model_or_network={path}: expected a directory or a .keras file. "
            "Received: a path that does not exist"
        )
    return path


def _load(path: Path) -> Callable[..., Any]:
    with command_line.about("saved_model_or_network"):
        if path.suffix in (".keras", trs.saving.COMPACT_SUFFIX) or (path / "network.keras").is_file():
            return trs.load_network(path)
        return trs.evaluation.load_saved_model(path)


def _files(path: Path) -> tuple[Path, Path]:
    beside = path if (path / "network.keras").is_file() else path.parent
    name = "certified" if FLAGS.method == "smoothing" else f"certified_{FLAGS.method}"
    results = Path(FLAGS.results_file).expanduser() if FLAGS.results_file else beside / f"{name}.json"
    table = Path(FLAGS.outfile).expanduser() if FLAGS.outfile else results.with_suffix(".tsv")
    for name, file in (("results_file", results), ("outfile", table)):
        run_directory.check_file(name, file)
    return results, table


def _curve(rows: list[trs.certify.CertifiedImage]) -> list[dict[str, float]]:
    """Returns the whole curve: the accuracy at each radius at which it falls."""
    radii = sorted({0.0, *(row.radius for row in rows if row.correct)})
    accuracies = trs.certify.certified_accuracy(rows, radii)
    return [{"radius": radius, "accuracy": value} for radius, value in zip(radii, accuracies, strict=True)]
