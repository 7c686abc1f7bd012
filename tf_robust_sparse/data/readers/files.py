"""Whole files as bytes, with one kind of error for every kind of damage."""

import gzip
import lzma
import tarfile
import zlib
from collections.abc import Iterable
from pathlib import Path

_DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError, tarfile.TarError)


def read_bytes(path: Path) -> bytes:
    """Returns the content of a file, unpacked if its name ends in `.gz` or `.xz`.

    Raises:
        ValueError: if the compressed file is damaged or cut short.
    """
    data = path.read_bytes()
    unpack = {".gz": gzip.decompress, ".xz": lzma.decompress}.get(path.suffix)
    if unpack is None:
        return data
    try:
        return unpack(data)
    except _DAMAGE as error:
        raise damaged(path, f"a complete {path.suffix} file", f"{len(data)} bytes that end in: {error}") from error


def read_tar(path: Path, names: Iterable[str]) -> dict[str, bytes]:
    """Returns the members of a tar archive whose last path component is one of `names`.

    Raises:
        ValueError: if the archive is damaged or cut short.
    """
    names = set(names)
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = Path(member.name).name
                stream = archive.extractfile(member) if member.isfile() and name in names else None
                if stream is not None:
                    found[name] = stream.read()
    except _DAMAGE as error:
        raise damaged(path, "a complete tar archive", f"{path.stat().st_size} bytes that end in: {error}") from error
    return found


def damaged(path: Path | str, expected: str, received: str) -> ValueError:
    """Returns the error for a file whose content is not what its name promises."""
    return ValueError(f"{path}: expected {expected}; download it again. Received: {received}")


def find_all(folder: Path, names: Iterable[str], suffixes: Iterable[str]) -> dict[str, Path] | None:
    """Looks for a set of files that belong together, each under one of several endings.

    Returns:
        The path for each name, or `None` if the folder holds none of them.

    Raises:
        FileNotFoundError: if the folder holds some of them but not all.
    """
    names, suffixes = list(names), list(suffixes)
    found = {}
    for name in names:
        for suffix in suffixes:
            path = folder / (name + suffix)
            if name not in found and path.is_file():
                found[name] = path
    if found and len(found) < len(names):
        missing = [name + suffixes[-1] for name in names if name not in found]
        held = [path.name for path in found.values()]
        raise FileNotFoundError(
            f"{folder}: expected all of a set of files; put {', '.join(missing)} there too. Received: {', '.join(held)}"
        )
    return found or None
