"""The state of the images while an ensemble of attacks runs, and its file."""

import datetime
import hashlib
import io
import json
import time
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tf_robust_sparse.attacks.staged_attack import StagedAttack
from tf_robust_sparse.evaluation import safety
from tf_robust_sparse.saving.atomic import replace_file

SECONDS_BETWEEN_SAVES = 60.0
# Tolerance between clean logits of one network, relative to the largest; above rounding of float16 and TensorFloat-32.
LOGIT_TOLERANCE = 1e-3
ROUNDING = 1e-4  # by which float32 sums over the pixels may exceed the radius, in pixels of [0, 1]


class EnsembleRun:
    """One evaluation: its images, which of them are robust so far, and the cost of each attack.

    Args:
        model: The network under attack.
        attacks: The ensemble, in order.
        x: `(images, height, width, channels)`, float32, in [0, 1].
        y: `(images,)`, int64.
        logits: Logits of the clean images, `(images, classes)`.
        size: Number of images in a batch.
        flags: Reasons to doubt the numbers, so far.
        randomized: Whether the logits differ from call to call.

    Attributes:
        robust: Which images no attack has broken, `(images,)` bool.
        broken_by: Number of the attack, -1 for robust images, -2 for images misclassified from the start.
        x_adv, y_adv: Adversarial examples and their predictions; the clean image if there is none.
        done: Names of the finished attacks.
        next_row: First image that the current attack has not processed.
        after: Attack -> robust accuracy after it.
        seconds, iterations, gradient_passes: Attack -> its cost.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        attacks: Sequence[StagedAttack],
        x: np.ndarray,
        y: np.ndarray,
        logits: np.ndarray,
        size: int,
        flags: list[safety.Flag],
        randomized: bool,
    ) -> None:
        self.x, self.y, self.logits, self.size, self.flags = x, y, logits, size, flags
        self.randomized = randomized
        self._model, self._attacks = model, attacks
        self.classes = logits.shape[-1]
        self.y_adv = logits.argmax(-1)
        self.robust = self.y_adv == y
        self.clean_accuracy = float(self.robust.mean())
        self.x_adv = x.copy()
        self.broken_by = np.where(self.robust, -1, -2)
        self.done: list[str] = []
        self.next_row = 0
        self.after: dict[str, float] = {}
        self.seconds: dict[str, float] = {}
        self.iterations: dict[str, int] = {}
        self.gradient_passes: dict[str, int] = {}
        self._saved = time.monotonic()

    def count(self, rows: np.ndarray, number: int, x_adv: np.ndarray, y_adv: np.ndarray) -> None:
        """Marks images as broken by attack `number`."""
        self.robust[rows] = False
        self.broken_by[rows] = number
        self.x_adv[rows], self.y_adv[rows] = x_adv, y_adv

    def save_is_due(self) -> bool:
        """Returns whether the last save is at least a minute ago."""
        return time.monotonic() - self._saved >= SECONDS_BETWEEN_SAVES

    def save(self, path: Path, version: str) -> None:
        """Writes the adversarial examples, and then the state that refers to them.

        Args:
            path: The JSON file; the examples and the clean logits go into an .npz file of the same name.
            version: Version of the ensemble.
        """
        fallen = np.flatnonzero(self.broken_by >= 0)
        of_fallen = {"x_adv": self.x_adv[fallen], "y_adv": self.y_adv[fallen], "by": self.broken_by[fallen]}
        archive = io.BytesIO()
        np.savez(archive, rows=fallen, logits=self.logits, **of_fallen)
        # The view ends here, also when the disk is full: one that an exception keeps alive outlives its buffer.
        with replace_file(examples_path(path)) as temporary, archive.getbuffer() as view, temporary.open("wb") as file:
            file.write(view)
        state = {
            "attacks_to_run": [attack.name for attack in self._attacks],
            "run_attacks": self.done,
            "robust_flags": self.robust.tolist(),
            "clean_accuracy": self.clean_accuracy,
            "last_saved": datetime.datetime.now(datetime.UTC).isoformat(),
            "path": str(path),
            "next_row": self.next_row,
            "after": self.after,
            "seconds": self.seconds,
            "iterations": self.iterations,
            "gradient_passes": self.gradient_passes,
            "flags": [list(flag) for flag in self.flags],
            "fingerprint": self._fingerprint(version),
        }
        with replace_file(path) as temporary:
            temporary.write_text(json.dumps({**state, "digest": _digest(state, archive.getvalue())}, indent=1))
        self._saved = time.monotonic()

    def restore(self, path: Path, version: str, logits_of: Callable[[np.ndarray], np.ndarray]) -> None:
        """Restores the state of an interrupted run.

        Args:
            path: The JSON file.
            version: Version of the ensemble.
            logits_of: Function from images to the logits of the network under attack.

        Raises:
            ValueError: if the files are damaged or changed, or belong to another run.
        """
        try:
            state = json.loads(path.read_text())
            content = examples_path(path).read_bytes()
            if state.pop("digest") != _digest(state, content):
                raise ValueError("the content does not match its digest")
            with np.load(io.BytesIO(content), allow_pickle=False) as examples:
                rows, x_adv, y_adv, by = (examples[name] for name in ("rows", "x_adv", "y_adv", "by"))
                logits = np.asarray(examples["logits"], np.float32)
            numbers = {name: dict(state[name]) for name in ("after", "seconds", "iterations", "gradient_passes")}
            next_row, flags = int(state["next_row"]), [safety.Flag(*flag) for flag in state["flags"]]
            robust, done = np.array(state["robust_flags"], bool), list(state["run_attacks"])
            found = state["fingerprint"]
        except (
            *(OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, RecursionError, MemoryError),
            *(zipfile.BadZipFile, zlib.error, NotImplementedError),
        ) as error:
            reason = str(error) if "digest" in str(error) else type(error).__name__
            raise ValueError(
                f"The state file {path} or its {examples_path(path).name} is of an older version or damaged; "
                f"delete both to start again: {reason}"
            ) from error
        tolerance = self._difference_allowed(logits, logits_of)
        if found != self._fingerprint(version) or len(robust) != len(self.x) or tolerance is None:
            raise ValueError(
                f"The state file {path} belongs to another network, data set or list of attacks; delete it, "
                "or pass another state_path."
            )
        self._check_examples(path, robust, rows, x_adv, by, logits_of, tolerance)
        for number in np.unique(by):
            of_attack = by == number
            self.count(rows[of_attack], int(number), x_adv[of_attack], y_adv[of_attack])
        self.done, self.next_row = done, next_row
        self.after, self.seconds = numbers["after"], numbers["seconds"]
        self.iterations, self.gradient_passes = numbers["iterations"], numbers["gradient_passes"]
        names = {flag.name for flag in self.flags}
        self.flags += [flag for flag in flags if flag.name not in names]

    def _check_examples(
        self,
        path: Path,
        robust: np.ndarray,
        rows: np.ndarray,
        x_adv: np.ndarray,
        by: np.ndarray,
        logits_of: Callable[[np.ndarray], np.ndarray],
        tolerance: float,
    ) -> None:
        """Checks that restored examples are complete, in the ball and in [0, 1], and misclassified.

        Args:
            path: The JSON file, for the message.
            robust: Which images no attack has broken, `(images,)` bool.
            rows, x_adv, by: The broken images, their examples and the numbers of the attacks, `(broken, ...)`.
            logits_of: Function from images to the logits of the network under attack.
            tolerance: Largest difference between logits of one network.

        Raises:
            ValueError: if a check fails.
        """
        complaint = f"The state file {path} holds %s; delete it and {examples_path(path).name} to start again."
        if not np.array_equal(rows, np.flatnonzero(self.robust & ~robust)) or (robust & ~self.robust).any():
            raise ValueError(complaint % "robust_flags that its adversarial examples do not explain")
        if not len(rows):
            return
        if len(by) != len(rows) or by.min() < 0 or by.max() >= len(self._attacks):
            raise ValueError(complaint % "examples of an attack that does not exist")
        radii = np.array([attack.epsilon for attack in self._attacks])[by]
        away = perturbations(x_adv, self.x[rows], self._attacks[0].norm)
        in_range = np.isfinite(x_adv).all() and x_adv.min() >= 0 and x_adv.max() <= 1
        if not in_range or not (away <= radii * (1 + ROUNDING) + ROUNDING * (self._attacks[0].norm != "Linf")).all():
            raise ValueError(complaint % "adversarial examples outside the ball or outside [0, 1]")
        if self.randomized:
            return
        logits, place = logits_of(x_adv), np.arange(len(rows))
        own = logits[place, self.y[rows]].copy()
        logits[place, self.y[rows]] = -np.inf
        if not (own - logits.max(axis=-1) <= tolerance).all():
            raise ValueError(complaint % "adversarial examples that the network classifies correctly")

    def _difference_allowed(self, logits: np.ndarray, logits_of: Callable[[np.ndarray], np.ndarray]) -> float | None:
        """Returns the tolerance for logits, or `None` if clean logits differ by more than rounding or randomness."""
        if logits.shape != self.logits.shape or not np.isfinite(logits).all():
            return None
        difference = np.abs(logits - self.logits).max()
        rounding = LOGIT_TOLERANCE * float(np.abs(self.logits).max())
        if difference <= rounding:
            return rounding
        drawn = 2 * float(np.abs(logits_of(self.x) - self.logits).max())
        return drawn if difference <= drawn else None

    def _fingerprint(self, version: str) -> str:
        """Returns a hash of data, weights and settings; without Keras weights, clean logits identify the model."""
        digest = hashlib.sha256()
        for array in (self.x, self.y):
            digest.update(np.ascontiguousarray(array).tobytes())
        if isinstance(self._model, keras.Model):
            for weight in self._model.get_weights():
                digest.update(np.ascontiguousarray(weight).tobytes())
        settings = [attack.describe() for attack in self._attacks]
        digest.update(json.dumps([version, settings], sort_keys=True).encode())
        return digest.hexdigest()


def perturbations(x_adv: np.ndarray, x: np.ndarray, norm: str) -> np.ndarray:
    """Returns the distance of each of `(images, ...)` examples from its image in a norm, `(images,)`."""
    delta = np.abs(x_adv - x).reshape(len(x), -1)
    return {"Linf": delta.max(1), "L2": np.sqrt((delta**2).sum(1)), "L1": delta.sum(1)}[norm]


def _digest(state: dict[str, Any], examples: bytes) -> str:
    """Returns a hash of the whole content of both files."""
    digest = hashlib.sha256(json.dumps(state, sort_keys=True).encode())
    digest.update(examples)
    return digest.hexdigest()


def examples_path(path: Path) -> Path:
    """Returns the path of the examples and logits that belong to a state file."""
    return path.with_name(path.name + ".npz")
