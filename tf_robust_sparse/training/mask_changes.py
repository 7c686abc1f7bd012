"""A record of the connections that changed when held-out accuracy fell and recovered."""

import csv
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tf_robust_sparse.layers import kernel_layers
from tf_robust_sparse.paths import user_path
from tf_robust_sparse.saving.atomic import replace_file


class MaskDistance(keras.callbacks.Callback):
    """Logs `mask_changes`, the number of entries by which the masks differ from those of the epoch before.

    Put it before the callbacks that record.
    """

    def on_train_begin(self, logs=None):
        """Remembers the masks, those of the last epoch in a run that goes on."""
        self._before = masks_of(self.model.network)

    def on_epoch_end(self, epoch, logs=None):
        """Counts the differences."""
        now = masks_of(self.model.network)
        logs["mask_changes"] = sum(int(np.sum(now[name] != self._before[name])) for name in now)
        self._before = now


class MaskChanges(keras.callbacks.Callback):
    """Writes which connections changed when held-out accuracy falls in one epoch and recovers in the next.

    The callback keeps masks and batch norm statistics of the last three epochs in memory; a resumed run starts with
    none. It writes if the accuracy of the middle epoch is lower than that of both others by more than `threshold`, and
    after the last epoch of `fit`. The files are in `directory/epochs_<first>_<last>`:

    - `layers.csv`: for each layer its entries, how many changed in each step and in total, and their share;
    - `entries.csv`: each changed entry, its place in the kernel and whether it was connected in each epoch;
    - `batch_norm.csv`: mean and variance of each channel in each epoch.

    Args:
        directory: Where to write.
        threshold: By how much the accuracy must fall and recover, in [0, 1].
        monitor: Name of the logged accuracy.

    Raises:
        ValueError: if `threshold` is out of its range.

    Reference: [Liu et al., 2022](https://arxiv.org/abs/2202.01341), the published code of binary sub-networks.
    """

    def __init__(self, directory: Path, threshold: float = 0.05, monitor: str = "val_robust_accuracy") -> None:
        super().__init__()
        if not 0 <= threshold <= 1:
            raise ValueError(f"`threshold` is a share in [0, 1]; pass 0.05. Received: threshold={threshold!r}")
        self.directory = user_path(directory)
        self.threshold = float(threshold)
        self.monitor = monitor
        self._recent: list[dict[str, Any]] = []

    def on_epoch_end(self, epoch, logs=None):
        """Keeps the epoch, and writes if the previous one was a dip."""
        value = (logs or {}).get(self.monitor, math.nan)  # without held-out images there is no dip
        statistics = {
            layer.name: {"mean": np.array(layer.moving_mean), "variance": np.array(layer.moving_variance)}
            for layer in self.model.network.layers
            if isinstance(layer, keras.layers.BatchNormalization)
        }
        now = {"epoch": epoch + 1, "value": value, "masks": masks_of(self.model.network), "statistics": statistics}
        self._recent = [*self._recent[-2:], now]
        values = [each["value"] for each in self._recent]
        is_last = epoch + 1 == (self.params or {}).get("epochs")
        if len(values) == 3 and (is_last or min(values[0], values[2]) - values[1] > self.threshold):
            self._write()

    def _write(self) -> None:
        epochs = [each["epoch"] for each in self._recent]
        folder = self.directory / f"epochs_{epochs[0]}_{epochs[2]}"
        folder.mkdir(parents=True, exist_ok=True)
        per_layer: list[list[Any]] = []
        entries: list[list[Any]] = []
        for name in self._recent[0]["masks"]:
            masks = np.stack([each["masks"][name] for each in self._recent])
            steps = masks[1:] != masks[:-1]
            moved = steps.any(0)
            counts = [int(step.sum()) for step in (*steps, moved)]
            per_layer.append([name, moved.size, *counts, counts[2] / moved.size])
            for place in np.argwhere(moved):
                entries.append([name, *_four(place), *masks[(slice(None), *place)].astype(int)])
        totals = [sum(row[column] for row in per_layer) for column in range(1, 5)]
        per_layer.append(["all", *totals, totals[3] / totals[0]])
        steps_named = [f"changed_in_{epoch}" for epoch in epochs[1:]]
        _write_rows(folder / "layers.csv", ["layer", "entries", *steps_named, "changed", "share"], per_layer)
        places = ["row", "column", "channel", "filter"]
        _write_rows(folder / "entries.csv", ["layer", *places, *(f"kept_in_{epoch}" for epoch in epochs)], entries)
        channels = [
            [name, kind, channel, *(float(each["statistics"][name][kind][channel]) for each in self._recent)]
            for name, kinds in self._recent[0]["statistics"].items()
            for kind, values in kinds.items()
            for channel in range(len(values))
        ]
        _write_rows(
            folder / "batch_norm.csv",
            ["layer", "statistic", "channel", *(f"epoch_{each}" for each in epochs)],
            channels,
        )


def masks_of(network: keras.Model) -> dict[str, np.ndarray]:
    """Returns which entries of each kernel are connected, bool, by the name of the layer."""
    return {layer.name: np.asarray(layer.effective_kernel) != 0 for layer in kernel_layers(network)}


def save_masks(network: keras.Model, path: Path) -> None:
    """Writes which entries of each kernel are connected: an .npz of bool arrays by the name of the layer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = masks_of(network)
    with replace_file(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, **found)


def _four(place: np.ndarray) -> list[int]:
    """Returns row, column, channel and filter of an entry; row and column of a dense kernel are 0."""
    return [0] * (4 - len(place)) + place.tolist()


def _write_rows(path: Path, header: list[str], rows: Iterable[list[Any]]) -> None:
    with replace_file(path) as temporary, temporary.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(header)
        writer.writerows(rows)
