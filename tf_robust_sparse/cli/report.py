"""What is measured of a finished network, and the lines that tell it."""

from pathlib import Path
from typing import Any

import keras

import tf_robust_sparse as trs
from tf_robust_sparse.cli.networks import connections
from tf_robust_sparse.cli.sections.attacks import TestAttack, TrainingAttack
from tf_robust_sparse.cli.sections.data import Data
from tf_robust_sparse.evaluation.figure_style import check_matplotlib
from tf_robust_sparse.evaluation.learning_curve import draw_learning_curve


def evaluate(network: keras.Model, images: trs.data.ImageDataset, attacked: bool = True) -> dict[str, Any]:
    """Returns the entries of `results.json` that are measured on the network.

    Args:
        network: What was trained or imported.
        images: Its test images are used.
        attacked: Whether the robust accuracy is measured too, under the attack of the flags.
    """
    data = Data.read()
    attacks = [TestAttack.read().build(TrainingAttack.read().norm, data.seed)] if attacked else []
    report = trs.evaluation.evaluate_robustness(trs.saving.strip(network), data.test_batches(images), attacks)
    results = {"clean_accuracy": report["clean_accuracy"]}
    for name, details in report["attacks"].items():
        results["robust_accuracy"] = report["robust_accuracy"]
        results["attack"] = {"name": name, **details, "images": report["images"]}
    statistics = connections(network)
    return {
        **results,
        "test_images": report["images"],
        "warnings": report["flags"],
        **{name: statistics[name] for name in _STATISTICS},
    }


# What is left of every network, by the function that writes it.
FILES = {"network.keras": trs.save_network, "serve": trs.export_network}


def save(network: keras.Model, directory: Path) -> None:
    """Writes `network.keras` and `serve/`."""
    for name, write in FILES.items():
        write(network, directory / name)


def show(results: dict[str, Any], directory: Path) -> None:
    """Prints the robustness table and where everything is."""
    show_numbers(results)
    print(f"Network to train on {directory / 'network.keras'}")
    print(f"SavedModel          {directory / 'serve'}")
    print(f"Records             {directory}: {', '.join(_records(directory))}", flush=True)


def show_share(name: str, share: float, text: str = "") -> None:
    """Prints a share in per cent."""
    print(f"{name:19} {100 * share:6.2f} %   {text}".rstrip())


def show_numbers(results: dict[str, Any]) -> None:
    """Prints the robustness table."""
    print()
    show_share("Clean accuracy", results["clean_accuracy"], f"on {results['test_images']} test images")
    if "attack" in results:
        show_share("Robust accuracy", results["robust_accuracy"], words(results["attack"], _SHOWN))
    if "verified" in results:
        shares = ", ".join(f"{100 * share:.2f} % by {name}" for name, share in results["verified"]["accuracy"].items())
        print(f"Verified            {shares}, epsilon {_word(results['verified']['epsilon'])}")
    show_share("Connectivity", results["connectivity"], f"{results['nonzero']} of {results['prunable']} kernel entries")
    if "total_weights" in results:
        left, every = results["remaining_weights"], results["total_weights"]
        show_share("Weights left", left / every, f"{left} of {every}, biases and batch norm among them")
    if "images_per_second" in results:
        print(f"Training speed      {results['images_per_second']:6.0f} images/s")
    if results.get("best_minus_last", 0) > 0:
        gap = 100 * results["best_minus_last"]
        print(f"Robust overfitting  {gap:6.2f} points from the best epoch to the last, on held-out images")
    for warning in results["warnings"]:
        print(f"Warning: {warning}")


_STATISTICS = ("connectivity", "nonzero", "prunable", "total_weights", "remaining_weights", "layers")
_SHOWN = ("name", "epsilon", "num_steps", "restarts")
_HIDDEN = ("norm", "random_start", "restarts", "targeted", "seed", "label")  # of an attack in training


def words(description: dict[str, Any], shown: tuple[str, ...] | None = None) -> str:
    """Returns a description as words: the first value, then names and values, those of `shown` if it is given."""
    wanted = shown or tuple(name for name in description if name not in _HIDDEN)
    first, *others = [(name, value) for name, value in description.items() if name in wanted]
    return ", ".join([_word(first[1]), *(f"{name} {_word(value)}" for name, value in others)])


def _word(value: Any) -> str:
    if isinstance(value, dict):
        return f"({words(value)})"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _records(directory: Path) -> list[str]:
    return [name for name in ("results.json", "run.flags", "checkpoints/") if (directory / name).exists()]


def draw_curve(
    history: list[dict[str, Any]],
    path: Path,
    attack: trs.attacks.GradientAttack | None,
    trains_on_attacked: bool = False,
) -> None:
    """Draws losses and accuracies by epoch, if matplotlib is installed; `attack` is that on held-out images."""
    try:
        check_matplotlib()
    except ValueError:
        return
    draw_learning_curve(history, path, attack.describe() if attack else None, trains_on_attacked)


def robust_overfitting(history: list[dict[str, Any]]) -> dict[str, float]:
    """Returns by how much robust accuracy on held-out images fell from the best epoch to the last."""
    found = [epoch["val_robust_accuracy"] for epoch in history if "val_robust_accuracy" in epoch]
    return {"best_minus_last": max(found) - found[-1]} if found else {}
