"""The common style of all figures: sizes, fonts, labels, and files.

Figures have the size that a paper prints them in, `COLUMN` or `PAGE` inches wide, with letters of 7 and 8 points.
Accuracies are in percent. matplotlib is optional and imported only inside functions.
"""

import contextlib
import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tf_robust_sparse.evaluation.leaderboard import radius
from tf_robust_sparse.paths import user_path
from tf_robust_sparse.saving.atomic import replace_file

COLUMN, PAGE = 3.5, 7.2  # inches: one column, and the whole width of a page with two columns
SMALL = 7  # points: ticks, legends and labels inside axes; everything else has 8
PIXELS_PER_INCH = 200
NEEDS_MATPLOTLIB = "figures need matplotlib: python -m pip install 'tf_robust_sparse[report]', or matplotlib itself"
_STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "figure.titlesize": 8,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "legend.fontsize": SMALL,
    "legend.framealpha": 0.8,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "axes.grid": False,
    "grid.alpha": 0.3,
    "pdf.fonttype": 42,  # TrueType: publishers refuse the bitmap fonts of type 3
    "svg.hashsalt": "tf_robust_sparse",  # makes files reproducible
}
_WITHOUT_DATE: dict[str, dict[str, Any]] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}


def check_matplotlib() -> None:
    """Raises a `ValueError` with the way to install matplotlib, if it is missing."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError(f"{NEEDS_MATPLOTLIB}. Received: an environment without it")


@contextlib.contextmanager
def new_figure(path: str | os.PathLike | Sequence[Path], width: float, height: float) -> Iterator[Any]:
    """Yields an empty figure in the common style, and writes it when the block ends without an error.

    ```python
    with new_figure("curve.png", COLUMN, 2.4) as figure:
        figure.add_subplot().plot(steps, percent(accuracies))
    ```

    Args:
        path: A file, which is written together with a PDF of the same name; or a list of all files to write. The suffix
            is the format, PNG without a suffix.
        width: In inches, as `COLUMN` or `PAGE`.
        height: In inches.

    Raises:
        ValueError: if matplotlib is missing.
        OSError: if a file cannot be written.
    """
    check_matplotlib()
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        save_figure(figure, figure_files(path) if isinstance(path, str | os.PathLike) else path)


def figure_files(path: str | os.PathLike) -> list[Path]:
    """Returns the files of a figure at `path`: the path itself, and a PDF of the same name."""
    path = user_path(path)
    return list(dict.fromkeys((path, path.with_suffix(".pdf"))))


def save_figure(figure: Any, paths: Sequence[Path]) -> None:
    """Writes a figure to files in the formats of their suffixes; a failure leaves no partial file."""
    for path in paths:
        form = path.suffix[1:] or "png"
        with replace_file(path) as temporary:
            figure.savefig(temporary, dpi=PIXELS_PER_INCH, format=form, metadata=_WITHOUT_DATE.get(form))
        figure.set_layout_engine("none")  # reuse the layout, which takes as long as drawing


def panels(figure: Any, number: int, columns: int, **options: Any) -> list[Any]:
    """Returns `number` axes of one size, in rows of up to `columns`; for `options` see `Figure.subplots`."""
    columns = min(number, columns)
    grid = figure.subplots(-(-number // columns), columns, squeeze=False, **options).ravel()
    for above, axes in zip(grid[number - columns :], grid[number:], strict=False):
        above.tick_params(labelbottom=True)  # with a shared axis, the lowest panel of each column has the labels
        axes.remove()
    return list(grid[:number])


def percent(fractions: Any) -> np.ndarray:
    """Returns fractions in percent."""
    return 100 * np.asarray(fractions, np.float64)


def accuracy_label(of: str = "", attack: str = "") -> str:
    """Returns the label of an axis of accuracies, such as `test accuracy (%)`, and on a second line the attack.

    Args:
        of: Which accuracy, such as `"test"`, `"clean"` or `"certified"`.
        attack: Name and radius of the attack, as `attack_name` returns them.
    """
    return f"{of} accuracy (%)".strip() + f"\nunder {attack}" * bool(attack)


def attack_name(attack: Mapping[str, Any]) -> str:
    """Returns the name of an attack in figures, such as `PGD-20, Linf, ε = 8/255`.

    Args:
        attack: What `describe()` of a gradient attack returns: `attack`, `norm`, `epsilon` and `num_steps`.
    """
    norm = {"linf": "Linf", "l2": "L2"}.get(attack["norm"], attack["norm"])
    name = attack["attack"].removeprefix(norm).removeprefix("Best")  # older files call PGD with keep_best so
    steps = f"-{attack['num_steps']}" if attack["num_steps"] > 1 else ""
    return f"{name}{steps}, {norm}, ε = {radius(norm, attack['epsilon'])}"


def whole_ticks(axis: Any, most: int = 8) -> None:
    """Puts the ticks of an axis, such as `axes.xaxis`, only at whole numbers, for epochs, rounds and steps."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(most, integer=True))


def log_scale(axes: Any, name: str) -> None:
    """Makes the `"x"` or `"y"` axis logarithmic, with ticks such as 0.1, 1, 2, 5 and 10; powers of ten below 0.001."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set(**{f"{name}scale": "log"})
    axis = axes.xaxis if name == "x" else axes.yaxis
    low, high = sorted(axis.get_view_interval())
    subs = (1.0, 2.0, 5.0) if high < 200 * low else (1.0,)  # over many decades, labels at 2 and 5 would overlap
    axis.set_major_locator(LogLocator(subs=subs))
    if low >= 1e-3:
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def log_counts(axes: Any) -> None:
    """Makes the vertical axis of counts logarithmic above 1 and linear below, so that it shows 0."""
    axes.set_yscale("symlog", linthresh=1)
    high = max(axes.get_ylim()[1], 1.0)
    decades = int(np.log10(high)) + 1
    axes.set_yticks(ticks := [0, *(10**power for power in range(0, decades, -(-decades // 4)))])
    axes.set_yticklabels([f"{tick:,}" for tick in ticks])
    axes.set_ylim(0, high)


def legend_below(figure: Any, grid: Sequence[Any]) -> None:
    """Puts one legend for all panels of `grid` below them; equal names appear once."""
    entries = {label: handle for axes in grid for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    if entries:
        inches = figure.bbox.width / figure.dpi
        widest = 0.5 + 0.06 * max(len(label) for label in entries)  # a line, gaps, and letters of 7 points
        columns = min(len(entries), max(1, int(inches / widest)))
        figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=columns)
