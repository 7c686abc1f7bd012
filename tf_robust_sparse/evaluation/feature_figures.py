"""Figures of hidden features under attack, of gates and of loss surfaces; they need matplotlib."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tf_robust_sparse.evaluation.figure_style import (
    COLUMN,
    PAGE,
    SMALL,
    accuracy_label,
    legend_below,
    log_counts,
    log_scale,
    new_figure,
    panels,
    percent,
    whole_ticks,
)
from tf_robust_sparse.evaluation.loss_surface import LossSurface

_COLUMNS = 5
_DISTORTION = "mean |change| of a feature"


def draw_distortions(series: Mapping[str, np.ndarray], title: str, path: str | os.PathLike) -> None:
    """Draws a histogram of how far the features of a layer move, with one panel for each network.

    Features that never move have a bar of their own, left of zero, in another color.

    Args:
        series: Network -> distortion of each feature, of any shape, as in `Vulnerability.per_feature`.
        title: The layer and the attack.
        path: Where to write.

    Raises:
        ValueError: if matplotlib is missing.
    """
    edges = np.linspace(0, max(1e-12, *(float(values.max()) for values in series.values())), 31)
    with new_figure(path, _width(len(series)), 2.3 * -(-len(series) // 3) + 0.4) as figure:
        grid = panels(figure, len(series), 3, sharex=True, sharey=True)
        for axes, (name, values) in zip(grid, series.items(), strict=True):
            still = int((values == 0).sum())
            axes.stairs(
                np.histogram(values[values != 0], edges)[0],
                edges,
                fill=True,
                color="tab:blue",
                label="features that move",
            )
            axes.bar(-1.5 * edges[1], still, width=edges[1], color="tab:red", label="features that never move")
            axes.set(xlabel=_DISTORTION, title=f"{name}\n{still:,} of {values.size:,} never move")
        log_counts(grid[0])
        for axes in grid[::3]:
            axes.set_ylabel("features")
        grid[0].set_xticks([tick for tick in grid[0].get_xticks() if 0 <= tick <= edges[-1]])
        figure.suptitle(title)
        legend_below(figure, grid)


def draw_distortion_maps(series: Mapping[str, np.ndarray], title: str, path: str | os.PathLike) -> None:
    """Draws the distortion at each position of each channel, on one scale, with one block for each network.

    Dead channels are blank.

    Args:
        series: Network -> `(height, width, channels)`, as in `Vulnerability.per_feature`.
        title: The layer and the attack.
        path: Where to write; a PDF of the same name is written too.

    Raises:
        ValueError: if matplotlib is missing, or the layer has no positions.
    """
    if any(values.ndim != 3 for values in series.values()):
        raise ValueError("Maps need features of shape (height, width, channels). Received: features of a dense layer")
    rows = {name: -(-values.shape[-1] // _COLUMNS) for name, values in series.items()}
    highest = max(float(values.max()) for values in series.values())
    blocks = len(series)
    with new_figure(path, 0.62 * _COLUMNS * blocks + 0.9, max(0.62 * max(rows.values()) + 0.6, 1.9)) as figure:
        # One grid for all, with an empty column between networks, so that every map has the same size.
        grid = figure.add_gridspec(max(rows.values()), (_COLUMNS + 1) * blocks - 1)
        everything, image = [], None
        for block, (name, values) in enumerate(series.items()):
            for number in range(values.shape[-1]):
                row, column = divmod(number, _COLUMNS)
                axes = figure.add_subplot(grid[row, block * (_COLUMNS + 1) + column])
                everything.append(axes)
                axes.set(xticks=[], yticks=[])
                if values[..., number].any():
                    image = axes.imshow(values[..., number], vmin=0, vmax=highest, cmap="viridis")
                else:
                    axes.set(xlim=(0, 1), ylim=(0, 1), box_aspect=values.shape[0] / values.shape[1])
                if number == min(_COLUMNS, values.shape[-1]) // 2:
                    axes.set_title(name)
        if image is not None:
            figure.colorbar(image, ax=everything, label=_DISTORTION)
        figure.suptitle(title)


def draw_layer_distortions(series: Mapping[str, Mapping[str, float]], path: str | os.PathLike, title: str = "") -> None:
    """Draws the vulnerability of each layer, with bars side by side for networks with the same layers.

    Args:
        series: Network -> layer -> mean distortion, as in `Vulnerability.per_layer`.
        path: Where to write; a PDF of the same name is written too.
        title: The attack.

    Raises:
        ValueError: if matplotlib is missing.
    """
    names = list(dict.fromkeys(layer for values in series.values() for layer in values))
    with new_figure(path, COLUMN if len(names) <= 10 else PAGE, 2.8) as figure:
        axes = figure.add_subplot()
        width = 0.8 / len(series)
        for number, (name, values) in enumerate(series.items()):
            places = [names.index(layer) + (number - (len(series) - 1) / 2) * width for layer in values]
            axes.bar(places, list(values.values()), width=width, label=name)
        axes.set_xticks(range(len(names)), names, rotation=90 if len(names) > 4 else 0)
        axes.set(xlabel="layer", ylabel="vulnerability (mean |change|)", title=title)
        axes.set_axisbelow(True)
        axes.grid(True, axis="y")
        legend_below(figure, [axes])


def draw_channels(
    series: Mapping[str, Mapping[str, np.ndarray]], layer: str, path: str | os.PathLike, attack: str = ""
) -> None:
    """Draws the vulnerability of each channel of a layer, sorted, with one line for each network.

    Args:
        series: Network -> layer -> distortions `(channels,)`, as in `Vulnerability.per_channel`.
        layer: The layer.
        path: Where to write; a PDF of the same name is written too.
        attack: Name and radius of the attack.

    Raises:
        ValueError: if matplotlib is missing.
    """
    with new_figure(path, COLUMN, 2.6) as figure:
        axes = figure.add_subplot()
        for name, values in series.items():
            axes.step(range(len(values[layer])), np.sort(values[layer])[::-1], where="mid", label=name)
        axes.set(xlabel="channel, most vulnerable first", ylabel="vulnerability (mean |change|)", ylim=(0, None))
        axes.set_title(f"{layer} under {attack}" if attack else layer)
        whole_ticks(axes.xaxis)
        axes.grid(True)
        legend_below(figure, [axes])


def draw_loss_surfaces(series: Mapping[str, LossSurface], path: str | os.PathLike, image: int | None = None) -> None:
    """Draws loss surfaces in three dimensions on one scale, with one panel for each network.

    Args:
        series: Network -> surface.
        path: Where to write; a PDF of the same name is written too.
        image: Number of the image; `None` for the mean over the images.

    Raises:
        ValueError: if matplotlib is missing.
    """
    heights = {name: found.losses.mean(0) if image is None else found.losses[image] for name, found in series.items()}
    lowest, highest = (float(f([f(values) for values in heights.values()])) for f in (np.min, np.max))
    with new_figure(path, _width(len(series)), 2.6 * -(-len(series) // 3) + 0.4) as figure:
        grid = panels(figure, len(series), 3, subplot_kw={"projection": "3d"})
        for axes, (name, found) in zip(grid, series.items(), strict=True):
            along, across = np.meshgrid(found.offsets, found.offsets, indexing="ij")
            axes.plot_surface(along, across, heights[name], cmap="viridis", vmin=lowest, vmax=highest)
            axes.set_zlim(lowest, max(highest, lowest + 1e-6))
            axes.set_title(name)
            axes.set_box_aspect(None, zoom=0.72)  # labels of 3D axes are outside of the box
            for of, label in (("x", "along gradient sign"), ("y", "along random signs"), ("z", "cross entropy")):
                getattr(axes, f"set_{of}label")(label, fontsize=SMALL, labelpad=0)
                axes.tick_params(axis=of, pad=-1)
                axes.locator_params(axis=of, nbins=4)
        what = "mean over images" if image is None else f"image {image}"
        figure.suptitle(f"loss around images, {what}\noffsets in pixels of [0, 1]")


def draw_features(clean: np.ndarray, attacked: np.ndarray, title: str, path: str | os.PathLike, most: int = 12) -> None:
    """Draws the channels with the largest features of an image, for the image and its attacked version.

    Args:
        clean: `(height, width, channels)`, features of the image.
        attacked: As `clean`, for the attacked image.
        title: The layer, the network and the attack.
        path: Where to write; a PDF of the same name is written too.
        most: Largest number of channels.

    Raises:
        ValueError: if matplotlib is missing.
    """
    channels = np.argsort(clean.mean((0, 1)), kind="stable")[::-1][:most]
    highest = max(float(clean.max()), float(attacked.max()), 1e-12)
    with new_figure(path, PAGE, 1.9 if len(channels) > 6 else 2.6) as figure:
        grid = figure.subplots(2, len(channels), squeeze=False)
        image: Any = None
        for row, (name, values) in enumerate((("clean", clean), ("attacked", attacked))):
            for axes, channel in zip(grid[row], channels, strict=True):
                image = axes.imshow(values[..., channel], vmin=0, vmax=highest, cmap="gray")
                axes.set(xticks=[], yticks=[])
                if row == 0:
                    axes.set_title(str(channel))
            grid[row, 0].set_ylabel(name)
        figure.colorbar(image, ax=grid, label="feature", shrink=0.9)
        figure.suptitle(f"{title}: channels by number")


def draw_strength(
    series: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]],
    path: str | os.PathLike,
    labels: Mapping[str, str] | None = None,
) -> None:
    """Draws accuracy under attacks of growing strength, with a panel for each kind of strength and a line per network.

    Accuracy that does not fall with more steps, or stays above 0 in a large ball, is a sign of masked gradients.

    Args:
        series: Network -> kind, such as `"steps"` -> pairs of strength and accuracy in [0, 1].
        path: Where to write; a PDF of the same name is written too.
        labels: Kind -> label of its axis, which names the attack and its fixed settings; `None` for the kind.

    Raises:
        ValueError: if matplotlib is missing.
    """
    kinds = list(next(iter(series.values())))
    with new_figure(path, _width(max(len(kinds), 2)), 2.6) as figure:
        grid = panels(figure, len(kinds), 3, sharey=True)
        for axes, kind in zip(grid, kinds, strict=True):
            for name, found in series.items():
                axes.plot(
                    [x for x, _ in found[kind]], percent([y for _, y in found[kind]]), ".-", label=name, clip_on=False
                )
            axes.set(xlabel=(labels or {}).get(kind, kind), ylim=(0, 100))
            axes.grid(True)
        grid[0].set_ylabel(accuracy_label("robust"))
        legend_below(figure, grid)


def draw_gates(
    means: Mapping[str, np.ndarray],
    threshold: float,
    epochs: Mapping[str, Sequence[int]],
    path: str | os.PathLike,
) -> None:
    """Draws histograms of the mean gates of each layer, and the number of open units after each epoch.

    Args:
        means: Layer -> mean gates `(units,)`, in (0, 1).
        threshold: Gates whose mean is at most this are closed.
        epochs: Layer -> open units after each epoch; may be empty.
        path: Where to write; a PDF of the same name is written too.

    Raises:
        ValueError: if matplotlib is missing.
    """
    lowest = np.log10(max(min(float(values.min()) for values in means.values()), 1e-12))
    edges = np.logspace(min(lowest, -4.0), 0, 41)
    lines = -(-len(means) // 3)
    with new_figure(path, PAGE if epochs else _width(len(means)), 1.6 * lines + (2.2 if epochs else 0) + 0.4) as figure:
        parts: Any = figure.subfigures(2, 1, height_ratios=(1.6 * lines + 0.3, 2.2)) if epochs else (figure,)
        grid = panels(parts[0], len(means), 3, sharex=True)
        for number, (axes, (name, values)) in enumerate(zip(grid, means.items(), strict=True)):
            # Gates outside of the axis count at its ends, so that the bars contain all of them.
            axes.stairs(np.histogram(np.clip(values, edges[0], 1), edges)[0], edges, fill=True, label="gates")
            axes.axvline(threshold, color="tab:red", lw=1, label="threshold")
            axes.set_title(f"{name}: {(values > threshold).sum()} of {len(values)} open")
            log_scale(axes, "x")
            axes.set(xlabel="mean gate" if number >= len(means) - 3 else "", ylabel="units" if number % 3 == 0 else "")
            whole_ticks(axes.yaxis, 5)
        legend_below(parts[0], grid)
        if not epochs:
            return
        axes = parts[1].add_subplot()
        for number, (name, counts) in enumerate(epochs.items()):
            line = ("-", "--", ":")[number // 10 % 3]  # colors repeat after ten
            marker = "." if len(counts) <= 30 else ""
            share = [100 * each / len(means[name]) for each in counts]
            axes.plot(range(1, len(counts) + 1), share, line, marker=marker, label=name)
        axes.set(xlabel="epoch", ylabel="open units (%)", ylim=(0, 105))
        whole_ticks(axes.xaxis)
        axes.grid(True)
        legend_below(parts[1], [axes])


def _width(columns: int) -> float:
    """Returns the width of a figure with this number of panels in a row, at most three."""
    return COLUMN if columns == 1 else PAGE * min(columns, 3) / 3
