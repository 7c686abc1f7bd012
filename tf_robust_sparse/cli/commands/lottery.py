"""Finds lottery tickets: rounds of training, pruning and rewinding, natural or under attack, in several trials.

    python run_scripts/run_lottery_tickets.py --dataset=digits --data_dir=DIR --attack=pgd --adv_train --trials=5

Each round of each trial leaves its kernels, masks and curves in `<base_dir>/<dataset>/<model>/<experiment>/<attack>/
lr-..._l1-..._advtrain-.../trial_00/prune_iter_00/`. Press Ctrl-C at any time and add --resume.
run_lottery_analysis.py turns the runs into figures and tables.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import flags

import tf_robust_sparse as trs
from tf_robust_sparse.cli import (
    command_line,
    devices,
    lottery_flags,
    lottery_processes,
    report,
    run_directory,
    run_lock,
)
from tf_robust_sparse.cli.main import process
from tf_robust_sparse.cli.sections.data import Data
from tf_robust_sparse.cli.sections.machines import Machines
from tf_robust_sparse.saving.round_files import complete, finished_rounds, round_directory

FLAGS = flags.FLAGS
IF_INTERRUPTED = "no finished round is lost, run the same command with --resume to go on"


# What --resume may change; everything else makes it another run.
_MAY_CHANGE = (
    *("base_dir", "checkpoint_seconds", "data_dir", "force", "only_trials", "processes", "prune_iters", "resume"),
    *("stacked", "trials", "devices"),
    "dataset",  # another word for data
)


def define() -> None:
    """Defines the flags."""
    lottery_flags.define()


def main() -> None:
    """Runs all rounds of all trials that are not finished."""
    lottery_flags.check()
    devices.choose("devices", fewer=True, quiet=bool(FLAGS.only_trials))
    directory = lottery_flags.directory()
    resuming = check(directory)
    keras.utils.set_random_seed(FLAGS.seed)
    strategy = Machines.read().build()
    images = Data.read().load()
    train, held_out, test = lottery_flags.split(images)
    lottery_flags.rule(lottery_flags.network(images, 0))  # which checks --percents
    parts = lottery_flags.parts(images)
    if not FLAGS.only_trials:
        begin(directory, resuming)
        describe(images, train, held_out, parts, directory)
        complete(directory)
    parts = [trials for trials in parts if unfinished(directory, trials)]
    if parts and lottery_flags.processes(images) > 1:
        lottery_processes.run(parts, process("lottery", *sys.argv[1:]))
        parts = []
    if FLAGS.only_trials:
        lottery_processes.end_with_parent()
    models: dict[int, trs.training.StackedRobustModel] = {}
    for trials in [group for part in parts for group in unfinished(directory, part)]:
        if len(trials) not in models:
            with strategy.scope():
                models[len(trials)] = model(images, len(trials))
        run_trials(models[len(trials)], trials, images, train, held_out, test, directory)
    if not FLAGS.only_trials:
        finish(directory, len(held_out["test"].y), len(test.y))


def unfinished(directory: Path, trials: list[int]) -> list[list[int]]:
    """Returns the trials that are not finished, in groups of those that have finished as many rounds.

    Only such are trained together: the others would be trained again.
    """
    groups: dict[int, list[int]] = {}
    for trial in trials:
        groups.setdefault(finished_rounds(directory, trial), []).append(trial)
    return [groups[number] for number in sorted(groups) if number < lottery_flags.plan().rounds]


def run_trials(
    trained: trs.training.StackedRobustModel,
    trials: list[int],
    images: trs.data.ImageDataset,
    train: trs.training.LabeledImages,
    held_out: dict[str, trs.training.LabeledImages],
    test: trs.training.LabeledImages,
    directory: Path,
) -> None:
    """Runs the rounds of trials that are trained together."""
    who = f"trials {', '.join(map(str, trials))}, " if len(trials) < FLAGS.trials else ""
    final = {} if FLAGS.attack == "pgd" else {"test_pgd": (test, lottery_flags.attack("pgd"))}
    if FLAGS.eval_subset:
        final["test"] = (test, trained.attack)
    rounds = trs.training.Rounds(
        trained,
        lambda seed: lottery_flags.network(images, seed),
        lottery_flags.rule(trained.network),
        train,
        held_out,
        lottery_flags.plan(),
        directory,
        trials,
        final,
        FLAGS.checkpoint_seconds,
        say=lambda line: print(f"{who}{line}", flush=True),
    )
    rounds.run()


def model(images: trs.data.ImageDataset, members: int) -> trs.training.StackedRobustModel:
    """Returns what is trained, for so many trials at once, compiled."""
    network = trs.models.stack([lottery_flags.network(images, seed) for seed in range(members)])
    attack = lottery_flags.attack()
    found = trs.training.StackedRobustModel(network, lottery_flags.objective(attack), attack)
    found.compile(
        lottery_flags.optimizer(), steps_per_execution=lottery_flags.plan().steps_per_call, jit_compile=FLAGS.jit
    )
    return found


def check(directory: Path) -> bool:
    """Decides whether the run may use `directory`; nothing is written yet.

    Returns:
        Whether it goes on with what is there.

    Raises:
        BadFlag: if the directory is in use and neither --resume nor --force says what to do, or is another run's.
    """
    if not FLAGS.only_trials:  # which others train beside it, in directories of their own
        run_lock.take(directory, f"--base_dir={FLAGS.base_dir}: {directory}")
    found = [path.name for path in directory.glob("*") if not path.name.startswith(".")]
    if not found:
        return False
    record = directory / "config.json"
    if not record.is_file() and set(found) != {"run.flags"}:  # which is written first
        raise command_line.BadFlag(
            f"--base_dir={FLAGS.base_dir}: expected a new experiment, or the directory of one. Received: {directory} "
            f"with other files, such as {min(found)}"
        )
    if FLAGS.force:
        return False
    if not FLAGS.resume:
        raise command_line.BadFlag(
            f"--base_dir={FLAGS.base_dir}: expected a new experiment, or --resume or --force. Received: {directory}, "
            "which exists"
        )
    if not record.is_file():
        return False
    before = json.loads(record.read_text())["flags"]
    for name, value in configured().items():
        if name not in _MAY_CHANGE and before.get(name) != value:
            raise command_line.BadFlag(
                f"--{name}: the experiment in {directory} was begun with {before.get(name)}, which --resume cannot "
                f"change. Received: {value}"
            )
    return True


def begin(directory: Path, resuming: bool) -> None:
    """Makes the directory, empty of an older experiment unless this one goes on, and records the flags."""
    if FLAGS.force:
        for path in directory.iterdir():
            if path.name != run_lock.NAME:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    directory.mkdir(parents=True, exist_ok=True)
    if not resuming or not (directory / "run.flags").is_file():
        run_directory.write_flags(directory / "run.flags", "--base_dir")
    config = {
        "flags": configured(),
        "objective": lottery_flags.objective(lottery_flags.attack()).describe(),
        "attack": lottery_flags.attack().describe(),
        "versions": run_directory.versions(),
        "revision": revision(),
        "devices": [device.name for device in tf.config.list_logical_devices()],
    }
    run_directory.write_json(directory / "config.json", config)


def configured() -> dict[str, Any]:
    """Returns every flag by its name, as JSON holds it."""
    return {name: FLAGS[name].value for name in sorted(command_line.names()) if name != "traceback"}


def revision() -> str | None:
    """Returns the revision of this code, or `None` where it is not under version control."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def describe(
    images: trs.data.ImageDataset,
    train: trs.training.LabeledImages,
    held_out: dict[str, trs.training.LabeledImages],
    parts: list[list[int]],
    directory: Path,
) -> None:
    """Says what is about to happen."""
    plan, attack = lottery_flags.plan(), lottery_flags.attack()
    sizes = ", ".join(f"{name} {len(part.y)}" for name, part in held_out.items())
    print(f"Data:      {images.name} from {images.origin}: {len(train.y)} images to train on; measured on {sizes}")
    print(f"Objective: {report.words(lottery_flags.objective(attack).describe())}")
    print(f"Attack:    {report.words(attack.describe())}, away from the {attack.label} class")
    how = f"{len(parts)} processes" if lottery_flags.processes(images) > 1 else "one process"
    print(
        f"Rounds:    {FLAGS.trials} trials of {plan.rounds} rounds of {plan.train_iters} steps, {plan.strategy}; "
        f"{how}, in which {len(parts[0])} are trained together; after Ctrl-C, --resume goes on"
    )
    print(f"Output:    {directory}", flush=True)


def finish(directory: Path, measured: int, available: int) -> None:
    """Writes `results.json`, means and standard deviations over trials, and prints them.

    Args:
        directory: Of the experiment.
        measured: Test images that the accuracies are of.
        available: Test images that there are.
    """
    rows = []
    for number in range(lottery_flags.plan().rounds):
        found = [
            json.loads((round_directory(directory, trial, number) / "summary.json").read_text())
            for trial in range(FLAGS.trials)
        ]
        row = {name: found[0][name] for name in ("label", "remaining", "entries")}
        for name in ("acc", "adv_acc"):
            values = [each["final"]["test"][name] for each in found]
            row[name], row[f"{name}_sd"] = float(np.mean(values)), float(np.std(values))
        rows.append({"prune_iter": number, **row, "seconds": sum(each["seconds"] for each in found) / FLAGS.trials})
    results = {"rounds": rows, "trials": FLAGS.trials, "seed": FLAGS.seed, "versions": run_directory.versions()}
    results["test_images"] = {"measured": measured, "available": available}
    run_directory.write_json(directory / "results.json", results)
    if measured < available:
        print(f"\nOn the first {measured} of {available} test images (--eval_subset):", end="")
    print(f"\n{'remain %':>8s}  {'accuracy %':>14s}  {'under ' + FLAGS.attack + ' %':>14s}")
    for row in rows:
        pairs = [f"{100 * row[name]:6.2f} ± {100 * row[f'{name}_sd']:5.2f}" for name in ("acc", "adv_acc")]
        print(f"{row['label']:>8s}  {pairs[0]:>14s}  {pairs[1]:>14s}")
    print(f"Records             {directory}")
