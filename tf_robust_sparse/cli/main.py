"""The command `trs`: trains, measures and ships networks, one subcommand for each script of `run_scripts/`."""

import ast
import difflib
import importlib
import sys
from pathlib import Path
from typing import Any, NoReturn

from tf_robust_sparse.cli import command_line, completion, processes, recipes

COMMANDS = {  # words after `trs` -> module in `commands`, script in `run_scripts`
    "train": ("train", "run_connectivity_sampling"),
    "hydra": ("hydra", "run_hydra"),
    "lottery": ("lottery", "run_lottery_tickets"),
    "lottery grid": ("lottery_grid", "run_lottery_grid"),
    "binary": ("binary", "run_binary_subnetworks"),
    "neural": ("neural", "run_neural_pruning"),
    "sweep": ("sweep", "run_sweep"),
    "protocol": ("protocol", "run_protocol"),
    "eval": ("evaluate", "run_robustness_eval"),
    "foolbox": ("foolbox", "run_foolbox_eval"),
    "certify": ("certify", "run_certify"),
    "shrink": ("shrink", "run_shrink"),
    "compact": ("compact", "run_compact"),
    "publish": ("publish", "run_publish"),
    "compile": ("compile_network", "run_compile"),
    "export": ("export", "run_export"),
    "plot masks": ("plot_masks", "run_mask_plots"),
    "plot vulnerability": ("plot_vulnerability", "run_vulnerability_plots"),
    "plot lottery": ("plot_lottery", "run_lottery_analysis"),
    "import": ("import_weights", "run_import_weights"),
    "export verifier": ("export_verifier", "run_verifier_export"),
    "unpack imagenet": ("unpack_imagenet", "run_unpack_imagenet"),
}


def main() -> None:
    """Runs the subcommand that the command line names."""
    processes.end_with_parent()
    words = sys.argv[1:]
    if not words or words[0] in command_line.HELP_WORDS:
        print(help_text())
        return
    if words[0] == "recipes":
        _show_recipes(words[1:])
        return
    if words[0] == "completion":
        _show_completion(words[1:])
        return
    for number in (2, 1):
        name = " ".join(words[:number])
        if name in COMMANDS:
            sys.argv = [f"trs {name}", *words[number:]]
            command_line.run(command(name))
            return
    _fail(f"trs {words[0]}: expected one of the commands {', '.join(COMMANDS)}; trs --help says what they do")


def command(name: str) -> Any:
    """Returns the module of a subcommand, or of a script: its docstring, `define` and `main`.

    Args:
        name: A key of `COMMANDS`, or the name of a script such as `run_hydra`.
    """
    found = {script: module for module, script in COMMANDS.values()} | {key: COMMANDS[key][0] for key in COMMANDS}
    return importlib.import_module(f"tf_robust_sparse.cli.commands.{found[name]}")


def process(name: str, *arguments: str) -> list[str]:
    """Returns the command line of a process that runs a subcommand, or a script, with these arguments."""
    words = {script: key for key, (_, script) in COMMANDS.items()}.get(name, name).split()
    return [sys.executable, "-m", "tf_robust_sparse.cli", *words, *arguments]


def help_text() -> str:
    """Returns the list of all subcommands, with the first line of what each one does."""
    lines = ["Usage: trs COMMAND [--flag=value ...]; trs COMMAND --help lists the flags of a command.", ""]
    for name, (module, _) in COMMANDS.items():
        source = (Path(__file__).parent / "commands" / f"{module}.py").read_text()
        first = (ast.get_docstring(ast.parse(source)) or "").splitlines()[0]
        lines.append(f"  {name:20s}{first}")
    lines.append(f"  {'recipes':20s}Lists the flagfiles of published runs; trs recipes NAME prints one.")
    lines.append(f"  {'completion':20s}Prints a script for bash or zsh: trs completion bash > FILE; source FILE.")
    return "\n".join(lines)


def _show_completion(words: list[str]) -> None:
    if len(words) != 1 or words[0] not in completion.SHELLS:
        _fail(f"trs completion {' '.join(words)}: expected trs completion {' or '.join(completion.SHELLS)}")
    commands = {name: command(name) for name in COMMANDS}
    print(completion.script(words[0], commands, ("recipes", "completion")), end="")


def _show_recipes(names: list[str]) -> None:
    try:
        print(recipes.show(names))
    except KeyError as error:
        close = difflib.get_close_matches(error.args[0], recipes.recipes(), 3)
        hint = f"such as {', '.join(close)}" if close else "as trs recipes lists them"
        _fail(f"trs recipes {error.args[0]}: expected the name of a recipe, {hint}")


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)
