"""YAML files of settings, as the published codes keep them."""

from pathlib import Path
from typing import Any

import yaml

from tf_robust_sparse.cli.command_line import BadInput


class _Loader(yaml.SafeLoader):
    """Reads plain data, and the tuples that published files hold as lists; runs nothing."""


_Loader.add_constructor("tag:yaml.org,2002:python/tuple", _Loader.construct_sequence)
_LONGEST = 1 << 20  # bytes
_DEEPEST = 10


def read(path: Path, flag: str) -> dict[str, Any]:
    """Returns the settings of a YAML file by their names, with underscores for hyphens.

    Aliases are refused: a few of them stand for more values than memory holds, and no published file has any.

    Args:
        path: The file.
        flag: Name of the flag that gave it, for messages.

    Raises:
        BadInput: if the file cannot be read or holds no settings.
    """
    what = f"--{flag}={path}: expected a YAML file of settings;"
    try:
        text = _text(path)
        found = yaml.load(text, Loader=_Loader)
    except Exception as error:  # a date such as 2020-99-99 is a ValueError, other values fail in other ways
        raise BadInput(f"{what} {' '.join(str(error).split()) or type(error).__name__}") from error
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise BadInput(f"{what} it holds a {type(found).__name__}")
    return {name.replace("-", "_"): value for name, value in found.items()}


def _text(path: Path) -> str:
    """Returns the text of a file, after a look at what it would build."""
    if (path.exists() and not path.is_file()) or path.stat().st_size > _LONGEST:
        raise ValueError(f"not a regular file of at most {_LONGEST} bytes")
    text, depth = path.read_text(), 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"an alias, *{event.anchor}; write its value out")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise ValueError(f"values nested more than {_DEEPEST} deep")
    return text
