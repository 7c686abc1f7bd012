"""Turns weights published with the original into a network and a SavedModel of this package.

    python run_scripts/run_import_weights.py --weights=best_weights.pickle --data=cifar10 --data_dir=DIR \\
        --model=vgg16 --objective=rst --sparse_train --connectivity=0.1

Leaves in the output directory: `network.keras`, `serve/`, `run.flags` and `results.json` with the clean accuracy; the
robust accuracy is what run_foolbox_eval.py measures. The file is a pickle, read without running anything it names.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from run_scripts import command_line, common_flags, report, run_directory  # isort: skip

from absl import flags

import tf_robust_sparse as trs

FLAGS = flags.FLAGS

common_flags.define_data()
common_flags.define_network()
run_directory.define()
with command_line.section("Weights"):
    flags.DEFINE_string("weights", None, "The published *_weights.pickle, unzipped.")


def main() -> None:
    """Builds, fills, saves, evaluates."""
    common_flags.check()
    if FLAGS.weights is None:
        raise command_line.BadFlag("--weights: expected the published *_weights.pickle. Received: no such flag")
    directory = run_directory.chosen()
    run_directory.check(directory)
    images = common_flags.dataset()
    network = common_flags.network(images)
    with command_line.about("weights", "model", "data"):
        trs.saving.import_reference_weights(FLAGS.weights, network)
    run_directory.begin(directory)
    report.save(network, directory)
    results = {
        **report.evaluate(network, images, attacked=False),
        "weights": FLAGS.weights,
        "model": FLAGS.model,
        "data": {"name": images.name, "origin": images.origin},
        "versions": run_directory.versions(),
    }
    run_directory.write_json(directory / "results.json", results)
    report.show(results, directory)


if __name__ == "__main__":
    command_line.run(main)
