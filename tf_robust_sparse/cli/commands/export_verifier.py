"""Prepares a network for complete verifiers: ONNX, a VNN-LIB property for each image, and the list of both.

    python run_scripts/run_verifier_export.py --network=runs/compact --data=cifar10 --data_dir=DIR --epsilon=2/255 \\
        --max_examples=100 --output_dir=DIR

Writes a directory as the verification competition VNN-COMP has it: `onnx/network.onnx`, from pixels in [0, 1], channels
first, to logits; `vnnlib/image_<index>.vnnlib`, each asking for a point of the l-infinity ball around the image where
another class is at least as high; and `instances.csv`. Images that the network gets wrong are left out, for there is
nothing to verify. The ONNX file is run on the images and compared with the network before anything is kept. Needs the
extra `onnx`.
"""

import importlib.util
from pathlib import Path

import keras
import numpy as np
from absl import flags

import tf_robust_sparse as trs
from tf_robust_sparse.cli import command_line, run_directory, settings
from tf_robust_sparse.cli.sections.data import Data

FLAGS = flags.FLAGS
_TOLERANCE = 1e-4  # of logits, relative to the largest: float32 sums in another order


def define() -> None:
    """Defines the flags."""
    Data.define()
    with command_line.section("Properties"):
        command_line.define_number("epsilon", None, "Radius in pixels of [0, 1], such as 2/255.", excluded=0)
        command_line.define_numbers("images", "Indices of test images, such as 0,7,12; by default all from the first.")
        flags.DEFINE_integer("skip", 1, "Take every skip-th test image.", 1)
        flags.DEFINE_integer("max_examples", None, "Look at most at so many images.", 1)
        flags.DEFINE_integer("timeout", 300, "Seconds that a verifier may spend on an image.", 1)
    with command_line.section("Files"):
        flags.DEFINE_string("network", None, "Directory of a run, or network.keras.")
        flags.DEFINE_string("output_dir", None, "Where to write; by default verifier/ beside the network.")
        flags.DEFINE_bool("overwrite", False, "Replace the directory that an earlier export wrote.")


def main() -> None:
    """Loads, writes, compares, lists."""
    settings.check()
    _check()
    directory = _directory()
    with command_line.about("network"):
        network = trs.load_network(Path(FLAGS.network).expanduser())
    images = Data.read().load()
    chosen = _chosen(len(images.test_labels))
    x, y = np.asarray(images.test_images[chosen]), images.test_labels[chosen]
    x = x.astype(np.float32) / 255 if x.dtype == np.uint8 else x
    with command_line.about("network", "data"):
        right = trs.evaluation.RobustnessSuite(network, (x, y), FLAGS.batch_size, progress=False).correct
    logits = network.predict(x, FLAGS.batch_size, verbose=0)
    with trs.saving.replace_directory(directory) as temporary, command_line.about("network", "data", "output_dir"):
        difference = _write_network(network, x, logits, temporary / "onnx" / "network.onnx")
        instances = []
        (temporary / "vnnlib").mkdir()
        for index, image, label in zip(chosen[right], x[right], y[right], strict=True):
            name = f"vnnlib/image_{index}.vnnlib"
            about = f"{images.name}, test image {index}, label {label}, l-infinity ball of radius {FLAGS.epsilon:.9g}"
            text = trs.certify.vnnlib_property(image, int(label), FLAGS.epsilon, logits.shape[1], about)
            (temporary / name).write_text(text)
            instances.append(f"onnx/network.onnx,{name},{FLAGS.timeout}\n")
        (temporary / "instances.csv").write_text("".join(instances))
        record = {
            **{name: FLAGS[name].value for name in ("network", "epsilon", "timeout", "seed")},
            "images": chosen[right].tolist(),
            "left_out": chosen[~right].tolist(),
            "largest_difference_of_logits": difference,
            "data": {"name": images.name, "origin": images.origin},
            "versions": run_directory.versions(),
        }
        run_directory.write_json(temporary / "export.json", record)
    print(f"Properties          {right.sum():6d}     {(~right).sum()} images are left out that the network gets wrong")
    print(f"ONNX and network    differ by {difference:.2g} in their logits")
    print(f"Instances           {directory / 'instances.csv'}")


def _check() -> None:
    for name, expected in (
        ("network", "the directory of a run or network.keras"),
        ("epsilon", "a radius such as 2/255"),
    ):
        if FLAGS[name].value is None:
            raise command_line.BadFlag(f"--{name}: expected {expected}. Received: no such flag")
    if FLAGS.epsilon >= 1:
        raise command_line.BadFlag(f"--epsilon={FLAGS.epsilon:g}: expected a radius below 1, such as 2/255")
    if FLAGS.images and (FLAGS["skip"].present or FLAGS["max_examples"].present):
        raise command_line.BadFlag("--images names the images; expected no --skip or --max_examples with it")
    for package in ("onnx", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise command_line.BadInput(
                f"the export needs {package}: python -m pip install 'tf_robust_sparse[onnx]'. "
                "Received: an environment without it"
            )


def _directory() -> Path:
    given = Path(FLAGS.network).expanduser()
    beside = given if given.is_dir() else given.parent
    directory = Path(FLAGS.output_dir).expanduser() if FLAGS.output_dir else beside / "verifier"
    run_directory.check_directory("output_dir", directory)
    if directory.exists() and any(directory.iterdir()):
        is_ours = (directory / "instances.csv").is_file() and (directory / "export.json").is_file()
        if not is_ours:
            raise command_line.BadFlag(
                f"--output_dir={directory}: expected a new or empty directory. Received: one with other files"
            )
        if not FLAGS.overwrite:
            raise command_line.BadFlag(
                f"--output_dir={directory}: expected a new directory, or --overwrite. Received: one with an export"
            )
    return directory


def _chosen(available: int) -> np.ndarray:
    if not FLAGS.images:
        return np.arange(0, available, FLAGS.skip)[: FLAGS.max_examples]
    for index in FLAGS.images:
        if index != int(index) or index >= available:
            raise command_line.BadFlag(
                f"--images: expected indices below {available}, the number of test images. Received: {index:g}"
            )
    return np.array(sorted({int(index) for index in FLAGS.images}))


def _write_network(network: keras.Model, x: np.ndarray, logits: np.ndarray, path: Path) -> float:
    """Writes ONNX; returns the largest difference of its logits to those of the network."""
    import onnxruntime

    trs.saving.export_onnx(network, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    pixels = np.moveaxis(x, -1, 1) if x.ndim == 4 else x
    found = [session.run(["logits"], {"pixels": np.ascontiguousarray(image[None])})[0][0] for image in pixels]
    difference = float(np.abs(np.array(found) - logits).max())
    if not difference <= _TOLERANCE * max(1.0, float(np.abs(logits).max())):
        raise RuntimeError(
            f"onnxruntime answers with logits that differ by {difference:.2g}: the export is wrong; please report this "
            "network"
        )
    return difference
