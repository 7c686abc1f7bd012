"""A figure of losses and accuracies by epoch."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from tf_robust_sparse.evaluation.figure_style import (
    PAGE,
    accuracy_label,
    attack_name,
    legend_below,
    new_figure,
    panels,
    percent,
    whole_ticks,
)

# Prefix of logged names -> images, and their color.
_IMAGES = {"": ("training", "tab:blue"), "val_": ("held-out", "tab:orange"), "test_": ("test", "tab:green")}


def draw_learning_curve(
    history: Sequence[Mapping[str, float]],
    path: str | os.PathLike,
    attack: Mapping[str, Any] | None = None,
    trained_on_attacked: bool = False,
) -> None:
    """Draws losses, accuracies, and accuracies under attack by epoch, for training, held-out and test images.

    Args:
        history: A row for each epoch, as in `history.json`: `epoch`, and, if measured, `loss`, `accuracy` and
            `robust_accuracy`, with the prefix `val_` for held-out images and `test_` for test images.
        path: Where to write; a PDF of the same name is written too.
        attack: `describe()` of the attack of `robust_accuracy`; the figure names it.
        trained_on_attacked: Whether `accuracy` of training images is measured under the attack of training.

    Raises:
        ValueError: if there is no epoch, or matplotlib is missing.
    """
    if not history:
        raise ValueError("A learning curve needs at least one epoch. Received: an empty history")
    if trained_on_attacked:
        history = [{"robust_accuracy" if name == "accuracy" else name: row[name] for name in row} for row in history]
    under = attack_name(attack) if attack else "attack"
    labels = {"loss": "loss", "accuracy": accuracy_label(), "robust_accuracy": accuracy_label("", under)}
    measured = [name for name in labels if any(f"{start}{name}" in row for start in _IMAGES for row in history)]
    with new_figure(path, PAGE, 2.4) as figure:
        grid = panels(figure, len(measured), 3)
        for axes, name in zip(grid, measured, strict=True):
            for start, (images, color) in _IMAGES.items():
                rows = [row for row in history if f"{start}{name}" in row]
                values = [row[f"{start}{name}"] for row in rows]
                if rows:
                    marker = "o" if len(rows) == 1 else None
                    shown = values if name == "loss" else percent(values)
                    axes.plot([row["epoch"] for row in rows], shown, color=color, marker=marker, label=images)
            axes.set(xlabel="epoch", ylabel=labels[name])
            whole_ticks(axes.xaxis)
            axes.grid(True)
        legend_below(figure, grid)
