"""Measures the robust accuracy of any SavedModel from pixels to logits with Foolbox's l-infinity PGD.

    python run_scripts/run_foolbox_eval.py --saved_model=saved_models/quickstart/serve --data=fashion_mnist_sample \\
        --pgd_epsilon=0.1 --pgd_iters=50 --pgd_restarts=10

Without --saved_model the run is found by the flags it was trained with: --data, --model, --objective, --sparse_train,
--connectivity. Where there is no such run, these flags find the weights that are published with connectivity sampling,
where its README puts them: results/cifar10/resnet50/sparse1_at_best_weights.pickle for example. Writes the numbers as
JSON.
"""

from pathlib import Path
from typing import Any

from absl import flags

import tf_robust_sparse as trs
from tf_robust_sparse.cli import command_line, report, robustness_flags, run_directory, settings
from tf_robust_sparse.cli.sections import method
from tf_robust_sparse.cli.sections.attacks import TestAttack
from tf_robust_sparse.cli.sections.data import Data

FLAGS = flags.FLAGS


def define() -> None:
    """Defines the flags."""
    Data.define()
    method.define()
    TestAttack.define()
    with command_line.section("Files"):
        flags.DEFINE_string("saved_model", None, "Directory of a SavedModel from images in [0, 1] to logits.")
        robustness_flags.define_pixel_range()
        flags.DEFINE_string("results_file", None, "Where to write; by default foolbox.json beside the network.")


def main() -> None:
    """Loads, attacks, reports."""
    settings.check()
    robustness_flags.check_padding_mode()
    path = Path(FLAGS.saved_model).expanduser() if FLAGS.saved_model else method.default_directory() / "serve"
    weights = method.published_weights()
    published = not FLAGS.saved_model and not path.exists() and weights.is_file()
    if not published and not path.exists():
        raise command_line.BadFlag(_nothing(path, weights))
    path = weights if published else path
    stem = weights.name.removesuffix("best_weights.pickle") if published else ""
    file = robustness_flags.check_outputs(path.parent / f"{stem}foolbox.json")
    if not published:
        with command_line.about("saved_model"):
            model: Any = trs.evaluation.load_saved_model(path)
    images = Data.read().load()
    if published:
        model = method.Network.read().build(images, "plain", FLAGS.seed)
        with command_line.about("model", "data"):
            trs.saving.import_reference_weights(path, model)
    with command_line.about("saved_model", "data"):
        results = trs.evaluation.foolbox_linf_pgd(
            trs.evaluation.with_pixel_range(model, FLAGS.pixel_range),
            Data.read().test_batches(images),
            epsilon=TestAttack.read().epsilon,
            num_steps=FLAGS.pgd_iters,
            restarts=FLAGS.pgd_restarts,
            seed=FLAGS.seed,
        )
    run_directory.write_json(
        file,
        {
            **results,
            "weights" if published else "saved_model": str(path),
            "data": {"name": images.name, "origin": images.origin},
            "versions": run_directory.versions(),
        },
    )
    show(results, file)


def _nothing(path: Path, weights: Path) -> str:
    """Returns what is said where there is no network."""
    if FLAGS.saved_model:
        return f"--saved_model={path}: expected the directory of a SavedModel. Received: a path that does not exist"
    return (
        f"--saved_model: expected the directory of a SavedModel, or flags of a finished run or of published weights. "
        f"Received: flags with which there is neither {path} nor {weights}; a file from elsewhere is turned into a "
        "SavedModel by run_import_weights.py --weights=FILE and these flags"
    )


def show(results: dict, file: Path) -> None:
    """Prints the two accuracies and where they were written."""
    attack = report.words(results, ("attack", "epsilon", "num_steps", "restarts"))
    print()
    print(f"Clean accuracy      {100 * results['clean_accuracy']:6.2f} %   on {results['images']} test images")
    print(f"Robust accuracy     {100 * results['robust_accuracy']:6.2f} %   {attack}")
    for warning in results["flags"]:
        print(f"Warning: {warning}")
    print(f"Record              {file}")
