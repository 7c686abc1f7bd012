"""How a path that a user gives becomes one of the file system."""

import os
from pathlib import Path


def user_path(path: str | os.PathLike) -> Path:
    """Returns `path` with a leading `~` replaced by the home directory, as a shell would have it."""
    return Path(path).expanduser()
