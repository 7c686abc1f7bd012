"""Paths as users write them."""

import os
from pathlib import Path


def user_path(path: str | os.PathLike) -> Path:
    """Returns `path` with a leading `~` replaced by the home directory, as in a shell."""
    return Path(path).expanduser()
