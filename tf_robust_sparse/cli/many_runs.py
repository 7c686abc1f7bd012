"""Training runs that one command starts: which flags they get, how they go on, and what they leave."""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tf_robust_sparse.cli import binary, embedded, hydra, processes, settings
from tf_robust_sparse.cli.command_line import BadFlag
from tf_robust_sparse.cli.main import process

TRAINING: Mapping[str, Callable[[], object]] = {  # script -> what takes the words of published command lines
    "run_connectivity_sampling": lambda: None,
    "run_hydra": hydra.originals.translate,
    "run_binary_subnetworks": binary.originals.translate,
    "run_neural_pruning": lambda: None,
}
_FINAL = ("finetune", "")  # where a script of several phases, and one of one, leaves the network that counts
_SOURCES = ("source_net", "init_from")  # flags that name a run to begin with
_KEPT = ("clean_accuracy", "robust_accuracy", "connectivity", "nonzero", "prunable", "epochs", "seconds", "attack")


class Run(NamedTuple):
    """One value with one seed.

    Attributes:
        script: The training script, a key of `TRAINING`.
        value: As it is given.
        seed: An integer.
        name: For messages.
        place: Its directory.
        arguments: All of its flags, but for those that say how to begin.
    """

    script: str
    value: str
    seed: int
    name: str
    place: Path
    arguments: tuple[str, ...]

    @property
    def log(self) -> Path:
        """The file of its output, if runs are trained side by side."""
        return self.place.with_name(f"{self.place.name}.log")

    def sources(self) -> list[Path]:
        """Returns the directories of the runs that it begins with."""
        return [Path(word.partition("=")[2]) for word in self.arguments if flag_of(word) in _SOURCES]

    def begins_with(self, other: "Run") -> bool:
        """Returns whether it begins with what another run leaves."""
        return any(source.is_relative_to(other.place) for source in self.sources())

    def final(self) -> Path | None:
        """Returns the directory of the network that counts; `None` if the run is not finished."""
        return next((self.place / part for part in _FINAL if (self.place / part / "results.json").is_file()), None)

    def beginning(self) -> list[str]:
        """Returns the flag by which it begins, or goes on."""
        names = {flag_of(word) for word in self.arguments}
        if not self.place.exists():
            return []
        # A phase that begins with another network starts again; everything else goes on.
        return ["--overwrite" if {"source_net", "exp_mode"} <= names else "--resume"]

    def results(self) -> dict[str, Any] | None:
        """Returns what is kept of its results; `None` if it is not finished."""
        final = self.final()
        if final is None:
            return None
        found = json.loads((final / "results.json").read_text())
        return {"seed": self.seed, "directory": str(final), **{name: found[name] for name in _KEPT if name in found}}


@contextlib.contextmanager
def of(source: str) -> Iterator[None]:
    """Says in messages inside the block where a command line comes from."""
    try:
        yield
    except BadFlag as error:
        raise BadFlag(f"{source}: {error}") from error


def check(run: Run) -> None:
    """Reads and checks the flags of a run as it will itself; the flags must be those of its script.

    Raises:
        BadFlag: naming the run.
    """
    with of(run.name):
        embedded.parse([*run.arguments, *run.beginning()])
        TRAINING[run.script]()
        settings.check()


def train(
    runs: Sequence[Run],
    at_once: int | None,
    devices: Sequence[str] = (),
    follows: Callable[[Run], Sequence[str] | None] = lambda run: None,
) -> list[str]:
    """Trains the runs that are not finished, and returns which failed, and why.

    Args:
        runs: The runs. One that begins with another of them waits for it.
        at_once: How many at a time, each with one thread and a log; `None` for one, with all threads.
        devices: Numbers of GPUs; as many runs at a time, each with one of them and a log.
        follows: Returns the command line that comes after a run, if it has not been done.
    """
    training = [run for run in runs if run.final() is None]
    commands: dict[Run, Sequence[str]] = {
        run: process(run.script, *run.arguments, *run.beginning()) for run in training
    }
    commands |= {run: command for run in runs if run not in commands and (command := follows(run)) is not None}
    left = [run for run in runs if run in commands]
    after = [
        [number for number, other in enumerate(left) if other in training and run.begins_with(other)] for run in left
    ]
    failed, logged = {}, bool(at_once or devices)

    def begins(number: int) -> None:
        name = left[number].name if left[number] in training else f"evaluation of {left[number].name}"
        print(f"{name} begins, its output is in {left[number].log}" if logged else f"\n{name}", flush=True)

    def ends(number: int, code: int) -> None:
        run = left[number]
        if code or run.final() is None or follows(run) is not None:
            failed[number] = f"{run.name}: {_last_line(run.log) if logged else f'exit code {code}'}"
            print(f"Failed: {failed[number]}", flush=True)
        elif logged:
            print(f"{run.name} is finished", flush=True)

    processes.run(
        [commands[run] for run in left],
        at_once or len(devices) or 1,
        [run.log for run in left] if logged else None,
        one_thread=at_once is not None,
        devices=devices,
        after=after,
        begins=begins,
        follows=lambda number: follows(left[number]) if left[number] in training else None,
        ends=ends,
    )
    return [failed[number] for number in sorted(failed)]


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), f"no output, see {log}")


def flag_of(word: str) -> str:
    """Returns the name of the flag that a word of a command line begins with, or nothing."""
    return word.lstrip("-").partition("=")[0].replace("-", "_") if word.startswith("-") else ""
