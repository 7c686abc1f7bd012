"""Families of flagfiles: published runs that differ in a few values, from the table `flags/recipes.toml`."""

import functools
import itertools
import string
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

_PACKAGE = Path(__file__).resolve().parents[1]
_FOLDERS = (_PACKAGE / "flagfiles", _PACKAGE.parent / "flags")  # in a wheel, and in a clone
SUFFIX = ".flags"
_TABLE = "recipes.toml"


class Recipe(NamedTuple):
    """One published run.

    Attributes:
        about: What it is, in a sentence.
        command: The subcommand of `trs`.
        lines: Its flags, those of base files by their names.
    """

    about: str
    command: str
    lines: tuple[str, ...]

    def text(self, name: str) -> str:
        """Returns it as a flagfile called `name`."""
        run = f"# Run: trs {self.command} --flagfile={name}{SUFFIX} --data_dir=DIR"
        return "\n".join([f"# {self.about}", run, *self.lines])


@functools.cache
def folder() -> Path:
    """Returns where the flagfiles of this installation are."""
    return next(found for found in _FOLDERS if (found / _TABLE).is_file())


@functools.cache
def recipes() -> Mapping[str, Recipe]:
    """Returns all recipes of the table by their names, such as `hydra_svhn_vgg16_adv_0.1`."""
    families = tomllib.loads((folder() / _TABLE).read_text())["family"]
    return dict(itertools.chain.from_iterable(map(_runs, families)))


def lines_of(path: Path) -> Sequence[str] | None:
    """Returns the lines of the recipe that a path stands for, as if it were a file there; `None` if there is none."""
    if path.suffix != SUFFIX or not path.is_relative_to(folder()):
        return None
    found = recipes().get(path.relative_to(folder()).as_posix().removesuffix(SUFFIX))
    return None if found is None else found.lines


def show(names: Sequence[str]) -> str:
    """Returns the recipes of these names as flagfiles, or a list of all.

    Raises:
        KeyError: if there is none of a name.
    """
    if names:
        return "\n\n".join(recipes()[name].text(name) for name in names)
    width = max(map(len, recipes()))
    return "\n".join(f"{name:{width}}  {recipe.about}" for name, recipe in recipes().items())


def _runs(family: dict[str, Any]) -> Iterator[tuple[str, Recipe]]:
    """Yields the runs of a family, by their names."""
    axes = {axis: _values(values) for axis, values in family["axes"].items()}
    for chosen in itertools.product(*axes.values()):
        words = dict(zip(axes, chosen, strict=True))
        name = family["name"].format(**words)
        if not any(name == only.format(**words) for only in family.get("only", [family["name"]])):
            continue
        lines = list(family["lines"])
        for axis, value in zip(axes, chosen, strict=True):
            own = axes[axis][value]
            lines += own.get("lines", [])
            words |= {key: word for key, word in own.items() if key != "lines"}
        lines += family.get("more", {}).get(name, [])
        form = functools.partial(string.Formatter().vformat, args=(), kwargs=words)
        yield name, Recipe(form(family["about"]), family["command"], tuple(map(form, lines)))


def _values(values: Any) -> dict[str, dict[str, Any]]:
    """Returns the values of an axis, each with its lines and words."""
    if isinstance(values, list):
        return {value: {} for value in values}
    return {value: {"lines": own} if isinstance(own, list) else own for value, own in values.items()}
