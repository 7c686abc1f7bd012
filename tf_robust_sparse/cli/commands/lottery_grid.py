"""Runs the experiments of the lottery ticket paper one after the other, and then their analysis.

    python run_scripts/run_lottery_grid.py --flagfile=flags/lottery_grid.flags --data_dirs=DIGITS_DIR,FASHION_DIR

Every combination of data set, strategy, attack and way of training is one run of run_lottery_tickets.py; flags and
data of all of them are checked before the first. Finished ones are not run again and interrupted ones go on, so that
the same command goes on with an interrupted grid. At the end run_lottery_analysis.py draws the figures of each data
set, attack and way of training, and writes the tables.
"""

import contextlib
import dataclasses
import itertools
import shlex
from collections.abc import Iterable
from typing import Any, NamedTuple

import tensorflow as tf
from absl import flags

from tf_robust_sparse.cli import command_line, embedded, processes, settings
from tf_robust_sparse.cli.command_line import BadFlag
from tf_robust_sparse.cli.commands import lottery
from tf_robust_sparse.cli.main import process
from tf_robust_sparse.cli.sections.lottery import ATTACKS, DATASETS, Experiment, Images, Variants, place_flags
from tf_robust_sparse.cli.sections.rounds import Rounds
from tf_robust_sparse.cli.settings import Settings, setting
from tf_robust_sparse.evaluation.figure_style import check_matplotlib
from tf_robust_sparse.training.round_plan import STRATEGIES

FLAGS = flags.FLAGS
IF_INTERRUPTED = "finished rounds are kept; the same command goes on"
_SET_HERE = (
    *("dataset", "data", "data_dir", "experiment", "attack", "adv_train", "l1_reg", "l1"),
    *("base_dir", "resume", "force", "only_trials"),
)
_WITHOUT: dict[str, dict[str, Any]] = {  # what leaves out a flag of --options that the strategy has no use for
    "no_pruning": {"prune_iters": 0, "rewind_step": "0"},
    "reinit_rand": {"rewind_step": "0"},
    "reinit_none": {"rewind_step": "0"},
}


class Run(NamedTuple):
    """One run: its data set, its strategy, and its arguments of run_lottery_tickets.py."""

    dataset: str
    strategy: str
    arguments: tuple[str, ...]


@dataclasses.dataclass
class Grid(Settings):
    """Which experiments are run."""

    title = "Grid"

    datasets: list[str] = setting(["digits", "fashion"], "Values of --dataset.")
    experiments: list[str] = setting(
        ["reinit_orig", "reinit_rand", "reinit_none"], "Values of --experiment.", choices=STRATEGIES
    )
    attacks: list[str] = setting(["fgsm", "pgd"], "Values of --attack.", choices=ATTACKS)
    training: list[str] = setting(
        ["natural", "adversarial"], "Without --adv_train, and with it.", choices=("natural", "adversarial")
    )
    l1_regs: list[str] = setting(["0.0"], "Values of --l1_reg.")
    data_dirs: list[str] = setting([], "Folder of each data set, in their order; by default the usual places.")
    options: str = setting(
        "", "Further flags of run_lottery_tickets.py, the same for every run that has a use for them."
    )
    base_dir: str = setting("./output", "Folder of all experiments.")
    analysis: bool = setting(True, "Draw figures and tables of each data set when its runs are finished.")

    def check(self) -> None:
        """Checks what does not depend on a run."""
        for word in shlex.split(self.options):
            name = word.lstrip("-").partition("=")[0].replace("-", "_")
            if name in _SET_HERE or name.removeprefix("no") in _SET_HERE:
                raise BadFlag(f"--options: the grid sets --{name} itself; leave out {word}")
        if self.data_dirs and len(self.data_dirs) != len(self.datasets):
            raise BadFlag(
                f"--data_dirs={','.join(self.data_dirs)}: expected one for each of --datasets={','.join(self.datasets)}"
            )
        if self.analysis:
            with command_line.about("analysis"):
                check_matplotlib()

    def runs(self) -> list[Run]:
        """Returns all runs."""
        found = []
        for place, dataset in enumerate(self.datasets):
            data_dir = [f"--data_dir={self.data_dirs[place]}"] if self.data_dirs else []
            for strategy, l1, attack, training in itertools.product(
                self.experiments, self.l1_regs, self.attacks, self.training
            ):
                chosen = [f"--dataset={dataset}", f"--experiment={strategy}", f"--attack={attack}", f"--l1_reg={l1}"]
                chosen += [f"--{'' if training == 'adversarial' else 'no'}adv_train", *data_dir]
                chosen += [*shlex.split(self.options), "--resume", f"--base_dir={self.base_dir}"]
                found.append(Run(dataset, strategy, tuple(chosen)))
        return found


def define() -> None:
    """Defines the flags."""
    Grid.define()


def main() -> None:
    """Checks everything, runs unfinished experiments and analyzes all."""
    settings.check()
    grid = Grid.read()
    with contextlib.suppress(RuntimeError):  # where devices are in use already
        tf.config.set_visible_devices([], "GPU")  # which are for the runs
    runs, analyses = check(grid.runs())
    for arguments in runs:
        start("run_lottery_tickets", arguments)
    for arguments in analyses if grid.analysis else ():
        start("run_lottery_analysis", arguments)


def check(experiments: Iterable[Run]) -> tuple[list[list[str]], list[list[str]]]:
    """Reads the flags of every run as it will itself, and the images of every data set.

    Returns:
        The arguments of all runs, and those of the analyses, which draw figures first and then write tables.

    Raises:
        BadFlag: as run_lottery_tickets.py does.
        BadInput: if a data set cannot be read.
    """
    runs: list[list[str]] = []
    figures: list[list[str]] = []
    tables: dict[tuple[float, str | None], list[str]] = {}
    read = set()
    with embedded.flags_of(lottery):
        for dataset, strategy, arguments in experiments:
            embedded.parse(arguments)
            Experiment.settle()
            analysis = place_flags()
            without = _WITHOUT.get(strategy, {}).items()
            dropped = [
                f"--{name}={value}" for name, value in without if FLAGS[name].present and FLAGS[name].value != value
            ]
            embedded.parse([*arguments, *dropped])
            settings.check()
            if dataset not in read:  # what the images decide is the same for all of its experiments
                images, rounds = Images.read().load(), Rounds.read()
                rounds.split(images)
                Variants.read().rule(Experiment.read().network(images, 0))
                rounds.parts(images)
                read.add(dataset)
            runs.append([*arguments, *dropped])
            if strategy != "no_pruning" and analysis not in figures:
                figures.append(analysis)
            if strategy == "reinit_orig":  # the tables of published data sets come together
                other = None if Images.read().data in DATASETS.values() else dataset
                tables.setdefault((Experiment.read().l1_reg, other), [*analysis, "--table"])
    return runs, [*figures, *tables.values()]


def start(script: str, arguments: list[str]) -> None:
    """Runs a script.

    Raises:
        BadInput: if it fails.
    """
    print("\n" + shlex.join(["python", f"run_scripts/{script}.py", *arguments]), flush=True)
    (code,) = processes.run([process(script, *arguments)], one_thread=False)
    if code:
        raise command_line.BadInput(f"{script} failed with exit code {code}; see its message above")
