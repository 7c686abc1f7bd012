"""What is wrong with a figure: text that is cut off, lies over other text or over bars, panels of different sizes.

`keep_figures(monkeypatch)` keeps every figure that is drawn while a test runs, so that its elements can be counted too.
"""

import itertools

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patches import Rectangle
from matplotlib.transforms import Bbox

from tf_robust_sparse.evaluation import figure_style

TOUCH = 0.5  # pixels that two boxes may share: they are rounded outward


def keep_figures(monkeypatch):
    """Returns a list that every figure drawn from now on is added to, with its files, instead of being written."""
    kept = []
    monkeypatch.setattr(figure_style, "save_figure", lambda figure, paths: kept.append((figure, list(paths))))
    return kept


def faults(figure):
    """Returns sentences, one for each fault that a reader would see; none for a good figure."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())
    page, texts = figure.bbox, _texts(figure)
    found = [
        f"cut off: {text!r}"
        for text, box in texts
        if box.x0 < page.x0 - TOUCH or box.y0 < page.y0 - TOUCH or box.x1 > page.x1 + TOUCH or box.y1 > page.y1 + TOUCH
    ]
    for (text, box), (other, near) in itertools.combinations(texts, 2):
        if _overlap(box, near):
            found.append(f"text over text: {text!r} and {other!r}")
    for axes in _all_axes(figure):
        bars = [patch for patch in axes.patches if isinstance(patch, Rectangle) and patch.get_visible()]
        boxes = [Bbox.intersection(bar.get_window_extent(), axes.bbox) for bar in bars]
        boxes = [box for box in boxes if box is not None]
        covered = {text for text, box in texts if any(_overlap(box, bar) for bar in boxes)}
        found += [f"text over a bar: {text!r}" for text in sorted(covered)]
        if axes.get_legend() is not None:
            legend = axes.get_legend().get_window_extent()
            found += ["legend over a bar"] * any(_overlap(legend, bar) for bar in boxes)
        if (axes.lines or axes.patches or axes.collections) and not hasattr(axes, "_colorbar"):
            found += [f"no numbers at ticks: panel {axes.get_title()!r}"] * (axes.axison and not _has_numbers(axes))
            found += [
                f"no {name} label: panel {axes.get_title()!r}"
                for name in ("x", "y", "z")
                if axes.axison and hasattr(axes, f"get_{name}label") and not _labeled(axes, name)
            ]
    rim = (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1])
    found += ["cut off: something is drawn on the rim of the figure"] * any((side < 255).any() for side in rim)
    return found + _sizes(figure)


def _texts(figure):
    """Returns what is written, with the boxes around it in pixels."""
    texts = [text for part in (figure, *_subfigures(figure)) for text in _beside_axes(part)]
    for axes in _all_axes(figure):
        texts += [*axes.texts, axes.title]
        if axes.get_legend() is not None:
            texts += axes.get_legend().get_texts()
        for axis in _axes_of(axes) if axes.axison else ():
            texts += [axis.label, axis.offsetText, *_tick_labels(axis)]
    return [(text.get_text(), text.get_window_extent()) for text in texts if text.get_visible() and text.get_text()]


def _beside_axes(part):
    title = [part._suptitle] if part._suptitle else []
    return [*title, *(text for legend in part.legends for text in legend.get_texts())]


def _tick_labels(axis):
    """Returns the labels that are drawn: ticks outside the limits of their axis exist too."""
    scale = axis.get_transform().transform
    low, high = sorted(scale(np.asarray(axis.get_view_interval())))
    room = 1e-6 * (high - low)
    for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
        if low - room <= scale(np.asarray([tick.get_loc()]))[0] <= high + room:
            yield from (tick.label1, tick.label2)


def _subfigures(figure):
    return [each for part in figure.subfigs for each in (part, *_subfigures(part))]


def _all_axes(figure):
    return [axes for part in (figure, *_subfigures(figure)) for axes in part._localaxes]


def _axes_of(axes):
    return [getattr(axes, f"{name}axis") for name in "xyz" if hasattr(axes, f"{name}axis")]


def _has_numbers(axes):
    """Whether the lowest panel of a column has labels at its horizontal ticks, if it has ticks."""
    spec = axes.get_subplotspec()
    neighbors = [other.get_subplotspec() for other in _all_axes(axes.figure)]
    same = [each for each in neighbors if each and each.get_gridspec() is spec.get_gridspec()]
    is_lowest = all(each.rowspan.start <= spec.rowspan.start for each in same if each.colspan == spec.colspan)
    labels = [label for label in _tick_labels(axes.xaxis) if label.get_visible() and label.get_text()]
    return bool(labels) or not is_lowest or not len(axes.get_xticks())


def _labeled(axes, name):
    """Whether an axis has a label, its own or that of the panel at the end of its row or column."""
    if getattr(axes, f"get_{name}label")():
        return True
    spec = axes.get_subplotspec()
    for other in _all_axes(axes.figure):
        end = other.get_subplotspec()
        if name == "z" or end is None or end.get_gridspec() is not spec.get_gridspec():
            continue
        of_line = end.rowspan == spec.rowspan if name == "y" else end.colspan == spec.colspan
        if of_line and getattr(other, f"get_{name}label")():
            return True
    return False


def _overlap(box, other):
    width = min(box.x1, other.x1) - max(box.x0, other.x0)
    height = min(box.y1, other.y1) - max(box.y0, other.y0)
    return width > TOUCH and height > TOUCH


def _sizes(figure):
    """Returns a fault where panels of one grid differ in size."""
    grids = {}
    for axes in _all_axes(figure):
        spec = axes.get_subplotspec()
        if spec is not None and spec.num1 == spec.num2:
            grid = spec.get_gridspec()
            if grid.get_width_ratios() == [1] * grid.ncols and grid.get_height_ratios() == [1] * grid.nrows:
                grids.setdefault((id(grid.figure.canvas), grid.ncols), []).append(axes.get_window_extent())
    found = []
    for boxes in grids.values():
        for side in ("width", "height"):
            sizes = [getattr(box, side) for box in boxes]
            if max(sizes) > 1.02 * min(sizes):
                found.append(f"panels differ in {side}: {min(sizes):.0f} to {max(sizes):.0f} pixels")
    return found
