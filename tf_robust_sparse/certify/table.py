"""A tab-separated table with a line per image that grows line by line and can be continued."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

Row = TypeVar("Row")


def fingerprint(model: Any, x: np.ndarray) -> str:
    """Returns a hash that identifies a network and its images: of the weights, if there are any, and the pixels."""
    found = hashlib.sha256(np.ascontiguousarray(x).tobytes())
    for variable in getattr(model, "weights", ()) or getattr(model, "variables", ()) or ():
        value = np.asarray(variable)
        found.update(f"{value.shape} {value.dtype}".encode() + np.ascontiguousarray(value).tobytes())
    return found.hexdigest()[:16]


def begin(
    path: Path, settings: dict[str, Any], columns: Sequence[str], parse: Callable[[list[str]], Row | None]
) -> dict[int, Row]:
    """Returns the rows, by image, of a table that was begun with the same settings; begins one if there is none.

    Args:
        path: The file.
        settings: Settings that the rows depend on, ready for JSON; the first line of the file.
        columns: Names of the columns, the second line. The first column is the index of the image.
        parse: Function from the words of a line to a row, or to `None` if the line is damaged.

    Raises:
        ValueError: if the file has other settings, is not such a table, or has a damaged line.
    """
    head = f"# {json.dumps(settings)}\n" + "\t".join(columns) + "\n"
    if path.exists() and not path.is_file():  # reading a pipe would wait forever
        raise ValueError(f"{path} is not a regular file; pass another file")
    text = path.read_text(errors="replace") if path.exists() else ""
    if head.startswith(text):  # no file yet, or a kill in the middle of the first lines
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(head)
        return {}
    if not text.startswith(head):
        first = text.partition("\n")[0]
        raise ValueError(
            f"{path} is of other settings, another network or other images, or it is not a table of certificates; pass "
            f"another file. Received: a file that begins with {first[:200]!r}"
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
