"""Figures of evaluations: accuracy over a radius or a setting, and adversarial examples; they need matplotlib."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from tf_robust_sparse.evaluation.figure_style import (
    COLUMN,
    PAGE,
    accuracy_label,
    legend_below,
    log_scale,
    new_figure,
    panels,
    percent,
)

_RADIUS = "radius ε (pixels of [0, 1])"
MARKED = 20  # curves of more points have no markers
_MARKERS = "osD^vPX*<>"


def draw_curves(curves: dict[str, Sequence[dict[str, float]]], norm: str, path: str | os.PathLike) -> None:
    """Draws security curves.

    Args:
        curves: By name of the attack, points as `security_curve` and `minimum_norms` return them: `epsilon` and
            `robust_accuracy`.
        norm: Norm of the radius.
        path: Where to write.

    Raises:
        ValueError: if matplotlib is missing.
    """
    with new_figure(path, COLUMN, 2.4) as figure:
        axes = figure.add_subplot()
        for name, points in curves.items():
            accuracies = percent([point["robust_accuracy"] for point in points])
            marker = "o" if len(points) <= MARKED else None
            axes.plot([point["epsilon"] for point in points], accuracies, marker=marker, clip_on=False, label=name)
        radius = "changed entries" if norm == "L0" else _RADIUS
        axes.set(xlabel=radius, ylabel=accuracy_label("robust"), ylim=(0, 100))
        axes.set_title(f"{norm}, {next(iter(curves))}" if len(curves) == 1 else norm)
        axes.set_xlim(0, None)
        axes.locator_params(axis="x", nbins=5)
        axes.grid(True)
        if len(curves) > 1:
            legend_below(figure, [axes])


def draw_examples(
    x: np.ndarray, x_adv: np.ndarray, y: np.ndarray, y_adv: np.ndarray, path: str | os.PathLike, scale: float
) -> None:
    """Draws images, adversarial examples and their differences, with one row per image.

    Args:
        x: `(images, height, width, 1 or 3)`, float, in [0, 1].
        x_adv: As `x`.
        y: `(images,)`, integer labels.
        y_adv: `(images,)`, what the network says to `x_adv`.
        path: Where to write.
        scale: The difference that is drawn in full black or white; no difference is gray.

    Raises:
        ValueError: if matplotlib is missing.
    """
    with new_figure(path, COLUMN, 1.25 * len(x) + 0.3) as figure:
        grid = np.reshape(panels(figure, 3 * len(x), 3), (len(x), 3))
        for row, line in enumerate(grid):
            difference = np.clip(0.5 + (x_adv[row] - x[row]) / (2 * scale), 0, 1)
            columns = (x[row], f"class {y[row]}"), (x_adv[row], f"taken for {y_adv[row]}"), (difference, "difference")
            for axes, (image, title) in zip(line, columns, strict=True):
                single = image.shape[-1] == 1
                axes.imshow(image[..., 0] if single else image, cmap="gray" if single else None, vmin=0, vmax=1)
                axes.set_title(title)
                axes.set_axis_off()
        figure.suptitle(f"difference: black and white are ±{scale:.3g} in pixels of [0, 1]")


def draw_protocol(points: Sequence[dict[str, Any]], path: str | os.PathLike) -> None:
    """Draws robust accuracy against connectivity and against the size of the compact file, a line per method.

    Args:
        points: `method`, `connectivity`, `bytes`, and `accuracy` and `deviation` by the name of the attack; the
            strongest attack is the last that all points have.
        path: Where to write.

    Raises:
        ValueError: if matplotlib is missing.
    """
    common = [name for name in points[0]["accuracy"] if all(name in point["accuracy"] for point in points)]
    with new_figure(path, PAGE, 3.4) as figure:
        pair = figure.subplots(1, 2, sharey=True)
        methods = list(dict.fromkeys(point["method"] for point in points))
        for axes, (key, label) in zip(pair, (("connectivity", "connectivity"), ("bytes", "bytes")), strict=True):
            for number, method in enumerate(methods):
                own = sorted((point for point in points if point["method"] == method), key=lambda point: point[key])
                accuracies, deviations = (
                    percent([point[of][common[-1]] for point in own]) for of in ("accuracy", "deviation")
                )
                marker, color = _MARKERS[number % len(_MARKERS)], f"C{number % 10}"
                axes.errorbar(
                    [point[key] for point in own],
                    accuracies,
                    deviations,
                    marker=marker,
                    color=color,
                    capsize=2,
                    label=method,
                )
            log_scale(axes, "x")
            axes.set_xlabel(label)
            axes.grid(True)
        pair[0].set_ylabel(accuracy_label("robust"))
        figure.suptitle(f"under {common[-1]}")
        legend_below(figure, [pair[0]])


def draw_certified(points: Sequence[dict[str, float]], sigma: float, path: str | os.PathLike) -> None:
    """Draws certified accuracy over the l2 radius.

    Args:
        points: By rising radius, `radius` and the `accuracy` that holds up to it.
        sigma: Standard deviation of the noise.
        path: Where to write.

    Raises:
        ValueError: if matplotlib is missing.
    """
    with new_figure(path, COLUMN, 2.4) as figure:
        axes = figure.add_subplot()
        radii = [0.0, *(point["radius"] for point in points)]
        axes.stairs(percent([point["accuracy"] for point in points]), radii, baseline=None, linewidth=1.2)
        axes.set(xlabel="L2 radius (pixels of [0, 1])", ylabel=accuracy_label("certified"), ylim=(0, 100))
        axes.set_title(f"randomized smoothing, σ = {sigma:g}")
        axes.set_xlim(0, None)
        axes.grid(True)


def draw_sweep(
    series: dict[str, Sequence[dict[str, float]]], label: str, path: str | os.PathLike, attack: str = ""
) -> None:
    """Draws accuracies over a varied setting, with standard deviations over seeds.

    Args:
        series: By name, points with `value`, `robust_accuracy` and `clean_accuracy`, means over seeds, and
            `robust_deviation`.
        label: What was varied; the axis is logarithmic if all values are positive.
        path: Where to write.
        attack: Name and radius of the attack of robust accuracy, where all points have the same.

    Raises:
        ValueError: if matplotlib is missing.
    """
    with new_figure(path, COLUMN, 2.9) as figure:
        axes = figure.add_subplot()
        for number, (name, points) in enumerate(series.items()):
            points = sorted(points, key=lambda point: point["value"])  # a line that turns back looks like two lines
            values = [point["value"] for point in points]
            means, deviations = (
                percent([point[f"robust_{of}"] for point in points]) for of in ("accuracy", "deviation")
            )
            axes.errorbar(values, means, deviations, marker="o", capsize=3, color=f"C{number}", label=f"{name}, robust")
            clean = percent([point["clean_accuracy"] for point in points])
            axes.plot(values, clean, marker=".", linestyle=":", color=f"C{number}", label=f"{name}, clean")
        if all(point["value"] > 0 for points in series.values() for point in points):
            log_scale(axes, "x")
        axes.set(xlabel=label, ylabel=accuracy_label())
        axes.set_title(f"robust: under {attack}" if attack else "")
        axes.grid(True)
        legend_below(figure, [axes])
