"""One writer at a time: a hidden file in a directory that says which process writes there.

The file is made with O_EXCL and holds the host, the process, when the process started and when it took the lock. That
of a process that is gone is taken over; that of another host cannot be judged from here and is left to the user.
"""

import contextlib
import datetime
import json
import os
import platform
import time
from pathlib import Path
from typing import Any, NamedTuple

from tf_robust_sparse.cli.command_line import BadFlag, cleanups

NAME = ".lock"
_BOOT = Path("/proc/sys/kernel/random/boot_id")


class _Held(NamedTuple):
    file: Path
    made: tuple[Path, ...]  # directories that did not exist before, the innermost first


_held: list[_Held] = []


def take(directory: Path, what: str) -> None:
    """Takes the lock of a directory, which is made if there is none, until the work of the script ends.

    Args:
        directory: Where this process is about to write. A lock that this process has already is kept.
        what: The flag and its value, for the message.

    Raises:
        BadFlag: if another process holds it; names the host, the process and the time.
        OSError: if the directory cannot be made or written to.
    """
    _take(directory / NAME, what)


def take_next_to(file: Path, what: str) -> None:
    """Takes the lock of one file, that lines are added to, say; as `take` does otherwise."""
    _take(file.with_name(f".{file.name}{NAME}"), what)


def _take(file: Path, what: str) -> None:
    file = file.absolute()
    if any(held.file == file for held in _held):
        return
    made = []
    for folder in [file.parent, *file.parent.parents]:
        if folder.exists():
            break
        made.append(folder)
    file.parent.mkdir(parents=True, exist_ok=True)
    while not _create(file):
        owner = _read(file)
        if owner is None:  # given back a moment ago
            continue
        if not _is_gone(owner):
            raise BadFlag(_refusal(file, owner, what))
        _remove_stale(file, owner)
    _held.append(_Held(file, tuple(made)))
    cleanups.callback(_release, _held[-1])


def _release(held: _Held) -> None:
    """Gives a lock back, and removes directories that were made for it and are still empty."""
    _held.remove(held)
    held.file.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not empty
        for folder in held.made:
            folder.rmdir()


def _create(file: Path) -> bool:
    try:
        descriptor = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    owner = {
        "host": platform.node(),
        "process": os.getpid(),
        "started": _started(os.getpid()),
        "time": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
    }
    try:
        with os.fdopen(descriptor, "w") as stream:
            json.dump(owner, stream)
    except OSError as error:
        file.unlink()
        raise OSError(error.errno, error.strerror, str(file)) from error
    return True


def _read(file: Path) -> dict[str, Any] | None:
    """Returns what a lock says, an empty dict if it is damaged, or `None` if it is gone."""
    for _ in range(10):
        try:
            found = json.loads(file.read_text())
            return found if isinstance(found, dict) else {}
        except FileNotFoundError:
            return None
        except ValueError:  # perhaps it is being written
            time.sleep(0.1)
    return {}


def _is_gone(owner: dict[str, Any]) -> bool:
    """Whether the process of a lock is known to have ended: none of its number runs here, or a later one does."""
    process = owner.get("process")
    if owner.get("host") != platform.node() or not isinstance(process, int):
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except OSError:  # it runs under another user
        pass
    return owner.get("started") != _started(process)


def _started(process: int) -> str | None:
    """Returns when a process started, as boot and clock ticks since then, or `None` where the system does not say."""
    try:
        # The second word, the name of the program, is in parentheses and may hold spaces.
        state, *words = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return None if state in "ZX" else f"{_BOOT.read_text().strip()} {words[18]}"  # a zombie has ended
    except (OSError, ValueError, IndexError):
        return None


def _remove_stale(file: Path, owner: dict[str, Any]) -> None:
    """Removes the lock of a process that is gone, and no other that took its place in the meantime."""
    aside = file.with_name(f"{file.name}-stale-{os.getpid()}")
    try:
        file.rename(aside)
    except FileNotFoundError:  # another process was faster
        return
    if _read(aside) != owner:
        with contextlib.suppress(FileExistsError):
            os.link(aside, file)
    aside.unlink()


def _refusal(file: Path, owner: dict[str, Any], what: str) -> str:
    if not owner:
        return f"{what} is in use: {file} is the lock of a process that does not say which; remove it if none runs"
    line = f"{what} is in use by process {owner.get('process')} on {owner.get('host')} since {owner.get('time')}; "
    if owner.get("host") == platform.node():
        return f"{line}wait for it, end it, or write elsewhere"
    return f"{line}if that process is gone, remove {file}"
