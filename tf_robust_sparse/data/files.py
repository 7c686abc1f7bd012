"""Reads whole files as bytes, with one kind of error for every kind of damage.

Compressed files are read to their end, where the checksum is, but not beyond a plausible size, because a small file can
claim, or unpack to, any size.
"""

import gzip
import lzma
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

MOST = 1 << 30  # bytes of an unpacked file; the largest known set has half of it
_MOST_RATIO = 64  # largest compression ratio beyond that; images compress to a tenth at best
_PART = 1 << 20


def read_bytes(path: Path, most: int = MOST) -> bytes:
    """Returns the content of a file, unpacked if its name ends in `.gz` or `.xz`.

    Args:
        path: The file.
        most: Largest plausible number of bytes.

    Raises:
        ValueError: if the file is no regular file, too long, or compressed and damaged or truncated.
    """
    check_regular(path)
    opened = {".gz": _open_gzip, ".xz": _open_xz}.get(path.suffix)
    if opened is None:
        if path.stat().st_size > most:
            raise damaged(path, f"a file of at most {most} bytes", f"{path.stat().st_size} bytes")
        return path.read_bytes()
    try:
        with opened(path) as stream:
            return bytes(read_parts(_Bounded(stream, most)))
    except Exception as error:  # gzip and lzma raise different exceptions
        raise _packed_badly(path, f"a complete {path.suffix} file", error) from error


def read_parts(stream: Any) -> bytearray:
    """Returns the rest of a stream, read in parts, because one read would allocate the largest size first."""
    content = bytearray()
    while part := stream.read(_PART):
        content += part
    return content


def read_tar(path: Path, names: Iterable[str], most: int = MOST) -> dict[str, bytes]:
    """Returns the members of a tar archive, packed by gzip or not, whose last path component is one of `names`.

    Args:
        path: The archive.
        names: Names of files.
        most: Largest plausible number of bytes of the unpacked archive.

    Raises:
        ValueError: if the archive is damaged, truncated or too long.
    """
    check_regular(path)
    names = set(names)
    found: dict[str, bytes] = {}
    try:
        with path.open("rb") as file:
            is_packed = file.read(2) == b"\x1f\x8b"
        with (_open_gzip if is_packed else _open)(path) as packed:
            stream: Any = _Bounded(packed, most)
            with tarfile.open(fileobj=stream, mode="r|", bufsize=_PART) as archive:
                for member in archive:
                    name = Path(member.name).name
                    if name not in names or not member.isreg():
                        continue
                    if member.issparse() or member.size > most:
                        raise ValueError(f"{name} is sparse or of {member.size} bytes")
                    content = archive.extractfile(member)
                    found[name] = content.read() if content is not None else b""
                    if len(found[name]) != member.size:
                        raise EOFError(f"{name} ends after {len(found[name])} of {member.size} bytes")
            while stream.read(_PART):  # reads on after the last member, because gzip's checksum is at the end
                pass
    except Exception as error:  # gzip, zlib and tarfile raise different exceptions
        raise _packed_badly(path, "a complete tar archive", error) from error
    return found


def check_regular(path: Path) -> None:
    """Checks that a path is a regular file, because reading a pipe would wait forever.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is a directory, a pipe or a device.
    """
    if not path.is_file():
        path.stat()  # raises FileNotFoundError if there is none
        raise ValueError(f"{path}: expected a file. Received: a directory, a pipe or a device")


def check_unpacked(archive: zipfile.ZipFile, path: Path) -> None:
    """Checks that the members of a zip archive unpack to a plausible size.

    Raises:
        ValueError: if they do not.
    """
    total = sum(member.file_size for member in archive.infolist())
    most = max(MOST, _MOST_RATIO * path.stat().st_size)
    if total > most:
        raise ValueError(f"members of {total} bytes unpacked, more than {most}")


def damaged(path: Path | str, expected: str, received: str) -> ValueError:
    """Returns the error for a file whose content does not match its name."""
    received = " ".join(received.split())  # zipfile quotes kilobytes of content
    return ValueError(f"{path}: expected {expected}; download it again. Received: {received:.400}")


def find_all(folder: Path, names: Iterable[str], suffixes: Iterable[str]) -> dict[str, Path] | None:
    """Finds a set of files that belong together, each with one of several suffixes.

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
            f"{folder}: expected all files of a set; put {', '.join(missing)} there, too. Received: {', '.join(held)}"
        )
    return found or None


class _Bounded:
    """Reads a stream up to a largest size."""

    def __init__(self, stream: IO[bytes], most: int) -> None:
        self._stream, self._most, self._taken = stream, most, 0

    def read(self, size: int) -> bytes:
        """Returns the next bytes."""
        part = self._stream.read(min(size, self._most - self._taken + 1))
        self._taken += len(part)
        if self._taken > self._most:
            raise ValueError(f"more than {self._most} bytes unpacked")
        return part


def _open(path: Path) -> Any:
    return path.open("rb")


def _open_gzip(path: Path) -> Any:
    return gzip.open(path, "rb")


def _open_xz(path: Path) -> Any:
    return lzma.open(path, "rb", format=lzma.FORMAT_XZ)  # the older format has no checksum


def _packed_badly(path: Path, expected: str, error: Exception) -> ValueError:
    return damaged(path, expected, f"{path.stat().st_size} bytes that end in: {error or type(error).__name__}")
