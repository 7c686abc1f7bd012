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

import dataclasses
import functools
from pathlib import Path

from tf_robust_sparse.cli import networks, report, run_directory, settings
from tf_robust_sparse.cli.command_line import BadFlag
from tf_robust_sparse.cli.networks import Kind
from tf_robust_sparse.cli.sections import method, source, sparsity
from tf_robust_sparse.cli.sections.data import Data
from tf_robust_sparse.cli.sections.run import Output
from tf_robust_sparse.cli.settings import Settings, like, setting


@dataclasses.dataclass
class Weights(Settings):
    """What is read."""

    title = "Weights"

    weights: str | None = setting(
        None,
        "The published *_weights.pickle, unzipped, or a checkpoint of PyTorch: .pt, .pth, .pth.tar, .safetensors or "
        ".npz.",
    )
    k: float | None = like(source.Classifier, "k", only_for=None)

    @classmethod
    def settle(cls) -> None:
        """Pads as PyTorch does what holds weights of PyTorch."""
        source.settle_padding(cls.read().kind)

    def check(self) -> None:
        """Checks the file, and that scores are of a checkpoint."""
        if self.k is not None and (self.kind is not Kind.PYTORCH or sparsity.chosen() != "none"):
            raise BadFlag(
                f"--k={self.k:g} applies to a PyTorch checkpoint, without --sparse_train or --sparsifier; leave it out "
                f"with --weights={self.weights}"
            )
        networks.recognize(self.path, "weights", [each for each in Kind if each.holds_weights_alone])

    @property
    def path(self) -> Path:
        """Where the file is."""
        return Path(self.weights or "").expanduser()

    @property
    def kind(self) -> Kind | None:
        """What the file is."""
        return networks.kind(self.path)


def define() -> None:
    """Defines the flags."""
    Data.define()
    method.define()
    Output.define()
    Weights.define(needed=("weights",))


def main() -> None:
    """Builds, fills, saves, evaluates."""
    settings.check()
    weights = Weights.read()
    directory = run_directory.chosen()
    run_directory.check(directory)
    images = functools.cache(Data.read().load)
    network = networks.load(
        weights.path, "weights", lambda _: source.built(images(), weights.k), of_build=("model", "data")
    )
    run_directory.begin(directory)
    report.save(network, directory)
    results = {
        **report.evaluate(network, images(), attacked=False),
        "weights": weights.weights,
        "model": method.Network.read().model,
    }
    run_directory.write_results(directory / "results.json", results, images())
    report.show(results, directory)
