"""Runs a training script once per value of a flag and per seed, and gathers accuracies: robustness against sparsity.

    python run_scripts/run_sweep.py --command="run_hydra --flagfile=flags/hydra/... --source_net=runs/dense" \\
        --vary=k --values=0.1,0.05,0.01 --seeds=0,1,2 --name=HYDRA --output_dir=runs/sweep

Each run gets a directory of its own under the output directory; finished ones are not run again, so that the same
command goes on with an interrupted sweep. --processes=N trains N runs at a time, each with one thread and with a log
next to its directory. A run that fails is named at the end and keeps none of the others from being shown. Writes
`sweep.json`, `sweep.md` (means and standard deviations over seeds) and, where matplotlib is installed, `sweep.png` and
`sweep.pdf`. --beside=OTHER,ANOTHER puts finished sweeps into the same table and figure. The flags of every run are
checked before the first.
"""

import contextlib
import dataclasses
import io
import itertools
import json
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from tf_robust_sparse.cli import command_line, embedded, many_runs, run_directory, run_lock, settings
from tf_robust_sparse.cli.command_line import BadFlag, BadInput
from tf_robust_sparse.cli.main import command
from tf_robust_sparse.cli.many_runs import TRAINING, Run, flag_of, of
from tf_robust_sparse.cli.number_flags import Number
from tf_robust_sparse.cli.settings import Settings, setting
from tf_robust_sparse.evaluation.figure_style import attack_name
from tf_robust_sparse.evaluation.figures import draw_sweep
from tf_robust_sparse.saving.atomic import replace_file

FLAGS = flags.FLAGS
IF_INTERRUPTED = "finished runs are kept; the same command goes on"
# What the sweep sets for each run, and what to use in its place.
_SET_HERE = {
    "seed": "--seeds=0,1,2 of the sweep trains every value with each seed",
    "output_dir": "--output_dir of the sweep gets a directory for every run",
    "resume": "the sweep goes on with interrupted runs by itself",
    "overwrite": "the sweep goes on with interrupted runs by itself",
}


@dataclasses.dataclass
class Sweep(Settings):
    """Which runs there are, and how they are called and trained."""

    title = "Sweep"

    command: str | None = setting(None, f"A training script and its flags: {' or '.join(TRAINING)}, --data=... .")
    vary: str = setting("k", "Flag of that script that is varied.")
    values: list[str] | None = setting(None, "Its values, numbers or fractions such as 2/255.")
    seeds: list[str] = setting(["0"], "Seeds of each.")
    processes: int | None = setting(
        None,
        "Number of runs to train at a time, each with one thread and a log; by default one, with all threads.",
        lower=1,
    )
    name: str | None = setting(None, "What to call the sweep in the table; by default the script.")
    beside: list[str] = setting([], "Directories of finished sweeps to show with this one.")
    output_dir: str | None = setting(None, "Where to write.")

    def check(self) -> None:
        """Checks what does not depend on the flags of the script."""
        script, arguments = self.words()
        if script not in TRAINING:
            raise BadFlag(f"--command={self.command}: expected {' or '.join(TRAINING)} and its flags")
        if self.vary in _SET_HERE:
            raise BadFlag(f"--vary={self.vary}: expected another flag; {_SET_HERE[self.vary]}")
        for word in arguments:
            if flag_of(word) in {*_SET_HERE, self.vary}:
                raise BadFlag(f"--command: the sweep sets --{flag_of(word)} itself; leave out {word}")
        _numbers("values", self.values, fraction)
        _numbers("seeds", self.seeds, int)
        if not self.output_dir:
            raise BadFlag("--output_dir is missing; pass a directory for the sweep")
        run_directory.check_directory("output_dir", self.directory)
        there = _read(self.directory)["command"] if (self.directory / "sweep.json").is_file() else self.command
        if there != self.command:
            raise BadFlag(
                f"--output_dir={self.directory} holds the sweep of another command, {there}; pass that one, or a new "
                "directory"
            )

    def words(self) -> tuple[str, list[str]]:
        """Returns the script and its flags."""
        words = shlex.split(self.command or "")
        return (Path(words[0]).stem if words else ""), words[1:]

    @property
    def directory(self) -> Path:
        """Where the sweep is written."""
        return Path(self.output_dir or "").expanduser()

    def runs(self) -> list[Run]:
        """Returns the runs, those of a value one after the other."""
        found = []
        script, arguments = self.words()
        for value, seed in itertools.product(map(str.strip, self.values or []), map(int, self.seeds)):
            place = self.directory / f"{self.vary}_{value.replace('/', '-')}" / f"seed_{seed}"
            own = (f"--{self.vary}={value}", f"--seed={seed}", f"--output_dir={place}")
            name = f"{self.vary}={value}, seed {seed}"
            found.append(Run(script, value, seed, name, place, (*arguments, *own)))
        return found


def define() -> None:
    """Defines the flags."""
    Sweep.define()


def main() -> None:
    """Runs the unfinished runs, gathers, shows."""
    settings.check()
    sweep = Sweep.read()
    script, _ = sweep.words()
    others = [finished(Path(path).expanduser()) for path in sweep.beside]
    directory, runs = sweep.directory, sweep.runs()
    check_runs(sweep, runs)
    run_lock.take(directory, f"--output_dir={directory}")
    record: dict[str, Any] = {"name": sweep.name or script, "command": sweep.command, "vary": sweep.vary, "points": []}
    if not (directory / "sweep.json").is_file():  # whose runs these are, should it be interrupted
        run_directory.write_json(directory / "sweep.json", record)
    failed = many_runs.train(runs, sweep.processes)
    points = [_point(list(group)) for _, group in itertools.groupby(runs, lambda run: run.value)]
    record["points"] = [point for point in points if point is not None]
    if record["points"]:
        run_directory.write_results(directory / "sweep.json", record)
        show([record, *others], [directory, *map(Path, sweep.beside)])
    if failed:
        raise BadInput(
            f"{len(failed)} of {len(runs)} runs failed, {'; '.join(failed)}; the others are kept, and the same "
            "command goes on with these"
        )


def check_runs(sweep: Sweep, runs: Sequence[Run]) -> None:
    """Reads and checks the flags of every run as it will itself.

    Raises:
        BadFlag: naming the run.
    """
    (script, arguments), vary = sweep.words(), sweep.vary
    with (
        embedded.flags_of(command(script)),
        contextlib.redirect_stdout(io.StringIO()),
    ):  # notes, which each run prints itself
        with of("--command"):
            embedded.parse(arguments)
        if vary not in FLAGS:
            raise BadFlag(f"--vary={vary}: expected a flag that {script} --help lists")
        for word in arguments:
            if command_line.name_of(flag_of(word)) in {*_SET_HERE, command_line.name_of(vary)}:
                raise BadFlag(f"--command: the sweep sets {word} itself; leave it out")
        for run in runs:
            many_runs.check(run)


def show(sweeps: Sequence[dict[str, Any]], directories: Sequence[Path]) -> None:
    """Writes table and figure of sweeps into the directory of the first, and prints the table."""
    directory, vary = directories[0], sweeps[0]["vary"]
    shown = _told_apart(sweeps, directories)
    table = _table(shown, vary)
    with replace_file(directory / "sweep.md") as path:
        path.write_text(table + "\n")
    print(f"\n{table}\n")
    try:
        series = {sweep["name"]: sweep["points"] for sweep in shown}
        draw_sweep(series, _axis(vary), directory / "sweep.png", _attack(shown))
    except ValueError as error:  # without matplotlib there is no figure
        print(f"Note: {error}")
    print(f"Records             {directory}: sweep.json, sweep.md, and a directory for each run")


def fraction(word: str) -> float:
    """Returns the number that a word such as 2/255 stands for."""
    return Number().parse(word)


def _numbers(name: str, words: Sequence[str] | None, kind: Callable[[str], Any]) -> list[Any]:
    try:
        found = [kind(word) for word in words or []]
    except ValueError:
        found = []
    if not found or len(set(found)) != len(found):
        raise BadFlag(f"--{name}={','.join(words or [])}: expected different numbers, such as 0.1,0.05")
    return found


def _point(runs: Sequence[Run]) -> dict[str, Any] | None:
    """Returns means and deviations over the runs of a value that are finished; `None` if there are none."""
    finished = [results for run in runs if (results := run.results()) is not None]
    if not finished:
        return None
    point: dict[str, Any] = {"value": fraction(runs[0].value)}
    for name in ("clean", "robust"):
        found = [results[f"{name}_accuracy"] for results in finished]
        point[f"{name}_accuracy"] = float(np.mean(found))
        point[f"{name}_deviation"] = float(np.std(found, ddof=1)) if len(found) > 1 else 0.0
    point["connectivity"] = float(np.mean([results["connectivity"] for results in finished]))
    return {**point, "runs": finished}


def _told_apart(sweeps: Sequence[dict[str, Any]], directories: Sequence[Path]) -> list[dict[str, Any]]:
    """Returns the sweeps under different names: one whose name is taken adds its directory, and if need be a number."""
    found: dict[str, dict[str, Any]] = {}
    for sweep, directory in zip(sweeps, directories, strict=True):
        name, number = sweep["name"], 1
        while name in found:
            name = f"{sweep['name']} ({directory.name}{f', {number}' if number > 1 else ''})"
            number += 1
        found[name] = {**sweep, "name": name}
    return list(found.values())


def _table(sweeps: list[dict[str, Any]], vary: str) -> str:
    """Returns a Markdown table, one line per value and sweep."""
    lines = [f"| {vary} | method | clean % | robust % | connected % | seeds |", "|---|---|---|---|---|---|"]
    values = sorted({point["value"] for sweep in sweeps for point in sweep["points"]}, reverse=True)
    for value in values:
        for sweep in sweeps:
            for point in sweep["points"]:
                if point["value"] != value:
                    continue
                columns = [f"{value:g}", sweep["name"]]
                for name in ("clean", "robust"):
                    mean, deviation = 100 * point[f"{name}_accuracy"], 100 * point[f"{name}_deviation"]
                    columns.append(f"{mean:.2f} ± {deviation:.2f}" if len(point["runs"]) > 1 else f"{mean:.2f}")
                columns += [f"{100 * point['connectivity']:.2f}", str(len(point["runs"]))]
                lines.append(f"| {' | '.join(columns)} |")
    return "\n".join(lines)


def _axis(vary: str) -> str:
    """Returns what a figure calls the flag that is varied."""
    words = {
        "k": "connectivity",
        "pc": "connectivity",
        "epsilon": "radius ε (pixels of [0, 1])",
        "prune_rate": "connectivity",
    }
    return words.get(vary, vary.replace("_", " "))


def _attack(sweeps: list[dict[str, Any]]) -> str:
    """Returns name and radius of the attack of robust accuracies, or nothing where they differ."""
    runs = [run for sweep in sweeps for point in sweep["points"] for run in point["runs"]]
    names = {attack_name(run["attack"]) for run in runs if "attack" in run}
    return names.pop() if len(names) == 1 and all("attack" in run for run in runs) else ""


def finished(directory: Path) -> dict[str, Any]:
    """Returns the record of a sweep in another directory.

    Raises:
        BadInput: if there is none, or none of its runs has finished.
    """
    sweep = _read(directory)
    if not sweep["points"]:
        raise BadInput(f"{directory}: expected a finished sweep, and this one was interrupted; finish it first")
    return sweep


def _read(directory: Path) -> dict[str, Any]:
    try:
        found = json.loads((directory / "sweep.json").read_text())
        return {name: found[name] for name in ("name", "command", "vary", "points")}
    except (OSError, ValueError, KeyError) as error:
        raise BadInput(
            f"{directory}: expected the directory of a finished sweep, with sweep.json; {type(error).__name__}: {error}"
        ) from error
