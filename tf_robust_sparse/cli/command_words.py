"""The words of a command line before absl reads them: flagfiles, and a path where none is meant."""

from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path

from tf_robust_sparse.cli import recipes

_WHAT = "expected a file of flags, one to a line"


def expanded(words: Sequence[str], naming: Path | None = None, opened: tuple[Path, ...] = ()) -> Iterator[str]:
    """Yields the words with those of the file in place of each `--flagfile=FILE` or `--flagfile FILE`.

    A file that another one names is looked for next to that one, then in the current directory, and at last among the
    flagfiles and recipes of the package. Lines that are empty or begin with # or // mean nothing.

    Args:
        words: Of the command line or of a file, without the name of the program.
        naming: The file they stand in, or `None` for the command line.
        opened: That file and those that led to it.

    Raises:
        ValueError: if a file cannot be read or leads to itself.
    """
    rest = iter(words)
    for word in rest:
        name, equals, value = word.partition("=")
        if name not in ("--flagfile", "-flagfile"):
            yield word
            continue
        text = value if equals else next(rest, "")
        path = _found(text, naming)
        if path in opened:
            raise ValueError(f"--flagfile={text}: {_WHAT}. Received: a file that includes itself, through {naming}")
        yield from expanded(_lines(text, path, naming), path, (*opened, path))


def _found(text: str, naming: Path | None) -> Path:
    path = Path(text).expanduser()
    inside = Path(*path.parts[1:]) if path.parts[:1] == ("flags",) else path  # a clone calls the folder flags
    places = [naming.parent / path] if naming is not None else []
    places += [path, recipes.folder() / inside]
    candidates = [place.resolve() for place in places] if text else []
    return next((each for each in candidates if each.is_file() or recipes.lines_of(each)), path.resolve())


def _lines(text: str, path: Path, naming: Path | None) -> Sequence[str]:
    recipe = None if path.is_file() else recipes.lines_of(path)
    if recipe is not None:
        return recipe
    where = (
        f"; {naming} names it, and it is neither next to that file nor in {Path.cwd()}" if naming is not None else ""
    )
    try:
        lines = [line.strip() for line in path.read_text().splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"--flagfile={text}: {_WHAT}. Received: a file that is not text, {error}") from error
    except OSError as error:
        raise ValueError(f"--flagfile={text}: {_WHAT}. Received: {error.strerror}{where}") from error
    return [line for line in lines if line and not line.startswith(("#", "//"))]


def with_bare_values(words: Sequence[str], bare: Mapping[str, tuple[Container[str], str]]) -> list[str]:
    """Gives flags their value where they stand without one, as switches elsewhere do.

    Args:
        words: Of the command line.
        bare: Names of flags -> the values that they take, and the one that they have without any.
    """
    found = []
    for word, after in zip(words, [*words[1:], ""], strict=True):
        values, usual = bare.get(word.lstrip("-"), ((), None)) if word.startswith("-") else ((), None)
        found.append(word if usual is None or after in values else f"{word}={usual}")
    return found


def path_of_resume(words: Sequence[str]) -> str | None:
    """Returns the path given to --resume, which is on or off here and takes one elsewhere, or `None`."""
    for word, after in zip(words, [*words[1:], "-"], strict=True):
        name, equals, value = word.partition("=")
        if name in ("--resume", "-resume"):
            path = value if equals else after
            if path and not path.startswith("-") and path.lower() not in ("true", "false", "t", "f", "1", "0"):
                return path
    return None
