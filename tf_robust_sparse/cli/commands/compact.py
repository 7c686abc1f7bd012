"""Packs a network into one small file, and unpacks such files.

    python run_scripts/run_compact.py --network=saved_models/run

writes `network.trs` next to `network.keras`, reads it back, compares the logits, and prints the size of every layer
next to dense float32, gzip and the entropy bound; the same table goes to `compact.json`.

    python run_scripts/run_compact.py --network=network.trs --output_dir=runs/unpacked

makes `network.keras` and `serve/` of a compact file.
"""

import dataclasses
from typing import Any

import keras
import numpy as np

import tf_robust_sparse as trs
from tf_robust_sparse.cli import command_line, networks, report, run_directory, settings
from tf_robust_sparse.cli.command_line import BadFlag
from tf_robust_sparse.cli.networks import Kind
from tf_robust_sparse.cli.sections.latency import Target
from tf_robust_sparse.cli.sections.run import Output
from tf_robust_sparse.cli.sections.source import Source
from tf_robust_sparse.cli.settings import like, setting
from tf_robust_sparse.saving.compact import COMPACT_SUFFIX, COMPACT_VALUES


@dataclasses.dataclass
class Packing(Source):
    """The network, and how its numbers are packed."""

    network: str | None = like(
        Source,
        "network",
        help="The network to pack, the directory of a run, a .keras or .h5 file; or a .trs to unpack.",
    )
    values: str = setting(
        "float32", "Type of the weights, unless all of a kernel have one magnitude.", choices=COMPACT_VALUES
    )


@dataclasses.dataclass
class Place(Target):
    """Where to pack and unpack to."""

    output_dir: str | None = like(
        Output, "output_dir", help="Where to write; by default next to the network. Needed to unpack."
    )


def define() -> None:
    """Defines the flags."""
    Packing.define(needed=("network",))
    Place.define()


def main() -> None:
    """Packs or unpacks."""
    settings.check()
    source = Packing.read()
    network = source.load()
    if networks.kind(source.path) is Kind.COMPACT:
        unpack(network, source)
    else:
        pack(network, source)


def pack(network: keras.Model, source: Packing) -> None:
    """Writes the file and the table, after a look at what comes back."""
    directory = run_directory.chosen(networks.next_to(source.path, "compact.json").parent)
    run_directory.check_directory("output_dir", directory)
    with command_line.about("network", "values"):
        before = _logits(network)
        sizes = trs.saving.compact_sizes(network, source.values)
        file = trs.saving.save_compact(network, directory / f"network{COMPACT_SUFFIX}", source.values)
    difference = float(np.abs(before - _logits(trs.load_network(file))).max())
    if difference and source.values == "float32":
        raise RuntimeError(f"The logits of {file} differ by {difference}; keep network.keras and report this")
    sizes["file"] = file.stat().st_size
    sizes["largest_difference_of_logits"] = difference
    run_directory.write_json(directory / "compact.json", {"network": source.network, "values": source.values, **sizes})
    show(sizes)
    print(f"Compact network     {file}")


def unpack(network: keras.Model, source: Packing) -> None:
    """Writes the network in the usual forms."""
    target = Place.read()
    if not target.output_dir:
        raise BadFlag(f"--network={source.network} is packed; pass --output_dir=DIR to unpack it to")
    directory = target.place(source.path) if target.overwrite else run_directory.chosen()
    run_directory.check(directory)
    run_directory.begin(directory)
    report.save(network, directory)
    print(f"Network to train on {directory / 'network.keras'}")
    print(f"SavedModel          {directory / 'serve'}")


def show(sizes: dict[str, Any]) -> None:
    """Prints a line per layer and the totals."""
    width = max([len(row["name"]) for row in sizes["layers"]], default=5)
    print(f"{'layer':{width}s}  {'kept':>9s}  {'of':>9s}  {'float32':>10s}  {'compact':>9s}  {'bound':>9s}  coded as")
    for row in sizes["layers"]:
        print(
            f"{row['name']:{width}s}  {row['kept']:9d}  {row['entries']:9d}  {row['dense']:10d}  {row['compact']:9d}  "
            f"{row['bound']:9d}  {row['positions']}, {row['values']}"
        )
    print()
    for name, text in (
        ("dense", "every number in float32"),
        ("gzip", "the same through gzip"),
        ("compact", "what the file takes for them"),
        ("file", "the whole file, with its description"),
        ("bound", "entropy bound: random positions and signs take no less"),
    ):
        print(f"{name:8s} {sizes[name]:12d} bytes  1/{sizes['dense'] / max(sizes[name], 1):<6.1f}  {text}")


def _logits(network: keras.Model) -> np.ndarray:
    """The logits of random images, of 32x32 pixels where the network takes any size."""
    x = np.random.default_rng(0).random((8, *(length or 32 for length in network.input_shape[1:])), "float32")
    return keras.ops.convert_to_numpy(network(x, training=False)).astype("float32")
