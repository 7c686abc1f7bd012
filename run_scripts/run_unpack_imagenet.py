"""Copies the images of ImageNet out of a set that TensorFlow Datasets prepared, into folders of classes.

    python run_scripts/run_unpack_imagenet.py --prepared=~/tensorflow_datasets/imagenet2012/5.1.0 --data_dir=imagenet

Training needs the images in any order, which the prepared files do not allow. Files are copied as they are encoded; an
interrupted copy goes on where it stopped.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from run_scripts import command_line  # isort: skip

import tqdm
from absl import flags

import tf_robust_sparse as trs

FLAGS = flags.FLAGS

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
    with tqdm.tqdm(unit="image", mininterval=0.1 if sys.stderr.isatty() else 20.0) as bar:

        def progress(split: str, number: int, total: int) -> None:
            if bar.desc != f"{split}: ":
                bar.reset(total)
                bar.set_description(split)
            bar.update()

        with command_line.about("prepared", "data_dir"):
            trs.data.unpack_imagenet(prepared, place, progress)
    print(f"Images              {place}: train/, val/")


if __name__ == "__main__":
    command_line.run(main, "files that are copied stay, the same command goes on")
