"""Which images are used, how many of them, and how they are varied."""

import contextlib
import dataclasses
import math
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from absl import flags

import tf_robust_sparse as trs
from tf_robust_sparse.cli.command_line import BadFlag, about
from tf_robust_sparse.cli.settings import OnlyFor, Settings, setting
from tf_robust_sparse.data.catalog import IN_FILES
from tf_robust_sparse.data.pipeline import auxiliary_batch_size

FLAGS = flags.FLAGS


@dataclasses.dataclass
class Data(Settings):
    """The images of a run, and the seed of all its draws."""

    title = "Data"

    data: str = setting(
        "cifar10",
        f"Images: {', '.join(trs.data.DATASETS)}, or a path of an .npz file or a folder of images.",
        identity=True,
    )
    data_dir: str | None = setting(
        None, "Folder with the official files of the data set, or with a folder of its name that holds them."
    )
    image_size: int | None = setting(
        None, "Height and width to resize a folder of images to, or to crop ImageNet to.", lower=1
    )
    test_examples: int | None = setting(None, "Use only the first N test images.", lower=1)
    n_classes: int | None = setting(None, "Number of classes; read from the data, and checked if given.", lower=2)
    batch_size: int = setting(
        128, "Images per step, over all replicas.", lower=1, aliases=("batch", "b"), identity=True
    )
    seed: int = setting(0, "Integer that fixes every random draw.", upper=2**31 - 1, identity=True)

    def check(self) -> None:
        """Checks that `data` names a data set or something on disk."""
        if not (self.is_known or self.data.endswith(".npz") or Path(self.data).expanduser().is_dir()):
            raise BadFlag(
                f"--data={self.data}: expected one of {', '.join(trs.data.DATASETS)}, an .npz file or a folder of "
                "images"
            )

    @property
    def is_known(self) -> bool:
        """Whether the data set is one of the toolkit's."""
        return self.data in trs.data.DATASETS

    @property
    def is_in_files(self) -> bool:
        """Whether images are read from their files in each epoch."""
        return self.data in IN_FILES

    @property
    def short_name(self) -> str:
        """What the data are called in the names of runs."""
        return Path(self.data).expanduser().resolve().stem

    def load(self) -> trs.data.ImageDataset:
        """Reads the images, cut down to as many as the settings ask for.

        Raises:
            BadFlag: if the data have fewer images, or other classes, than the settings say.
            BadInput: if they cannot be read.
        """
        with about("data", "data_dir", "image_size"), _notes():
            found = trs.data.load(self.data, self.data_dir, self.image_size)
        if self.n_classes is not None and self.n_classes != found.num_classes:
            raise BadFlag(f"--n_classes={self.n_classes}: expected {found.num_classes}, the classes of {self.data}")
        amount = TrainingImages.read()
        for name, wanted, available in (
            ("train_examples", amount.train_examples, len(found.train_labels)),
            ("test_examples", self.test_examples, len(found.test_labels)),
        ):
            if (wanted or 0) > available:
                raise BadFlag(f"--{name}={wanted}: expected at most the {available} that {self.data} has")
        found = found.take(amount.number(len(found.train_labels)), self.test_examples, seed=self.seed)
        check_memory(found)
        return found

    def test_batches(self, images: trs.data.ImageDataset) -> tf.data.Dataset:
        """Returns the test images in batches."""
        return trs.data.test_dataset(images.test_images, images.test_labels, self.batch_size)


OF_SOME_COMMANDS = ("data_fraction", "semisup_fraction", "valid_ratio", "drop_last")


@dataclasses.dataclass
class TrainingImages(Settings):
    """On which images a network is trained, and how often."""

    title = "Training"

    epochs: int = setting(200, "Passes over the training images.", lower=1, aliases=("n_epochs", "e"), identity=True)
    train_examples: int | None = setting(None, "Use only N training images, drawn at random.", lower=1, identity=True)
    validation_examples: int | None = setting(
        None,
        "Training images held out, by which the best epoch is chosen; by default 1000, or a tenth if that is less; 0 "
        "trains on all of them, with --select=last or reference.",
        identity=True,
    )
    pseudo_labels: str | None = setting(
        None, "File of pseudo-labeled images for --objective=rst: an .npz or the published pickle.", identity=True
    )
    rst_frac: float = setting(
        0.5,
        "Share of pseudo-labeled images in a batch.",
        upper=1,
        excluded=0,
        identity=True,
        only_for=OnlyFor("--pseudo_labels=FILE", lambda flags: bool(flags.pseudo_labels)),
    )
    generated_data: str | None = setting(
        None,
        "File of generated images, an .npz of image and label as published; --augmentation moves them too.",
        identity=True,
    )
    generated_fraction: float = setting(
        0.7,
        "Share of generated images in a batch.",
        upper=1,
        excluded=0,
        identity=True,
        only_for=OnlyFor("--generated_data=FILE", lambda flags: bool(flags.generated_data), refuse=True),
    )
    mixed_precision: bool = setting(False, "Compute in float16; theta, masks and logits stay float32.", identity=True)
    # Of some commands only:
    data_fraction: float | None = setting(
        None, "Use this share of the training images, drawn at random.", upper=1, excluded=0, identity=True
    )
    semisup_fraction: float = setting(
        1.0,
        "Use this share of the pseudo-labeled images.",
        upper=1,
        excluded=0,
        identity=True,
        only_for=OnlyFor("--pseudo_labels=FILE", lambda flags: bool(flags.pseudo_labels), refuse=True),
    )
    valid_ratio: float | None = setting(None, "Held-out share of the training images.", upper=1, identity=True)
    drop_last: bool = setting(True, "Leave out the last, smaller batch of an epoch.", identity=True)

    @classmethod
    def define_shared(cls, **defaults: Any) -> None:
        """Defines what all training commands have."""
        cls.define(without=(*OF_SOME_COMMANDS, "generated_data", "generated_fraction"), **defaults)

    def number(self, available: int) -> int | None:
        """Returns how many of the training images are used; `None` for all."""
        if self.data_fraction is None:
            return self.train_examples
        return max(1, int(self.data_fraction * available))

    def held_out(self, available: int, select: str) -> int:
        """Returns how many training images the best epoch is chosen by.

        Args:
            available: Number of training images.
            select: Value of --select.

        Raises:
            BadFlag: if nothing would be left to train on, or there is nothing to choose by.
        """
        number = min(1000, available // 10) if self.validation_examples is None else self.validation_examples
        if self.valid_ratio is not None and self.validation_examples is None:
            number = int(self.valid_ratio * available)
        if number >= available:
            raise BadFlag(f"--validation_examples={number}: expected fewer than the {available} training images")
        if number == 0 and select.startswith("best"):
            raise BadFlag(
                f"--validation_examples=0 holds out no image that --select={select} could choose by; pass "
                f"--select=last or --select=reference, or more than 10 training images than the {available} there are"
            )
        return number

    def steps_per_epoch(self, available: int, batch_size: int) -> int:
        """Returns the number of batches in an epoch of `available` labeled images."""
        fraction = self.auxiliary_fraction
        auxiliary = auxiliary_batch_size(batch_size, fraction) if fraction else 0
        with about("batch_size"):
            return trs.data.steps_per_epoch(available, batch_size, auxiliary, drop_remainder=self.drop_last)

    @property
    def auxiliary_fraction(self) -> float:
        """Share of pseudo-labeled or generated images in a batch."""
        return self.generated_fraction if self.generated_data else self.rst_frac if self.pseudo_labels else 0.0

    def load_auxiliary(self, num_classes: int, seed: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Reads generated images, or pseudo-labeled ones, as many as `semisup_fraction` says; `None` without a file."""
        if self.generated_data:
            with about("generated_data"):
                return trs.data.load_generated(self.generated_data, num_classes)
        if not self.pseudo_labels:
            return None
        with about("pseudo_labels"):
            x, y = trs.data.load_pseudo_labels(self.pseudo_labels, num_classes)
        if self.semisup_fraction == 1:
            return x, y
        chosen = np.random.default_rng(seed).permutation(len(y))[: max(1, int(self.semisup_fraction * len(y)))]
        return x[chosen], y[chosen]

    def check(self) -> None:
        """Checks that one setting says how many images are used."""
        if self.data_fraction is not None and self.train_examples is not None:
            raise BadFlag(
                f"--data_fraction={self.data_fraction:g} and --train_examples={self.train_examples} both say how many "
                "images to use; pass one"
            )

    def check_files(self) -> None:
        """Checks that the files are there, and that one kind of further images is asked for."""
        if self.pseudo_labels and self.generated_data:
            raise BadFlag("--pseudo_labels and --generated_data both add images to a batch; pass one of them")
        for name in ("pseudo_labels", "generated_data"):
            path = getattr(self, name)
            if path and not Path(path).expanduser().is_file():
                kind = "pseudo-labeled" if name == "pseudo_labels" else "generated"
                raise BadFlag(f"--{name}={path}: expected a file of {kind} images; there is no such file")


@dataclasses.dataclass
class Augmentation(Settings):
    """How training images are varied."""

    title = "Augmentation"

    augmentation: str = setting(
        "shift",
        "Random shifts of up to a tenth of the size; random crops after padding by 4 pixels; or, of imagenet only and "
        "its default, random parts of 8 to 100 % of the image.",
        choices=("shift", "crop", "resized_crop", "none"),
        identity=True,
    )
    flip: bool | None = setting(
        None,
        "Mirror training images at random; by default for fashion_mnist and cifar, not for digits and your own images.",
        identity=True,
    )

    @classmethod
    def settle(cls) -> None:
        """Images that are read from files are cropped at random by default."""
        if Data.read().is_in_files and not FLAGS["augmentation"].present:
            FLAGS["augmentation"].value = "resized_crop"

    def check(self) -> None:
        """Checks that the data can be varied like this."""
        data = Data.read()
        if self.augmentation == "resized_crop" and not data.is_in_files:
            raise BadFlag(
                f"--augmentation=resized_crop needs --data={' or '.join(IN_FILES)}; for --data={data.data} "
                "pass --augmentation=crop"
            )
        if self.flip and not self.can_flip:
            raise BadFlag("--flip needs an --augmentation that moves images; pass --augmentation=shift, or drop --flip")
        if data.is_in_files and TrainingImages.read().pseudo_labels:
            raise BadFlag(f"--pseudo_labels needs data in memory; --data={data.data} is read from files, drop it")

    @property
    def can_flip(self) -> bool:
        """Whether training mirrors images where it is asked to."""
        return self.augmentation != "none"

    def flips(self, images: trs.data.ImageDataset) -> bool:
        """Whether training mirrors images of this data set."""
        return images.flip if self.flip is None else self.flip

    @property
    def kind(self) -> str | None:
        """What `trs.data.train_dataset` takes."""
        return None if self.augmentation == "none" else self.augmentation


@contextlib.contextmanager
def _notes() -> Iterator[None]:
    """Prints what readers warn of, such as files that they skip, as notes."""
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always", UserWarning)
        try:
            yield
        finally:
            for note in notes:
                print(f"Note: {note.message}")


def check_memory(images: trs.data.ImageDataset) -> None:
    """Checks that the test images, which evaluations hold decoded and twice, fit into memory.

    Raises:
        BadFlag: if they do not.
    """
    needed = 2 * 4 * math.prod(images.test_images.shape)
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        fitting = int(len(images.test_labels) * there / needed / 2)
        raise BadFlag(
            f"--test_examples: expected as many as fit into memory, such as {fitting}, because attacks hold them all. "
            f"Received: {len(images.test_labels)} images of {needed / 2**30:.0f} GiB, {there / 2**30:.0f} GiB of memory"
        )
