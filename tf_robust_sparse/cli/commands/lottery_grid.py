"""Runs the experiments of the lottery ticket paper one after the other, and then their analysis.

    python run_scripts/run_lottery_grid.py --flagfile=flags/lottery_grid.flags --data_dirs=DIGITS_DIR,FASHION_DIR

Every combination of data set, strategy, attack and way of training is one run of run_lottery_tickets.py; flags and
data of all of them are checked before the first. Finished ones are not run again and interrupted ones go on, so that
the same command goes on with an interrupted grid. At the end run_lottery_analysis.py draws the figures of each data
set, attack and way of training, and writes the tables.
"""

import contextlib
import itertools
import shlex
import subprocess
from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf
from absl import flags

import tf_robust_sparse as trs
from tf_robust_sparse.cli import command_line, lottery_flags
from tf_robust_sparse.cli.main import process
from tf_robust_sparse.cli.sections.data import Data

FLAGS = flags.FLAGS
IF_INTERRUPTED = "finished rounds are kept; the same command goes on"
_SET_HERE = (
    *("dataset", "data", "data_dir", "experiment", "attack", "adv_train", "l1_reg", "l1"),
    *("base_dir", "resume", "force", "only_trials"),
)
_WITHOUT = {  # what leaves out a flag of --options that the strategy has no use for
    "no_pruning": ("--prune_iters=0", "--rewind_step=0"),
    "reinit_rand": ("--rewind_step=0",),
    "reinit_none": ("--rewind_step=0",),
}


class Experiment(NamedTuple):
    """One run: its data set, its strategy, and its arguments of run_lottery_tickets.py."""

    dataset: str
    strategy: str
    arguments: tuple[str, ...]


def define() -> None:
    """Defines the flags."""
    with command_line.section("Grid"):
        flags.DEFINE_list("datasets", ["digits", "fashion"], "Values of --dataset.")
        flags.DEFINE_list("experiments", ["reinit_orig", "reinit_rand", "reinit_none"], "Values of --experiment.")
        flags.DEFINE_list("attacks", ["fgsm", "pgd"], "Values of --attack.")
        flags.DEFINE_list("training", ["natural", "adversarial"], "Without --adv_train, and with it.")
        flags.DEFINE_list("l1_regs", ["0.0"], "Values of --l1_reg.")
        flags.DEFINE_list("data_dirs", [], "Folder of each data set, in their order; by default the usual places.")
        flags.DEFINE_string(
            "options", "", "Further flags of run_lottery_tickets.py, the same for every run that has a use for them."
        )
        flags.DEFINE_string("base_dir", "./output", "Folder of all experiments.")
        flags.DEFINE_bool("analysis", True, "Draw figures and tables of each data set when its runs are finished.")


def main() -> None:
    """Checks everything, runs what is missing and analyses what there is."""
    options = shlex.split(FLAGS.options)
    for word in options:
        name = word.lstrip("-").partition("=")[0].replace("-", "_")
        if name in _SET_HERE or name.removeprefix("no") in _SET_HERE:
            raise command_line.BadFlag(f"--options: expected no --{name}, which the grid sets. Received: {word}")
    _check("experiments", trs.training.STRATEGIES)
    _check("attacks", ("fgsm", "pgd"))
    _check("training", ("natural", "adversarial"))
    if FLAGS.data_dirs and len(FLAGS.data_dirs) != len(FLAGS.datasets):
        raise command_line.BadFlag(
            f"--data_dirs: expected one for each of --datasets={','.join(FLAGS.datasets)}. "
            f"Received: {','.join(FLAGS.data_dirs)}"
        )
    if FLAGS.analysis:
        with command_line.about("analysis"):
            trs.evaluation.check_matplotlib()
    analysed = FLAGS.analysis
    runs, figures, tables = check(combinations(options))
    for arguments in runs:
        _run("run_lottery_tickets", arguments)
    if analysed:
        for arguments in [*figures, *tables]:
            _run("run_lottery_analysis", arguments)


def combinations(options: Sequence[str]) -> list[Experiment]:
    """Returns the experiments of the grid."""
    found = []
    for place, dataset in enumerate(FLAGS.datasets):
        data_dir = [f"--data_dir={FLAGS.data_dirs[place]}"] if FLAGS.data_dirs else []
        for strategy, l1, attack, training in itertools.product(
            FLAGS.experiments, FLAGS.l1_regs, FLAGS.attacks, FLAGS.training
        ):
            chosen = [f"--dataset={dataset}", f"--experiment={strategy}", f"--attack={attack}", f"--l1_reg={l1}"]
            chosen += [f"--{'' if training == 'adversarial' else 'no'}adv_train", *data_dir, *options, "--resume"]
            found.append(Experiment(dataset, strategy, (*chosen, f"--base_dir={FLAGS.base_dir}")))
    return found


def check(experiments: Sequence[Experiment]) -> tuple[list[list[str]], list[list[str]], list[list[str]]]:
    """Reads the flags of every experiment as its run will, and the images of every data set.

    The flags of the grid are not to be read after this.

    Returns:
        The arguments of all runs, those of the analyses that draw figures, and those of the analyses that write tables.

    Raises:
        BadFlag: as run_lottery_tickets.py does.
        BadInput: if a data set cannot be read.
    """
    delattr(FLAGS, "base_dir")
    lottery_flags.define()
    with contextlib.suppress(RuntimeError):  # where devices are in use already
        tf.config.set_visible_devices([], "GPU")  # which are for the runs
    runs: list[list[str]] = []
    figures: list[list[str]] = []
    tables: dict[tuple[float, str | None], list[str]] = {}
    read = set()
    for dataset, strategy, arguments in experiments:
        _parse(arguments)
        lottery_flags.translate_dataset()
        analysis = lottery_flags.place_flags()
        dropped = [word for word in _WITHOUT.get(strategy, ()) if _is_used(word)]
        _parse([*arguments, *dropped])
        lottery_flags.check()
        if dataset not in read:  # what the images decide is the same for all of its experiments
            images = Data.read().load()
            lottery_flags.split(images)
            lottery_flags.rule(lottery_flags.network(images, 0))
            lottery_flags.parts(images)
            read.add(dataset)
        runs.append([*arguments, *dropped])
        if strategy != "no_pruning" and analysis not in figures:
            figures.append(analysis)
        if strategy == "reinit_orig":
            other = None if FLAGS.data in lottery_flags.DATASETS.values() else dataset  # those have their tables anyway
            tables.setdefault((FLAGS.l1_reg, other), [*analysis, "--table"])
    return runs, figures, list(tables.values())


def _parse(arguments: Sequence[str]) -> None:
    for name in command_line.names():
        if name != "traceback":
            FLAGS[name].unparse()
    command_line._parse(["run_lottery_tickets.py", *arguments])


def _is_used(word: str) -> bool:
    """Tells whether a flag was given another value than `word` gives it."""
    name, _, value = word.lstrip("-").partition("=")
    return FLAGS[name].present > 0 and str(FLAGS[name].value) != value


def _run(script: str, arguments: list[str]) -> None:
    print("\n" + shlex.join(["python", f"run_scripts/{script}.py", *arguments]), flush=True)
    done = subprocess.run(process(script, *arguments), check=False)
    if done.returncode < 0 or done.returncode == 130:
        raise KeyboardInterrupt
    if done.returncode:
        raise command_line.BadInput(f"{script}: expected a run that ends well. Received: exit code {done.returncode}")


def _check(name: str, known: tuple[str, ...]) -> None:
    strange = [value for value in FLAGS[name].value if value not in known]
    if strange or not FLAGS[name].value:
        raise command_line.BadFlag(f"--{name}: expected some of {', '.join(known)}. Received: {FLAGS[name].value}")
