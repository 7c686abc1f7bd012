"""How long two forms of a network take, and where the other form is written."""

import dataclasses
from pathlib import Path

from tf_robust_sparse.cli.command_line import BadFlag
from tf_robust_sparse.cli.sections.run import Output
from tf_robust_sparse.cli.settings import Settings, like, setting


@dataclasses.dataclass
class Latency(Settings):
    """What is measured."""

    title = "Latency"

    latency_batch_sizes: list[str] = setting(["1", "64"], "Batch sizes to measure; an empty list measures none.")
    latency_seconds: float = setting(1.0, "How long each network runs per batch size.", excluded=0)

    def check(self) -> None:
        """Checks the batch sizes."""
        if not all(size.isdecimal() and int(size) for size in filter(None, self.latency_batch_sizes)):
            sizes = ",".join(self.latency_batch_sizes)
            raise BadFlag(f"--latency_batch_sizes={sizes}: expected positive integers, such as 1,64")

    @property
    def batch_sizes(self) -> list[int]:
        """The batch sizes."""
        return [int(size) for size in self.latency_batch_sizes if size]


@dataclasses.dataclass
class Target(Output):
    """Where a tool writes."""

    output_dir: str | None = like(Output, "output_dir", help="The directory to write to.")

    def place(self, network: Path) -> Path:
        """Returns the directory to write to, which is not where the network is.

        Raises:
            BadFlag: if it is.
        """
        chosen = Path(self.output_dir or "").expanduser()
        if chosen.resolve() in (network.resolve(), network.resolve().parent):
            raise BadFlag(f"--output_dir={self.output_dir} holds the network itself; pass another directory")
        return chosen
