"""Loads a network from anywhere; what kind of file or directory a path is, is decided here and nowhere else."""

import enum
import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np

import tf_robust_sparse as trs
from tf_robust_sparse.cli.command_line import BadFlag, about
from tf_robust_sparse.pretrained.catalog import PREFIX, pretrained_file
from tf_robust_sparse.saving.compact import COMPACT_SUFFIX
from tf_robust_sparse.saving.kinds import check_weights
from tf_robust_sparse.saving.pytorch_weights import PYTORCH_SUFFIXES

NETWORK_FILE = "network.keras"


class Kind(enum.Enum):
    """What a path holds, in words."""

    RUN = "the directory of a run"
    KERAS = "a .keras file"
    COMPACT = "a .trs file"
    HDF5 = "an .h5 file"
    SAVED_MODEL = "the directory of a SavedModel"
    PYTORCH = "a PyTorch checkpoint"
    PUBLISHED = "a published pickle of weights"

    @property
    def holds_weights_alone(self) -> bool:
        """Whether the architecture must be known to load it."""
        return self in (Kind.PYTORCH, Kind.PUBLISHED)


_IN_DIRECTORIES = {
    NETWORK_FILE: Kind.RUN,
    "saved_model.pb": Kind.SAVED_MODEL,
    "saved_model.pbtxt": Kind.SAVED_MODEL,
}
_BY_SUFFIX = {
    ".keras": Kind.KERAS,
    COMPACT_SUFFIX: Kind.COMPACT,
    **dict.fromkeys((".h5", ".hdf5"), Kind.HDF5),
    **dict.fromkeys(PYTORCH_SUFFIXES, Kind.PYTORCH),
    **dict.fromkeys((".pickle", ".pkl"), Kind.PUBLISHED),
}


def place(path: str | Path) -> Path:
    """Returns the path of a network, of `pretrained:NAME` that of the file that comes with the package.

    Raises:
        ValueError: if no network of this name does.
    """
    if str(path).startswith(PREFIX):
        return pretrained_file(str(path).removeprefix(PREFIX))
    return Path(path).expanduser()


def kind(path: Path) -> Kind | None:
    """Returns what a path holds; `None` if there is nothing, or nothing known."""
    if str(path).startswith(PREFIX):
        return Kind.COMPACT
    if path.is_dir():
        return next((found for name, found in _IN_DIRECTORIES.items() if (path / name).is_file()), None)
    if not path.is_file():
        return None
    return _BY_SUFFIX.get(path.suffix, Kind.PUBLISHED if _is_pickle(path) else None)


def file_facts(path: Path) -> dict[str, Any]:
    """Returns `file`: `sha256` and `bytes` of the network at `path`; of a directory, over its files by name."""
    root = path / NETWORK_FILE if kind(path) is Kind.RUN else place(path)
    found = hashlib.sha256()
    files = sorted(each for each in root.rglob("*") if each.is_file()) if root.is_dir() else [root]
    for each in files:
        if root.is_dir():
            found.update(each.relative_to(root).as_posix().encode())
        with each.open("rb") as stream:
            while block := stream.read(1 << 20):
                found.update(block)
    return {"file": {"sha256": found.hexdigest(), "bytes": sum(each.stat().st_size for each in files)}}


def connections(network: keras.Model) -> dict[str, Any]:
    """Returns `trs.sparsity.statistics.summary`; of a network with closed gates, what is left without their channels.

    Raises:
        ValueError: if closed gates are in a network that `trs.shrink` does not support.
    """
    found = trs.sparsity.statistics.summary(network)
    if all(int(gate.active_units()) == gate.a_raw.shape[0] for gate in trs.layers.gates(network)):
        return found
    # Behind batch norm a closed channel may be a constant other than 0, which `shrink` moves into later biases.
    small, done = trs.shrink(network)
    kernels = {layer.name: layer.kernel for layer in small.layers if layer.name in done.kept}
    for layer in found["layers"]:
        kernel = kernels.get(layer["name"])
        layer["nonzero"] = 0 if kernel is None else int(np.count_nonzero(keras.ops.convert_to_numpy(kernel)))
        layer["connectivity"] = layer["nonzero"] / layer["entries"]
    others = small.count_params() - sum(math.prod(kernel.shape) for kernel in kernels.values())
    left = done.after.nonzero
    return {
        **found,
        "connectivity": left / found["prunable"],
        "nonzero": left,
        "remaining_weights": left + others,
    }


def weight_facts(model: Any) -> dict[str, Any]:
    """Returns `weights`: `nonzero` of `prunable` entries of kernels, of a SavedModel those of all its matrices.

    `dense` counts the entries of kernels without a single zero, such as those that a sparsifier leaves alone. Channels
    of closed gates do not count as connections.
    """
    if isinstance(model, keras.Model):
        counts = [(each.nonzero, each.entries) for each in trs.sparsity.statistics.kernel_statistics(model)]
        if trs.layers.gates(model):
            try:
                counts = [(each["nonzero"], each["entries"]) for each in connections(model)["layers"]]
            except ValueError:  # cannot be shrunk, so what closed gates leave is not known
                return {}
    else:  # what is wrapped around a network may show no variables
        variables = getattr(model, "variables", ())
        if any(each.dtype.is_integer for each in variables):  # positions, of kernels that are packed
            return {}
        kernels = [np.asarray(each) for each in variables if len(each.shape) > 1]
        counts = [(int(np.count_nonzero(each)), each.size) for each in kernels]
    nonzero, prunable = (sum(column) for column in zip(*counts, strict=True)) if counts else (0, 0)
    dense = sum(size for left, size in counts if left == size)
    return {"weights": {"nonzero": nonzero, "prunable": prunable, "dense": dense}} if prunable else {}


def _is_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(1) == b"\x80"


def recognize(path: Path, flag: str, taken: Iterable[Kind] = Kind) -> Kind:
    """Returns what a path holds.

    Args:
        path: The directory or file.
        flag: Name of the flag that the path is of.
        taken: The kinds that the flag takes.

    Raises:
        BadFlag: if there is nothing, or something that is not taken.
    """
    found, taken = kind(path), tuple(taken)
    if found is None or found not in taken:
        words = [each.value for each in taken]
        expected = " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
        raise BadFlag(f"--{flag}={path}: expected {expected}; {_instead(path, found)}")
    return found


def next_to(path: Path, name: str) -> Path:
    """Returns where a file of this name goes that tells of the network at `path`: into its run, or next to it.

    Published weights lie side by side, so that the file takes over the beginning of their name. What is measured of a
    network that comes with the package goes into the working directory, and takes its name.
    """
    if str(path).startswith(PREFIX):
        return Path(f"{str(path).removeprefix(PREFIX)}.{name}")
    if kind(path) is Kind.PUBLISHED:
        return path.with_name(f"{path.name.removesuffix('best_weights.pickle')}{name}")
    return (path if kind(path) is Kind.RUN else path.parent) / name


def load(
    path: str | Path,
    flag: str,
    build: Callable[[Kind], keras.Model] | None = None,
    of_build: Sequence[str] = (),
    layers: bool = False,
) -> Any:
    """Loads a network, whatever form it has.

    Files of weights alone are read once before `build` is called, so that errors in them show before anything else.

    Args:
        path: The directory or file.
        flag: Name of the flag that the path is of.
        build: Builds the network that a file of weights alone, of this kind, is loaded into; `None` if such files are
            not taken.
        of_build: Flags that say what it builds.
        layers: Whether the layers are needed, which a SavedModel does not show.

    Returns:
        A `keras.Model`, or of a SavedModel a `SavedModelClassifier`.

    Raises:
        BadFlag: if there is nothing to load, or something of another kind.
        BadInput: if it is damaged or does not fit the network that is built.
    """
    with about(flag):
        path = place(path)
    taken = [each for each in Kind if build or not each.holds_weights_alone]
    found = recognize(path, flag, [each for each in taken if not (layers and each is Kind.SAVED_MODEL)])
    if found.holds_weights_alone and build:
        with about(flag):
            try:
                check_weights(path)
            except ImportError as error:
                raise BadFlag(f"--{flag}={path}: {error}") from error
        network = build(found)
        read = trs.saving.import_pytorch_weights if found is Kind.PYTORCH else trs.saving.import_reference_weights
        with about(flag, *of_build):
            read(path, network)
        return network
    with about(flag):
        if found is Kind.SAVED_MODEL:
            return trs.evaluation.load_saved_model(path)
        return _load_hdf5(path, build) if found is Kind.HDF5 else trs.load_network(path)


def _instead(path: Path, found: Kind | None) -> str:
    """Returns what is there in place of what was expected, and what to do about it."""
    if found is Kind.SAVED_MODEL:
        source = f"{path.parent}, which it was made of" if kind(path.parent) is Kind.RUN else "the run it was made of"
        return f"a SavedModel does not show its layers; pass {source}"
    if found is not None and found.holds_weights_alone:
        return f"{found.value} holds weights alone; turn it into a run with run_import_weights.py --weights={path}"
    if found is not None:
        return f"{found.value} holds a whole network, which evaluations take as --network={path}"
    if not path.exists():
        return "the path does not exist"
    if (path / "checkpoints").is_dir():
        return f"the run there is unfinished and has no {NETWORK_FILE} yet; finish it with --resume"
    return f"the directory holds none of {', '.join(_IN_DIRECTORIES)}" if path.is_dir() else "the file is none of these"


def _load_hdf5(path: Path, build: Callable[[Kind], keras.Model] | None) -> keras.Model:
    """Loads a whole model of Keras, a checkpoint of a finished run, or weights alone where the network is known."""
    try:
        with h5py.File(path) as file:
            is_whole, is_checkpoint = "model_config" in file.attrs, "sha256" in file.attrs
    except OSError as error:
        raise ValueError(f"{path} is damaged or not an HDF5 file: {error}") from error
    if is_whole:
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    run = path.parents[1] if path.parent.name == "checkpoints" else path.parent
    if is_checkpoint and kind(run) is Kind.RUN:
        network = trs.load_network(run)
    elif build is not None:
        network = build(Kind.HDF5)
    else:
        raise ValueError(f"the file holds no architecture, and {run} no {NETWORK_FILE}; pass the directory of a run")
    if is_checkpoint:
        trs.saving.load_checkpoint(path, network, weights_only=True)
    else:
        network.load_weights(path)
    return network
