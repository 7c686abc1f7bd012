"""What is known of the images while an ensemble of attacks runs, and its file."""

import datetime
import json
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tf_robust_sparse.evaluation import safety
from tf_robust_sparse.saving import replace_file

SECONDS_BETWEEN_SAVES = 60.0
# Between clean logits of one network, of the largest: more than rounding, float16 and TensorFloat-32 included.
LOGIT_TOLERANCE = 1e-3


class EnsembleRun:
    """One evaluation: its images, which of them stand, and what each attack has cost.

    Args:
        x: `(images, height, width, channels)`, float32, in [0, 1].
        y: `(images,)`, int64.
        logits: Of the images as they are, `(images, classes)`.
        size: Images in a batch.
        flags: Reasons for doubt found so far.

    Attributes:
        robust: Which images no attack has broken, `(images,)` bool.
        broken_by: Number of the attack, -1 robust, -2 wrong from the start.
        x_adv, y_adv: Adversarial examples and what the network says of them; the image itself where there is none.
        done: Names of the attacks that are finished.
        next_row: First image that the present attack has not seen.
        after, seconds, iterations, gradient_passes: By the name of an attack.
    """

    def __init__(self, x: np.ndarray, y: np.ndarray, logits: np.ndarray, size: int, flags: list[safety.Flag]) -> None:
        self.x, self.y, self.logits, self.size, self.flags = x, y, logits, size, flags
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
        """Counts images as broken by attack `number`."""
        self.robust[rows] = False
        self.broken_by[rows] = number
        self.x_adv[rows], self.y_adv[rows] = x_adv, y_adv

    def save_is_due(self) -> bool:
        """Tells whether the last time is a minute ago."""
        return time.monotonic() - self._saved >= SECONDS_BETWEEN_SAVES

    def save(self, path: Path, fingerprint: str, attacks: list[str]) -> None:
        """Writes the state, the adversarial examples first: what the JSON file counts is in the other one.

        Args:
            path: The JSON file; the examples and the clean logits go into an .npz file beside it.
            fingerprint: Of data, weights and settings.
            attacks: Names of all attacks of the ensemble.
        """
        fallen = np.flatnonzero(self.broken_by >= 0)
        with replace_file(examples_path(path)) as temporary, temporary.open("wb") as file:
            of_fallen = {"x_adv": self.x_adv[fallen], "y_adv": self.y_adv[fallen], "by": self.broken_by[fallen]}
            np.savez(file, rows=fallen, logits=self.logits, **of_fallen)
        state = {
            "attacks_to_run": attacks,
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
            "fingerprint": fingerprint,
        }
        with replace_file(path) as temporary:
            temporary.write_text(json.dumps(state, indent=1))
        self._saved = time.monotonic()

    def restore(self, path: Path, fingerprint: str, ask_again: Callable[[], np.ndarray]) -> None:
        """Takes up the state of an interrupted run.

        Args:
            path: The JSON file.
            fingerprint: Of data, weights and settings.
            ask_again: Returns the logits of the images as they are anew; of a randomised network others each time.

        Raises:
            ValueError: if the files are damaged, or of another run.
        """
        try:
            state = json.loads(path.read_text())
            robust = np.array(state["robust_flags"], bool)
            found, done = state["fingerprint"], list(state["run_attacks"])
            with examples_path(path).open("rb") as file, np.load(file, allow_pickle=False) as examples:
                rows, x_adv, y_adv, by = (examples[name] for name in ("rows", "x_adv", "y_adv", "by"))
                logits = np.asarray(examples["logits"], np.float32)
            numbers = {name: dict(state[name]) for name in ("after", "seconds", "iterations", "gradient_passes")}
            next_row, flags = int(state["next_row"]), [safety.Flag(*flag) for flag in state["flags"]]
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(
                f"The state file {path} or {examples_path(path).name} beside it is of an older version or damaged; "
                f"delete both to start anew: {type(error).__name__}"
            ) from error
        if found != fingerprint or len(robust) != len(self.x) or not self._answered_by_this_network(logits, ask_again):
            raise ValueError(
                f"The state file {path} belongs to another network, data set or list of attacks; delete it, "
                "or pass another state_path."
            )
        for row, example, label, number in zip(rows, x_adv, y_adv, by, strict=True):
            if not robust[row]:
                self.count(np.array([row]), int(number), example[np.newaxis], np.array([label]))
        self.done, self.next_row = done, next_row
        self.after, self.seconds = numbers["after"], numbers["seconds"]
        self.iterations, self.gradient_passes = numbers["iterations"], numbers["gradient_passes"]
        names = {flag.name for flag in self.flags}
        self.flags += [flag for flag in flags if flag.name not in names]

    def _answered_by_this_network(self, logits: np.ndarray, ask_again: Callable[[], np.ndarray]) -> bool:
        """Tells whether clean logits differ from those of this run by no more than rounding or randomness does."""
        if logits.shape != self.logits.shape or not np.isfinite(logits).all():
            return False
        difference = np.abs(logits - self.logits).max()
        if difference <= LOGIT_TOLERANCE * np.abs(self.logits).max():
            return True
        return bool(difference <= 2 * np.abs(ask_again() - self.logits).max())


def examples_path(path: Path) -> Path:
    """Returns where the examples and logits lie that belong to a state file."""
    return path.with_name(path.name + ".npz")
