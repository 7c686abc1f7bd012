"""What every entry point does around its work: parse flags, turn bad input into one line, and end with a clear code."""

import fractions
import os
import sys
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from absl import app, flags, logging

FLAGS = flags.FLAGS

flags.DEFINE_bool("traceback", False, "Show where an error arose, beside the line that explains it.")


class BadFlag(ValueError):
    """A flag, or a combination of flags, that cannot be served."""


class _Fraction(flags.ArgumentParser):
    """Parses `0.1`, `1e-3` or `8/255` within bounds."""

    syntactic_help = "a number or a fraction such as 8/255"

    def __init__(self, lower: float, upper: float, excluded: float | None) -> None:
        self.lower, self.upper, self.excluded = lower, upper, excluded

    def parse(self, argument: Any) -> float:
        """Returns the number as a float."""
        text = str(argument).strip()
        try:
            value = float(fractions.Fraction(text)) if "/" in text else float(text)
        except (ValueError, ZeroDivisionError):
            raise ValueError(f"expected {self.syntactic_help}") from None
        if not self.lower <= value <= self.upper or value == self.excluded:
            left = "(" if self.excluded == self.lower else "["
            right = ")" if self.excluded == self.upper else "]"
            raise ValueError(f"expected a number in {left}{self.lower:g}, {self.upper:g}{right}")
        return value

    def flag_type(self) -> str:
        """Returns the name of the type for `--help`."""
        return "number"


def define_number(
    name: str,
    default: float | None,
    help_text: str,
    lower: float = 0.0,
    upper: float = float("inf"),
    excluded: float | None = None,
) -> None:
    """Defines a flag that takes numbers and fractions in `[lower, upper]` without the value `excluded`."""
    flags.DEFINE(_Fraction(lower, upper, excluded), name, default, help_text, serializer=_NumberSerializer())


class _NumberSerializer(flags.ArgumentSerializer):
    def serialize(self, value: float) -> str:
        return repr(value)


def define_aliases(aliases: dict[str, str]) -> None:
    """Makes old names work: alias -> name."""
    for alias, name in aliases.items():
        flags.DEFINE_alias(alias, name)


def run(main: Callable[[], None]) -> None:
    """Parses the flags, calls `main` and ends the process.

    Exit codes: 0 done, 1 bad input, missing or damaged files, or training that came to nothing, 2 bad flags, 130
    interrupted. Bad input becomes one line on standard error; `--traceback` shows the rest.
    """
    app.run(lambda argv: _guarded(main), flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
    try:
        rest = FLAGS(_with_underscores(argv))
    except flags.Error as error:
        _fail(str(error), 2)
    if rest[1:]:
        _fail(
            f"unexpected arguments: {' '.join(rest[1:])}; flags begin with -- and take their value after = or a space",
            2,
        )
    return rest


def _with_underscores(argv: list[str]) -> list[str]:
    """Accepts `--exp-mode` for `--exp_mode`."""
    words = []
    for word in argv:
        name, equals, value = word.partition("=")
        if name.startswith("--") and len(name) > 2:
            name = "--" + name[2:].replace("-", "_")
        words.append(name + equals + value)
    return words


def _guarded(main: Callable[[], None]) -> None:
    logging.set_verbosity(logging.WARNING)  # saving and exporting are chatty
    try:
        main()
    except BadFlag as error:
        _fail(str(error), 2)
    except (ValueError, OSError, FloatingPointError) as error:
        if FLAGS.traceback:
            raise
        _fail(str(error) or type(error).__name__, 1)
    except KeyboardInterrupt:
        _fail("interrupted; nothing before the last finished epoch is lost, run again with --resume to go on", 130)


def _fail(message: str, code: int) -> None:
    line = " ".join(message.split())
    print(f"error: {line}", file=sys.stderr, flush=True)
    sys.exit(code)
