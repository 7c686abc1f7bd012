"""Prunes a network by scores learnt under a robust objective: pretrain, prune, finetune (HYDRA).

    python run_scripts/run_hydra.py --data=cifar10 --data_dir=DIR --model=vgg16 --trainer=adv --k=0.1

runs all three phases, or with --source_net=DIR of a dense network the last two. One at a time, each beginning with the
weights of the one before:

    python run_scripts/run_hydra.py ... --exp_mode=pretrain --output_dir=runs/dense
    python run_scripts/run_hydra.py ... --exp_mode=prune --k=0.1 --scaled_score_init --source_net=runs/dense \\
        --output_dir=runs/pruned
    python run_scripts/run_hydra.py ... --exp_mode=finetune --k=0.1 --lr=0.01 --source_net=runs/pruned \\
        --output_dir=runs/compact

Each phase leaves what every training run leaves: `network.keras`, `serve/`, `run.flags`, `results.json` and
`checkpoints/`.
"""

from pathlib import Path

import keras
from absl import flags

import tf_robust_sparse as trs
from tf_robust_sparse.cli import (
    command_line,
    hydra_directories,
    hydra_flags,
    hydra_objects,
    hydra_originals,
    report,
    run_directory,
    settings,
    training_run,
)
from tf_robust_sparse.cli.sections.attacks import TestAttack
from tf_robust_sparse.cli.sections.data import Data
from tf_robust_sparse.cli.sections.run import CertifiedRun, Output

FLAGS = flags.FLAGS
IF_INTERRUPTED = training_run.IF_INTERRUPTED


def define() -> None:
    """Defines the flags."""
    Data.define()
    hydra_flags.define()
    TestAttack.define()
    Output.define()
    CertifiedRun.define()
    hydra_originals.define()


def main() -> None:
    """Runs the phase, or all of them, or evaluates a network."""
    hydra_originals.translate()
    settings.check()
    hydra_flags.check(lenient=hydra_originals.given())
    source, before = hydra_directories.source(), None
    if FLAGS.load_model and source is not None:
        evaluate(source)
        return
    if not FLAGS.load_model:
        command_line.note_unused(hydra_flags.MEANINGFUL)
        for how in hydra_originals.deviations() if hydra_originals.given() else ():
            print(f"Unlike HYDRA: {how}")
    for name in hydra_flags.phases():
        directory = hydra_directories.directory(name)
        if FLAGS.load_model:
            training_run.evaluate_again(directory)
            continue
        hydra_directories.check_source(source, directory)
        if FLAGS.exp_mode == "all":
            print(f"\n{name}", flush=True)
        elif FLAGS.resume:  # the record of the run keeps what it began with
            FLAGS.source_net = run_directory.recorded(directory).get("source_net")
            source = hydra_directories.source()
        before = run_phase(name, directory, source, before) or before
        hydra_directories.point_at(directory)
        source = directory


def evaluate(source: Path) -> None:
    """Evaluates --source_net on the test images, and prints the table."""
    images = Data.read().load()
    network = hydra_objects.loaded(source, images, masked=True)
    results = {**report.evaluate(network, images), **hydra_objects.measure(network, images)}
    report.show_numbers(results)
    print(f"Network             {source}", flush=True)


def run_phase(
    name: str, directory: Path, source: Path | None, before: training_run.TrainingRun | None
) -> training_run.TrainingRun | None:
    """Trains, selects, saves and evaluates one phase; returns `None` if it is finished already."""
    phase = hydra_flags.phase(name)
    files: dict[str, training_run.Writer] = {"dense": _save_dense} if FLAGS.save_dense else {}
    run = training_run.prepare(directory, hydra_flags.epochs(name), before, files)
    if run is None:
        return None
    with run.strategy.scope():
        network = hydra_objects.network(run, phase, source)
        model = hydra_objects.model(run, network, name)
    check = trs.training.PhaseCheck(network)
    state = training_run.train(run, model, hydra_flags.config(network), (check,), hydra_flags.first_looked_at(name))
    more = {"phase": phase.describe(), "source": str(source) if source else None, "k": FLAGS.k}
    training_run.finish(run, model, state, more, hydra_objects.measure)
    return run


def _save_dense(network: keras.Model, directory: Path) -> None:
    """Writes the network with plain kernels."""
    trs.save_network(trs.saving.strip(network), directory)
