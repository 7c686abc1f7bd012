"""Figures of masks: how much of each layer is kept, and which connections; they need matplotlib."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tf_robust_sparse.evaluation.figure_style import (
    PAGE,
    SMALL,
    legend_below,
    log_counts,
    log_scale,
    new_figure,
    panels,
    whole_ticks,
)

# A dot of a mask is at least two pixels wide: PAGE inches have 1440 pixels, some of them for labels and legends.
DOTS = 600


def draw_kept_per_layer(
    rows: Sequence[dict[str, Any]], title: str, path: str | os.PathLike, planned: Mapping[str, float] | None = None
) -> None:
    """Draws the share of weights, channels and filters of each layer that are kept, and the number of weights.

    Args:
        rows: As `sparsity.mask_statistics` returns them.
        title: Which network.
        path: Where to write.
        planned: The fractions that were planned, by the name of the layer.

    Raises:
        ValueError: if matplotlib is missing.
    """
    places = np.arange(len(rows))
    with new_figure(path, 5.5, 0.17 * len(rows) + 1.3) as figure:
        axes = figure.add_subplot()
        kept = [100 * row["connectivity"] for row in rows]
        axes.barh(places, kept, height=0.7, color="tab:blue", alpha=0.6, label="weights")
        marked = [
            (100 * planned[row["name"]], place) for place, row in enumerate(rows) if planned and row["name"] in planned
        ]
        if marked:
            axes.plot(*zip(*marked, strict=True), "|", color="black", markersize=7, label="weights, as planned")
        for part, marker, color in (("channels", "<", "tab:orange"), ("filters", ">", "tab:green")):
            share = [100 * row[f"{part}_kept"] / row[part] for row in rows]
            axes.plot(
                share, places, marker, color=color, linestyle="none", label=f"{part} with a weight", clip_on=False
            )
        # Counts have a column of their own, so that they cover neither bars nor markers.
        for place, row in zip(places, rows, strict=True):
            count = f"{row['nonzero']:,} of {row['entries']:,}"
            axes.annotate(
                count,
                (1.04, place),
                xycoords=axes.get_yaxis_transform(),
                va="center",
                fontsize=SMALL,
                annotation_clip=False,
            )
        axes.set_yticks(places, [row["name"] for row in rows])
        axes.set(xlabel="kept (%)", ylabel="layer", title=title, ylim=(len(rows) - 0.4, -0.6))
        log_scale(axes, "x")
        axes.set_xlim(min([0.8 * each for each in kept if each > 0], default=1), 100)
        axes.grid(True, axis="x")
        legend_below(figure, [axes])


def draw_kept_weights(rows: Sequence[dict[str, Any]], path: str | os.PathLike, most: int = 9) -> None:
    """Draws histograms of the weights that a mask keeps, and of those that magnitude pruning would keep.

    Args:
        rows: As `mask_statistics.kept_weights` returns them; of many layers some are drawn, spread over the depth.
        path: Where to write; a PDF of the same name is written too.
        most: Largest number of layers to draw.

    Raises:
        ValueError: if matplotlib is missing.
    """
    shown = _spread(rows, most)
    with new_figure(path, PAGE, 1.6 * -(-len(shown) // 3) + 0.4) as figure:
        grid = panels(figure, len(shown), 3)
        for number, (axes, row) in enumerate(zip(grid, shown, strict=True)):
            edges = np.asarray(row["edges"])
            axes.stairs(row["kept"], edges, label="kept", color="tab:blue", fill=True, alpha=0.5)
            axes.stairs(row["kept_by_magnitude"], edges, label="kept by magnitude pruning", color="tab:orange")
            axes.set_title(f"{row['name']}: {100 * row['small_kept']:.1f} % differ")
            axes.set(xlabel="weight" if number >= len(shown) - 3 else "", ylabel="weights" if number % 3 == 0 else "")
        legend_below(figure, grid)


def draw_structure(rows: Sequence[dict[str, Any]], path: str | os.PathLike, most: int = 6) -> None:
    """Draws how connections are spread over filters, channels and kernels, in comparison with random masks.

    Args:
        rows: As `sparsity.mask_structure` returns them.
        path: Where to write; a PDF of the same name is written too.
        most: Layers that are drawn, spread evenly from first to last.

    Raises:
        ValueError: if matplotlib is missing.
    """
    shown = _spread(rows, most)
    kinds = (
        ("by_filter", "output channel, most weights first", "weights"),
        ("by_channel", "input channel, most weights first", "weights"),
        ("kernels", "weights in a kernel", "kernels"),
    )
    with new_figure(path, PAGE, 1.5 * len(shown) + 0.4) as figure:
        grid = panels(figure, 3 * len(shown), 3)
        for number, axes in enumerate(grid):
            row, (kind, across, up) = shown[number // 3], kinds[number % 3]
            for prefix, color, name in (("", "tab:red", "this mask"), ("random_", "tab:blue", "random masks")):
                counts = row[f"{prefix}{kind}"]
                axes.step(range(len(counts)), counts, where="mid", color=color, label=name)
            if kind == "kernels":
                log_counts(axes)
            axes.set(xlabel=across, ylabel=up, title=row["name"])
        legend_below(figure, grid)


def draw_channels_between(row: dict[str, Any], names: tuple[str, str], path: str | os.PathLike) -> None:
    """Draws which channels between two layers are in use: outputs of the first layer above inputs of the second.

    Of more than 600 channels, neighbors share a bar, and the title says how many.

    Args:
        row: As `mask_structure.channels_between` returns it.
        names: Of the two layers.
        path: Where to write; a PDF of the same name is written too.

    Raises:
        ValueError: if matplotlib is missing.
    """
    both = [np.asarray(row[kind]) for kind in ("outputs", "inputs")]
    with new_figure(path, PAGE, 3.2) as figure:
        grid = panels(figure, 2, 1, sharex=True)
        for axes, counts, name, what in zip(grid, both, names, ("output", "input"), strict=True):
            size = -(-len(counts) // DOTS)
            starts = np.arange(0, len(counts), size)
            edges = np.append(starts, len(counts)) - 0.5
            axes.stairs(np.add.reduceat(counts, starts), edges, fill=True, color="tab:blue")
            empty = np.flatnonzero(counts == 0)
            if len(empty):  # below the axis, so that marks do not cover bars
                axes.plot(
                    empty,
                    np.full(len(empty), -0.04),
                    "|",
                    color="tab:red",
                    markersize=5,
                    markeredgewidth=1 if len(counts) <= DOTS else 0.4,
                    clip_on=False,
                    transform=axes.get_xaxis_transform(),
                    label="channel without weights",
                )
            axes.set(xlim=(-0.5, len(counts) - 0.5), ylabel="weights")
            axes.tick_params(axis="x", pad=6)
            bars = f"; a bar is {size} channels" if size > 1 else ""
            axes.set_title(f"{name}: weights per {what} channel, {len(empty)} of {len(counts)} have none{bars}")
        grid[-1].set_xlabel("channel")
        legend_below(figure, grid)


def draw_layout(mask: np.ndarray, title: str, path: str | os.PathLike) -> None:
    """Draws the connections of a mask: kernels side by side, and bars that mark the rows and columns in use.

    Where the mask has more entries than the figure has room for, a dot stands for a whole kernel, or for a block of
    them: it is darker the more connections it holds, none is lost, and the title says so.

    Args:
        mask: `(height, width, channels, filters)` or `(inputs, outputs)`, boolean.
        title: Whose mask it is.
        path: Where to write.

    Raises:
        ValueError: if matplotlib is missing.
    """
    mask = np.asarray(mask, bool)
    if mask.ndim == 2:
        mask = mask[np.newaxis, np.newaxis]
    *_, channels, filters = mask.shape
    unrolled, entries = _dots(mask)
    kept = int(mask.sum())
    head = f"{title}: {kept:,} of {mask.size:,} weights ({100 * kept / mask.size:.3g} %)"
    if entries != (1, 1):
        head += f"\na dot stands for {entries[0]} × {entries[1]} weights"
    with new_figure(path, PAGE, PAGE) as figure:
        from matplotlib import colormaps
        from matplotlib.colors import ListedColormap

        grid = figure.add_gridspec(2, 3, width_ratios=(40, 1, 1), height_ratios=(40, 1), hspace=0.01, wspace=0.01)
        axes = figure.add_subplot(grid[0, 0])
        # Only 0 is white, so that a single connection among many is visible.
        colors = ListedColormap(colormaps["Greys"](np.linspace(0.5, 1, 256))).with_extremes(under="white")
        image = axes.imshow(
            unrolled, cmap=colors, vmin=0.5, vmax=max(unrolled.max(), 1), aspect="auto", interpolation="none"
        )
        axes.set(title=head, ylabel=f"{filters} output channels", xticks=[], yticks=[])
        # Leave a row and a column free around the dots, because the frame would cover dots at the edge.
        axes.set(xlim=(-1.5, unrolled.shape[1] + 0.5), ylim=(unrolled.shape[0] + 0.5, -1.5))
        used = unrolled > 0
        for place, line in (((0, 1), used.any(1, keepdims=True)), ((1, 0), used.any(0, keepdims=True))):
            bar = figure.add_subplot(grid[place])
            bar.imshow(line, cmap="Reds", vmin=0, vmax=1, aspect="auto", interpolation="none")
            limits = {"ylim": axes.get_ylim()} if place[0] == 0 else {"xlim": axes.get_xlim()}
            bar.set(xticks=[], yticks=[], **limits)
        bar.set_xlabel(f"{channels} input channels; red: rows and columns in use")
        if entries != (1, 1):
            scale = figure.add_subplot(grid[0, 2])
            figure.colorbar(image, cax=scale, label="weights per dot")
            whole_ticks(scale.yaxis)


def _dots(mask: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
    """Returns the connections per dot, `(rows, columns)`, and the height and width of a dot in entries of the mask."""
    height, width, channels, filters = mask.shape
    if max(filters * height, channels * width) <= DOTS:
        return mask.transpose(3, 0, 2, 1).reshape(filters * height, channels * width).astype(int), (1, 1)
    per_kernel = mask.sum((0, 1)).T  # (filters, channels)
    sizes = -(-filters // DOTS), -(-channels // DOTS)
    for axis, (size, length) in enumerate(zip(sizes, per_kernel.shape, strict=True)):
        per_kernel = np.add.reduceat(per_kernel, np.arange(0, length, size), axis=axis)
    return per_kernel, (sizes[0] * height, sizes[1] * width)


def _spread(rows: Sequence[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """Returns at most `most` rows, evenly spaced from the first to the last."""
    return [rows[i] for i in np.unique(np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(int))]
