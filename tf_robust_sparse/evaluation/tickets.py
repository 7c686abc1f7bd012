"""The records of rounds of pruning: curves by trial and round, their means, and the masks."""

import csv
import itertools
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tf_robust_sparse.saving.round_files import is_done, read_arrays, round_directory

Curve = dict[str, np.ndarray]  # column -> values, by increasing step


class Round(NamedTuple):
    """A finished round of a trial: its sparsity, its curves by set of images, and the path of its arrays."""

    trial: int
    number: int
    remaining: int
    entries: int
    label: str
    layers: dict[str, int]
    curves: dict[str, Curve]
    final: dict[str, dict[str, float]]
    place: Path


class Spread(NamedTuple):
    """Mean and population standard deviation over a number of trials."""

    mean: float
    sd: float
    number: int

    def percent(self) -> str:
        """Returns `98.20 ± 0.11 (5)`, or a dash without trials."""
        return f"{100 * self.mean:.2f} ± {100 * self.sd:.2f} ({self.number})" if self.number else "-"


def read_rounds(directory: Path) -> dict[int, list[Round]]:
    """Returns the finished rounds of an experiment by their number, trial after trial.

    What is not finished is left out, so that a run can be looked at while it goes on.

    Raises:
        FileNotFoundError: if not a single round is finished.
        ValueError: if a record is damaged.
    """
    found: dict[int, list[Round]] = {}
    for trial in itertools.count():
        if not round_directory(directory, trial, 0).is_dir():
            break
        for number in itertools.count():
            place = round_directory(directory, trial, number)
            if not is_done(place):
                break
            found.setdefault(number, []).append(_read(place, trial, number))
    if not found:
        raise FileNotFoundError(
            f"{directory} must hold an experiment with finished rounds. Received: no finished round"
        )
    return found


def spread(values: Iterable[float]) -> Spread:
    """Returns mean and standard deviation of the values that are not NaN."""
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return Spread(math.nan, math.nan, 0)
    return Spread(float(np.mean(known)), float(np.std(known)), len(known))


def at_step(curve: Curve, column: str, step: int) -> float:
    """Returns the value at `step` or the last measurement before it; else the first value."""
    place = int(np.searchsorted(curve["batch"], step, side="right")) - 1
    return float(curve[column][max(place, 0)])


def early_stop(found: Round) -> int:
    """Returns the index in the curves of the smallest validation loss."""
    return int(np.argmin(found.curves["valid"]["loss"]))


def final_accuracy(found: Round, attack: str | None = None, own: str | None = None) -> float:
    """Returns the final accuracy, on all test images if measured; NaN if the attack was not measured.

    Args:
        found: A round.
        attack: `"fgsm"` or `"pgd"`; `None` for the images as they are.
        own: The attack that the experiment measures with.
    """
    curve = found.curves["test"]
    whole = found.final.get("test", {"accuracy": curve["acc"][-1], "adversarial_accuracy": curve["adv_acc"][-1]})
    if attack is None:
        return float(whole["accuracy"])
    if attack == own:
        return float(whole["adversarial_accuracy"])
    return float(found.final.get(f"test_{attack}", {"adversarial_accuracy": math.nan})["adversarial_accuracy"])


def over_trials(rounds: Sequence[Round], of: str, column: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the steps that all trials have, and mean and standard deviation over trials at each."""
    steps = sorted(set.intersection(*(set(each.curves[of]["batch"].tolist()) for each in rounds)))
    values = np.array([[at_step(each.curves[of], column, step) for step in steps] for each in rounds])
    return np.array(steps), values.mean(axis=0), values.std(axis=0)


def overlap(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> float:
    """Returns the Jaccard index of two masks: entries that both keep, divided by entries that either keeps."""
    both = sum(int(np.count_nonzero((first[name] != 0) & (second[name] != 0))) for name in first)
    either = sum(int(np.count_nonzero((first[name] != 0) | (second[name] != 0))) for name in first)
    return both / either if either else 1.0


def mask_overlaps(one: Sequence[Round], other: Sequence[Round] | None = None) -> Spread:
    """Returns the overlap of masks between the trials of a round, or of equal trials of two experiments."""
    masks = {each.trial: read_arrays(each.place / "masks") for each in one}
    if other is None:
        pairs = itertools.combinations(masks.values(), 2)
        return spread(overlap(first, second) for first, second in pairs)
    others = {each.trial: read_arrays(each.place / "masks") for each in other}
    return spread(overlap(masks[trial], others[trial]) for trial in masks if trial in others)


def surviving_weights(found: Round) -> dict[str, np.ndarray]:
    """Returns, by layer, the initial values of the weights that the mask of a round keeps."""
    masks, kernels = read_arrays(found.place / "masks"), read_arrays(found.place / "init_kernels")
    return {name: kernels[name][mask != 0] for name, mask in masks.items()}


def input_pixels(found: Round) -> np.ndarray | None:
    """Returns the number of weights of the first layer for each input; `None` if the input is not an image."""
    first = next(iter(found.layers))
    mask = read_arrays(found.place / "masks")[first]
    side = math.isqrt(mask.shape[0])
    if mask.ndim != 2 or side * side != mask.shape[0]:
        return None
    return np.count_nonzero(mask, axis=1).reshape(side, side)


def _read(place: Path, trial: int, number: int) -> Round:
    try:
        about: dict[str, Any] = json.loads((place / "summary.json").read_text())
        curves = {path.stem: _read_curve(path) for path in sorted(place.glob("*.csv"))}
        own = (about["remaining"], about["entries"], about["label"], about["layers"])
        final = {name: _numbers(measures) for name, measures in about["final_measures"].items()}
        return Round(trial, number, *own, curves, final, place)
    except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{place} must hold the record of a finished round, summary.json and CSV files. "
            f"Received: {type(error).__name__}: {error}"
        ) from error


def _numbers(measures: dict[str, float | None]) -> dict[str, float]:
    """Returns NaN for null in JSON."""
    return {name: math.nan if value is None else float(value) for name, value in measures.items()}


def _read_curve(path: Path) -> Curve:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or "batch" not in rows[0]:
        raise ValueError(f"{path.name} has no row, or no column `batch`")
    return {name: np.array([float(row[name] or "nan") for row in rows]) for name in rows[0]}
