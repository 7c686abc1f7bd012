"""Reads command lines of one command inside another one, whose own flags stand aside meanwhile."""

import contextlib
from collections.abc import Iterator, Sequence
from types import ModuleType

from absl import flags

from tf_robust_sparse.cli import command_line, settings

FLAGS = flags.FLAGS
_TABLES: tuple[dict | set, ...] = (
    *(command_line._sections, command_line._aliases, command_line._bare, command_line._direct),
    *(settings._defined, settings._groups, settings._needed),
)


@contextlib.contextmanager
def flags_of(command: ModuleType) -> Iterator[None]:
    """Replaces the flags of the running command by those of another one inside the block."""
    own = {name: FLAGS[name] for name in command_line.names()}
    tables = [table.copy() for table in _TABLES]
    for name in own:
        delattr(FLAGS, name)
    others = set(FLAGS)
    _empty()
    try:
        command_line.define(command)
        yield
    finally:
        for name in set(FLAGS) - others:
            delattr(FLAGS, name)
        for flag in own.values():
            flags.DEFINE_flag(flag)
        _empty()
        for table, kept in zip(_TABLES, tables, strict=True):
            table.update(kept)


def parse(arguments: Sequence[str]) -> None:
    """Reads a command line of the command whose flags these are, as if it were the first.

    Raises:
        BadFlag: as the command itself refuses it.
    """
    for name in command_line.names():
        FLAGS[name].unparse()
    command_line.parse(["", *arguments])


def _empty() -> None:
    for table in _TABLES:
        table.clear()
