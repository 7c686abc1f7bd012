"""Figures of an evaluation; matplotlib is needed, and imported by these functions only."""

import importlib.util
import os
from collections.abc import Sequence
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
    figure = _figure(5.5, 3.5)
    axes = figure.add_subplot()
    accuracies = [100 * point["robust_accuracy"] for point in points]
    axes.plot([point["epsilon"] for point in points], accuracies, marker="o")
    axes.set(xlabel="epsilon, pixels of [0, 1]", ylabel="accuracy in %", title=title, ylim=(0, 100))
    axes.grid(alpha=0.3)
    _save(figure, path)


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
    figure = _figure(4.5, 1.6 * rows)
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
    _save(figure, path)


def _figure(width: float, height: float) -> Any:
    """An empty figure of a size in inches, known to no window and to no other figure."""
    check_matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Any, path: str | os.PathLike) -> None:
    with replace_file(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
