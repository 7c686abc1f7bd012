"""Shows what the mask of a network is like: how much of each layer stays, and which weights.

    python run_scripts/run_mask_plots.py --network=runs/pruned --output_dir=figures

Writes `kept_per_layer.png`, `kept_weights.png` (the weights that stay and those that magnitude pruning would keep,
by value), `structure.png` (how they are spread over channels, filters and kernels, compared with random masks) and the
numbers behind them, `masks.json`; with --layers also the mask of each named layer, entry by entry, and with --pairs
which channels between two layers are in use, such as --pairs=stage3_block6_conv1:stage3_block6_conv2. If the network
no longer has the weights that were dropped, --before names the one that it was pruned from; without it the second
figure is left out.
"""

import dataclasses
from typing import Any

import keras

import tf_robust_sparse as trs
from tf_robust_sparse.cli import command_line, networks, run_directory, settings
from tf_robust_sparse.cli.sections.run import Output
from tf_robust_sparse.cli.sections.source import Source
from tf_robust_sparse.cli.settings import like, setting
from tf_robust_sparse.evaluation.figure_style import check_matplotlib
from tf_robust_sparse.evaluation.mask_figures import (
    draw_channels_between,
    draw_kept_per_layer,
    draw_kept_weights,
    draw_layout,
    draw_structure,
)
from tf_robust_sparse.sparsity.mask_statistics import kept_weights, mask_statistics
from tf_robust_sparse.sparsity.mask_structure import channels_between, mask_structure
from tf_robust_sparse.sparsity.scores import scored_layers


@dataclasses.dataclass
class Masks(Source):
    """The network, and what is drawn of it."""

    before: str | None = setting(None, "The network that it was pruned from; as --network.")
    output_dir: str | None = like(Output, "output_dir", help="Where to write; by default figures/ next to the network.")
    layers: list[str] = setting([], "Layers whose masks are drawn entry by entry, separated by commas.")
    pairs: list[str] = setting(
        [], "Pairs of layers, first:second, of which the second takes the outputs of the first: their channels."
    )
    random_masks: int = setting(20, "Random masks that the structure is compared with.", lower=1)


def define() -> None:
    """Defines the flags."""
    Masks.define(needed=("network",))


def main() -> None:
    """Counts, draws, reports."""
    settings.check()
    given = Masks.read()
    network = given.load()
    drawn = {layer.name: layer for layer in trs.layers.kernel_layers(network)}
    if not drawn:
        raise command_line.BadInput(
            f"--network={given.network} has no kernels of this package; expected a network such as those of "
            "run_connectivity_sampling.py or run_hydra.py"
        )
    for name in given.layers:
        if name not in drawn:
            raise command_line.BadFlag(f"--layers={name}: expected some of {', '.join(drawn)}")
    pairs = [_pair(text, drawn) for text in given.pairs]
    before = networks.load(given.before, "before", layers=True) if given.before else None
    with command_line.about("output_dir"):
        check_matplotlib()
    directory = run_directory.chosen(networks.next_to(given.path, "figures"))
    run_directory.check_directory("output_dir", directory)
    rows = mask_statistics(network)
    planned = {layer.name: layer.keep_fraction for layer in scored_layers(network)}
    histograms = _histograms(network, before)
    structure = mask_structure(network, given.random_masks)
    directory.mkdir(parents=True, exist_ok=True)
    draw_kept_per_layer(rows, network.name, directory / "kept_per_layer.png", planned)
    if histograms:
        draw_kept_weights(histograms, directory / "kept_weights.png")
    draw_structure(structure, directory / "structure.png")
    for name in given.layers:
        mask = keras.ops.convert_to_numpy(drawn[name].effective_kernel) != 0
        draw_layout(mask, f"{name} of {network.name}", directory / f"layout_{name}.png")
    between = {}
    for first, second, found in pairs:
        between[f"{first}:{second}"] = found
        draw_channels_between(found, (first, second), directory / f"between_{first}_{second}.png")
    record: dict[str, Any] = {
        "network": given.network,
        "before": given.before,
        "layers": rows,
        "kept_weights": histograms,
    }
    record |= {"structure": structure, "planned": planned, "between": between, "relative_cost": _cost(network)}
    run_directory.write_json(directory / "masks.json", record)
    show(rows, histograms, structure)
    for names, found in between.items():
        print(
            f"{names}: {found['empty_in_both']} channels are empty in both "
            f"({found['random_empty_in_both']:.1f} by chance), {found['without_output']} lack outputs alone, "
            f"{found['without_input']} lack inputs alone"
        )
    if record["relative_cost"]:
        cost = {name: f"{100 * share:.1f} %" for name, share in record["relative_cost"].items()}
        print(
            f"Signs instead of float weights would cost {cost['forward']} of a forward pass, {cost['backward']} of a "
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


def _cost(network: keras.Model) -> dict[str, float] | None:
    """Returns what signs save, of the networks that the estimate is made for."""
    is_residual = network.name.startswith("resnet") and "imagenet" not in network.name
    return trs.sparsity.relative_cost(network) if is_residual else None


def _pair(text: str, drawn: dict[str, Any]) -> tuple[str, str, dict[str, Any]]:
    names = text.split(":")
    if len(names) != 2 or not set(names) <= set(drawn):
        raise command_line.BadFlag(f"--pairs={text}: expected first:second, two of {', '.join(drawn)}")
    with command_line.about("pairs"):
        return names[0], names[1], channels_between(drawn[names[0]], drawn[names[1]])


def _histograms(network: keras.Model, before: keras.Model | None) -> list[dict[str, Any]]:
    with command_line.about("network", "before"):
        try:
            return kept_weights(network, before)
        except ValueError:
            if before is not None:
                raise
            return []
