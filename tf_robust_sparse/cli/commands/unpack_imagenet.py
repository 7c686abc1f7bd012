"""Copies the images of ImageNet out of a set that TensorFlow Datasets prepared, into folders of classes.

    python run_scripts/run_unpack_imagenet.py --prepared=~/tensorflow_datasets/imagenet2012/5.1.0 --data_dir=imagenet

Training needs the images in any order, which the prepared files do not allow. Files are copied as they are encoded; an
interrupted copy goes on where it stopped.
"""

import contextlib
import dataclasses
from pathlib import Path

from tf_robust_sparse.cli import command_line, settings
from tf_robust_sparse.cli.settings import Settings, setting
from tf_robust_sparse.data.readers.imagenet import unpack as unpack_imagenet
from tf_robust_sparse.evaluation.progress import Progress

IF_INTERRUPTED = "files that are copied stay, the same command goes on"


@dataclasses.dataclass
class Folders(Settings):
    """From where to where."""

    title = "Files"

    prepared: str | None = setting(None, "Folder of the prepared version, with dataset_info.json.")
    data_dir: str | None = setting(None, "Folder where train/<class>/ and val/<class>/ are made.")


def define() -> None:
    """Defines the flags."""
    Folders.define(needed=("prepared", "data_dir"))


def main() -> None:
    """Copies and counts."""
    settings.check()
    prepared, place = (Path(each).expanduser() for each in dataclasses.astuple(Folders.read()))
    if not (prepared / "dataset_info.json").is_file():
        raise command_line.BadFlag(
            f"--prepared={prepared} holds no dataset_info.json; expected a version that TensorFlow Datasets prepared, "
            "such as ~/tensorflow_datasets/imagenet2012/5.1.0"
        )
    with contextlib.ExitStack() as stack:
        bars: dict[str, Progress] = {}

        def progress(split: str, number: int, total: int) -> None:
            if split not in bars:
                bars[split] = stack.enter_context(Progress(split, total, shown=True))
            bars[split].advance(1)

        with command_line.about("prepared", "data_dir"):
            unpack_imagenet(prepared, place, progress)
    print(f"Images              {place}: train/, val/")
