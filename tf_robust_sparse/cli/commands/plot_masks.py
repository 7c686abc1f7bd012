"""Shows what the mask of a network is like: how much of each layer stays, and which weights.

    python run_scripts/run_mask_plots.py --network=runs/pruned --output_dir=figures

Writes `kept_per_layer.png`, `kept_weights.png` (the weights that stay beside those that magnitude pruning would keep,
by value), `structure.png` (how they are spread over channels, filters and kernels, beside random masks) and the numbers
behind them, `masks.json`; with --layers also the mask of each named layer, entry by entry, and with --pairs which
channels between two layers are in use, such as --pairs=stage3_block6_conv1:stage3_block6_conv2. Of a network
whose dropped weights are gone, --before names the one that it was pruned from; without it the second figure is left
out.
"""

from pathlib import Path
from typing import Any

import keras
from absl import flags

import tf_robust_sparse as trs
from tf_robust_sparse.cli import command_line, run_directory

FLAGS = flags.FLAGS


def define() -> None:
    """Defines the flags."""
    with command_line.section("Files"):
        flags.DEFINE_string("network", None, "Directory of a run, or network.keras.")
        flags.DEFINE_string("before", None, "Directory of the run, or network.keras, that it was pruned from.")
        flags.DEFINE_string("output_dir", None, "Where to write; by default figures/ beside the network.")
        flags.DEFINE_list("layers", None, "Layers whose masks are drawn entry by entry, separated by commas.")
        flags.DEFINE_list(
            "pairs",
            None,
            "Pairs of layers, first:second, of which the second takes the outputs of the first: their channels.",
        )
        flags.DEFINE_integer("random_masks", 20, "Random masks that the structure is compared with.", 1)


def main() -> None:
    """Counts, draws, reports."""
    if FLAGS.network is None:
        raise command_line.BadFlag("--network: expected the directory of a run. Received: no such flag")
    network = _load("network")
    drawn = {layer.name: layer for layer in trs.layers.kernel_layers(network)}
    if not drawn:
        raise command_line.BadInput(
            f"--network={FLAGS.network}: expected a network with kernels of this package, such as one of "
            "run_connectivity_sampling.py or run_hydra.py. Received: a network without any"
        )
    for name in FLAGS.layers or ():
        if name not in drawn:
            raise command_line.BadFlag(f"--layers={name}: expected some of {', '.join(drawn)}. Received: another one")
    pairs = [_pair(text, drawn) for text in FLAGS.pairs or ()]
    before = _load("before") if FLAGS.before else None
    with command_line.about("output_dir"):
        trs.evaluation.check_matplotlib()
    given = Path(FLAGS.network).expanduser()
    beside = given if given.is_dir() else given.parent
    directory = Path(FLAGS.output_dir).expanduser() if FLAGS.output_dir else beside / "figures"
    run_directory.check_directory("output_dir", directory)
    rows = trs.sparsity.mask_statistics(network)
    planned = {layer.name: layer.keep_fraction for layer in trs.sparsity.scored_layers(network)}
    histograms = _histograms(network, before)
    structure = trs.sparsity.mask_structure(network, FLAGS.random_masks)
    directory.mkdir(parents=True, exist_ok=True)
    trs.evaluation.draw_kept_per_layer(rows, network.name, directory / "kept_per_layer.png", planned)
    if histograms:
        trs.evaluation.draw_kept_weights(histograms, directory / "kept_weights.png")
    trs.evaluation.draw_structure(structure, directory / "structure.png")
    for name in FLAGS.layers or ():
        mask = keras.ops.convert_to_numpy(drawn[name].effective_kernel) != 0
        trs.evaluation.draw_layout(mask, f"{name} of {network.name}", directory / f"layout_{name}.png")
    between = {}
    for first, second, found in pairs:
        between[f"{first}:{second}"] = found
        trs.evaluation.draw_channels_between(found, (first, second), directory / f"between_{first}_{second}.png")
    record: dict[str, Any] = {
        "network": FLAGS.network,
        "before": FLAGS.before,
        "layers": rows,
        "kept_weights": histograms,
    }
    record |= {"structure": structure, "planned": planned, "between": between, "relative_cost": _cost(network)}
    run_directory.write_json(directory / "masks.json", record)
    show(rows, histograms, structure)
    for names, found in between.items():
        print(
            f"{names}: {found['empty_in_both']} channels are empty in both "
            f"({found['random_empty_in_both']:.1f} by chance), {found['without_output']} are of no output alone, "
            f"{found['without_input']} of no input alone"
        )
    if record["relative_cost"]:
        cost = {name: f"{100 * share:.1f} %" for name, share in record["relative_cost"].items()}
        print(
            f"Signs in place of numbers would take {cost['forward']} of a forward pass, {cost['backward']} of a "
            f"backward pass, {cost['total']} of both"
        )
    print(f"Figures and numbers {directory}")


def show(rows: list[dict[str, Any]], histograms: list[dict[str, Any]], structure: list[dict[str, Any]]) -> None:
    """Prints a line per layer; of what is empty also how much would be by chance."""
    differ = {row["name"]: row["small_kept"] for row in histograms}
    width = max(len(row["name"]) for row in rows)
    print(
        f"{'layer':{width}s}  {'kept':>10s}  {'of':>10s}  {'%':>6s}  channels    filters     "
        f"empty kernels (random)  not the largest"
    )
    for row, spread in zip(rows, structure, strict=True):
        share = f"{100 * differ[row['name']]:.1f} %" if row["name"] in differ else ""
        channels = f"{row['channels_kept']}/{row['channels']}"
        filters = f"{row['filters_kept']}/{row['filters']}"
        empty = f"{spread['empty_kernels']:.0f} ({spread['random_empty_kernels']:.0f})"
        print(
            f"{row['name']:{width}s}  {row['nonzero']:10d}  {row['entries']:10d}  {100 * row['connectivity']:6.2f}  "
            f"{channels:10s}  {filters:10s}  {empty:22s}  {share}".rstrip()
        )


def _load(name: str) -> keras.Model:
    with command_line.about(name):
        return trs.load_network(Path(FLAGS[name].value).expanduser())


def _cost(network: keras.Model) -> dict[str, float] | None:
    """What signs save, of the networks that the estimate is made for."""
    is_residual = network.name.startswith("resnet") and "imagenet" not in network.name
    return trs.sparsity.relative_cost(network) if is_residual else None


def _pair(text: str, drawn: dict[str, Any]) -> tuple[str, str, dict[str, Any]]:
    names = text.split(":")
    if len(names) != 2 or not set(names) <= set(drawn):
        raise command_line.BadFlag(f"--pairs={text}: expected first:second, two of {', '.join(drawn)}")
    with command_line.about("pairs"):
        return names[0], names[1], trs.sparsity.channels_between(drawn[names[0]], drawn[names[1]])


def _histograms(network: keras.Model, before: keras.Model | None) -> list[dict[str, Any]]:
    with command_line.about("network", "before"):
        try:
            return trs.sparsity.kept_weights(network, before)
        except ValueError:
            if before is not None:
                raise
            return []
