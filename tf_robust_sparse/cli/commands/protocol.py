"""Trains and measures many methods under one protocol, and puts them into one table and one figure.

    python run_scripts/run_protocol.py --protocol=sample --output_dir=runs/protocol

A protocol is a TOML file: training commands by method, what they share, connectivities, seeds, and how networks are
evaluated. `sample` and the others of `flags/protocols/` are found by their names; `--plan` prints all commands of one.
Every network is trained and then evaluated (`robustness.json` next to it); at the end all are packed and timed.
Whatever is finished is not run again, so the same command goes on after an interruption. --only=RigL,HYDRA and
--connectivities=0.05 take a part. --processes=N trains N networks at a time with one thread each, --gpus=0,1 one on
each GPU.

Writes `protocol.json`, `protocol.md` and, where matplotlib is installed, `protocol.png` and `protocol.pdf`.
"""

import dataclasses
import itertools
import json
import shlex
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tf_robust_sparse as trs
from tf_robust_sparse.cli import embedded, many_runs, recipes, run_directory, run_lock, settings
from tf_robust_sparse.cli.command_line import BadFlag, BadInput
from tf_robust_sparse.cli.main import COMMANDS, command, process
from tf_robust_sparse.cli.many_runs import TRAINING, Run
from tf_robust_sparse.cli.protocol_table import MethodRun, is_evaluated, measure, measured_row, points, show
from tf_robust_sparse.cli.settings import Settings, setting

IF_INTERRUPTED = "finished networks and evaluations are kept; the same command goes on"
SUFFIX = ".toml"
_KEYS = {"about", "connectivity", "seeds", "evaluate", "shared", "method"}


@dataclasses.dataclass
class Protocol(Settings):
    """Which protocol, what of it, and where it is written."""

    title = "Protocol"

    protocol: str | None = setting(None, "A file, or the name of one that comes with the package.")
    only: list[str] = setting([], "Methods; by default all.")
    connectivities: list[str] = setting([], "Connectivities, as the protocol has them; by default all.")
    plan: bool = setting(False, "Print the commands and run nothing.")
    processes: int | None = setting(
        None, "Number of networks at a time, each with one thread and a log; by default one, with all threads.", lower=1
    )
    data_dir: str | None = setting(None, "Folder of the data, for commands with {data_dir}.")
    gpus: list[str] = setting([], "Numbers of GPUs; each gets a network of its own at a time.")
    also: list[str] = setting([], "Files protocol.json of the same commands, made elsewhere or before; shown too.")
    output_dir: str | None = setting(None, "Where to write.")

    def check(self) -> None:
        """Checks what does not depend on the file."""
        if self.gpus and self.processes:
            raise BadFlag("--gpus trains as many networks at a time as there are GPUs; leave out --processes")
        if not self.output_dir:
            raise BadFlag("--output_dir is missing; pass a directory for the protocol")
        run_directory.check_directory("output_dir", self.directory)

    def earlier(self, protocol: dict[str, Any]) -> list[dict[str, Any]]:
        """Returns the points of the files of --also.

        Raises:
            BadFlag: if a file cannot be read, or its networks were trained or evaluated by other commands.
        """
        found, now = [], _commands(protocol)
        for file in self.also:
            try:
                record = json.loads(Path(file).expanduser().read_text())
                before, theirs = _commands(record["protocol"]), record["points"]
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise BadFlag(f"--also={file}: expected the protocol.json of a protocol; {error!r}") from error
            _check_commands(f"--also={file}", before, now, "leave the file out")
            now |= before
            found += theirs
        return found

    @property
    def directory(self) -> Path:
        """Where everything is written."""
        return Path(self.output_dir or "").expanduser()

    @property
    def words(self) -> dict[str, str]:
        """What commands may hold in braces, in addition to what differs from run to run."""
        return {} if self.data_dir is None else {"data_dir": str(Path(self.data_dir).expanduser())}

    def read_file(self) -> dict[str, Any]:
        """Returns the protocol.

        Raises:
            BadFlag: if it cannot be read, or lacks something.
        """
        path = Path(self.protocol or "").expanduser()
        if not path.is_file():
            known = sorted(file.stem for file in (recipes.folder() / "protocols").glob(f"*{SUFFIX}"))
            if self.protocol not in known:
                raise BadFlag(f"--protocol={self.protocol}: expected a TOML file, or one of {', '.join(known)}")
            path = recipes.folder() / "protocols" / f"{self.protocol}{SUFFIX}"
        try:
            found = tomllib.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise BadFlag(f"--protocol={self.protocol}: {error}") from error
        odd, missing = set(found) - _KEYS, _KEYS - {"shared"} - set(found)
        if odd or missing:
            raise BadFlag(
                f"--protocol={self.protocol}: expected {', '.join(sorted(_KEYS))}; "
                f"{' and '.join(sorted(odd or missing))} {'is unknown' if odd else 'is missing'}"
            )
        names = [method["name"] for method in found["method"]]
        if len({name.replace(" ", "_") for name in names}) < len(names) or any("/" in name for name in names):
            raise BadFlag(f"--protocol={self.protocol}: expected different names without slashes: {'; '.join(names)}")
        unknown = [name for name in self.only if name not in names]
        if unknown:
            raise BadFlag(f"--only={','.join(self.only)}: expected some of {', '.join(names)}")
        if self.only:
            found["method"] = [method for method in found["method"] if method["name"] in self.only]
        known = list(dict.fromkeys(value for method in found["method"] for value in _values(method, found)))
        unknown = [value for value in self.connectivities if value not in known]
        if unknown:
            raise BadFlag(f"--connectivities={','.join(self.connectivities)}: expected some of {', '.join(known)}")
        for method in found["method"]:
            method["connectivity"] = [v for v in _values(method, found) if v in (self.connectivities or known)]
        return found


def _values(method: dict[str, Any], protocol: dict[str, Any]) -> list[str]:
    return [str(value) for value in method.get("connectivity", protocol["connectivity"])]


def define() -> None:
    """Defines the flags."""
    Protocol.define(needed=("protocol",))


def main() -> None:
    """Trains, evaluates, measures, gathers, shows."""
    settings.check()
    chosen = Protocol.read()
    protocol = chosen.read_file()
    runs = method_runs(protocol, chosen)
    shared = [one for one in shared_runs(protocol, chosen) if any(run.begins_with(one) for run in runs)]
    if chosen.plan:
        _print_plan(protocol, shared, runs, chosen)
        return
    _check([*shared, *runs])
    _check_evaluations(protocol, runs, chosen)
    earlier = chosen.earlier(protocol)
    run_lock.take(chosen.directory, f"--output_dir={chosen.directory}")
    _begin(protocol, chosen)
    failed = many_runs.train(
        [*shared, *runs], chosen.processes, chosen.gpus, lambda run: _follows(protocol, run, chosen)
    )
    for run in runs:  # one after the other: times are measured
        place = run.final()
        if place is not None and not (place / "size.json").is_file():
            run_directory.write_json(place / "size.json", measure(trs.load_network(place)))
    measured = [row for run in runs if (row := measured_row(run, chosen.directory)) is not None]
    measured += [row for point in earlier for row in point["runs"]]
    record = {"protocol": protocol, "points": points(measured)}
    run_directory.write_results(chosen.directory / "protocol.json", record)
    show(record, chosen.directory)
    if failed:
        raise BadInput(f"{len(failed)} failed, {'; '.join(failed)}; the others are kept, and the same command goes on")


def _begin(protocol: dict[str, Any], chosen: Protocol) -> None:
    """Records the commands of a protocol; networks of other commands are not taken over.

    Raises:
        BadFlag: if the directory has networks of other commands, or evaluated in another way.
    """
    file = chosen.directory / "commands.json"
    before, now = json.loads(file.read_text()) if file.is_file() else {}, _commands(protocol)
    _check_commands(f"--output_dir={chosen.directory}", before, now, "take a new directory")
    run_directory.write_json(file, before | now)


def _commands(protocol: dict[str, Any]) -> dict[str, Any]:
    commands = {method["name"]: method["command"] for method in protocol["method"]}
    return {**protocol.get("shared", {}), **commands, "evaluate": protocol["evaluate"]}


def _check_commands(flag: str, before: dict[str, Any], now: dict[str, Any], advice: str) -> None:
    for name, command_line in now.items():
        if before.get(name, command_line) != command_line:
            raise BadFlag(f"{flag} has results of another {name}, {before[name]}; pass that one, or {advice}")


def shared_runs(protocol: dict[str, Any], chosen: Protocol) -> list[Run]:
    """Returns the runs that others begin with, one of each for each seed."""
    found = []
    for (name, line), seed in itertools.product(protocol.get("shared", {}).items(), protocol["seeds"]):
        place = chosen.directory / "shared" / name / f"seed_{seed}"
        found.append(_run(Run, line, name, "1", seed, place, {"seed": seed, **chosen.words}))
    return found


def method_runs(protocol: dict[str, Any], chosen: Protocol) -> list[MethodRun]:
    """Returns the runs of all methods, those of a connectivity one after the other."""
    found = []
    for method in protocol["method"]:
        for value, seed in itertools.product(_values(method, protocol), protocol["seeds"]):
            words: dict[str, Any] = {"connectivity": value, "seed": seed, **chosen.words}
            for name in protocol.get("shared", {}):
                words[name] = chosen.directory / "shared" / name / f"seed_{seed}"
            place = chosen.directory / method["name"].replace(" ", "_") / value / f"seed_{seed}"
            found.append(_run(MethodRun, method["command"], method["name"], value, seed, place, words))
    return found


def _run(kind: Any, line: str, name: str, value: str, seed: int, place: Path, words: dict[str, Any]) -> Any:
    try:
        first, *arguments = shlex.split(line.format(**words))
    except (KeyError, IndexError, ValueError) as error:
        known = ", ".join(f"{{{word}}}" for word in words)
        raise BadFlag(f"--protocol, {name}: expected a command with {known} in braces; {error!r}") from error
    script = COMMANDS.get(first, ("", ""))[1]
    if script not in TRAINING:
        known = ", ".join(key for key, (_, each) in COMMANDS.items() if each in TRAINING)
        raise BadFlag(f"--protocol, {name}: expected a command that begins with {known}. Received: {first}")
    own = (f"--seed={seed}", f"--output_dir={place}")
    return kind(script, value, seed, f"{name}, connectivity {value}, seed {seed}", place, (*arguments, *own))


def _check(runs: Sequence[Run]) -> None:
    """Checks the flags of every run that is not finished and whose source, if it has one, is there."""
    for script in dict.fromkeys(run.script for run in runs):
        with embedded.flags_of(command(script)):
            for run in runs:
                if run.script == script and run.final() is None and all(path.exists() for path in run.sources()):
                    many_runs.check(run)


def _check_evaluations(protocol: dict[str, Any], runs: Sequence[MethodRun], chosen: Protocol) -> None:
    """Checks the flags of all evaluations, whose networks need not be there yet."""
    with embedded.flags_of(command("eval")):
        for run in runs:
            with many_runs.of(f"evaluation of {run.name}"):
                embedded.parse(_evaluation(protocol, run, run.place, chosen)[1:])
                settings.check()


def _evaluation(protocol: dict[str, Any], run: Run, place: Path, chosen: Protocol) -> list[str]:
    words = {"directory": place, "connectivity": run.value, "seed": run.seed, "name": run.name, **chosen.words}
    try:
        more = [word.format(**words) for word in protocol["evaluate"]]
    except (KeyError, IndexError, ValueError) as error:
        known = ", ".join(f"{{{word}}}" for word in words)
        raise BadFlag(f"--protocol, evaluate: expected flags with {known} in braces; {error!r}") from error
    if any(many_runs.flag_of(word) == "attacks" and "autoattack" in word for word in more):
        more.append(f"--state_file={place / 'autoattack.json'}")
    return ["eval", f"--network={place}", f"--results_file={place / 'robustness.json'}", *more]


def _print_plan(protocol: dict[str, Any], shared: Sequence[Run], runs: Sequence[MethodRun], chosen: Protocol) -> None:
    costs = {method["name"]: method["cost"] for method in protocol["method"] if "cost" in method}
    print(f"{protocol['about']}\n")
    for run in [*shared, *runs]:
        cost = costs.get(run.method) if isinstance(run, MethodRun) else None
        print(f"# {run.name}{f'; {cost}' if cost else ''}")
        words = {script: key for key, (_, script) in COMMANDS.items()}[run.script]
        print(shlex.join(["trs", *words.split(), *run.arguments]))
        if isinstance(run, MethodRun):
            print(shlex.join(["trs", *_evaluation(protocol, run, run.place, chosen)]))


def _follows(protocol: dict[str, Any], run: Run, chosen: Protocol) -> list[str] | None:
    """Returns the evaluation of a trained network that has none yet; those that others begin with need none."""
    place = run.final()
    if place is None or not isinstance(run, MethodRun) or is_evaluated(place):
        return None
    return process(*_evaluation(protocol, run, place, chosen))
