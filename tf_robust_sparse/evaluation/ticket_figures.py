"""Figures of lottery tickets; they need matplotlib."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tf_robust_sparse.evaluation.figure_style import (
    PAGE,
    accuracy_label,
    legend_below,
    log_scale,
    new_figure,
    panels,
    percent,
    whole_ticks,
)
from tf_robust_sparse.evaluation.tickets import (
    Round,
    Spread,
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
_DRAWN = 20_000  # largest number of weights that a density is estimated from
_REMAINING = "weights remaining (%)"
_TICKS = 12  # labels of sparsity that fit on a panel


def draw_curves(
    runs: Runs,
    numbers: Sequence[int],
    column: str,
    attack: str,
    paths: Sequence[Path],
    window: tuple[float, float] | None = None,
    last_step: float | None = None,
) -> None:
    """Draws a test measure over training steps, for original tickets and for random and continued ones.

    There is one panel for the first strategy alone, and one for each other strategy together with the first.

    Args:
        runs: Strategy -> round -> trials.
        numbers: Rounds to draw; the dense one is drawn once, because it is the same for every strategy.
        column: Of the test curves: `"acc"`, `"adv_acc"` or `"loss"`.
        attack: Name and radius of the attack of `"adv_acc"`, as `attack_name` returns them.
        paths: Files, in the formats of their suffixes.
        window: Range of the vertical axis, in percent for accuracies, if all that is drawn lies within it.
        last_step: End of the horizontal axis.
    """
    titles = {"acc": accuracy_label("test"), "adv_acc": accuracy_label("test", attack), "loss": "test loss"}
    first, *others = [strategy for strategy in NAMES if strategy in runs]
    shown = [(first,), *((first, other) for other in others)]
    colors = _colors(numbers)
    lowest, highest = np.inf, -np.inf
    with new_figure(paths, PAGE if others else PAGE / 2, 2.9) as figure:
        grid = panels(figure, len(shown), 3, sharex=True, sharey=True)
        labels: dict[int, str] = {}
        for axes, strategies in zip(grid, shown, strict=True):
            for strategy in strategies:
                for number in numbers:
                    trials = runs[strategy].get(number)
                    if not trials or (number == _DENSE and strategy != first):
                        continue
                    steps, mean, sd = over_trials(trials, "test", column)
                    if column != "loss":
                        mean, sd = percent(mean), percent(sd)
                    axes.plot(steps, mean, _LINES[strategy], color=colors[number])
                    axes.fill_between(steps, mean - sd, mean + sd, color=colors[number], alpha=0.15, lw=0)
                    labels[number] = f"{_remaining(trials[0])} %" if number else "dense"
                    within = mean[steps > 0] if len(steps) > 1 else mean  # an untrained network would stretch the axis
                    lowest, highest = min(lowest, within.min()), max(highest, within.max())
            axes.set(title=" and ".join(NAMES[strategy] for strategy in strategies), xlabel="training step")
            whole_ticks(axes.xaxis, 5)
            axes.grid(True)
        grid[0].set_ylabel(titles[column])
        grid[0].set_xlim(0, last_step)
        if window is not None and window[0] <= lowest and highest <= window[1]:
            grid[0].set_ylim(*window)
        _legend_of_curves(figure, {labels[number]: colors[number] for number in sorted(labels)}, [first, *others])


def draw_early_stopping(runs: Runs, attack: str, paths: Sequence[Path], of: str = "valid") -> None:
    """Draws the step of smallest validation loss and both accuracies there, over the remaining weights.

    Args:
        runs: Strategy -> round -> trials.
        attack: Name and radius of the attack.
        paths: Files.
        of: The set that accuracies are read from, `"valid"` or `"test"`.
    """
    name = {"valid": "validation", "test": "test"}[of]
    measures: Measures = {
        "step of least validation loss": lambda each: each.curves["valid"]["batch"][early_stop(each)],
        accuracy_label(name): lambda each: 100 * each.curves[of]["acc"][early_stop(each)],
        accuracy_label(name, attack): lambda each: 100 * each.curves[of]["adv_acc"][early_stop(each)],
    }
    _draw_over_sparsity(runs, measures, paths)


def draw_over_sparsity(runs: Runs, step: int, attack: str, paths: Sequence[Path]) -> None:
    """Draws test loss and both test accuracies at a step, over the remaining weights."""
    measures: Measures = {
        f"test loss at step {step}": lambda each: at_step(each.curves["test"], "loss", step),
        accuracy_label("test"): lambda each: 100 * at_step(each.curves["test"], "acc", step),
        accuracy_label("test", attack): lambda each: 100 * at_step(each.curves["test"], "adv_acc", step),
    }
    _draw_over_sparsity(runs, measures, paths)


def draw_densities(
    rounds: Mapping[int, Sequence[Round]], numbers: Sequence[int], paths: Sequence[Path], width: float = 0.3
) -> None:
    """Draws the distribution of initial values of surviving weights in the first trial, layer by layer.

    Args:
        rounds: Round -> trials.
        numbers: Rounds to draw.
        paths: Files.
        width: Largest absolute value shown.
    """
    from scipy.stats import gaussian_kde

    shown = [rounds[number][0] for number in numbers if number in rounds]
    x = np.linspace(-width, width, 301)
    with new_figure(paths, PAGE, 2.2 * -(-len(shown) // 4) + 0.3) as figure:
        grid = panels(figure, len(shown), 4, sharex=True)
        for axes, found in zip(grid, shown, strict=True):
            for number, (name, values) in enumerate(surviving_weights(found).items()):
                some = values[:: -(-len(values) // _DRAWN) or 1].astype(np.float64)
                if len(some) > 1 and some.std() > 0:
                    axes.plot(x, gaussian_kde(some)(x), color=f"C{number}", label=name)
            axes.set(
                title=f"{_remaining(found)} % remain", xlabel="initial value", xlim=(-width, width), ylim=(0, None)
            )
            if width >= _WIDE and found.number != _DENSE:
                axes.set_ylim(0, 4.5)  # as published
            axes.grid(True)
        for axes in grid[::4]:
            axes.set_ylabel("density of initial values")
        legend_below(figure, grid)


def draw_layers(rounds: Mapping[int, Sequence[Round]], paths: Sequence[Path]) -> None:
    """Draws the share of each layer that remains in the first trial, round by round."""
    first = [rounds[number][0] for number in sorted(rounds)]
    numbers = [each.number for each in first]
    with new_figure(paths, PAGE / 2, 2.8) as figure:
        axes = figure.add_subplot()
        for name, entries in first[0].layers.items():
            axes.plot(numbers, [100 * each.layers[name] / entries for each in first], ".-", label=name)
        axes.set(xlabel="round of pruning", ylabel="weights of a layer remaining (%)")
        log_scale(axes, "y")
        whole_ticks(axes.xaxis)
        axes.grid(True)
        legend_below(figure, [axes])


def draw_pixels(rounds: Mapping[int, Sequence[Round]], numbers: Sequence[int], paths: Sequence[Path]) -> bool:
    """Draws the number of weights at each input pixel, averaged over trials; returns whether there are pixels."""
    shown = [number for number in numbers if number in rounds]
    found = {number: [input_pixels(each) for each in rounds[number]] for number in shown}
    maps = {number: [each for each in found[number] if each is not None] for number in shown}
    if any(len(maps[number]) < len(found[number]) for number in shown):
        return False
    with new_figure(paths, PAGE, 1.5 * -(-len(shown) // 4) + 0.3) as figure:
        for axes, number in zip(panels(figure, len(shown), 4), shown, strict=True):
            image = axes.imshow(np.mean(maps[number], axis=0), cmap="viridis", vmin=0)
            axes.set_title(f"{_remaining(rounds[number][0])} % remain")
            axes.set_axis_off()
            figure.colorbar(image, ax=axes, shrink=0.8)  # own scales, because the dense round would hide the rest
        figure.suptitle("weights per input pixel, mean over trials")
    return True


def draw_training(
    kinds: Mapping[str, tuple[str, Mapping[int, Sequence[Round]]]], attacks: Mapping[str, str], paths: Sequence[Path]
) -> None:
    """Draws accuracies of networks from each kind of training, and overlaps of their masks, over the remaining weights.

    Accuracies are the final ones on all test images, so that every kind is measured under both attacks. Overlaps are
    between trials, in comparison with random masks of the same size.

    Args:
        kinds: Name of the training -> the attack of its measurements, and round -> trials.
        attacks: `"fgsm"` and `"pgd"` -> name and radius.
        paths: Files.
    """
    first = {number: trials[0] for _, rounds in kinds.values() for number, trials in rounds.items()}
    numbers = sorted(first)
    titles = [accuracy_label("test"), *(accuracy_label("test", name) for name in attacks.values())]
    with new_figure(paths, PAGE, 5) as figure:
        grid = panels(figure, 2 + len(attacks), 2)
        for number, (kind, (own, rounds)) in enumerate(kinds.items()):
            places = [place for place, each in enumerate(numbers) if each in rounds]
            found = [
                [spread(100 * final_accuracy(each, attack, own) for each in rounds[numbers[place]]) for place in places]
                for attack in (None, *attacks)
            ]
            found.append([mask_overlaps(rounds[numbers[place]]) for place in places])
            for axes, spreads in zip(grid, found, strict=True):
                _line(axes, places, spreads, "-", f"C{number}", kind)
        shares = [first[number].remaining / first[number].entries for number in numbers]
        grid[-1].plot(range(len(numbers)), [share / (2 - share) for share in shares], "k:", label="random masks")
        for axes, title in zip(grid, [*titles, "overlap of masks of trials (Jaccard)"], strict=True):
            axes.set_ylabel(title)
            _sparsity_axis(axes, [_remaining(first[number]) for number in numbers])
        legend_below(figure, grid)


Measures = Mapping[str, Callable[[Round], float]]  # label of the vertical axis -> function of a round


def _draw_over_sparsity(runs: Runs, measures: Measures, paths: Sequence[Path]) -> None:
    numbers = sorted({number for rounds in runs.values() for number in rounds})
    labels = {number: _remaining(trials[0]) for rounds in runs.values() for number, trials in rounds.items()}
    with new_figure(paths, PAGE, 2.9) as figure:
        grid = panels(figure, len(measures), 3)
        for axes, (title, measure) in zip(grid, measures.items(), strict=True):
            for color, (strategy, rounds) in enumerate(runs.items()):
                places = [place for place, number in enumerate(numbers) if number in rounds]
                found = [spread(measure(each) for each in rounds[numbers[place]]) for place in places]
                _line(axes, places, found, _LINES[strategy], f"C{color}", NAMES[strategy])
            axes.set_ylabel(title)
            _sparsity_axis(axes, [labels[number] for number in numbers])
        legend_below(figure, grid)


def _remaining(found: Round) -> str:
    """Returns the label of a round without the leading zero, which sorts directories."""
    return f"{float(found.label):.1f}"


def _line(axes: Any, places: Sequence[int], found: Sequence[Spread], line: str, color: str, label: str) -> None:
    """Draws means, and standard deviations as a band."""
    mean, sd = (np.array([getattr(each, name) for each in found]) for name in ("mean", "sd"))
    axes.plot(places, mean, line, marker=".", color=color, label=label)
    axes.fill_between(places, mean - sd, mean + sd, color=color, alpha=0.15, lw=0)


def _sparsity_axis(axes: Any, labels: Sequence[str]) -> None:
    """Labels rounds by the remaining weights; if there are many rounds, only every second, third, ..."""
    places = range(0, len(labels), -(-len(labels) // _TICKS))
    axes.set_xticks(places, [labels[place] for place in places], rotation=90)
    axes.set_xlabel(_REMAINING)
    axes.grid(True)


def _legend_of_curves(figure: Any, colors: Mapping[str, Any], strategies: Sequence[str]) -> None:
    """Adds a legend of colors for sparsities and lines for strategies."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=color, label=label) for label, color in colors.items()]
    if len(strategies) > 1:
        handles += [Line2D([], [], ls=_LINES[each], color="black", label=NAMES[each]) for each in strategies]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 9), columnspacing=1)


def _colors(numbers: Sequence[int]) -> dict[int, Any]:
    from matplotlib import colormaps

    return dict(zip(numbers, colormaps["viridis"](np.linspace(0, 0.9, max(len(numbers), 1))), strict=True))
