"""Trains a robust network that is sparse from the first step to the last, or its dense twin.

    python run_scripts/run_connectivity_sampling.py --flagfile=flags/quickstart.flags

Leaves in the output directory: `network.keras` (for further training), `serve/` (a SavedModel from pixels in [0, 1] to
logits), `run.flags`, `results.json` and `checkpoints/` with the history of every epoch.
"""

from absl import flags

import tf_robust_sparse as trs
from tf_robust_sparse.cli import common_flags, common_objects, run_directory, training_run

FLAGS = flags.FLAGS
IF_INTERRUPTED = training_run.IF_INTERRUPTED


def define() -> None:
    """Defines the flags."""
    common_flags.define_data()
    common_flags.define_network()
    common_flags.define_training()
    common_flags.define_evaluation()
    run_directory.define()
    training_run.define()


def main() -> None:
    """Trains, selects, saves, evaluates."""
    common_flags.check()
    directory = run_directory.chosen()
    if FLAGS.load_model:
        training_run.evaluate_again(directory)
        return
    run = training_run.prepare(directory)
    if run is None:
        return
    with run.strategy.scope():
        network = common_objects.network(run.images, synchronized=run.strategy.num_replicas_in_sync > 1)
        common_objects.load_source(network)
        objective = common_objects.objective()
        model = trs.RobustModel(
            network,
            objective,
            common_objects.sparsifier(
                run.total_steps, lambda: common_objects.pruning_images(run.images, network, objective)
            ),
            validation_attack=common_objects.attack(),
            seed=FLAGS.seed,
        )
        model.compile(common_objects.optimizer(run.total_steps), metrics=["accuracy"])
    state = training_run.train(run, model)
    training_run.finish(run, model, state)
