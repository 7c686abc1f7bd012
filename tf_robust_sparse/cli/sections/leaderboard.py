"""What a row of a leaderboard says in addition to numbers."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras

import tf_robust_sparse as trs
from tf_robust_sparse.cli import settings
from tf_robust_sparse.cli.sections import method
from tf_robust_sparse.cli.sections.robustness import check_sequence, with_attacks
from tf_robust_sparse.cli.sections.source import Classifier
from tf_robust_sparse.cli.sections.sparsity import Sparsity
from tf_robust_sparse.cli.settings import OnlyFor, Settings, setting


@dataclasses.dataclass
class Leaderboard(Settings):
    """Of the rows, and of the title of a report."""

    title = "Leaderboard"
    _row = OnlyFor("--robustbench_file", lambda flags: bool(flags.robustbench_file), refuse=True)
    _page = OnlyFor(
        "--robustbench_file or --report", lambda flags: bool(flags.robustbench_file or flags.report), refuse=True
    )

    robustbench_file: str | None = setting(
        None,
        "Where to write a row for RobustBench; that of the pruning benchmark lies next to it.",
        only_for=with_attacks("autoattack"),
    )
    paper_title: str | None = setting(
        None, "Title of the paper or the network, for that row and the report.", aliases=("title",), only_for=_page
    )
    authors: str | None = setting(None, "Authors, for that row.", only_for=_row)
    link: str | None = setting(None, "Address of the paper, for that row.", only_for=_row)
    venue: str | None = setting(None, "Where and when it appeared, for that row.", only_for=_row)
    architecture: str | None = setting(
        None, "Architecture, for that row; by default --model, if that is given.", only_for=_row
    )
    additional_data: bool | None = setting(
        None, "Whether training used other images; by default with --objective=rst.", only_for=_row
    )

    def check(self) -> None:
        """Checks that the row's numbers are found."""
        check_sequence("robustbench_file", self.robustbench_file)

    @property
    def files(self) -> list[Path]:
        """Where the rows go, that of RobustBench first."""
        if not self.robustbench_file:
            return []
        path = Path(self.robustbench_file).expanduser()
        return [path, path.parent / f"{path.stem}.pruning_benchmark.json"]

    def description(self, model: Callable[..., Any], path: Path, data: str) -> dict[str, Any]:
        """Returns what a leaderboard asks for in addition to numbers; what is not known is left empty."""
        is_told = settings.is_given("model") or not Classifier.read().is_named
        additional = method.Objective.read().objective == "rst"
        return {
            "dataset": data,
            "architecture": self.architecture or (method.Network.read().model if is_told else None),
            "link": self.link,
            "name": self.paper_title,
            "authors": self.authors,
            "venue": self.venue,
            "additional_data": additional if self.additional_data is None else self.additional_data,
            "connectivity": connectivity(model, path),
        }


def connectivity(model: Callable[..., Any], path: Path) -> float | None:
    """Returns the share of connections, of a Keras model or as recorded by the run next to the SavedModel."""
    if isinstance(model, keras.Model):
        kernels = trs.sparsity.statistics.kernel_statistics(model)
        return trs.sparsity.statistics.connectivity(model) if kernels else None
    try:
        return float(json.loads((path.parent / "results.json").read_text())["connectivity"])
    except (OSError, ValueError, KeyError, TypeError):
        given = Sparsity.read()
        return given.connectivity if given.name != "none" else None
