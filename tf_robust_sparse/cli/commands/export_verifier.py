"""Prepares a network for complete verifiers: ONNX, a VNN-LIB property for each image, and the list of both.

    python run_scripts/run_verifier_export.py --network=runs/compact --data=cifar10 --data_dir=DIR --epsilon=2/255 \\
        --max_examples=100 --output_dir=DIR

Writes a directory as the verification competition VNN-COMP has it: `onnx/network.onnx`, from pixels in [0, 1], channels
first, to logits; `vnnlib/image_<index>.vnnlib`, each asking for a point of the l-infinity ball around the image where
another class is at least as high; and `instances.csv`. Images that the network gets wrong are left out.
The ONNX file is run on the images and compared with the network before anything is kept. Needs the
extra `onnx`.
"""

import dataclasses
import importlib.util
from pathlib import Path

import keras
import numpy as np

import tf_robust_sparse as trs
from tf_robust_sparse.cli import networks, run_directory, settings
from tf_robust_sparse.cli.command_line import BadFlag, BadInput, about
from tf_robust_sparse.cli.sections.data import Data
from tf_robust_sparse.cli.sections.run import Output
from tf_robust_sparse.cli.settings import Settings, like, setting
from tf_robust_sparse.saving.atomic import replace_directory

_TOLERANCE = 1e-4  # of logits, relative to the largest: float32 sums in another order


@dataclasses.dataclass
class Properties(Settings):
    """What is to be verified."""

    title = "Properties"

    epsilon: float = setting(None, "Radius in pixels of [0, 1], such as 2/255.", excluded=0)
    images: list[float] | None = setting(None, "Indices of test images, such as 0,7,12; by default all from the first.")
    skip: int | None = setting(None, "Take every skip-th test image.", lower=1)
    max_examples: int | None = setting(None, "Use at most this many images.", lower=1)
    timeout: int = setting(300, "Seconds that a verifier may spend on an image.", lower=1)

    def check(self) -> None:
        """Checks the radius, and what names the images."""
        if self.epsilon >= 1:
            raise BadFlag(f"--epsilon={self.epsilon:g}: expected a radius below 1, such as 2/255")
        if self.images and (self.skip or self.max_examples):
            raise BadFlag("--images names the images; drop --skip and --max_examples, or --images")

    def choose(self, available: int) -> np.ndarray:
        """Returns the indices of the images."""
        if not self.images:
            return np.arange(0, available, self.skip or 1)[: self.max_examples]
        for index in self.images:
            if index != int(index) or index >= available:
                raise BadFlag(f"--images={index:g}: expected indices below {available}, the number of test images")
        return np.array(sorted({int(index) for index in self.images}))


@dataclasses.dataclass
class Files(Output):
    """What is read, and where the directory is written."""

    title = "Files"

    output_dir: str | None = like(
        Output, "output_dir", help="Where to write; by default verifier/ next to the network."
    )
    overwrite: bool = like(Output, "overwrite", help="Replace the directory that an earlier export wrote.")
    network: str = setting(None, "Directory of a run, or network.keras.")

    @property
    def directory(self) -> Path:
        """Where to write.

        Raises:
            BadFlag: if something is there that --overwrite does not replace.
        """
        given = Path(self.network).expanduser()
        place = given if given.is_dir() else given.parent
        directory = Path(self.output_dir).expanduser() if self.output_dir else place / "verifier"
        run_directory.check_directory("output_dir", directory)
        if directory.exists() and any(directory.iterdir()):
            if not all((directory / name).is_file() for name in ("instances.csv", "export.json")):
                raise BadFlag(f"--output_dir={directory} holds other files; pass a new or empty directory")
            if not self.overwrite:
                raise BadFlag(f"--output_dir={directory} holds an export; pass another directory, or --overwrite")
        return directory


def define() -> None:
    """Defines the flags."""
    Data.define()
    Files.define(needed=("network",))
    Properties.define(needed=("epsilon",))


def main() -> None:
    """Loads, writes, compares, lists."""
    settings.check()
    for package in ("onnx", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise BadInput(
                f"the export needs {package}, and this environment is without it; python -m pip install "
                "'tf_robust_sparse[onnx]'"
            )
    properties, files, data = Properties.read(), Files.read(), Data.read()
    directory, epsilon = files.directory, properties.epsilon
    network = networks.load(files.network, "network", layers=True)
    images = data.load()
    chosen = properties.choose(len(images.test_labels))
    x, y = np.asarray(images.test_images[chosen]), images.test_labels[chosen]
    x = x.astype(np.float32) / 255 if x.dtype == np.uint8 else x
    with about("network", "data"):
        right = trs.evaluation.RobustnessSuite(network, (x, y), data.batch_size, progress=False).correct
    logits = network.predict(x, data.batch_size, verbose=0)
    with replace_directory(directory) as temporary, about("network", "data", "output_dir"):
        difference = _write_network(network, x, logits, temporary / "onnx" / "network.onnx")
        instances = []
        (temporary / "vnnlib").mkdir()
        for index, image, label in zip(chosen[right], x[right], y[right], strict=True):
            name = f"vnnlib/image_{index}.vnnlib"
            what = f"{images.name}, test image {index}, label {label}, l-infinity ball of radius {epsilon:.9g}"
            (temporary / name).write_text(
                trs.certify.vnnlib_property(image, int(label), epsilon, logits.shape[1], what)
            )
            instances.append(f"onnx/network.onnx,{name},{properties.timeout}\n")
        (temporary / "instances.csv").write_text("".join(instances))
        record = {
            **{"network": files.network, "epsilon": epsilon, "timeout": properties.timeout, "seed": data.seed},
            "images": chosen[right].tolist(),
            "left_out": chosen[~right].tolist(),
            "largest_difference_of_logits": difference,
        }
        run_directory.write_results(temporary / "export.json", record, images)
    print(f"Properties          {right.sum():6d}     {(~right).sum()} images are left out that the network gets wrong")
    print(f"ONNX and network    differ by {difference:.2g} in their logits")
    print(f"Instances           {directory / 'instances.csv'}")


def _write_network(network: keras.Model, x: np.ndarray, logits: np.ndarray, path: Path) -> float:
    """Writes ONNX; returns the largest difference of its logits to those of the network."""
    import onnxruntime

    trs.saving.export_verifier_onnx(network, path)
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
