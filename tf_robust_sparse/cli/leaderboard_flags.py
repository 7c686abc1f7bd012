"""What a row of a leaderboard says beside numbers: its flags, and what is known without them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
from absl import flags

import tf_robust_sparse as trs
from tf_robust_sparse.cli.command_line import section
from tf_robust_sparse.cli.sections import sparsity

FLAGS = flags.FLAGS


@section("Leaderboard")
def define() -> None:
    """Defines what a row says beside numbers."""
    flags.DEFINE_string(
        "robustbench_file", None, "Where to write a row for RobustBench; that of the pruning benchmark lies beside it."
    )
    flags.DEFINE_string("title", None, "Title of the paper or the network, for that row and the report.")
    flags.DEFINE_string("authors", None, "Authors, for that row.")
    flags.DEFINE_string("link", None, "Address of the paper, for that row.")
    flags.DEFINE_string("venue", None, "Where and when it appeared, for that row.")
    flags.DEFINE_string("architecture", None, "Architecture, for that row; by default --model, if that is given.")
    flags.DEFINE_bool("additional_data", None, "Whether training used other images; by default with --objective=rst.")


def description(model: Callable[..., Any], path: Path, data: str) -> dict[str, Any]:
    """Returns what a leaderboard asks for beside numbers; what is not known is left empty."""
    found_by_flags = not (FLAGS.network or FLAGS.saved_model)
    named = FLAGS.model if found_by_flags or FLAGS["model"].present else None
    additional = FLAGS.objective == "rst" if FLAGS.additional_data is None else FLAGS.additional_data
    return {
        "dataset": data,
        "architecture": FLAGS.architecture or named,
        "link": FLAGS.link,
        "name": FLAGS.title,
        "authors": FLAGS.authors,
        "venue": FLAGS.venue,
        "additional_data": additional,
        "connectivity": _connectivity(model, path),
    }


def _connectivity(model: Callable[..., Any], path: Path) -> float | None:
    """The share of connections, of a Keras model or as the run beside the SavedModel recorded it."""
    if isinstance(model, keras.Model):
        kernels = trs.sparsity.statistics.kernel_statistics(model)
        return trs.sparsity.statistics.connectivity(model) if kernels else None
    try:
        return float(json.loads((path.parent / "results.json").read_text())["connectivity"])
    except (OSError, ValueError, KeyError, TypeError):
        return FLAGS.connectivity if sparsity.chosen() != "none" else None
