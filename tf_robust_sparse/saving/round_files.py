"""The directories of pruning rounds, and their arrays as files."""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tf_robust_sparse.data.readers import npz
from tf_robust_sparse.paths import user_path
from tf_robust_sparse.saving.atomic import replace_directory, replace_file

DONE = "DONE"


def round_directory(directory: Path, trial: int, number: int) -> Path:
    """Returns the directory of a round of a trial."""
    return user_path(directory) / f"trial_{trial:02d}" / f"prune_iter_{number:02d}"


def is_done(place: Path) -> bool:
    """Returns whether the round in a directory is finished."""
    return (place / DONE).is_file()


def finished_rounds(directory: Path, trial: int) -> int:
    """Returns how many rounds of a trial are finished, counted from the first one without a gap."""
    return next(number for number in itertools.count() if not is_done(round_directory(directory, trial, number)))


def mark_done(directory: Path, trials: Sequence[int], number: int) -> None:
    """Marks a round of trials that were trained together as finished, for all of them or none.

    Their names are written first, so that `complete` can continue after a kill. Otherwise some trials would have
    finished the round and others not; they would no longer be trained together, which changes results by rounding.
    """
    journal = user_path(directory) / f"finishing_{trials[0]:02d}-{trials[-1]:02d}.json"
    write_json(journal, {"trials": list(trials), "round": number})
    _mark(journal)


def complete(directory: Path) -> None:
    """Completes a call of `mark_done` that was killed."""
    for journal in sorted(user_path(directory).glob("finishing_*.json")):
        _mark(journal)


def _mark(journal: Path) -> None:
    try:
        found = json.loads(journal.read_text())
    except FileNotFoundError:  # another process has completed it
        return
    for trial in found["trials"]:
        place = round_directory(journal.parent, trial, found["round"])
        if not is_done(place):
            with replace_file(place / DONE) as path:
                path.write_text("")
    journal.unlink(missing_ok=True)


def label_of(left: int, entries: int) -> str:
    """Returns the percentage of remaining weights, as `100.0`, `51.3` or `08.7`."""
    return f"{100 * left / entries:04.1f}"


def read_arrays(directory: Path) -> dict[str, np.ndarray]:
    """Returns the arrays in a directory by the stems of their files.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if one is damaged.
    """
    paths = sorted(directory.glob("*.npy"))
    if not paths:
        raise FileNotFoundError(
            f"{directory} must hold the arrays of a round, *.npy. Received: a directory without arrays"
        )
    return {path.stem: npz.read_array(path) for path in paths}


def write_arrays(directory: Path, arrays: Mapping[str, np.ndarray], dtype: Any) -> None:
    """Writes each array to a file of its name; the directory is replaced as a whole."""
    with replace_directory(directory) as temporary:
        temporary.mkdir()
        for name, array in arrays.items():
            np.save(temporary / f"{name}.npy", np.asarray(array, dtype))


def write_json(path: Path, content: Any) -> None:
    """Writes JSON, with null for infinities and NaN, which JSON lacks."""
    with replace_file(path) as temporary:
        temporary.write_text(json.dumps(_finite(content), indent=1, allow_nan=False) + "\n")


def _finite(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    if isinstance(content, float | np.floating):
        return float(content) if math.isfinite(content) else None
    return content.item() if isinstance(content, np.generic) else content
