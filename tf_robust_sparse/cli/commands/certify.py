"""Certifies a network: the share of test images whose class no perturbation within a radius can change.

    python run_scripts/run_certify.py --saved_model_or_network=runs/compact --data=cifar10 --data_dir=DIR --sigma=0.25
    python run_scripts/run_certify.py --saved_model_or_network=runs/compact --data=cifar10 --data_dir=DIR \\
        --method=crown-ibp --epsilon=2/255

Randomized smoothing certifies l2 radii of the classifier that asks the network many times under Gaussian noise, each
certificate true with probability 1 - alpha; train for it with --trainer=smooth. The other methods bound every neuron of
the network itself over a ball of radius epsilon, without a chance of error; PGD attacks the same images for comparison.
branch-and-bound cuts the ball until each image is verified or has a counterexample, or until --max_nodes or
--seconds_per_image is reached.
Writes a table with a line per image, from which an interrupted certification goes on, and the accuracies as JSON; of
smoothing also the curve over radii, where matplotlib is installed.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

import tf_robust_sparse as trs
from tf_robust_sparse.certify.branching import DecidedImage
from tf_robust_sparse.certify.certification import CertifiedImage
from tf_robust_sparse.certify.smoothing import ABSTAIN, high_probability_accuracy
from tf_robust_sparse.certify.verification import VerifiedImage
from tf_robust_sparse.cli import command_line, hydra, networks, report, run_directory, run_lock, settings
from tf_robust_sparse.cli.command_line import BadFlag
from tf_robust_sparse.cli.sections.data import Data
from tf_robust_sparse.cli.sections.robustness import GRADIENT_ATTACKS
from tf_robust_sparse.cli.settings import Settings, only_with, setting
from tf_robust_sparse.evaluation.figures import draw_certified
from tf_robust_sparse.evaluation.progress import Progress

IF_INTERRUPTED = "lines of the table are kept, the same command goes on"
_COMPLETE = "branch-and-bound"
_INCOMPLETE = ("ibp", "crown-ibp", "crown", "alpha-crown", "mixtrain")
_BOUNDS = (*_INCOMPLETE, _COMPLETE)
_BY_LINES = ("crown-ibp", "crown", "alpha-crown")
_MOST = trs.certify.smoothing.MOST_ANSWERS
_RADII = (0.0, 0.25, 110 / 255, 0.5, 0.75, 1.0)  # 110/255 in l2 is about a ball of 2/255 in l-infinity of CIFAR


_of = functools.partial(only_with, "method", refuse=True)


@dataclasses.dataclass
class Certificates(Settings):
    """How certificates are found, and of which images."""

    title = "Certificates"

    method: str = setting("smoothing", "How certificates are found.", choices=("smoothing", *_BOUNDS))
    epsilon: float | None = setting(
        None, "For bounds: radius in pixels of [0, 1], such as 2/255.", excluded=0, only_for=_of(*_BOUNDS)
    )
    norm: str = setting(
        "Linf", "For bounds: norm of the ball.", choices=("Linf", "L2", "L1"), only_for=_of(*_INCOMPLETE)
    )
    slope: str = setting(
        "adaptive",
        "For CROWN: lower line of undecided ReLUs.",
        choices=("adaptive", "zero-lb", "one-lb", "same-slope"),
        only_for=_of(*_BY_LINES),
    )
    optimize_intermediate: bool = setting(
        False,
        "Of alpha-crown: move the slopes behind the bounds of neurons between too; tighter, and many times slower.",
        only_for=_of("alpha-crown"),
    )
    tight: bool = setting(
        True, "For CROWN: intersect with intervals, and take the better of both.", only_for=_of(*_BY_LINES)
    )
    chunk: int = setting(
        4096, "For CROWN: rows carried back at once; fewer take less memory.", lower=1, only_for=_of(*_BOUNDS)
    )
    max_nodes: int = setting(
        10_000, "Parts into which the ball of an image is cut at most.", lower=0, only_for=_of(_COMPLETE)
    )
    seconds_per_image: float = setting(
        60.0, "After so many seconds an image stays undecided.", excluded=0, only_for=_of(_COMPLETE)
    )
    sigma: float = setting(
        0.25,
        "Standard deviation of the noise, in pixels of [0, 1].",
        excluded=0,
        aliases=("noise_std",),
        only_for=_of("smoothing"),
    )
    n0: int = setting(
        100,
        "Answers under noise that select the class.",
        lower=1,
        upper=_MOST,
        aliases=("N0",),
        only_for=_of("smoothing"),
    )
    n: int = setting(
        10_000,
        "Further answers that estimate its probability.",
        lower=1,
        upper=_MOST,
        aliases=("N",),
        only_for=_of("smoothing"),
    )
    alpha: float = setting(
        0.001, "Probability that a certificate is wrong, below 1.", upper=1, excluded=0, only_for=_of("smoothing")
    )
    skip: int = setting(1, "Certify every skip-th test image.", lower=1)
    max_examples: int | None = setting(
        None, "Certify at most this many images; -1 for all.", lower=-1, aliases=("max",)
    )
    radii: list[float] | None = setting(
        None, "Radii of the accuracies that are printed, such as 0.25,0.5.", only_for=_of("smoothing")
    )

    def check(self) -> None:
        """Checks numbers and the radius."""
        if self.n < self.n0:
            raise BadFlag(f"--n={self.n}: expected at least as many as --n0={self.n0}")
        if self.alpha == 1:
            raise BadFlag("--alpha=1: expected a probability below 1")
        if self.method != "smoothing" and self.epsilon is None:
            raise BadFlag(f"--method={self.method} needs a radius; pass one such as --epsilon=2/255")
        if self.method != "smoothing" and self.norm == "Linf" and self.radius >= 1:
            raise BadFlag(f"--epsilon={self.radius:g}: expected a radius below 1, such as 2/255")

    @property
    def radius(self) -> float:
        """The radius, which `check` looks for where there are bounds."""
        return self.epsilon or 0.0

    def bar(self, images: int) -> Progress:
        """Returns a line of progress for the chosen ones of so many images."""
        return Progress(self.method, len(range(0, images, self.skip)[: self.max_examples]), shown=True)

    def record(self, *names: str) -> dict[str, Any]:
        """Returns some settings as entries of the record."""
        return {name: getattr(self, name) for name in names}

    def smooth(self, model: Callable[..., Any], x: np.ndarray, y: np.ndarray, table: Path) -> dict[str, Any]:
        """Certifies by smoothing; returns the entries of the record."""
        data = Data.read()
        smoothed = trs.certify.SmoothedClassifier(model, self.sigma, data.batch_size, data.seed)
        with self.bar(len(x)) as bar, command_line.about("saved_model_or_network", "data", "outfile"):
            rows = trs.certify.certify_images(
                *(smoothed, x, y, table),
                **self.record("n0", "n", "alpha", "skip", "max_examples"),
                progress=lambda _: bar.advance(1),
            )
        radii = sorted({0.0, *(self.radii or _RADII)})
        accuracies = trs.certify.certified_accuracy(rows, radii)
        sure = [high_probability_accuracy(value, len(rows), self.alpha) for value in accuracies]
        return {
            **self.record("sigma", "n0", "n", "alpha", "skip"),
            "batch_size": data.batch_size,
            "images": len(rows),
            "certified_accuracy": [
                {"radius": radius, "accuracy": accuracy, "with_probability_0.999": max(0.0, least)}
                for radius, accuracy, least in zip(radii, accuracies, sure, strict=True)
            ],
            "abstained": sum(row.prediction == ABSTAIN for row in rows) / len(rows),
            "seconds_per_image": float(np.mean([row.seconds for row in rows])),
            "curve": _curve(rows),
        }

    def verify(self, network: keras.Model, x: np.ndarray, y: np.ndarray, table: Path) -> dict[str, Any]:
        """Verifies by bounds, and attacks the same images; returns the entries of the record."""
        data, method = Data.read(), "zonotope" if self.method == "mixtrain" else self.method
        chosen = (x[:: self.skip][: self.max_examples], y[:: self.skip][: self.max_examples])
        with command_line.about("saved_model_or_network", "data"):  # images and labels are checked first
            suite = trs.evaluation.RobustnessSuite(network, chosen, data.batch_size, progress=False)
        with self.bar(len(x)) as bar, command_line.about("saved_model_or_network", "data", "outfile", "epsilon"):
            rows: Sequence[VerifiedImage | DecidedImage]
            if method == _COMPLETE:
                rows = trs.certify.branch_and_bound(
                    *(network, x, y, self.radius, table),
                    **self.record("max_nodes", "chunk", "skip", "max_examples"),
                    seconds=self.seconds_per_image,
                    progress=lambda _: bar.advance(1),
                )
            else:
                rows = trs.certify.verify_images(
                    *(network, x, y, self.radius, method, table),
                    **self.record("slope", "norm", "chunk", "optimize_intermediate", "skip", "max_examples"),
                    tight=self.tight and method != "ibp",
                    batch_size=data.batch_size,
                    progress=lambda _: bar.advance(1),
                )
        verified = np.array([row.verified for row in rows])
        record = {
            **self.record("epsilon", "norm", "skip"),
            "batch_size": data.batch_size,
            **(self.record("max_nodes", "seconds_per_image") if method == _COMPLETE else {}),
            **(self.record("slope", "tight") if self.method in _BY_LINES else {}),
            **(self.record("optimize_intermediate") if self.method == "alpha-crown" else {}),
            "images": len(rows),
            "clean_accuracy": float(np.mean([row.prediction == row.label for row in rows])),
            "verified_accuracy": float(verified.mean()),
            **(_undecided(rows) if method == _COMPLETE else {}),
            "seconds_per_image": float(np.mean([row.seconds for row in rows])),
        }
        if self.norm in GRADIENT_ATTACKS:
            pgd = GRADIENT_ATTACKS[self.norm][1]
            suite.gradient_attack("pgd", pgd(self.radius, num_steps=50, seed=data.seed))
            stands = suite.standing["pgd"]
            record["pgd_accuracy"] = float(stands.mean())
            if (verified & ~stands).any():
                first = rows[int(np.flatnonzero(verified & ~stands)[0])].image
                raise RuntimeError(
                    f"image {first} is verified and yet an attack breaks it: the bounds are wrong; please report this "
                    "network"
                )
        return record


@dataclasses.dataclass
class Files(Settings):
    """What is read and written."""

    title = "Files"

    saved_model_or_network: str = setting(
        None, "Directory of a run, SavedModel from pixels to logits, network.keras, or PyTorch checkpoint of --arch."
    )
    results_file: str | None = setting(
        None, "Where to write; by default certified.json, of bounds certified_METHOD.json, next to the network."
    )
    outfile: str | None = setting(None, "Table with a line per image; by default next to the results, as .tsv.")

    @property
    def network(self) -> Path:
        """Where the network is: of a run of ours where HYDRA's scripts name its `checkpoint.pth.tar`."""
        return hydra.directories.run_of(Path(self.saved_model_or_network).expanduser())

    def outputs(self, method: str) -> tuple[Path, Path]:
        """Returns where the record and the table of a method are written.

        Raises:
            BadFlag: if nothing can be written there.
        """
        default = networks.next_to(self.network, f"certified{'' if method == 'smoothing' else f'_{method}'}.json")
        results = Path(self.results_file or default).expanduser()
        table = Path(self.outfile).expanduser() if self.outfile else results.with_suffix(".tsv")
        run_directory.check_file("results_file", results)
        run_directory.check_file("outfile", table)
        return results, table


def define() -> None:
    """Defines the flags."""
    Data.define()
    Certificates.define()
    Files.define(needed=("saved_model_or_network",))
    hydra.smoothing.define()


def main() -> None:
    """Loads, certifies, reports."""
    hydra.smoothing.translate()
    settings.check()
    how, files, data = Certificates.read(), Files.read(), Data.read()
    smooths = how.method == "smoothing"
    build = hydra.smoothing.Checkpoint.read().build
    model = networks.load(
        *(files.network, "saved_model_or_network", lambda _: build(data.load()), ("arch",)), layers=not smooths
    )
    results_file, table = files.outputs(how.method)
    run_lock.take_next_to(table, f"--outfile={table}")
    images = data.load()
    x, y = np.asarray(images.test_images), images.test_labels
    x = x.astype(np.float32) / 255 if x.dtype == np.uint8 else x
    begin = time.perf_counter()
    found = (how.smooth if smooths else how.verify)(model, x, y, table)
    results = {
        "method": how.method,
        **found,
        "seconds": time.perf_counter() - begin,
        "seed": data.seed,
        "network": str(files.network),
    }
    run_directory.write_results(results_file, results, images)
    show(results)
    print(f"Table               {table}")
    print(f"Record              {results_file}")
    if smooths:
        try:
            draw_certified(results["curve"], how.sigma, results_file.with_suffix(".png"))
        except ValueError as error:  # without matplotlib there is no figure
            print(f"Note: {error}")


def show(results: dict[str, Any]) -> None:
    """Prints the certified accuracies."""
    print()
    pace = f"{results['seconds_per_image']:.3g} s per image"
    for row in results.get("certified_accuracy", ()):
        sure = f"at least {100 * row['with_probability_0.999']:.2f} % with probability 0.999"
        name = f"Certified at l2 {row['radius']:.3f} "
        report.show_share(name, row["accuracy"], f"of {results['images']} images; {sure}")
    if "abstained" in results:
        report.show_share("Abstained", results["abstained"], pace)
        return
    report.show_share("Clean accuracy", results["clean_accuracy"], f"on {results['images']} test images")
    if "pgd_accuracy" in results:
        ball = f"{results['norm']}, epsilon {results['epsilon']:.4g}"
        report.show_share("PGD-50", results["pgd_accuracy"], ball)
    if "unknown" in results:
        report.show_share("Undecided", results["unknown"], f"{results['nodes_per_image']:.0f} parts per image")
    report.show_share("Verified", results["verified_accuracy"], f"{results['method']}, {pace}")


def _undecided(rows: Sequence[Any]) -> dict[str, float]:
    """Returns how much branch and bound left open, and what it took."""
    return {
        "unknown": float(np.mean([row.status == "unknown" for row in rows])),
        "nodes_per_image": float(np.mean([row.nodes for row in rows])),
    }


def _curve(rows: list[CertifiedImage]) -> list[dict[str, float]]:
    """Returns the whole curve: the accuracy at each radius at which it falls."""
    radii = sorted({0.0, *(row.radius for row in rows if row.correct)})
    accuracies = trs.certify.certified_accuracy(rows, radii)
    return [{"radius": radius, "accuracy": value} for radius, value in zip(radii, accuracies, strict=True)]
