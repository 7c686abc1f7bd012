"""Figures of how attacks move hidden features, of gates and of loss surfaces; matplotlib is needed by them only."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tf_robust_sparse.evaluation.figures import new_figure, save_figure
from tf_robust_sparse.evaluation.loss_surface import LossSurface

_COLUMNS = 5


def draw_distortions(series: Mapping[str, np.ndarray], title: str, path: str | os.PathLike) -> None:
    """Draws how many features of a layer move how far, one panel a network, those that never move in another colour.

    Args:
        series: Network -> distortion of each feature, of any shape, as of `Vulnerability.per_feature`.
        title: Which layer.
        path: The file, whole or not at all.

    Raises:
        ValueError: if matplotlib is missing.
    """
    edges = np.linspace(0, max(1e-12, *(float(values.max()) for values in series.values())), 31)
    figure = new_figure(3.2 * len(series), 2.8)
    panels = np.atleast_1d(figure.subplots(1, len(series), sharex=True, sharey=True))
    for axes, (name, values) in zip(panels, series.items(), strict=True):
        still = int((values == 0).sum())
        axes.stairs(np.histogram(values[values != 0], edges)[0], edges, fill=True, color="tab:blue")
        axes.bar(0, still, width=edges[1], align="edge", color="tab:red", label=f"{still} do not move")
        axes.set(xlabel="distortion", title=name, yscale="symlog")
        axes.legend(fontsize=8)
    panels[0].set_ylabel("features")
    figure.suptitle(title)
    save_figure(figure, path)


def draw_distortion_maps(series: Mapping[str, np.ndarray], title: str, path: str | os.PathLike) -> None:
    """Draws the distortion of each position of each channel on one scale, one block a network; dead channels are blank.

    Args:
        series: Network -> `(height, width, channels)`, as of `Vulnerability.per_feature`.
        title: Which layer.
        path: The file, whole or not at all.

    Raises:
        ValueError: if matplotlib is missing, or the layer has no positions.
    """
    if any(values.ndim != 3 for values in series.values()):
        raise ValueError("Maps are drawn of channels with positions, (height, width, channels). Received: units")
    channels = max(values.shape[-1] for values in series.values())
    rows = -(-channels // _COLUMNS)
    highest = max(float(values.max()) for values in series.values())
    figure = new_figure(0.8 * _COLUMNS * len(series) + 0.8, 0.8 * rows + 0.6)
    blocks = np.atleast_1d(figure.subfigures(1, len(series)))
    drawn: list[Any] = []
    image = None
    for block, (name, values) in zip(blocks, series.items(), strict=True):
        block.suptitle(name, fontsize=9)
        panels = np.atleast_1d(block.subplots(rows, _COLUMNS)).ravel()
        for number, axes in enumerate(panels):
            axes.set_axis_off()
            if number < values.shape[-1] and values[..., number].any():
                image = axes.imshow(values[..., number], vmin=0, vmax=highest, cmap="viridis")
        drawn.extend(panels)
    if image is not None:
        blocks[-1].colorbar(image, ax=list(drawn[-len(panels) :]), label=f"distortion, {title}")
    save_figure(figure, path)


def draw_layer_distortions(series: Mapping[str, Mapping[str, float]], path: str | os.PathLike) -> None:
    """Draws the vulnerability of each layer, bars side by side for networks of the same layers.

    Args:
        series: Network -> layer -> mean distortion, as of `Vulnerability.per_layer`.
        path: The file, whole or not at all.

    Raises:
        ValueError: if matplotlib is missing.
    """
    names = list(dict.fromkeys(layer for values in series.values() for layer in values))
    figure = new_figure(max(5.0, 0.5 * len(names) + 2), 3.6)
    axes = figure.add_subplot()
    width = 0.8 / len(series)
    for number, (name, values) in enumerate(series.items()):
        places = [names.index(layer) + (number - (len(series) - 1) / 2) * width for layer in values]
        axes.bar(places, list(values.values()), width=width, label=name)
    axes.set_xticks(range(len(names)), names, rotation=90 if len(names) > 6 else 0, fontsize=8)
    axes.set_ylabel("vulnerability")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize=8)
    save_figure(figure, path)


def draw_channels(series: Mapping[str, Mapping[str, np.ndarray]], layer: str, path: str | os.PathLike) -> None:
    """Draws the vulnerability of each channel of a layer, sorted, one line a network.

    Args:
        series: Network -> layer -> distortions `(channels,)`, as of `Vulnerability.per_channel`.
        layer: The layer.
        path: The file, whole or not at all.

    Raises:
        ValueError: if matplotlib is missing.
    """
    figure = new_figure(5.5, 3.5)
    axes = figure.add_subplot()
    for name, values in series.items():
        axes.step(range(len(values[layer])), np.sort(values[layer])[::-1], where="mid", label=name)
    axes.set(xlabel=f"channels of {layer}, most vulnerable first", ylabel="vulnerability", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    save_figure(figure, path)


def draw_loss_surfaces(series: Mapping[str, LossSurface], path: str | os.PathLike, image: int | None = None) -> None:
    """Draws loss surfaces in three dimensions on one scale, one panel a network.

    Args:
        series: Network -> surface.
        path: The file, whole or not at all.
        image: Number of the image; `None` for the mean over the images.

    Raises:
        ValueError: if matplotlib is missing.
    """
    heights = {name: found.losses.mean(0) if image is None else found.losses[image] for name, found in series.items()}
    lowest, highest = (float(f([f(values) for values in heights.values()])) for f in (np.min, np.max))
    figure = new_figure(3.6 * len(series), 3.4)
    for number, (name, found) in enumerate(series.items(), start=1):
        axes = figure.add_subplot(1, len(series), number, projection="3d")
        along, across = np.meshgrid(found.offsets, found.offsets, indexing="ij")
        axes.plot_surface(along, across, heights[name], cmap="viridis", vmin=lowest, vmax=highest)
        axes.set_zlim(lowest, max(highest, lowest + 1e-6))
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("along the gradient", fontsize=7)
        axes.set_ylabel("at random", fontsize=7)
        axes.tick_params(labelsize=6)
    save_figure(figure, path)


def draw_features(clean: np.ndarray, attacked: np.ndarray, title: str, path: str | os.PathLike, most: int = 12) -> None:
    """Draws the channels that an image excites most, of the image and of its attacked version.

    Args:
        clean: `(height, width, channels)`, features of the image.
        attacked: As `clean`, of the attacked image.
        title: Which layer and network.
        path: The file, whole or not at all.
        most: Largest number of channels.

    Raises:
        ValueError: if matplotlib is missing.
    """
    channels = np.argsort(clean.mean((0, 1)), kind="stable")[::-1][:most]
    highest = max(float(clean.max()), float(attacked.max()), 1e-12)
    figure = new_figure(0.9 * len(channels) + 0.8, 2.3)
    panels = figure.subplots(2, len(channels), squeeze=False)
    for row, (name, values) in enumerate((("clean", clean), ("attacked", attacked))):
        for axes, channel in zip(panels[row], channels, strict=True):
            axes.imshow(values[..., channel], vmin=0, vmax=highest, cmap="gray")
            axes.set(xticks=[], yticks=[])
            if row == 0:
                axes.set_title(str(channel), fontsize=7)
        panels[row, 0].set_ylabel(name, fontsize=8)
    figure.suptitle(title, fontsize=9)
    save_figure(figure, path)


def draw_strength(series: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]], path: str | os.PathLike) -> None:
    """Draws accuracy under attacks of growing strength, one panel a kind of strength, one line a network.

    Accuracy that does not fall with more steps, or stays above 0 in a large ball, points at masked gradients.

    Args:
        series: Network -> kind, such as `"steps"` -> pairs of strength and accuracy in [0, 1].
        path: The file, whole or not at all.

    Raises:
        ValueError: if matplotlib is missing.
    """
    kinds = list(next(iter(series.values())))
    figure = new_figure(3.8 * len(kinds), 3.2)
    panels = np.atleast_1d(figure.subplots(1, len(kinds), sharey=True))
    for axes, kind in zip(panels, kinds, strict=True):
        for name, found in series.items():
            axes.plot([x for x, _ in found[kind]], [100 * y for _, y in found[kind]], ".-", label=name)
        axes.set(xlabel=kind, ylim=(0, 100))
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("accuracy in %")
    panels[0].legend(fontsize=8)
    save_figure(figure, path)


def draw_gates(
    means: Mapping[str, np.ndarray],
    threshold: float,
    epochs: Mapping[str, Sequence[int]],
    path: str | os.PathLike,
) -> None:
    """Draws histograms of the mean gates of each layer, and how many units were open after each epoch.

    Args:
        means: Layer -> mean gates `(units,)`, in (0, 1).
        threshold: Gates whose mean is at most this are closed.
        epochs: Layer -> open units after each epoch; may be empty.
        path: The file, whole or not at all.

    Raises:
        ValueError: if matplotlib is missing.
    """
    lowest = np.log10(max(min(float(values.min()) for values in means.values()), 1e-12))
    edges = np.logspace(min(lowest, -4.0), 0, 41)
    columns = min(len(means), 4)
    lines = -(-len(means) // columns) + bool(epochs)
    figure = new_figure(2.6 * columns, 2.2 * lines)
    grid = figure.add_gridspec(lines, columns)
    for number, (name, values) in enumerate(means.items()):
        axes = figure.add_subplot(grid[divmod(number, columns)])
        axes.stairs(np.histogram(values, edges)[0], edges, fill=True)
        axes.axvline(threshold, color="tab:red", lw=1)
        axes.set(xscale="log", title=f"{name}: {(values > threshold).sum()} of {len(values)} open")
        axes.title.set_fontsize(8)
        axes.tick_params(labelsize=7)
    if epochs:
        axes = figure.add_subplot(grid[lines - 1, :])
        for name, counts in epochs.items():
            axes.plot(range(1, len(counts) + 1), [100 * each / len(means[name]) for each in counts], ".-", label=name)
        axes.set(xlabel="epoch", ylabel="open in %", ylim=(0, 105))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7, ncols=max(1, len(epochs) // 5))
    save_figure(figure, path)
