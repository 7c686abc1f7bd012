"""Figures of evaluations and masks; matplotlib is needed, and imported by these functions only."""

import importlib.util
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tf_robust_sparse.saving import replace_file

NEEDS_MATPLOTLIB = "figures need matplotlib: python -m pip install 'tf_robust_sparse[report]', or matplotlib itself"


def check_matplotlib() -> None:
    """Raises a `ValueError` that says how to install matplotlib, if it is missing."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError(f"{NEEDS_MATPLOTLIB}. Received: an environment without it")


def draw_curve(points: Sequence[dict[str, float]], title: str, path: str | os.PathLike) -> None:
    """Draws a security curve into a PNG file.

    Args:
        points: As `security_curve` returns them: `epsilon` and `robust_accuracy`.
        title: What was attacked how.
        path: The file, whole or not at all.

    Raises:
        ValueError: if matplotlib is missing.
    """
    figure = new_figure(5.5, 3.5)
    axes = figure.add_subplot()
    accuracies = [100 * point["robust_accuracy"] for point in points]
    axes.plot([point["epsilon"] for point in points], accuracies, marker="o")
    axes.set(xlabel="epsilon, pixels of [0, 1]", ylabel="accuracy in %", title=title, ylim=(0, 100))
    axes.grid(alpha=0.3)
    save_figure(figure, path)


def draw_examples(
    x: np.ndarray, x_adv: np.ndarray, y: np.ndarray, y_adv: np.ndarray, path: str | os.PathLike, scale: float
) -> None:
    """Draws images, adversarial examples and their differences into a PNG file, one row per image.

    Args:
        x: `(images, height, width, 1 or 3)`, float, in [0, 1].
        x_adv: As `x`.
        y: `(images,)`, integer labels.
        y_adv: `(images,)`, what the network says to `x_adv`.
        path: The file, whole or not at all.
        scale: The difference that is drawn in full black or white; no difference is grey.

    Raises:
        ValueError: if matplotlib is missing.
    """
    rows = len(x)
    figure = new_figure(4.5, 1.6 * rows)
    for row in range(rows):
        difference = np.clip(0.5 + (x_adv[row] - x[row]) / (2 * scale), 0, 1)
        columns = (
            (x[row], f"class {y[row]}"),
            (x_adv[row], f"taken for {y_adv[row]}"),
            (difference, f"difference, ±{scale:.3g}"),
        )
        for column, (image, title) in enumerate(columns):
            axes = figure.add_subplot(rows, 3, 3 * row + column + 1)
            single = image.shape[-1] == 1
            axes.imshow(image[..., 0] if single else image, cmap="gray" if single else None, vmin=0, vmax=1)
            axes.set_title(title, fontsize=8)
            axes.set_axis_off()
    save_figure(figure, path)


def draw_kept_per_layer(
    rows: Sequence[dict[str, Any]], title: str, path: str | os.PathLike, planned: Mapping[str, float] | None = None
) -> None:
    """Draws what fraction of the weights, channels and filters of each layer stays into a PNG file, and how many.

    Args:
        rows: As `sparsity.mask_statistics` returns them.
        title: Which network.
        path: The file, whole or not at all.
        planned: The fractions that were planned, by the name of the layer.

    Raises:
        ValueError: if matplotlib is missing.
    """
    figure = new_figure(max(5.0, 0.32 * len(rows) + 2), 4.2)
    axes = figure.add_subplot()
    places = np.arange(len(rows))
    axes.bar(places, [100 * row["connectivity"] for row in rows], width=0.6, label="weights")
    marked = [
        (place, 100 * planned[row["name"]]) for place, row in enumerate(rows) if planned and row["name"] in planned
    ]
    if marked:
        axes.plot(*zip(*marked, strict=True), "_", color="black", markersize=9, label="weights, as planned")
    for place, row in zip(places, rows, strict=True):
        axes.annotate(str(row["nonzero"]), (place, 100 * row["connectivity"]), rotation=90, ha="center", fontsize=6)
    for part, marker in (("channels", "v"), ("filters", "^")):
        share = [100 * row[f"{part}_kept"] / row[part] for row in rows]
        axes.plot(places, share, marker, linestyle="none", label=f"{part} with a weight")
    axes.set_xticks(places, [row["name"] for row in rows], rotation=90, fontsize=7)
    axes.set(ylabel="kept in %", title=title, yscale="log", ylim=(None, 130))
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize=8)
    save_figure(figure, path)


def draw_kept_weights(rows: Sequence[dict[str, Any]], path: str | os.PathLike, most: int = 9) -> None:
    """Draws histograms of the weights that a mask keeps, beside those that magnitude pruning would keep.

    Args:
        rows: As `sparsity.kept_weights` returns them; of many layers some are drawn, spread over the depth.
        path: The PNG file, whole or not at all.
        most: Largest number of layers to draw.

    Raises:
        ValueError: if matplotlib is missing.
    """
    shown = [rows[i] for i in np.unique(np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(int))]
    columns = min(3, len(shown))
    lines = -(-len(shown) // columns)
    figure = new_figure(3.4 * columns, 2.5 * lines)
    for number, row in enumerate(shown, start=1):
        axes = figure.add_subplot(lines, columns, number)
        edges = np.asarray(row["edges"])
        axes.stairs(row["kept_by_magnitude"], edges, label="by magnitude", color="tab:orange")
        axes.stairs(row["kept"], edges, label="kept", color="tab:blue", fill=True, alpha=0.5)
        axes.set_title(f"{row['name']}: {100 * row['small_kept']:.1f} % differ", fontsize=8)
        axes.tick_params(labelsize=7)
        if number == 1:
            axes.legend(fontsize=7)
        if number > len(shown) - columns:
            axes.set_xlabel("weight", fontsize=8)
    save_figure(figure, path)


def draw_structure(rows: Sequence[dict[str, Any]], path: str | os.PathLike, most: int = 6) -> None:
    """Draws how connections are spread over filters, channels and kernels into a PNG file, beside random masks.

    Args:
        rows: As `sparsity.mask_structure` returns them.
        path: The file, whole or not at all.
        most: Layers that are drawn, spread evenly from first to last.

    Raises:
        ValueError: if matplotlib is missing.
    """
    rows = [rows[i] for i in np.unique(np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(int))]
    figure = new_figure(10, 2.2 * len(rows))
    kinds = (("by_filter", "output channel"), ("by_channel", "input channel"), ("kernels", "weights in a kernel"))
    for line, row in enumerate(rows):
        for column, (kind, label) in enumerate(kinds):
            axes = figure.add_subplot(len(rows), 3, 3 * line + column + 1)
            for prefix, color, name in (("", "tab:red", "this mask"), ("random_", "tab:blue", "random")):
                axes.step(range(len(row[kind])), row[f"{prefix}{kind}"], where="mid", color=color, label=name)
            if kind == "kernels":
                axes.set_yscale("symlog", linthresh=1)
            axes.set_xlabel(label, fontsize=8)
            axes.set_title(f"{row['name']}: {'kernels' if kind == 'kernels' else 'weights'}", fontsize=8)
            axes.tick_params(labelsize=7)
            if line == 0 and column == 0:
                axes.legend(fontsize=7)
    save_figure(figure, path)


def draw_channels_between(row: dict[str, Any], names: tuple[str, str], path: str | os.PathLike) -> None:
    """Draws which channels between two layers are in use, outputs of the first above inputs of the second, into a PNG.

    Args:
        row: As `sparsity.channels_between` returns it.
        names: Of the two layers.
        path: The file, whole or not at all.

    Raises:
        ValueError: if matplotlib is missing.
    """
    figure = new_figure(9, 3.6)
    both = [np.asarray(row[kind]) for kind in ("outputs", "inputs")]
    for number, (counts, name, what) in enumerate(zip(both, names, ("output", "input"), strict=True), start=1):
        axes = figure.add_subplot(2, 1, number)
        axes.bar(np.arange(len(counts)), counts, width=1.0, color="tab:blue")
        empty = np.flatnonzero(counts == 0)
        axes.plot(empty, np.zeros(len(empty)), "|", color="tab:red", markersize=9, clip_on=False)
        axes.set(xlim=(-0.5, len(counts) - 0.5), xlabel="channel" if number == 2 else "")
        axes.set_title(f"{name}: weights per {what} channel, {len(empty)} of {len(counts)} have none", fontsize=8)
        axes.tick_params(labelsize=7)
    save_figure(figure, path)


def draw_layout(mask: np.ndarray, title: str, path: str | os.PathLike) -> None:
    """Draws every entry of a mask into a PNG file: kernels side by side, bars beside rows and columns in use.

    Args:
        mask: `(height, width, channels, filters)` or `(inputs, outputs)`, boolean.
        title: Whose mask it is.
        path: The file, whole or not at all.

    Raises:
        ValueError: if matplotlib is missing.
    """
    if mask.ndim == 2:
        mask = mask[np.newaxis, np.newaxis]
    height, width, channels, filters = mask.shape
    unrolled = mask.transpose(3, 0, 2, 1).reshape(filters * height, channels * width)
    figure = new_figure(7, 7)
    grid = figure.add_gridspec(2, 2, width_ratios=(30, 1), height_ratios=(30, 1), hspace=0.03, wspace=0.03)
    axes = figure.add_subplot(grid[0, 0])
    axes.imshow(unrolled, cmap="Greys", aspect="auto", interpolation="nearest")
    axes.set(title=title, ylabel=f"{filters} output channels", xticks=[], yticks=[])
    by_filter, by_channel = unrolled.any(1, keepdims=True), unrolled.any(0, keepdims=True)
    for place, used in (((0, 1), by_filter), ((1, 0), by_channel)):
        bar = figure.add_subplot(grid[place])
        bar.imshow(used, cmap="Reds", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        bar.set(xticks=[], yticks=[])
    bar.set_xlabel(f"{channels} input channels")
    save_figure(figure, path)


def draw_certified(points: Sequence[dict[str, float]], sigma: float, path: str | os.PathLike) -> None:
    """Draws certified accuracy over the l2 radius into a PNG file.

    Args:
        points: By rising radius, `radius` and the `accuracy` that holds up to it.
        sigma: Standard deviation of the noise.
        path: The file, whole or not at all.

    Raises:
        ValueError: if matplotlib is missing.
    """
    figure = new_figure(5.5, 3.5)
    axes = figure.add_subplot()
    radii = [0.0, *(point["radius"] for point in points)]
    axes.stairs([100 * point["accuracy"] for point in points], radii, baseline=None)
    axes.set(xlabel="l2 radius, pixels of [0, 1]", ylabel="certified accuracy in %", ylim=(0, 100))
    axes.set_title(f"randomized smoothing, sigma {sigma:g}")
    axes.grid(alpha=0.3)
    save_figure(figure, path)


def draw_sweep(series: dict[str, Sequence[dict[str, float]]], label: str, path: str | os.PathLike) -> None:
    """Draws accuracies against a setting that was varied into a PNG file, with standard deviations over seeds.

    Args:
        series: By name, points with `value`, `robust_accuracy` and `clean_accuracy`, means over seeds, and
            `robust_deviation`.
        label: What was varied; the axis is logarithmic if all values are positive.
        path: The file, whole or not at all.

    Raises:
        ValueError: if matplotlib is missing.
    """
    figure = new_figure(5.5, 3.8)
    axes = figure.add_subplot()
    for number, (name, points) in enumerate(series.items()):
        values = [point["value"] for point in points]
        axes.errorbar(
            values,
            [100 * point["robust_accuracy"] for point in points],
            [100 * point["robust_deviation"] for point in points],
            marker="o",
            capsize=3,
            color=f"C{number}",
            label=f"{name}, robust",
        )
        clean = [100 * point["clean_accuracy"] for point in points]
        axes.plot(values, clean, marker=".", linestyle=":", color=f"C{number}", label=f"{name}, clean")
    if all(point["value"] > 0 for points in series.values() for point in points):
        axes.set_xscale("log")
    axes.set(xlabel=label, ylabel="accuracy in %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    save_figure(figure, path)


def new_figure(width: float, height: float) -> Any:
    """An empty figure of a size in inches, known to no window and to no other figure."""
    check_matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Any, path: str | os.PathLike) -> None:
    """Writes a figure in the format of its suffix, PNG if it has none, whole or not at all."""
    with replace_file(path) as temporary:
        figure.savefig(temporary, dpi=120, format=Path(path).suffix[1:] or "png")
