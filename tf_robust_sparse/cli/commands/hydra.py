"""Prunes a network by scores learned under a robust objective: pretrain, prune, finetune (HYDRA).

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
from typing import Any

import keras

import tf_robust_sparse as trs
from tf_robust_sparse.cli import command_line, hydra, report, settings, training_run
from tf_robust_sparse.cli.hydra.settings import Optimizer, Output, Phases, Plan, Scores, plans
from tf_robust_sparse.cli.hydra.trainers import Trainer, Validation
from tf_robust_sparse.cli.sections.data import Data
from tf_robust_sparse.cli.sections.run import Run
from tf_robust_sparse.training.mask_changes import MaskDistance

IF_INTERRUPTED = training_run.IF_INTERRUPTED


def define() -> None:
    """Defines the flags."""
    hydra.settings.define()
    hydra.rates.Rates.define()
    hydra.rates.Sharpness.define()
    hydra.originals.define()


def main() -> None:
    """Runs the phase, or all of them, or evaluates a network."""
    hydra.originals.translate()
    settings.check()
    run, mode = Run.read(), Phases.read().exp_mode
    place, source, before = hydra.directories.Place.read(), hydra.directories.source(), None
    if run.load_model and source is not None:
        evaluate(source)
        return
    if not run.load_model:
        command_line.say_deviations("HYDRA", hydra.originals.deviations())
    for phase in plans():
        directory = place.directory(phase.name)
        if run.load_model:
            training_run.evaluate_again(directory)
            continue
        hydra.directories.check_source(source, directory)
        if mode == "all":
            print(f"\n{phase.name}", flush=True)
        elif run.resume:
            source = hydra.directories.recorded_source(directory)
        before = run_phase(phase, directory, source, before) or before
        place.point_at(directory)
        source = directory


def evaluate(source: Path) -> None:
    """Evaluates --source_net on the test images, and prints the table."""
    images = Data.read().load()
    network = hydra.networks.load(source, images, masked=True)
    report.show_numbers({**report.evaluate(network, images), **hydra.trainers.measure(network, images)})
    print(f"Network             {source}", flush=True)


def run_phase(
    plan: Plan, directory: Path, source: Path | None, before: training_run.TrainingRun | None
) -> training_run.TrainingRun | None:
    """Trains, selects, saves and evaluates one phase; returns `None` if it is finished already."""
    scores = Scores.read()
    phase = scores.phase(plan.name)
    files: dict[str, training_run.Writer] = {"dense": _save_dense} if Output.read().save_dense else {}
    run = training_run.prepare(directory, plan.epochs, before, files)
    if run is None:
        return None
    with run.strategy.scope():
        network = hydra.networks.build(run, phase, source)
        model = build(run, network, plan)
    watch: list[keras.callbacks.Callback] = [trs.training.PhaseCheck(network)]
    if phase.trains == "scores":
        watch.append(MaskDistance())
    state = training_run.train(run, model, hydra.settings.config(network), tuple(watch), plan.first_looked_at)
    more = {"phase": phase.describe(), "source": str(source) if source else None, "k": scores.k}
    training_run.finish(run, model, state, more, hydra.trainers.measure)
    return run


def build(run: training_run.TrainingRun, network: keras.Model, plan: Plan) -> trs.RobustModel:
    """Returns the compiled model that trains a network in a phase."""
    trainer, validation = Trainer.read(), Validation.read()
    validation.check_network(network)
    how: dict[str, Any] = {"validation_attack": validation.attack(), "validation_checks": validation.checks()}
    kind: type[trs.RobustModel] = trs.RobustModel
    objective, steps = trainer.build(run.steps_per_epoch, plan.schedule_length), run.steps_per_epoch
    if plan.name == "prune":
        objective = hydra.rates.Sharpness.read().around(objective)
    if isinstance(objective, trs.training.FreeAT):
        kind, steps = trs.training.FreeRobustModel, steps * trainer.n_repeats
    model = kind(network, objective, hydra.rates.Rates.read().sparsifier(plan.name), seed=Data.read().seed, **how)
    model.compile(Optimizer.read().build(plan.rates, steps), metrics=["accuracy"])
    return model


def _save_dense(network: keras.Model, directory: Path) -> None:
    """Writes the network with plain kernels."""
    trs.save_network(trs.saving.strip(network), directory)
