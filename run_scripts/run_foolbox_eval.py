"""Measures the robust accuracy of any SavedModel from pixels to logits with Foolbox: PGD, ours or not.

    python run_scripts/run_foolbox_eval.py --saved_model=saved_models/quickstart/serve --data=fashion_mnist_sample \
        --pgd_epsilon=0.1 --pgd_iters=50 --pgd_restarts=10

Without --saved_model the run is found by the flags it was trained with (--data, --model, --objective, --sparse_train,
--connectivity).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from run_scripts import command_line, common_flags, run_directory  # isort: skip

from absl import flags

import tf_robust_sparse as trs

FLAGS = flags.FLAGS

common_flags.define_data()
common_flags.define_network()
common_flags.define_evaluation()
flags.DEFINE_string("saved_model", None, "Directory of a SavedModel from images in [0, 1] to logits.")
flags.DEFINE_string(
    "results_file", None, "Where to write the numbers as JSON; by default foolbox.json beside the SavedModel."
)


def main() -> None:
    """Loads, attacks, reports."""
    common_flags.check()
    path = Path(FLAGS.saved_model) if FLAGS.saved_model else common_flags.default_directory() / "serve"
    model = trs.evaluation.load_saved_model(path)
    images = common_flags.dataset()
    test = trs.data.test_dataset(images.test_images, images.test_labels, FLAGS.batch_size)
    report = trs.evaluation.foolbox_linf_pgd(
        model,
        test,
        epsilon=common_flags.pgd_epsilon(),
        num_steps=FLAGS.pgd_iters,
        restarts=FLAGS.pgd_restarts,
        seed=FLAGS.seed,
    )
    results = {
        **report,
        "saved_model": str(path),
        "data": {"name": images.name, "origin": images.origin},
        "versions": run_directory.versions(),
    }
    file = Path(FLAGS.results_file) if FLAGS.results_file else path.parent / "foolbox.json"
    run_directory.write_json(file, results)
    print()
    print(f"Clean accuracy      {100 * report['clean_accuracy']:6.2f} %   on {report['images']} test images")
    print(
        f"Robust accuracy     {100 * report['robust_accuracy']:6.2f} %   {report['attack']}, epsilon "
        f"{report['epsilon']:.4f}, {report['num_steps']} steps, {report['restarts']} restarts"
    )
    for warning in report["flags"]:
        print(f"Warning: {warning}")
    print(f"Record              {file}")


if __name__ == "__main__":
    command_line.run(main)
