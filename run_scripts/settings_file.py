"""YAML files of settings, as the published codes keep them."""

from pathlib import Path
from typing import Any

import yaml

from run_scripts.command_line import BadInput


class _Loader(yaml.SafeLoader):
    """Reads plain data, and the tuples that published files hold as lists; runs nothing."""


_Loader.add_constructor("tag:yaml.org,2002:python/tuple", _Loader.construct_sequence)


def read(path: Path, flag: str) -> dict[str, Any]:
    """Returns the settings of a YAML file by their names, with underscores for hyphens.

    Args:
        path: The file.
        flag: Name of the flag that gave it, for messages.

    Raises:
        BadInput: if the file cannot be read or holds no settings.
    """
    what = f"--{flag}={path}: expected a YAML file of settings"
    try:
        found = yaml.load(path.read_text(), Loader=_Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadInput(f"{what}. Received: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise BadInput(f"{what}. Received: {type(found).__name__}")
    return {name.replace("-", "_"): value for name, value in found.items()}
