"""Turns weights trained with the originals into a network and a SavedModel of this package.

    python run_scripts/run_import_weights.py --weights=best_weights.pickle --data=cifar10 --data_dir=DIR \\
        --model=vgg16 --objective=rst --sparse_train --connectivity=0.1

takes a pickle published with connectivity sampling;

    python run_scripts/run_import_weights.py --weights=checkpoint.pth.tar --data=cifar10 --data_dir=DIR \\
        --model=wrn28_4 --k=0.1

a PyTorch checkpoint of HYDRA or another one with the same architecture, or its state dict as .safetensors or .npz; --k
is the fraction that its importance scores keep, and is left out where it has none.

Leaves in the output directory: `network.keras`, `serve/`, `run.flags` and `results.json` with the clean accuracy; the
robust accuracy is what run_foolbox_eval.py measures. Files are read without running anything they name.
"""

from pathlib import Path

from absl import flags

import tf_robust_sparse as trs
from tf_robust_sparse.cli import command_line, report, run_directory, settings
from tf_robust_sparse.cli.sections import method, sparsity
from tf_robust_sparse.cli.sections.data import Data
from tf_robust_sparse.cli.sections.run import Output

FLAGS = flags.FLAGS


def define() -> None:
    """Defines the flags."""
    Data.define()
    method.define()
    Output.define()
    with command_line.section("Weights"):
        flags.DEFINE_string(
            "weights",
            None,
            "The published *_weights.pickle, unzipped, or a checkpoint of PyTorch: .pt, .pth, .pth.tar, "
            ".safetensors or .npz.",
        )
        command_line.define_number(
            "k",
            None,
            "Of a PyTorch checkpoint with importance scores: the fraction of each kernel that they keep.",
            0,
            1,
            0,
        )


def main() -> None:
    """Builds, fills, saves, evaluates."""
    settings.check()
    if FLAGS.weights is None:
        raise command_line.BadFlag(
            "--weights: expected the published *_weights.pickle or a PyTorch checkpoint. Received: no such flag"
        )
    weights = Path(FLAGS.weights).expanduser()
    is_pytorch = weights.suffix in trs.saving.PYTORCH_SUFFIXES
    if FLAGS.k is not None and (not is_pytorch or sparsity.chosen() != "none"):
        raise command_line.BadFlag(
            f"--k={FLAGS.k:g}: expected a PyTorch checkpoint and no --sparse_train or --sparsifier with it. "
            f"Received: --weights={FLAGS.weights}"
        )
    if not weights.is_file():
        raise command_line.BadFlag(f"--weights={FLAGS.weights}: expected a file. Received: no file of that name")
    if is_pytorch and not FLAGS["padding_mode"].present:
        FLAGS["padding_mode"].value = "symmetric"
    with command_line.about("weights"):
        try:
            trs.saving.check_weights(weights)
        except ImportError as error:
            raise command_line.BadFlag(f"--weights={FLAGS.weights}: {error}") from error
    directory = run_directory.chosen()
    run_directory.check(directory)
    images = Data.read().load()
    network = method.network(images) if FLAGS.k is None else method.Network.read().build(images, "subnet", FLAGS.seed)
    if FLAGS.k is not None:
        trs.sparsity.set_keep_fractions(network, FLAGS.k)
    read = trs.saving.import_pytorch_weights if is_pytorch else trs.saving.import_reference_weights
    with command_line.about("weights", "model", "data"):
        read(weights, network)
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
