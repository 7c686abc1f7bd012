"""Finds lottery tickets: rounds of training, pruning and rewinding, natural or under attack, in several trials.

    python run_scripts/run_lottery_tickets.py --dataset=digits --data_dir=DIR --attack=pgd --adv_train --trials=5

Each round of each trial leaves its kernels, masks and curves in `<base_dir>/<dataset>/<model>/<experiment>/<attack>/
lr-..._l1-..._advtrain-.../trial_00/prune_iter_00/`. Press Ctrl-C at any time and add --resume.
run_lottery_analysis.py turns the runs into figures and tables.
"""

import functools
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
from tf_robust_sparse.cli import command_line, devices, processes, report, run_directory, run_lock, settings
from tf_robust_sparse.cli.main import process
from tf_robust_sparse.cli.sections.lottery import Attack, Experiment, Images, Variants
from tf_robust_sparse.cli.sections.rounds import Devices, Rounds, Split
from tf_robust_sparse.saving.round_files import complete, finished_rounds, round_directory

FLAGS = flags.FLAGS
IF_INTERRUPTED = "no finished round is lost, run the same command with --resume to go on"


def define() -> None:
    """Defines the flags."""
    for group in (Images, Experiment, Rounds, Variants, Attack, Devices):
        group.define()


def main() -> None:
    """Runs all rounds of all trials that are not finished."""
    settings.check()
    experiment, rounds = Experiment.read(), Rounds.read()
    devices.choose("devices", fewer=True, quiet=bool(rounds.only_trials))
    directory = experiment.directory(rounds.experiment)
    resuming = check(directory)
    keras.utils.set_random_seed(Images.read().seed)
    strategy = Devices.read().build()
    images = Images.read().load()
    split = rounds.split(images)
    Variants.read().rule(experiment.network(images, 0))  # which checks --percents
    parts, side_by_side = rounds.parts(images)
    if not rounds.only_trials:
        begin(directory, resuming)
        describe(images, split, parts, side_by_side)
        print(f"Output:    {directory}", flush=True)
        complete(directory)
    parts = [trials for trials in parts if unfinished(directory, trials)]
    if side_by_side:
        train_side_by_side(parts)
    else:
        build = functools.cache(functools.partial(model, images, strategy))
        for trials in (group for part in parts for group in unfinished(directory, part)):
            train(build(len(trials)), trials, images, split, directory)
    if not rounds.only_trials:
        finish(directory, len(split.held_out["test"].y), len(split.test.y))


def unfinished(directory: Path, trials: list[int]) -> list[list[int]]:
    """Returns the trials that are not finished, in groups of those that have finished as many rounds.

    Only such are trained together: the others would be trained again.
    """
    groups: dict[int, list[int]] = {}
    for trial in trials:
        groups.setdefault(finished_rounds(directory, trial), []).append(trial)
    return [groups[number] for number in sorted(groups) if number < Rounds.read().plan().rounds]


def train_side_by_side(parts: list[list[int]]) -> None:
    """Runs this command once for each part, with its trials alone."""
    own = [["--noforce", "--resume", f"--only_trials={','.join(map(str, part))}"] for part in parts]
    codes = processes.run([process("lottery", *sys.argv[1:], *words) for words in own])
    failed = [f"{words[-1]} (exit code {code})" for words, code in zip(own, codes, strict=True) if code]
    if failed:
        raise ValueError(
            f"processes failed: {', '.join(failed)}; see their messages above. The other trials are kept, and the same "
            "command with --resume goes on"
        )


def train(
    trained: trs.training.StackedRobustModel,
    trials: list[int],
    images: trs.data.ImageDataset,
    split: Split,
    directory: Path,
) -> None:
    """Runs the rounds of trials that are trained together."""
    experiment, rounds = Experiment.read(), Rounds.read()
    who = f"trials {', '.join(map(str, trials))}, " if len(trials) < rounds.trials else ""
    final = {} if experiment.attack == "pgd" else {"test_pgd": (split.test, experiment.build_attack("pgd"))}
    if rounds.eval_subset:
        final["test"] = (split.test, trained.attack)
    trs.training.Rounds(
        trained,
        lambda seed: experiment.network(images, seed),
        Variants.read().rule(trained.network),
        split.train,
        split.held_out,
        rounds.plan(),
        directory,
        trials,
        final,
        rounds.checkpoint_seconds,
        say=lambda line: print(f"{who}{line}", flush=True),
    ).run()


def model(
    images: trs.data.ImageDataset, strategy: tf.distribute.Strategy, members: int
) -> trs.training.StackedRobustModel:
    """Returns what is trained, for so many trials at once, compiled."""
    experiment, rounds = Experiment.read(), Rounds.read()
    attack = experiment.build_attack()
    with strategy.scope():
        network = trs.models.stack([experiment.network(images, seed) for seed in range(members)])
        found = trs.training.StackedRobustModel(network, experiment.objective(attack), attack)
        found.compile(experiment.optimizer(), steps_per_execution=rounds.plan().steps_per_call, jit_compile=rounds.jit)
    return found


def check(directory: Path) -> bool:
    """Decides whether the run may use `directory`; nothing is written yet.

    Returns:
        Whether it goes on with what is there.

    Raises:
        BadFlag: if the directory is in use and neither --resume nor --force says what to do, or is another run's.
    """
    what, rounds = f"--base_dir={Experiment.read().base_dir}", Rounds.read()
    if not rounds.only_trials:  # which others train at the same time, in directories of their own
        run_lock.take(directory, f"{what}: {directory}")
    found = [path.name for path in directory.glob("*") if not path.name.startswith(".")]
    if not found:
        return False
    record = directory / "config.json"
    if not record.is_file() and set(found) != {"run.flags"}:  # which is written first
        raise command_line.BadFlag(f"{what}: {directory} holds other files, such as {min(found)}; pass another folder")
    if Experiment.read().force:
        return False
    if not rounds.resume:
        raise command_line.BadFlag(f"{what}: {directory} exists; pass --resume or --force, or another folder")
    if not record.is_file():
        return False
    before, now = json.loads(record.read_text())["flags"], configured()
    for name in settings.identity():
        if before.get(name) != now[name]:
            raise command_line.BadFlag(
                f"--{name}={now[name]}: the experiment in {directory} was begun with {before.get(name)}, which "
                "--resume cannot change; leave it out, or pass another --base_dir"
            )
    return True


def begin(directory: Path, resuming: bool) -> None:
    """Makes the directory, empty of an older experiment unless this one goes on, and records the flags."""
    experiment = Experiment.read()
    if experiment.force:
        for path in directory.iterdir():
            if path.name != run_lock.NAME:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    directory.mkdir(parents=True, exist_ok=True)
    if not resuming or not (directory / "run.flags").is_file():
        run_directory.write_flags(directory / "run.flags", "--base_dir")
    attack = experiment.build_attack()
    config = {
        "flags": configured(),
        "objective": experiment.objective(attack).describe(),
        "attack": attack.describe(),
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


def describe(images: trs.data.ImageDataset, split: Split, parts: list[list[int]], side_by_side: bool) -> None:
    """Says what is about to happen."""
    rounds, experiment = Rounds.read(), Experiment.read()
    plan, attack = rounds.plan(), experiment.build_attack()
    sizes = ", ".join(f"{name} {len(part.y)}" for name, part in split.held_out.items())
    print(
        f"Data:      {images.name} from {images.origin}: {len(split.train.y)} images to train on; measured on {sizes}"
    )
    print(f"Objective: {report.words(experiment.objective(attack).describe())}")
    print(f"Attack:    {report.words(attack.describe())}, away from the {attack.label} class")
    how = f"{len(parts)} processes" if side_by_side else "one process"
    print(
        f"Rounds:    {rounds.trials} trials of {plan.rounds} rounds of {plan.train_iters} steps, {plan.strategy}; "
        f"{how}, in which {len(parts[0])} are trained together; after Ctrl-C, --resume goes on"
    )


def finish(directory: Path, measured: int, available: int) -> None:
    """Writes `results.json`, means and standard deviations over trials, and prints them.

    Args:
        directory: Of the experiment.
        measured: Test images that the accuracies are of.
        available: Test images that there are.
    """
    rounds, rows = Rounds.read(), []
    for number in range(rounds.plan().rounds):
        places = [round_directory(directory, trial, number) for trial in range(rounds.trials)]
        found = [json.loads((place / "summary.json").read_text()) for place in places]
        row = {"prune_iter": number, **{name: found[0][name] for name in ("label", "remaining", "entries")}}
        for name in ("acc", "adv_acc"):
            values = [each["final"]["test"][name] for each in found]
            row[name], row[f"{name}_sd"] = float(np.mean(values)), float(np.std(values))
        rows.append({**row, "seconds": sum(each["seconds"] for each in found) / rounds.trials})
    results = {
        "rounds": rows,
        "trials": rounds.trials,
        "seed": Images.read().seed,
        "versions": run_directory.versions(),
        "test_images": {"measured": measured, "available": available},
    }
    run_directory.write_json(directory / "results.json", results)
    if measured < available:
        print(f"\nOn the first {measured} of {available} test images (--eval_subset):", end="")
    print(f"\n{'remain %':>8s}  {'accuracy %':>14s}  {'under ' + Experiment.read().attack + ' %':>14s}")
    for row in rows:
        pairs = [f"{100 * row[name]:6.2f} ± {100 * row[f'{name}_sd']:5.2f}" for name in ("acc", "adv_acc")]
        print(f"{row['label']:>8s}  {pairs[0]:>14s}  {pairs[1]:>14s}")
    print(f"Records             {directory}")
