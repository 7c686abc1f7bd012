"""Trains a robust network that is sparse from the first step to the last, or its dense twin.

    python run_scripts/run_connectivity_sampling.py --flagfile=flags/quickstart.flags

Leaves in the output directory: `network.keras` (for further training), `serve/` (a SavedModel from pixels in [0, 1] to
logits), `run.flags`, `results.json` and `checkpoints/` with the history of every epoch.
"""

import tf_robust_sparse as trs
from tf_robust_sparse.cli import run_directory, settings, training_run
from tf_robust_sparse.cli.sections import method, recipe, sparsity
from tf_robust_sparse.cli.sections.attacks import TestAttack, TrainingAttack
from tf_robust_sparse.cli.sections.data import OF_SOME_COMMANDS, Augmentation, Data, TrainingImages
from tf_robust_sparse.cli.sections.machines import Machines
from tf_robust_sparse.cli.sections.run import Output, Run

IF_INTERRUPTED = training_run.IF_INTERRUPTED


def define() -> None:
    """Defines the flags."""
    Data.define()
    method.define()
    TrainingImages.define(without=OF_SOME_COMMANDS)
    method.Optimizer.define()
    method.Terms.define()
    TrainingAttack.define()
    for piece in (recipe.OneStep, recipe.Guard, recipe.WeightPerturbation, recipe.Averages):
        piece.define()
    Augmentation.define()
    recipe.Views.define()
    for group in sparsity.GROUPS:
        group.define()
    Machines.define()
    TestAttack.define()
    Output.define()
    Run.define()


def main() -> None:
    """Trains, selects, saves, evaluates."""
    settings.check()
    directory = run_directory.chosen()
    if Run.read().load_model:
        training_run.evaluate_again(directory)
        return
    run = training_run.prepare(directory)
    if run is None:
        return
    seed = Data.read().seed
    with run.strategy.scope():
        network = method.network(run.images, synchronized=run.strategy.num_replicas_in_sync > 1)
        objective = method.Terms.read().build(run.steps_per_epoch, Augmentation.read().flips(run.images))
        model = trs.RobustModel(
            network,
            objective,
            sparsity.build(
                run.total_steps, run.epochs, seed, lambda: method.pruning_images(run.images, network, objective)
            ),
            validation_attack=TrainingAttack.read().build(),
            seed=seed,
            average=recipe.Averages.read().build(run.total_steps, run.epochs),
            guard=recipe.Guard.read().build(run.images, seed),
        )
        model.compile(method.Optimizer.read().build(run.total_steps), metrics=["accuracy"])
    state = training_run.train(run, model)
    training_run.finish(run, model, state)
