"""What every entry point does around its work: parse flags, turn bad input into one line, and end with a clear code."""

import contextlib
import inspect
import shlex
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import tensorflow as tf
from absl import app, flags, logging

from tf_robust_sparse import startup
from tf_robust_sparse.cli import command_words
from tf_robust_sparse.cli.number_flags import Number

FLAGS = flags.FLAGS

HELP_WORDS = ("--help", "-help", "--helpshort", "-helpshort", "-h", "-?", "--helpfull", "-helpfull")
_FULL_HELP = HELP_WORDS[-2:]
_WIDTH = 110
_sections: dict[str, list[str]] = {}  # title -> names of its flags, in the order of their definition
_aliases: dict[str, str] = {}
_bare: dict[str, str] = {}  # name -> value of the flag where it stands without one
_direct: dict[str, str] = {}  # name of a flag on the command line itself -> the word that stands there
cleanups = contextlib.ExitStack()  # closed when the work of a script ends, however it ends


class BadFlag(ValueError):
    """A flag, or a combination of flags, that cannot be served."""


class BadInput(ValueError):
    """A file or directory that a flag names and that does not hold what it should."""


@contextlib.contextmanager
def section(title: str) -> Iterator[None]:
    """Collects the flags that are defined inside under `title`; a context manager or a decorator.

    The flags of a section are listed by `--help` and recorded in `run.flags`; others are not.
    """
    before = set(FLAGS)
    yield
    _sections.setdefault(title, []).extend(
        name for name in FLAGS if name not in before and name not in _aliases and FLAGS[name].name == name
    )


def names() -> list[str]:
    """Returns the names of the flags of all sections, without aliases."""
    return [name for found in _sections.values() for name in found]


def is_direct(name: str) -> bool:
    """Returns whether a flag stands on the command line itself, and not only in a flagfile."""
    return FLAGS[name].present and name in _direct


def as_said(name: str) -> str:
    """Returns a flag's name as the command line has it, which may be another name of the flag."""
    word = _direct.get(name, name)
    return word if word in _aliases else name


def name_of(alias: str) -> str:
    """Returns the name of the flag that an alias stands for; any other name as it is."""
    return _aliases.get(alias, alias)


@contextlib.contextmanager
def about(*flag_names: str) -> Iterator[None]:
    """Puts the flags and their values in front of the message of an error that arises inside.

    Raises:
        BadInput: in place of a `ValueError`, `OSError` or `MemoryError`.
    """
    try:
        yield
    except (BadFlag, BadInput):
        raise
    except (ValueError, OSError, MemoryError) as error:
        given = " ".join(f"--{name}={FLAGS[name].value}" for name in flag_names if FLAGS[name].value is not None)
        message = _out_of_memory(error) if isinstance(error, MemoryError) else str(error)
        raise BadInput(f"{given}: {message}" if given else message) from error


def define_aliases(aliases: dict[str, str]) -> None:
    """Makes old names work: alias -> name."""
    _aliases.update(aliases)
    for alias, name in aliases.items():
        flags.DEFINE_alias(alias, name)


def define_bare(name: str, value: str) -> None:
    """Lets a flag with choices stand without a value, and then have this one."""
    _bare[name] = value


def run(command: ModuleType) -> None:
    """Defines the flags of a command, parses them, does its work and ends the process.

    Exit codes: 0 done, 1 bad input, missing or damaged files, or training that came to nothing, 2 bad flags, 130
    interrupted. Bad input becomes one line on standard error; `--traceback` shows the rest.

    Args:
        command: A module of `commands`: its docstring is the help, `define` defines the flags, `main` is the work, and
            `IF_INTERRUPTED` is what to tell a user who pressed Ctrl-C.
    """
    define(command)
    asked = [word for word in sys.argv[1:] if word in HELP_WORDS]
    if asked:
        print(help_text(command, full=any(word in _FULL_HELP for word in asked)))
        sys.exit(0)
    startup.quiet()
    if_interrupted = vars(command).get("IF_INTERRUPTED", "nothing was written")
    app.run(lambda argv: _guarded(command.main, if_interrupted), flags_parser=_parse)


def define(command: ModuleType) -> None:
    """Defines the flags of a command, and those of every command."""
    command.define()
    with section("Errors"):
        flags.DEFINE_bool("traceback", False, "Show where an error arose, in addition to the line that explains it.")


def help_text(command: ModuleType, full: bool = True) -> str:
    """Returns what a command does, and its flags by sections.

    Args:
        command: A module of `commands`.
        full: Whether every flag has its choices, its range, its default and its other names; otherwise a line.
    """
    lines = [inspect.getdoc(command) or ""]
    for title, found in _sections.items():
        lines.append(f"\n{title}:" if full or len(lines) == 1 else f"{title}:")  # a line per flag fits on two screens
        for name in found:
            prefix = "[no]" if FLAGS[name].default is True else ""
            head = f"  --{prefix}{name} ".ljust(26)
            if full:
                text = textwrap.fill(head + _describe(name), _WIDTH, subsequent_indent=" " * 26, break_on_hyphens=False)
            else:
                text = head + textwrap.shorten(_help(name), _WIDTH - len(head), placeholder=" ...")
            lines.append(text)
    lines.append(
        "\nA flag --x=value may also be written --x value or -x value; --flagfile=FILE reads flags from a file."
        + ("" if full else "\n--helpfull lists choices, ranges, defaults and other names.")
    )
    return "\n".join(lines)


def _help(name: str) -> str:
    """Returns the sentence of a flag; absl puts the choices in front of it."""
    text = FLAGS[name].help
    return text.partition(">: ")[2] if isinstance(FLAGS[name].parser, flags.EnumParser) else text


def _describe(name: str) -> str:
    flag = FLAGS[name]
    words = [_help(name)]
    if isinstance(flag.parser, flags.EnumParser):
        words.append(f"One of {', '.join(flag.parser.enum_values)}.")
    elif isinstance(flag.parser, Number):
        words.append(f"{flag.parser.kind} {flag.parser.range()}.")
    others = [flag.short_name] if flag.short_name else []
    others += [alias for alias, meant in _aliases.items() if meant == name]
    if others:
        words.append(f"Also {', '.join(('-' if len(other) == 1 else '--') + other for other in others)}.")
    if flag.default is not None and not isinstance(flag.default, bool):
        words.append(f"[{flag.default_as_str.strip(chr(39))}]")
    return " ".join(words)


def asked() -> str:
    """Returns the command as the user gave it, for records."""
    return f"{Path(sys.argv[0]).name} {shlex.join(sys.argv[1:])}".rstrip()


def words(argv: list[str]) -> list[str]:
    """Returns a command line as absl reads it, with the words of flagfiles in their place.

    Raises:
        ValueError: if a flagfile cannot be read, or a word cannot be meant.
    """
    found = [*argv[:1], *_with_underscores(command_words.expanded(argv[1:]))]
    bare = {name: (FLAGS[name].parser.enum_values, value) for name, value in _bare.items() if name in FLAGS}
    found = command_words.with_bare_values(found, bare)
    path = command_words.path_of_resume(found) if "resume" in FLAGS and FLAGS["resume"].boolean else None
    if path is not None:
        place = Path(path)
        run = place.parent if place.suffix else place
        run = run.parent if run.name == "checkpoints" else run
        raise BadFlag(
            f"--resume={path}: --resume takes no path; pass --resume --output_dir={run}, the directory of the run"
        )
    return found


def _with_underscores(argv: Iterable[str]) -> list[str]:
    """Accepts `--exp-mode` for `--exp_mode`, and `--no-jit` for `--nojit`."""
    found = []
    for word in argv:
        name, equals, value = word.partition("=")
        if name.startswith("--") and len(name) > 2:
            name = "--" + name[2:].replace("-", "_")
            off = name[5:] if name.startswith("--no_") else ""
            if name[2:] not in FLAGS and off in FLAGS and FLAGS[off].boolean:
                name = f"--no{off}"
        found.append(name + equals + value)
    return found


def _parse(argv: list[str]) -> list[str]:
    try:
        return parse(argv)
    except BadFlag as error:
        _fail(str(error), 2)


def parse(argv: list[str]) -> list[str]:
    """Reads a command line, whose first word is the name of the program.

    Raises:
        BadFlag: if flags are unknown or have values that they do not take.
    """
    _direct.clear()
    for word in _with_underscores(argv[1:]):
        name = word.lstrip("-").partition("=")[0]
        found = name if name in FLAGS else name.removeprefix("no")
        if word.startswith("-") and found in FLAGS:
            _direct[name_of(FLAGS[found].name)] = found
    try:
        rest = FLAGS(words(argv))
    except flags.UnrecognizedFlagError as error:
        close = str(error).partition("Did you mean:")[2].strip(" ?")
        hint = f", such as {close}" if close else ""
        raise BadFlag(f"--{error.flagname} is not a flag of this command; --help lists them{hint}") from None
    except (flags.Error, ValueError) as error:
        raise BadFlag(str(error).removeprefix("flag ")) from error
    if rest[1:]:
        raise BadFlag(
            f"unexpected arguments: {' '.join(rest[1:])}; flags begin with -- and take their value after = or a space"
        )
    for name in names():
        if FLAGS[name].present and FLAGS[name].value == "" != FLAGS[name].default:
            raise BadFlag(f"--{name}= has no value; pass one, or leave out the flag")
    return rest


def say_deviations(original: str, deviations: Iterable[str]) -> None:
    """Prints how a run differs from one of published code with the same command line, a line for each."""
    for text in deviations:
        print(f"Unlike {original}: {text}")


def _guarded(main: Callable[[], None], if_interrupted: str) -> None:
    logging.set_verbosity(logging.WARNING)  # saving and exporting are chatty
    try:
        with cleanups:
            main()
    except (ValueError, OSError, FloatingPointError, RuntimeError) as error:
        if FLAGS.traceback:
            raise
        _fail(str(error) or type(error).__name__, 2 if isinstance(error, BadFlag) else 1)
    except MemoryError as error:
        if FLAGS.traceback:
            raise
        _fail(_out_of_memory(error), 1)
    except TypeError as error:
        if FLAGS.traceback:
            raise
        _fail(f"a value of the wrong type: {error} (--traceback shows where)", 1)
    except KeyboardInterrupt:
        _fail(f"interrupted; {if_interrupted}", 130)
    except Exception as error:
        if FLAGS.traceback or not _is_of_tensorflow(error):
            raise
        _fail(f"{str(error).splitlines()[0]} (TensorFlow's {type(error).__name__}; --traceback shows where)", 1)


def _out_of_memory(error: MemoryError) -> str:
    return f"not enough memory; pass fewer or smaller images, or a smaller batch. {error}".strip()


def _is_of_tensorflow(error: Exception) -> bool:
    """Returns whether an operation failed: memory that ran out, a file that cannot be decoded."""
    return isinstance(error, tf.errors.OpError)


def _fail(message: str, code: int) -> NoReturn:
    line = " ".join(message.split())
    print(f"error: {line}", file=sys.stderr, flush=True)
    sys.exit(code)
