"""Atomic replacement: a file or directory holds either the old or the new content, whatever happens meanwhile.

The new content is written in the same directory under a temporary name, `.<name>.tmp-<process id>`, flushed to the disk
and renamed. After a full disk or an error, the old content and no temporary file are left. A killed process leaves the
old content and a temporary file, which the next save of the same path removes.
"""

import contextlib
import ctypes
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from tf_robust_sparse.paths import user_path

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@contextlib.contextmanager
def replace_file(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path in the directory of `path`; on success the file written there becomes `path`.

    Args:
        path: The file to replace or create; its directory is created. The temporary path has the same suffix.

    Raises:
        IsADirectoryError: if `path` is a directory.
    """
    path = user_path(path)
    if path.is_dir():
        raise IsADirectoryError(f"A file is to be written, but there is a directory of that name: {path}")
    with _temporary(path) as temporary:
        yield temporary
        _flush(temporary)
        _put(temporary, path)


@contextlib.contextmanager
def replace_directory(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path in the directory of `path`; on success the directory made there becomes `path`.

    Args:
        path: The directory to replace or create. An existing one stays complete until the new one replaces it.

    Raises:
        NotADirectoryError: if `path` is a file.
    """
    path = user_path(path)
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"A directory is to be written, but there is a file of that name: {path}")
    with _temporary(path) as temporary:
        yield temporary
        for folder, _, files in os.walk(temporary):
            for name in files:
                _flush(Path(folder, name))
            _flush(Path(folder))
        _put(temporary, path)


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(path)
    temporary = path.with_name(_temporary_name(path.name, path.suffix))
    _remove(temporary)
    try:
        yield temporary
    except OSError as error:
        # The error of a full disk names no file or the temporary one; name the file that the user knows.
        is_temporary = str(error.filename or temporary).startswith(str(temporary))
        if error.errno is None or not is_temporary:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        _remove(temporary)


def check_replaceable(path: str | os.PathLike) -> None:
    """Checks that `replace_file` or `replace_directory` can write `path`, by creating a file in its directory.

    Raises:
        OSError: naming `path`, if its directory cannot be created or written to, or the name is too long.
    """
    path = user_path(path)
    place = path.absolute()
    try:
        nearest = next(folder for folder in place.parents if folder.exists())
        probe = nearest / f".{place.relative_to(nearest).parts[0]}.probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _temporary_name(name: str, suffix: str) -> str:
    return f".{name}.tmp-{os.getpid()}{suffix}"


def _put(new: Path, path: Path) -> None:
    """Renames a finished file or directory to its final name."""
    if new.is_dir() and path.exists():
        _swap(new, path)
    else:
        new.replace(path)
    _flush(path.parent)


def _swap(new: Path, old: Path) -> None:
    """Exchanges the names of two directories."""
    if _exchange(new, old):
        return
    # Systems that cannot do it in one step take two renames; between them the old directory has a temporary name.
    aside = new.with_name(f"{new.name}-old")
    old.rename(aside)
    try:
        new.rename(old)
    except OSError:
        aside.rename(old)
        raise
    aside.rename(new)


def _exchange(first: Path, second: Path) -> bool:
    """Exchanges two names in one step; returns False if the operating or file system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    return renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0


def _flush(path: Path) -> None:
    """Waits until the content of a file, or the names in a directory, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_stale(path: Path) -> None:
    """Removes temporary files that killed processes left in earlier saves of `path`."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.tmp-(\d+)(\D.*)?")
    for each in path.parent.iterdir():
        match = pattern.fullmatch(each.name)
        if match is None or _is_running(int(match[1])):
            continue
        if each.name.endswith("-old") and not path.exists():
            each.rename(path)  # the process was killed between the two renames
        else:
            _remove(each)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # the process runs, under another user
        return True
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
