"""Runs a training script once per value of a flag and per seed, and gathers accuracies: robustness against sparsity.

    python run_scripts/run_sweep.py --command="run_hydra --flagfile=flags/hydra/... --source_net=runs/dense" \\
        --vary=k --values=0.1,0.05,0.01 --seeds=0,1,2 --name=HYDRA --output_dir=runs/sweep

Each run gets a directory of its own under the output directory; finished ones are not run again, so that the same
command goes on with an interrupted sweep. Writes `sweep.json`, `sweep.md` (means and standard deviations over seeds)
and, where matplotlib is installed, `sweep.png` and `sweep.pdf`. --beside=OTHER,ANOTHER puts finished sweeps into the
same table and figure. The flags of every run are parsed before the first.
"""

import json
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

import tf_robust_sparse as trs
from tf_robust_sparse import saving
from tf_robust_sparse.cli import command_line, run_directory, run_lock
from tf_robust_sparse.cli.embedded import flags_of
from tf_robust_sparse.cli.main import command, process

FLAGS = flags.FLAGS
IF_INTERRUPTED = "finished runs are kept; the same command goes on"
_TRAINING = ("run_connectivity_sampling", "run_hydra", "run_binary_subnetworks")
# Where a script of several phases leaves the network that counts.
_FINAL = ("", "finetune")
# What the sweep sets for each run, and what to use in its place.
_SET_HERE = {
    "seed": "--seeds=0,1,2 of the sweep trains every value with each seed",
    "output_dir": "--output_dir of the sweep gets a directory for every run",
    "resume": "the sweep goes on with interrupted runs by itself",
    "overwrite": "the sweep goes on with interrupted runs by itself",
}


def define() -> None:
    """Defines the flags."""
    with command_line.section("Sweep"):
        flags.DEFINE_string("command", None, f"A training script and its flags: {' or '.join(_TRAINING)}, --data=... .")
        flags.DEFINE_string("vary", "k", "Flag of that script that is varied.")
        flags.DEFINE_list("values", None, "Its values, numbers or fractions such as 2/255.")
        flags.DEFINE_list("seeds", ["0"], "Seeds of each.")
        flags.DEFINE_string("name", None, "What to call the sweep in the table; by default the script.")
        flags.DEFINE_list("beside", [], "Directories of finished sweeps to show beside this one.")
        flags.DEFINE_string("output_dir", None, "Where to write.")


def main() -> None:
    """Runs what is missing, gathers, shows."""
    script, arguments = _command()
    values, seeds = _numbers("values", _fraction), _numbers("seeds", int)
    others = [_finished(Path(path).expanduser()) for path in FLAGS.beside]
    directory = _directory()
    _check_runs(script, arguments)
    run_lock.take(directory, f"--output_dir={directory}")
    record = {"name": FLAGS.name or script, "command": FLAGS.command, "vary": FLAGS.vary, "points": []}
    if not (directory / "sweep.json").is_file():  # whose runs these are, should it be interrupted
        run_directory.write_json(directory / "sweep.json", record)
    points = []
    for text, value in zip(FLAGS.values, values, strict=True):
        runs = [_run(script, arguments, text.strip(), seed, directory) for seed in seeds]
        points.append(_mean(value, runs))
    record["points"] = points
    run_directory.write_json(directory / "sweep.json", {**record, "versions": run_directory.versions()})
    sweeps = _told_apart([record, *others], [directory, *(Path(path) for path in FLAGS.beside)])
    table = _table(sweeps)
    with saving.replace_file(directory / "sweep.md") as path:
        path.write_text(table + "\n")
    print(f"\n{table}\n")
    try:
        series = {sweep["name"]: sweep["points"] for sweep in sweeps}
        trs.evaluation.draw_sweep(series, _axis(), directory / "sweep.png", _attack(sweeps))
    except ValueError as error:  # without matplotlib there is no figure
        print(f"Note: {error}")
    print(f"Records             {directory}: sweep.json, sweep.md, and a directory for each run")


def _command() -> tuple[str, list[str]]:
    words = shlex.split(FLAGS.command or "")
    script = Path(words[0]).stem if words else ""
    if script not in _TRAINING:
        raise command_line.BadFlag(
            f"--command: expected {' or '.join(_TRAINING)} and its flags. Received: {FLAGS.command!r}"
        )
    if FLAGS.vary in _SET_HERE:
        raise command_line.BadFlag(f"--vary={FLAGS.vary}: expected another flag; {_SET_HERE[FLAGS.vary]}")
    for word in words[1:]:
        name = _flag(word)
        if name in {*_SET_HERE, FLAGS.vary}:
            raise command_line.BadFlag(f"--command: expected no --{name}, which the sweep sets. Received: {word}")
    return script, words[1:]


def _check_runs(script: str, arguments: list[str]) -> None:
    """Parses the flags of every run as the script will.

    Raises:
        BadFlag: naming the flag of the sweep that they come from.
    """
    values, seeds, vary = FLAGS["values"].value, FLAGS["seeds"].value, FLAGS.vary
    with flags_of(command(script)):
        _parse(f"--command={script}", arguments)
        if vary not in FLAGS:
            raise command_line.BadFlag(f"--vary={vary}: expected a flag that {script} --help lists")
        for word in arguments:
            if command_line.name_of(_flag(word)) in {*_SET_HERE, command_line.name_of(vary)}:
                raise command_line.BadFlag(f"--command: expected no {word}, because the sweep sets it; leave it out")
        for value in values:
            _parse(f"--values={value}", [*arguments, f"--{vary}={value.strip()}"])
        for seed in seeds:
            _parse(f"--seeds={seed}", [*arguments, f"--seed={seed}"])


def _parse(source: str, arguments: list[str]) -> None:
    try:
        rest = FLAGS(command_line.words(["", *arguments]))[1:]
    except (flags.Error, ValueError) as error:
        raise command_line.BadFlag(f"{source}: {str(error).removeprefix('flag ')}") from error
    if rest:
        raise command_line.BadFlag(f"{source}: expected flags, which begin with --. Received: {' '.join(rest)}")


def _flag(word: str) -> str:
    """Returns the name of the flag that a word of a command line begins with, or nothing."""
    return word.lstrip("-").partition("=")[0].replace("-", "_") if word.startswith("-") else ""


def _fraction(word: str) -> float:
    return command_line._Fraction(-float("inf"), float("inf"), None).parse(word)


def _numbers(name: str, kind: Callable[[str], Any]) -> list[Any]:
    words = FLAGS[name].value
    try:
        found = [kind(word) for word in words or []]
    except ValueError:
        found = []
    if not found or len(set(found)) != len(found):
        raise command_line.BadFlag(f"--{name}: expected different numbers, as 0.1,0.05. Received: {words}")
    return found


def _directory() -> Path:
    if not FLAGS.output_dir:
        raise command_line.BadFlag("--output_dir: expected a directory for the sweep. Received: no such flag")
    directory = Path(FLAGS.output_dir).expanduser()
    run_directory.check_directory("output_dir", directory)
    record = directory / "sweep.json"
    if record.is_file() and (before := _read(directory)["command"]) != FLAGS.command:
        raise command_line.BadFlag(
            f"--output_dir={directory}: expected a new directory, or the command of the sweep that it holds, {before}. "
            f"Received: {FLAGS.command}"
        )
    return directory


def _run(script: str, arguments: list[str], value: str, seed: int, directory: Path) -> dict[str, Any]:
    """Runs one of them if it is not finished, and returns its results."""
    place = directory / f"{FLAGS.vary}_{value.replace('/', '-')}" / f"seed_{seed}"
    final = _final(place)
    if final is None:
        print(f"\n{FLAGS.vary}={value}, seed {seed}", flush=True)
        own = [f"--{FLAGS.vary}={value}", f"--seed={seed}", f"--output_dir={place}"]
        if place.exists():
            # A phase that begins with another network begins anew; everything else goes on.
            begins = any(_flag(word) == "source_net" for word in arguments)
            alone = any(_flag(word) == "exp_mode" for word in arguments)
            own.append("--overwrite" if begins and alone else "--resume")
        done = subprocess.run(process(script, *arguments, *own), check=False)
        if done.returncode < 0 or done.returncode == 130:
            raise KeyboardInterrupt
        final = _final(place)
        if done.returncode or final is None:
            raise command_line.BadInput(
                f"--command: expected a run that ends well. Received: one that failed in {place}"
            )
    results = json.loads((final / "results.json").read_text())
    kept = ("clean_accuracy", "robust_accuracy", "connectivity", "nonzero", "prunable", "epochs", "seconds", "attack")
    return {"seed": seed, "directory": str(final), **{name: results[name] for name in kept if name in results}}


def _final(place: Path) -> Path | None:
    for part in reversed(_FINAL):
        if (place / part / "results.json").is_file():
            return place / part
    return None


def _mean(value: float, runs: list[dict[str, Any]]) -> dict[str, Any]:
    point: dict[str, Any] = {"value": value}
    for name in ("clean", "robust"):
        found = [run[f"{name}_accuracy"] for run in runs]
        point[f"{name}_accuracy"] = float(np.mean(found))
        point[f"{name}_deviation"] = float(np.std(found, ddof=1)) if len(found) > 1 else 0.0
    point["connectivity"] = float(np.mean([run["connectivity"] for run in runs]))
    return {**point, "runs": runs}


def _told_apart(sweeps: list[dict[str, Any]], directories: list[Path]) -> list[dict[str, Any]]:
    """Returns the sweeps under different names: one whose name is taken adds its directory, and if need be a number."""
    found: dict[str, dict[str, Any]] = {}
    for sweep, directory in zip(sweeps, directories, strict=True):
        name, number = sweep["name"], 1
        while name in found:
            name = f"{sweep['name']} ({directory.name}{f', {number}' if number > 1 else ''})"
            number += 1
        found[name] = {**sweep, "name": name}
    return list(found.values())


def _table(sweeps: list[dict[str, Any]]) -> str:
    """Returns a Markdown table, one line per value and sweep."""
    lines = [f"| {FLAGS.vary} | method | clean % | robust % | connected % | seeds |", "|---|---|---|---|---|---|"]
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


def _axis() -> str:
    """Returns what a figure calls the flag that is varied."""
    name = command_line.name_of(FLAGS.vary)
    words = {"k": "connectivity", "epsilon": "radius ε (pixels of [0, 1])", "prune_rate": "connectivity"}
    return words.get(name, name.replace("_", " "))


def _attack(sweeps: list[dict[str, Any]]) -> str:
    """Returns name and radius of the attack of robust accuracies, or nothing where they differ."""
    runs = [run for sweep in sweeps for point in sweep["points"] for run in point["runs"]]
    names = {trs.evaluation.attack_name(run["attack"]) for run in runs if "attack" in run}
    return names.pop() if len(names) == 1 and all("attack" in run for run in runs) else ""


def _finished(directory: Path) -> dict[str, Any]:
    sweep = _read(directory)
    if not sweep["points"]:
        raise command_line.BadInput(f"{directory}: expected a finished sweep. Received: one that was interrupted")
    return sweep


def _read(directory: Path) -> dict[str, Any]:
    try:
        found = json.loads((directory / "sweep.json").read_text())
        return {name: found[name] for name in ("name", "command", "vary", "points")}
    except (OSError, ValueError, KeyError) as error:
        raise command_line.BadInput(
            f"{directory}: expected the directory of a finished sweep, with sweep.json. Received: "
            f"{type(error).__name__}: {error}"
        ) from error
