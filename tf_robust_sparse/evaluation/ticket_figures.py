"""Figures of lottery tickets; matplotlib is needed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tf_robust_sparse.evaluation.figures import new_figure, save_figure
from tf_robust_sparse.evaluation.tickets import (
    Round,
    at_step,
    early_stop,
    final_accuracy,
    input_pixels,
    mask_overlaps,
    over_trials,
    spread,
    surviving_weights,
)

Runs = Mapping[str, Mapping[int, Sequence[Round]]]  # strategy -> round -> trials
NAMES = {"reinit_orig": "original", "reinit_rand": "random", "reinit_none": "continued", "no_pruning": "dense"}
_LINES = {"reinit_orig": "-", "reinit_rand": ":", "reinit_none": "--", "no_pruning": "-"}
_DENSE = 0
_WIDE = 2.5  # the published width of densities
_DRAWN = 20_000  # weights of a layer that a density is estimated from, at most


def draw_curves(
    runs: Runs,
    numbers: Sequence[int],
    column: str,
    title: str,
    paths: Sequence[Path],
    window: tuple[float, float] | None = None,
    last_step: float | None = None,
) -> None:
    """Draws a test measure over training steps: the original tickets, and beside random and continued ones.

    Args:
        runs: Strategy -> round -> trials.
        numbers: Rounds to draw; the dense one is drawn once, for it is the same for every strategy.
        column: Of the test curves.
        title: Name of the vertical axis.
        paths: Files, in the formats of their suffixes.
        window: Range of the vertical axis, if all that is drawn lies within it.
        last_step: End of the horizontal axis.
    """
    figure = new_figure(13, 4)
    axes = figure.subplots(1, 3, sharey=True)
    panels = (("reinit_orig",), ("reinit_orig", "reinit_rand"), ("reinit_orig", "reinit_none"))
    colors = _colors(numbers)
    lowest, highest = np.inf, -np.inf
    for axis, strategies in zip(axes, panels, strict=True):
        shown = [strategy for strategy in strategies if strategy in runs]
        for strategy in shown:
            for number in numbers:
                trials = runs[strategy].get(number)
                if not trials or (number == _DENSE and strategy != shown[0]):
                    continue
                steps, mean, sd = over_trials(trials, "test", column)
                label = f"{NAMES[strategy]}, {trials[0].label} %" if number else "dense"
                axis.plot(steps, mean, _LINES[strategy], color=colors[number], label=label, lw=1.3)
                axis.fill_between(steps, mean - sd, mean + sd, color=colors[number], alpha=0.15, lw=0)
                within = mean[steps > 0] if len(steps) > 1 else mean  # before any step a network knows nothing
                lowest, highest = min(lowest, within.min()), max(highest, within.max())
        axis.set(title=" and ".join(NAMES[strategy] for strategy in shown) or "not run", xlabel="training step")
        axis.set_xlim(0, last_step)
        axis.grid(alpha=0.3)
        if shown:
            axis.legend(fontsize=7)
    axes[0].set_ylabel(title)
    if window is not None and window[0] <= lowest and highest <= window[1]:
        axes[0].set_ylim(*window)
    _write(figure, paths)


def draw_early_stopping(runs: Runs, paths: Sequence[Path], of: str = "valid") -> None:
    """Draws, over the weights that remain, the step of least validation loss and both accuracies there.

    Args:
        runs: Strategy -> round -> trials.
        paths: Files.
        of: The set that accuracies are read from, `"valid"` or `"test"`.
    """
    measures = (
        ("step of least validation loss", lambda each: each.curves["valid"]["batch"][early_stop(each)]),
        (f"{of} accuracy under attack", lambda each: each.curves[of]["adv_acc"][early_stop(each)]),
        (f"{of} accuracy", lambda each: each.curves[of]["acc"][early_stop(each)]),
    )
    _draw_over_sparsity(runs, measures, paths)


def draw_over_sparsity(runs: Runs, step: int, paths: Sequence[Path]) -> None:
    """Draws test loss and both test accuracies at a step over the weights that remain."""
    measures = (
        (f"test loss at step {step}", lambda each: at_step(each.curves["test"], "loss", step)),
        ("test accuracy under attack", lambda each: at_step(each.curves["test"], "adv_acc", step)),
        ("test accuracy", lambda each: at_step(each.curves["test"], "acc", step)),
    )
    _draw_over_sparsity(runs, measures, paths)


def draw_densities(
    rounds: Mapping[int, Sequence[Round]], numbers: Sequence[int], paths: Sequence[Path], width: float = 0.3
) -> None:
    """Draws, for the first trial, how the initial values of surviving weights are distributed, layer by layer.

    Args:
        rounds: Round -> trials.
        numbers: Rounds to draw.
        paths: Files.
        width: Largest absolute value shown.
    """
    from scipy.stats import gaussian_kde

    shown = [rounds[number][0] for number in numbers if number in rounds]
    figure = new_figure(3.3 * len(shown), 3)
    x = np.linspace(-width, width, 301)
    for axis, found in zip(np.atleast_1d(figure.subplots(1, len(shown))), shown, strict=True):
        for name, values in surviving_weights(found).items():
            some = values[:: -(-len(values) // _DRAWN) or 1].astype(np.float64)
            if len(some) > 1 and some.std() > 0:
                axis.plot(x, gaussian_kde(some)(x), label=name, lw=1.2)
        axis.set(title=f"{found.label} % remain", xlabel="initial value", xlim=(-width, width))
        if width >= _WIDE and found.number != _DENSE:
            axis.set_ylim(0, 4.5)  # as published
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    _write(figure, paths)


def draw_layers(rounds: Mapping[int, Sequence[Round]], paths: Sequence[Path]) -> None:
    """Draws what part of each layer remains in the first trial of every round."""
    first = [rounds[number][0] for number in sorted(rounds)]
    whole = first[0].layers
    figure = new_figure(6, 3.6)
    axis = figure.add_subplot()
    for name, entries in whole.items():
        axis.plot(
            [each.number for each in first], [100 * each.layers[name] / entries for each in first], ".-", label=name
        )
    axis.set(xlabel="round", ylabel="remaining in %", yscale="log")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    _write(figure, paths)


def draw_pixels(rounds: Mapping[int, Sequence[Round]], numbers: Sequence[int], paths: Sequence[Path]) -> bool:
    """Draws how many weights leave each input pixel, in the mean over trials; tells whether there are pixels."""
    shown = [number for number in numbers if number in rounds]
    maps = {number: [input_pixels(each) for each in rounds[number]] for number in shown}
    if any(each is None for found in maps.values() for each in found):
        return False
    figure = new_figure(2.3 * len(shown), 2.6)
    for axis, number in zip(np.atleast_1d(figure.subplots(1, len(shown))), shown, strict=True):
        counts = np.mean([each for each in maps[number] if each is not None], axis=0)
        image = axis.imshow(counts, cmap="viridis", vmin=0)
        axis.set_title(f"{rounds[number][0].label} % remain", fontsize=8)
        axis.set_axis_off()
        figure.colorbar(image, ax=axis, shrink=0.7).ax.tick_params(labelsize=6)
    _write(figure, paths)
    return True


def draw_training(kinds: Mapping[str, tuple[str, Mapping[int, Sequence[Round]]]], paths: Sequence[Path]) -> None:
    """Draws, over the weights that remain, what networks of each kind of training do, and how their masks overlap.

    Accuracies are those measured at the end on all test images, so that every kind is seen under both attacks. Overlaps
    are between trials, beside that of random masks with as many entries.

    Args:
        kinds: Name of the training -> attack that it was measured with, and round -> trials.
        paths: Files.
    """
    titles = ["test accuracy", "test accuracy under FGSM", "test accuracy under PGD", "overlap of masks of trials"]
    figure = new_figure(16, 4)
    axes = figure.subplots(1, 4)
    first = {number: trials[0] for _, rounds in kinds.values() for number, trials in rounds.items()}
    numbers = sorted(first)
    for kind, (own, rounds) in kinds.items():
        places = [place for place, number in enumerate(numbers) if number in rounds]
        found = [
            [spread(final_accuracy(each, attack, own) for each in rounds[numbers[place]]) for place in places]
            for attack in (None, "fgsm", "pgd")
        ]
        found.append([mask_overlaps(rounds[numbers[place]]) for place in places])
        for axis, spreads in zip(axes, found, strict=True):
            mean, sd = (np.array([getattr(each, name) for each in spreads]) for name in ("mean", "sd"))
            (line,) = axis.plot(places, mean, marker=".", label=kind)
            axis.fill_between(places, mean - sd, mean + sd, color=line.get_color(), alpha=0.15, lw=0)
    shares = [first[number].remaining / first[number].entries for number in numbers]
    random = [share / (2 - share) for share in shares]
    axes[3].plot(range(len(numbers)), random, "k:", label="random masks")
    for axis, title in zip(axes, titles, strict=True):
        axis.set_xticks(range(len(numbers)), [first[number].label for number in numbers], rotation=90, fontsize=7)
        axis.set(xlabel="weights remaining in %", title=title)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    _write(figure, paths)


def _draw_over_sparsity(runs: Runs, measures: Sequence[tuple[str, Any]], paths: Sequence[Path]) -> None:
    figure = new_figure(13, 4)
    axes = figure.subplots(1, len(measures))
    numbers = sorted({number for rounds in runs.values() for number in rounds})
    labels = {number: trials[0].label for rounds in runs.values() for number, trials in rounds.items()}
    for axis, (title, measure) in zip(axes, measures, strict=True):
        for strategy, rounds in runs.items():
            places = [place for place, number in enumerate(numbers) if number in rounds]
            found = [spread(measure(each) for each in rounds[numbers[place]]) for place in places]
            mean, sd = (np.array([getattr(each, name) for each in found]) for name in ("mean", "sd"))
            (line,) = axis.plot(places, mean, _LINES[strategy], marker=".", label=NAMES[strategy])
            axis.fill_between(places, mean - sd, mean + sd, color=line.get_color(), alpha=0.15, lw=0)
        axis.set_xticks(range(len(numbers)), [labels[number] for number in numbers], rotation=90, fontsize=7)
        axis.set(xlabel="weights remaining in %", title=title)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    _write(figure, paths)


def _colors(numbers: Sequence[int]) -> dict[int, Any]:
    from matplotlib import colormaps

    return dict(zip(numbers, colormaps["viridis"](np.linspace(0, 0.9, max(len(numbers), 1))), strict=True))


def _write(figure: Any, paths: Sequence[Path]) -> None:
    for path in paths:
        save_figure(figure, path)
