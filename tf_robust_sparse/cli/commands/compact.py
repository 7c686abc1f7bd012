"""Packs a network into one small file, and unpacks such files.

    python run_scripts/run_compact.py --network=saved_models/run

writes `network.trs` beside `network.keras`, reads it back, compares the logits, and prints what every layer takes
beside dense float32, gzip and the entropy bound; the same table goes to `compact.json`.

    python run_scripts/run_compact.py --network=network.trs --output_dir=runs/unpacked

makes `network.keras` and `serve/` of a compact file.
"""

from pathlib import Path
from typing import Any

import keras
import numpy as np
from absl import flags

import tf_robust_sparse as trs
from tf_robust_sparse.cli import command_line, report, run_directory

FLAGS = flags.FLAGS


def define() -> None:
    """Defines the flags."""
    with command_line.section("Files"):
        flags.DEFINE_string("network", None, "Directory of a run, or network.keras, to pack; or a .trs file to unpack.")
        flags.DEFINE_enum(
            "values", "float32", list(trs.saving.COMPACT_VALUES), "Numbers of kernels that are not of one magnitude."
        )
        flags.DEFINE_string("output_dir", None, "Where to write; by default beside the network. Needed to unpack.")
        flags.DEFINE_bool("overwrite", False, "Unpack into a directory that holds a run, removing what that wrote.")


def main() -> None:
    """Packs or unpacks."""
    if FLAGS.network is None:
        raise command_line.BadFlag("--network: expected the directory of a run or a .trs file. Received: no such flag")
    given = Path(FLAGS.network).expanduser()
    with command_line.about("network"):
        network = trs.load_network(given)
    if given.suffix == trs.saving.COMPACT_SUFFIX:
        unpack(network, given)
    else:
        pack(network, given if given.is_dir() else given.parent)


def pack(network: keras.Model, beside: Path) -> None:
    """Writes the file and the table, after a look at what comes back."""
    directory = Path(FLAGS.output_dir).expanduser() if FLAGS.output_dir else beside
    run_directory.check_directory("output_dir", directory)
    with command_line.about("network", "values"):
        before = _logits(network)
        sizes = trs.saving.compact_sizes(network, FLAGS.values)
        file = trs.saving.save_compact(network, directory / f"network{trs.saving.COMPACT_SUFFIX}", FLAGS.values)
    difference = float(np.abs(before - _logits(trs.load_network(file))).max())
    if difference and FLAGS.values == "float32":
        raise RuntimeError(f"The logits of {file} differ by {difference}; keep network.keras and report this")
    sizes["file"] = file.stat().st_size
    sizes["largest_difference_of_logits"] = difference
    run_directory.write_json(directory / "compact.json", {"network": FLAGS.network, "values": FLAGS.values, **sizes})
    show(sizes)
    print(f"Compact network     {file}")


def unpack(network: keras.Model, given: Path) -> None:
    """Writes the network in the usual forms."""
    if not FLAGS.output_dir:
        raise command_line.BadFlag("--network=*.trs: expected --output_dir=DIR to unpack to. Received: no such flag")
    directory = Path(FLAGS.output_dir).expanduser()
    if FLAGS.overwrite and directory.resolve() == given.parent.resolve():
        raise command_line.BadFlag(f"--overwrite: expected another directory than that of {given}. Received: its own")
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
