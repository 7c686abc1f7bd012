"""A tab-separated table with a line per image that grows line by line and can be gone on with."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

Row = TypeVar("Row")


def fingerprint(model: Any, x: np.ndarray) -> str:
    """Returns what tells a network and its images from others: a hash of the weights, where it has any, and pixels."""
    found = hashlib.sha256(np.ascontiguousarray(x).tobytes())
    for variable in getattr(model, "weights", ()) or getattr(model, "variables", ()) or ():
        value = np.asarray(variable)
        found.update(f"{value.shape} {value.dtype}".encode() + np.ascontiguousarray(value).tobytes())
    return found.hexdigest()[:16]


def begin(
    path: Path, settings: dict[str, Any], columns: Sequence[str], parse: Callable[[list[str]], Row | None]
) -> dict[int, Row]:
    """Returns the rows of a table that was begun with the same settings, by image, or begins one.

    Args:
        path: The file.
        settings: What the rows depend on, ready for JSON; the first line of the file.
        columns: Names, of which the first is the index of the image; the second line.
        parse: From the words of a line to a row, or `None` if they are none.

    Raises:
        ValueError: if the file is of other settings, no such table, or a line of it is damaged.
    """
    head = f"# {json.dumps(settings)}\n" + "\t".join(columns) + "\n"
    if path.exists() and not path.is_file():  # reading a pipe would wait for ever
        raise ValueError(f"{path} is no regular file; pass another file")
    text = path.read_text(errors="replace") if path.exists() else ""
    if head.startswith(text):  # none yet, or a kill in the middle of the first lines
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(head)
        return {}
    if not text.startswith(head):
        first = text.partition("\n")[0]
        raise ValueError(
            f"{path} is of other settings, another network or other images, or no table of certificates; pass another "
            f"file. Received: one that begins with {first[:200]!r}"
        )
    lines = text[len(head) :].splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):  # a kill in the middle of a line
        lines.pop()
        with path.open("rb+") as file:  # cut, not written again: a kill here must not lose the other lines
            file.truncate(len((head + "".join(lines)).encode()))
    found: dict[int, Row] = {}
    for number, line in enumerate(lines, start=3):
        words = line.rstrip("\n").split("\t")
        row = parse(words) if len(words) == len(columns) and words[0].isdigit() else None
        if row is None:
            raise ValueError(f"{path}, line {number} is damaged: {line.strip()[:80]!r}; delete the line or the file")
        found[int(words[0])] = row
    return found


def append(path: Path, values: Sequence[Any]) -> None:
    """Writes one line.

    Raises:
        OSError: naming the file, if the disk is full.
    """
    try:
        with path.open("a") as file:
            file.write("\t".join(str(value) for value in values) + "\n")
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
