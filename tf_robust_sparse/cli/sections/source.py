"""The network that a command works on, wherever it comes from."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
from absl import flags

import tf_robust_sparse as trs
from tf_robust_sparse.cli import networks, settings
from tf_robust_sparse.cli.command_line import BadFlag, about
from tf_robust_sparse.cli.networks import Kind
from tf_robust_sparse.cli.sections import method, sparsity
from tf_robust_sparse.cli.sections.data import Data
from tf_robust_sparse.cli.settings import OnlyFor, Settings, setting

FLAGS = flags.FLAGS


@dataclasses.dataclass
class Source(Settings):
    """A network whose layers are read."""

    title = "Network"

    network: str | None = setting(None, "The network: the directory of a run, or a .keras, .trs or .h5 file.")

    @property
    def path(self) -> Path:
        """Where the network is."""
        return Path(self.network or "").expanduser()

    def load(self) -> keras.Model:
        """Loads the network."""
        return networks.load(self.path, "network", layers=True)


@dataclasses.dataclass
class Classifier(Settings):
    """A network whose answers are looked at, or the flags of the run that left it."""

    title = "Network"

    network: str | None = setting(
        None,
        "The network: the directory of a run or SavedModel, a .keras, .trs or .h5 file, or, of --model, a PyTorch "
        "checkpoint or published pickle; by default that of the run, or the published weights, that the flags name.",
    )
    saved_model: str | None = setting(None, "The same, for the directory of a SavedModel.")
    k: float | None = setting(
        None,
        "For a PyTorch checkpoint with importance scores: the fraction of each kernel that they keep.",
        upper=1,
        excluded=0,
        only_for=OnlyFor(
            "--network=FILE, a PyTorch checkpoint", lambda _: Classifier.read().kind is Kind.PYTORCH, refuse=True
        ),
    )
    strip_softmax: bool = setting(False, "Take the softmax off the end of the network: attacks need logits.")
    pixel_range: float = setting(
        1.0,
        "The largest pixel that the network expects: 255 if it divides by 255 itself. Radii stay in pixels of [0, 1].",
        excluded=0,
    )

    @classmethod
    def settle(cls) -> None:
        """Pads as PyTorch does what holds weights of PyTorch."""
        settle_padding(cls.read().kind)

    def check(self) -> None:
        """Checks that one network is named, and that nothing is said of it that its file says."""
        if self.network and self.saved_model:
            raise BadFlag(
                f"--network={self.network} and --saved_model={self.saved_model} both name the network; pass one of them"
            )
        named = self.network or self.saved_model
        if settings.is_given("padding_mode") and self.kind not in (Kind.HDF5, Kind.PYTORCH, Kind.PUBLISHED):
            raise BadFlag(
                f"--padding_mode={method.Network.read().padding_mode} applies to files of weights alone; the network"
                f"{f' in {named}' if named else ''} is read from its file and pads as it was trained, so leave it out"
            )

    @property
    def flag(self) -> str:
        """The flag that names the network."""
        return "saved_model" if self.saved_model else "network"

    @property
    def is_named(self) -> bool:
        """Whether a flag names the network; otherwise it is found by the flags of its run."""
        return bool(self.network or self.saved_model)

    @property
    def kind(self) -> Kind | None:
        """What the flags name."""
        return networks.kind(self._path)

    @property
    def _path(self) -> Path:
        if self.is_named:
            return Path(self.network or self.saved_model or "").expanduser()
        exported, published = method.default_directory() / "serve", method.published_weights()
        return published if published.is_file() and not exported.exists() else exported

    def find(self) -> Path:
        """Returns where the network is.

        Raises:
            BadFlag: if there is none.
        """
        path = self._path
        if not self.is_named and not path.exists():
            raise BadFlag(
                f"--network is missing, and the other flags name no finished run: there is neither {path} nor "
                f"{method.published_weights()}; pass --network=PATH, or the flags that the run was trained with"
            )
        networks.recognize(path, self.flag)
        return path

    def load(self, path: Path, images: Callable[[], trs.data.ImageDataset]) -> Callable[..., Any]:
        """Loads the network at `path`, what `find` returned, which takes pixels in [0, 1] then.

        Args:
            path: Of the network.
            images: Returns the data, which a network is built for if the file holds weights alone.
        """

        def build(kind: Kind) -> keras.Model:
            return built(images(), self.k, parametrized=not kind.holds_weights_alone)

        network = networks.load(path, self.flag, build, ("model", "data"))
        if self.strip_softmax:
            with about("strip_softmax", self.flag):
                network = trs.evaluation.without_softmax(network)
        return trs.evaluation.with_pixel_range(network, self.pixel_range)


def settle_padding(kind: Kind | None) -> None:
    """Lets a network that takes weights of PyTorch pad as PyTorch does, where no flag says how."""
    if kind is Kind.PYTORCH and not settings.is_given("padding_mode"):
        FLAGS["padding_mode"].value = "symmetric"


def built(images: trs.data.ImageDataset, k: float | None, parametrized: bool = True) -> keras.Model:
    """Builds the network of --model that a file of weights is loaded into.

    Args:
        images: The data, whose size and classes it is built for.
        k: Fraction of each kernel that importance scores keep; `None` without scores.
        parametrized: Whether its kernels are those of --sparsifier; otherwise plain ones.
    """
    network, seed = method.Network.read(), Data.read().seed
    if k is not None:
        found = network.build(images, "subnet", seed)
        trs.sparsity.set_keep_fractions(found, k)
        return found
    if parametrized and sparsity.chosen() != "none":
        return method.network(images)
    return network.build(images, "plain", seed)
