"""Settings as dataclasses: a field is a flag with its help, its bounds and its rules, and everything follows from it.

    @dataclasses.dataclass
    class Attack(Settings):
        title = "Training attack"

        norm: str = setting("linf", "Norm of the attack.", choices=("linf", "l2"))
        epsilon: float = setting(8 / 255, "Radius in pixels of [0, 1].", identity=True)

`Attack.define()` makes flags of the fields, `Attack.read()` returns an instance with the values of the command line,
and `Attack(epsilon=0.1)` is one without any flag. The type of a field says what a flag takes: `float` a number or a
fraction, `int`, `bool`, `str`, one of `choices`, or `list[float]` and `list[str]`, separated by commas; `| None` where
there may be no value.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Self

from absl import flags

from tf_robust_sparse.cli import command_line
from tf_robust_sparse.cli.command_line import BadFlag
from tf_robust_sparse.cli.number_flags import Number, Numbers, Serializer

FLAGS = flags.FLAGS


class OnlyFor(NamedTuple):
    """To which runs a setting means something.

    Attributes:
        owners: These runs in words, `"--trainer=adv or smooth"`.
        holds: Returns whether this run is one, from the flags.
        refuse: Whether others refuse the flag; otherwise they print a note.
    """

    owners: str
    holds: Callable[[Any], bool]
    refuse: bool = False


def only_with(flag: str, *values: str, refuse: bool = False) -> OnlyFor:
    """Returns the rule of a setting that belongs to some values of another flag."""
    return OnlyFor(f"--{flag}={' or '.join(values)}", lambda flags: flags[flag].value in values, refuse)


class Rules(NamedTuple):
    """What `setting` keeps of a field."""

    help: str
    lower: float
    upper: float
    excluded: float | None
    choices: Sequence[str] | None
    aliases: tuple[str, ...]
    short_name: str | None
    bare: str | None
    identity: bool
    recorded: bool
    only_for: OnlyFor | None


def setting(
    default: Any,
    help: str,
    *,
    lower: float = 0.0,
    upper: float = math.inf,
    excluded: float | None = None,
    choices: Iterable[str] | None = None,
    aliases: Sequence[str] = (),
    short_name: str | None = None,
    bare: str | None = None,
    identity: bool = False,
    recorded: bool = True,
    only_for: OnlyFor | None = None,
) -> Any:
    """Returns a field of a `Settings` dataclass.

    Args:
        default: Its value where nothing else is said.
        help: A sentence for `--help`.
        lower: Least number.
        upper: Largest number.
        excluded: A bound that is itself not allowed.
        choices: All values of a word, or of each word of a list.
        aliases: Other names of the flag.
        short_name: One letter for it.
        bare: The choice that the flag means where it stands without a value.
        identity: Whether another value makes it another run, so that --resume refuses it.
        recorded: Whether `run.flags` holds it.
        only_for: To which runs it means something; `None` for all.
    """
    choices = None if choices is None else tuple(choices)
    rules = Rules(help, lower, upper, excluded, choices, tuple(aliases), short_name, bare, identity, recorded, only_for)
    metadata = {"rules": rules}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def like(group: type["Settings"], name: str, **changes: Any) -> Any:
    """Returns a field as `group` has it, with other rules or another `default`, for a subclass of the group."""
    field = group.__dataclass_fields__[name]
    default = changes.pop("default", field.default)
    return dataclasses.field(default=default, metadata={"rules": field.metadata["rules"]._replace(**changes)})


def ignored(section: str, meanings: Mapping[str, str]) -> type["Settings"]:
    """Returns a group of flags that published code has and that have no effect here.

    Args:
        section: Where `--help` shows them.
        meanings: Name -> what it says there.
    """
    fields: list[Any] = [
        (name, str | None, setting(None, f"{text}; without effect.", recorded=False)) for name, text in meanings.items()
    ]
    return dataclasses.make_dataclass("Ignored", fields, bases=(Settings,), namespace={"title": section})


_defined: dict[str, Rules] = {}  # name of a flag -> its rules, of the running command
_groups: dict[type["Settings"], None] = {}  # that the running command has, in order
_needed: dict[str, None] = {}  # flags that the running command cannot do without


@dataclasses.dataclass
class Settings:
    """Base of all groups of settings; `title` is the section of `--help` they are shown in."""

    title: ClassVar[str]

    @classmethod
    def define(
        cls, *, without: Sequence[str] = (), needed: Sequence[str] = (), aliases: bool = True, **defaults: Any
    ) -> None:
        """Defines the flags of the fields.

        Args:
            without: Fields that are no flags of this command; they keep their default.
            needed: Fields that must be given.
            aliases: Whether their other names are defined too.
            **defaults: Values in place of the fields' defaults.
        """
        hints = typing.get_type_hints(cls)
        _groups[cls] = None
        _needed.update(dict.fromkeys(needed))
        with command_line.section(cls.title):
            for field in dataclasses.fields(cls):
                if field.name in without:
                    continue
                rules = field.metadata["rules"]
                _define(field.name, hints[field.name], defaults.get(field.name, _default(field)), rules)
                _defined[field.name] = rules
                if aliases and rules.aliases:
                    command_line.define_aliases(dict.fromkeys(rules.aliases, field.name))
                if rules.bare is not None:
                    command_line.define_bare(field.name, rules.bare)

    @classmethod
    def read(cls) -> Self:
        """Returns the settings of the command line; a field that is no flag of the command has its default."""
        names = [field.name for field in dataclasses.fields(cls) if field.name in FLAGS]
        return cls(**{name: FLAGS[name].value for name in names})

    @classmethod
    def settle(cls) -> None:
        """Gives flags that were not given the values that others imply."""

    def check(self) -> None:
        """Checks how the settings go together.

        Raises:
            BadFlag: naming the flags that do not.
        """


def check() -> None:
    """Settles and checks all settings of the running command, before any work.

    Raises:
        BadFlag: naming the flag that has no meaning, or the flags that do not go together.
    """
    for name in _needed:
        if FLAGS[name].value is None:
            raise BadFlag(f"--{name} is missing. {_defined[name].help}")
    for group in _groups:
        group.settle()
    _check_meaning()
    for group in _groups:
        group.read().check()


def has(group: type[Settings]) -> bool:
    """Returns whether the running command has these settings as flags."""
    return group in _groups


def is_given(name: str) -> bool:
    """Returns whether a flag stands on the command line, whatever its value."""
    return bool(FLAGS[name].present)


def identity() -> list[str]:
    """Returns the names of the flags that make a run what it is: --resume refuses other values."""
    without_meaning = meaningless()
    return [name for name, rules in _defined.items() if rules.identity and name not in without_meaning]


def unrecorded() -> set[str]:
    """Returns the names of flags that say where and how to begin, and not what the run is."""
    return {name for name, rules in _defined.items() if not rules.recorded}


def meaningless() -> dict[str, OnlyFor]:
    """Returns the flags that mean nothing to this run, and to which they do."""
    found = {name: rules.only_for for name, rules in _defined.items() if rules.only_for is not None}
    return {name: only_for for name, only_for in found.items() if not only_for.holds(FLAGS)}


def _check_meaning() -> None:
    for name, only_for in meaningless().items():
        flag = FLAGS[name]
        is_given = flag.present or not flag.using_default_value  # by its name or an alias, or by a file of settings
        if not is_given or flag.value == flag.default:  # records of earlier versions hold defaults too
            continue
        if only_for.refuse:
            raise BadFlag(f"{_said(flag)} belongs to {only_for.owners}; leave it out")
        print(f"Note: {_said(flag)} has no effect here; it belongs to {only_for.owners}")


def forget() -> None:
    """Forgets the rules of a command, so that another one can define its own."""
    _defined.clear()
    _groups.clear()
    _needed.clear()


def _said(flag: flags.Flag) -> str:
    text = flag.serialize() if flag.value is not None else f"--{flag.name}"
    return text.replace(flag.name, command_line.as_said(flag.name), 1)


def _default(field: dataclasses.Field) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


class _Words(flags.ListParser):
    """Parses `fgsm,pgd`, some words of a few."""

    def __init__(self, choices: Sequence[str]) -> None:
        super().__init__()
        self.choices = choices

    def __str__(self) -> str:
        return f"Some of {', '.join(self.choices)}"

    def parse(self, argument: Any) -> list[str]:
        """Returns the words."""
        found = super().parse(argument)
        if not found or not set(found) <= set(self.choices):
            raise ValueError(f"expected {str(self).lower()}")
        return found


def _define(name: str, hint: Any, default: Any, rules: Rules) -> None:
    kind = _without_none(hint)
    given: Mapping[str, Any] = {"short_name": rules.short_name}
    if rules.choices is not None and kind == list[str]:
        parser = _Words(rules.choices)
        flags.DEFINE(parser, name, default, f"{rules.help} {parser}.", serializer=flags.CsvListSerializer(","))
    elif rules.choices is not None:
        flags.DEFINE_enum(name, default, list(rules.choices), rules.help, **given)
    elif kind is bool:
        flags.DEFINE_bool(name, default, rules.help, **given)
    elif kind is int:
        upper = None if rules.upper == math.inf else int(rules.upper)
        flags.DEFINE_integer(name, default, rules.help, int(rules.lower), upper, **given)
    elif kind in (float, list[float]):
        number = (Number if kind is float else Numbers)(rules.lower, rules.upper, rules.excluded)
        flags.DEFINE(number, name, default, rules.help, serializer=Serializer())
    elif kind is str:
        flags.DEFINE_string(name, default, rules.help, **given)
    elif kind == list[str]:
        flags.DEFINE_list(name, default, rules.help, **given)
    else:
        raise TypeError(f"{name}: no flag takes {hint}")


def _without_none(hint: Any) -> Any:
    if isinstance(hint, types.UnionType):
        (hint,) = (each for each in typing.get_args(hint) if each is not type(None))
    return hint
