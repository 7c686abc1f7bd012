"""Copies the images of ImageNet out of a set that TensorFlow Datasets prepared, into folders of classes.

    python run_scripts/run_unpack_imagenet.py --prepared=~/tensorflow_datasets/imagenet2012/5.1.0 --data_dir=imagenet

Training needs the images in any order, which the prepared files do not allow. Files are copied as they are encoded; an
interrupted copy goes on where it stopped.
"""

import contextlib
from pathlib import Path

from absl import flags

import tf_robust_sparse as trs
from tf_robust_sparse.cli import command_line
from tf_robust_sparse.evaluation.progress import Progress

FLAGS = flags.FLAGS
IF_INTERRUPTED = "files that are copied stay, the same command goes on"


def define() -> None:
    """Defines the flags."""
    with command_line.section("Files"):
        flags.DEFINE_string("prepared", None, "Folder of the prepared version, with dataset_info.json.")
        flags.DEFINE_string("data_dir", None, "Where train/<class>/ and val/<class>/ are made.")


def main() -> None:
    """Copies and counts."""
    for name in ("prepared", "data_dir"):
        if not FLAGS[name].value:
            raise command_line.BadFlag(f"--{name}: expected a folder. Received: no such flag")
    prepared, place = Path(FLAGS.prepared).expanduser(), Path(FLAGS.data_dir).expanduser()
    if not (prepared / "dataset_info.json").is_file():
        raise command_line.BadFlag(
            f"--prepared={prepared}: expected a version that TensorFlow Datasets prepared. "
            "Received: no dataset_info.json"
        )
    with contextlib.ExitStack() as stack:
        bars: dict[str, Progress] = {}

        def progress(split: str, number: int, total: int) -> None:
            if split not in bars:
                bars[split] = stack.enter_context(Progress(split, total, shown=True))
            bars[split].advance(1)

        with command_line.about("prepared", "data_dir"):
            trs.data.unpack_imagenet(prepared, place, progress)
    print(f"Images              {place}: train/, val/")
