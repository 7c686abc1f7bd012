"""Callbacks: stop on NaN, record every epoch, write checkpoints."""

import csv
import json
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from tf_robust_sparse import saving
from tf_robust_sparse.layers import cached_kernels
from tf_robust_sparse.paths import user_path
from tf_robust_sparse.saving.atomic import replace_file
from tf_robust_sparse.saving.checkpoint import read_metadata
from tf_robust_sparse.sparsity import Sparsifier, statistics


class StopOnNaN(keras.callbacks.Callback):
    """Ends training as soon as the loss is not finite, before a checkpoint is overwritten.

    Raises:
        FloatingPointError: naming the epoch, the batch and what to try.
    """

    def on_train_batch_end(self, batch, logs=None):
        """Checks the running loss."""
        loss = (logs or {}).get("loss", 0.0)
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"The training loss became {loss} in epoch {self._epoch + 1}, batch {batch + 1}. Try a smaller "
                "learning rate, a smaller beta or weight decay, and check that images are in [0, 1]. The last "
                "checkpoint is intact: --resume continues from it with other flags."
            )

    def on_epoch_begin(self, epoch, logs=None):
        """Remembers the epoch."""
        self._epoch = epoch


class ConnectivityLogger(keras.callbacks.Callback):
    """Adds connectivity to the logs of each epoch and keeps the statistics of every kernel.

    Put it before the callbacks that record.
    """

    def __init__(self, network: keras.Model, sparsifier: Sparsifier | None) -> None:
        super().__init__()
        self._network = network
        self._sparsifier = sparsifier
        self.latest: dict[str, Any] = {}

    def on_epoch_end(self, epoch, logs=None):
        """Counts the connections."""
        self.latest = statistics.summary(self._network)
        logs["connectivity"] = self.latest["connectivity"]
        logs["nonzero"] = self.latest["nonzero"]
        if self._sparsifier is not None:
            turnover = self._sparsifier.turnover()
            for name, per_layer in turnover.items():
                logs[name] = sum(per_layer.values())
            self.latest |= turnover


class Checkpoints(keras.callbacks.Callback):
    """Writes the state of training after every epoch, and copies of the best ones.

    Files in `directory`: `last.weights.h5`, from which training resumes bit by bit; a file for each entry of `best`;
        and
    `history.csv`, `history.json` and `connections.jsonl`. The last three are rewritten from the state each time, so
    that a resumed run has no duplicate lines.

    Args:
        directory: Where to write; created if missing.
        best: File stem -> name of a logged quantity; the state with its highest value is kept.
        config: Plain dict stored with the state.
        connections: The callback that counts connections, or `None`.
        sparsifier: Sparsifier whose `check` runs before anything is written, or `None`.
        writes: Whether this process writes; only one of several workers does.
        every: Also keep the state after each multiple of this number of epochs, as `epoch_<n>.weights.h5`; `None` for
            never.
    """

    def __init__(
        self,
        directory: Path,
        best: dict[str, str],
        config: dict[str, Any],
        connections: ConnectivityLogger | None = None,
        sparsifier: Sparsifier | None = None,
        writes: bool = True,
        every: int | None = None,
    ) -> None:
        super().__init__()
        self._every = every
        self.directory = user_path(directory)
        self.best_names = best
        self.config = config
        self._connections = connections
        self._sparsifier = sparsifier
        self._writes = writes
        self.state: dict[str, Any] = {
            "epoch": 0,
            "history": [],
            "best": {},
            "connections": [],
            "seconds": 0.0,
            "training_seconds": 0.0,
        }

    def restore(self, model: keras.Model) -> int:
        """Loads `last.weights.h5` into `model` and returns the number of finished epochs.

        Raises:
            ValueError: if the file is damaged or belongs to another network or to a run with another `config`.
        """
        path = self.directory / "last.weights.h5"
        written = read_metadata(path)["config"]
        for name, value in self.config.items():
            if written.get(name, value) != value:  # earlier versions knew fewer settings
                raise ValueError(
                    f"The run in {self.directory} was begun with {name}={written[name]!r}, which --resume cannot "
                    f"change; pass the flags of its run.flags. Received: {name}={value!r}"
                )
        self.state = saving.load_checkpoint(path, model)["state"]
        if self._writes and self.state["epoch"]:
            self._write_history()  # the last epoch may be missing, because the state is written first
        return self.state["epoch"]

    def on_epoch_begin(self, epoch, logs=None):
        """Starts the clock."""
        self._begin = self._trained = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        """Remembers when the last training step ended; validation follows."""
        self._trained = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        """Writes the best states first, then the last one, so that a kill in between repeats this epoch."""
        self.state["seconds"] += time.perf_counter() - self._begin
        self.state["training_seconds"] += self._trained - self._begin
        logs = {name: float(value) for name, value in (logs or {}).items()}
        self.state["epoch"] = epoch + 1
        self.state["history"].append({"epoch": epoch + 1, **logs})
        if self._connections is not None:
            self.state["connections"].append({"epoch": epoch + 1, **self._connections.latest})
        if self._sparsifier is not None:
            self._sparsifier.check(self.model.network)
        improved = []
        eligible = self._sparsifier is None or self._sparsifier.within_budget()
        for stem, name in self.best_names.items():
            value = logs.get(name)
            if eligible and value is not None and value > self.state["best"].get(stem, {"value": -math.inf})["value"]:
                self.state["best"][stem] = {"epoch": epoch + 1, "monitor": name, "value": value}
                improved.append(stem)
        if self._every is not None and (epoch + 1) % self._every == 0:
            improved.append(f"epoch_{epoch + 1}")
        for stem in [*improved, "last"]:
            self.write(stem)
        if self._writes:
            self._write_history()

    def write(self, stem: str) -> None:
        """Writes the current state to `<stem>.weights.h5`, if this process is the one that writes."""
        if self._writes:
            self.directory.mkdir(parents=True, exist_ok=True)
        metadata = {"state": self.state, "config": self.config}
        saving.save_checkpoint(self.directory / f"{stem}.weights.h5", self.model, metadata, self._writes)

    def _write_history(self) -> None:
        history = self.state["history"]
        with replace_file(self.directory / "history.json") as path:
            path.write_text(json.dumps(history, indent=1) + "\n")
        with replace_file(self.directory / "connections.jsonl") as path:
            path.write_text("".join(json.dumps(line) + "\n" for line in self.state["connections"]))
        with replace_file(self.directory / "history.csv") as path, path.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(dict.fromkeys(name for row in history for name in row)))
            writer.writeheader()
            writer.writerows(history)


class ReferenceSelection(keras.callbacks.Callback):
    """Selects like the published code: by clean accuracy on the test images after the first update of each epoch.

    Use it only to compare with published numbers, because it selects on the test images.

    Args:
        checkpoints: The callback whose `reference.weights.h5` is written when the accuracy rises.
        images: `tf.data.Dataset` of (x, y) batches.
    """

    def __init__(self, checkpoints: Checkpoints, images: tf.data.Dataset) -> None:
        super().__init__()
        self._checkpoints = checkpoints
        self._images = images
        self._to_measure = False

    def on_train_begin(self, logs=None):
        """Compiles the measurement, once for all epochs."""
        self._count_correct = correct_counter(self.model.network)

    def on_epoch_begin(self, epoch, logs=None):
        """Remembers the epoch."""
        self._epoch = epoch
        self._to_measure = True

    def on_train_batch_end(self, batch, logs=None):
        """Measures after the first update."""
        if not self._to_measure:
            return
        self._to_measure = False
        accuracy = clean_accuracy(self._count_correct, self._images)
        best = self._checkpoints.state["best"]
        if accuracy > best.get("reference", {"value": -math.inf})["value"]:
            best["reference"] = {"epoch": self._epoch + 1, "monitor": "test_accuracy", "value": accuracy}
            self._checkpoints.write("reference")


class TestMeasures(keras.callbacks.Callback):
    """Adds the results of `RobustModel.evaluate` on test images to the logs of each epoch, as `test_loss` and so on.

    Put it before the callbacks that record. Nothing is selected by these numbers.

    Args:
        images: `tf.data.Dataset` of (x, y) batches.
    """

    __test__ = False  # pytest would take the class for a test

    def __init__(self, images: tf.data.Dataset) -> None:
        super().__init__()
        self._images = images

    def on_epoch_end(self, epoch, logs=None):
        """Evaluates the test images."""
        found = self.model.evaluate(self._images, verbose=0, return_dict=True)
        logs.update({f"test_{name}": value for name, value in found.items()})


def correct_counter(network: keras.Model) -> Callable[[Any, Any], tf.Tensor]:
    """Returns a compiled function from a batch (x, y) to the number of images that `network` classifies correctly."""

    @tf.function(reduce_retracing=True, autograph=False)
    def count_correct(x, y):
        with cached_kernels(network):
            return tf.math.count_nonzero(tf.argmax(network(x, training=False), -1) == tf.cast(y, tf.int64))

    return count_correct


def clean_accuracy(count_correct: Callable[[Any, Any], tf.Tensor], images: Iterable[tuple[Any, Any]]) -> float:
    """Returns the fraction of `images`, batches of (x, y), that are classified correctly."""
    right, total = 0, 0
    for x, y in images:
        right += int(count_correct(x, y))
        total += len(y)
    return right / total
