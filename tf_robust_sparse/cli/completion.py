"""Completion of `trs` in a shell: a script made of all commands, their flags and the choices of these."""

from collections.abc import Mapping
from types import ModuleType

from absl import flags

from tf_robust_sparse.cli import command_line, embedded

SHELLS = {"bash": "", "zsh": "autoload -U +X bashcompinit && bashcompinit\n"}
_SCRIPT = """\
_trs() {
    local line=${COMP_LINE:0:COMP_POINT} names= choices=
    local word=${line##* }
    case "$line" in
CASES
    esac
    [[ $word == *=* ]] && names=$choices
    COMPREPLY=($(compgen -W "$names" -- "$word"))
    [[ ${COMPREPLY[*]} == *= ]] && compopt -o nospace 2>/dev/null
    if [[ $word == *=* && $COMP_WORDBREAKS == *=* ]]; then COMPREPLY=("${COMPREPLY[@]#*=}"); fi
}
complete -o default -F _trs trs
"""


def script(shell: str, commands: Mapping[str, ModuleType], further: tuple[str, ...]) -> str:
    """Returns the script that a shell is to read.

    Args:
        shell: A key of `SHELLS`.
        commands: Words after `trs` -> module of `commands`.
        further: Words that have no flags.
    """
    after: dict[str, set[str]] = {"": set(further)}  # words -> those that may follow
    for name in commands:
        first, _, second = name.partition(" ")
        after[""].add(first)
        after.setdefault(first, set()).update(second.split())
    cases = []
    for name in sorted(commands.keys() | after, key=len, reverse=True):
        names, choices = _flags(commands[name]) if name in commands else ([], [])
        names += sorted(after.get(name, ()))
        begins = " ".join(["trs", *name.split(), ""])
        cases.append(f"""    "{begins}"*) names='{" ".join(names)}' choices='{" ".join(choices)}' ;;""")
    return SHELLS[shell] + _SCRIPT.replace("CASES", "\n".join(cases))


def _flags(command: ModuleType) -> tuple[list[str], list[str]]:
    """Returns the flags of a command, and those that have choices with each of them."""
    names: list[str] = []
    choices: list[str] = []
    with embedded.flags_of(command):
        for name in command_line.names():
            flag = flags.FLAGS[name]
            on = f"--no{name}" if flag.boolean and flag.default else f"--{name}"
            names.append(on if flag.boolean else f"{on}=")
            if isinstance(flag.parser, flags.EnumParser):
                choices += [f"--{name}={value}" for value in flag.parser.enum_values]
    return [*names, "--help", "--flagfile="], choices
