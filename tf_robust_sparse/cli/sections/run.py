"""How a run begins, goes on and ends, and where it is written."""

import dataclasses

from tf_robust_sparse.cli.command_line import BadFlag
from tf_robust_sparse.cli.settings import Settings, setting

_SELECT = "Which epoch becomes the network: the best robust or clean accuracy on held-out training images, "
_REFERENCE = "the last, or, as in the published code, the best clean accuracy on the test images."


@dataclasses.dataclass
class Output(Settings):
    """Where a run is written."""

    title = "Output"

    output_dir: str | None = setting(
        None, "Where to write; by default a directory in saved_models/ that is named by the flags.", recorded=False
    )
    overwrite: bool = setting(
        False, "Start from scratch in a directory that holds a run, and remove that run's files.", recorded=False
    )


@dataclasses.dataclass
class Run(Settings):
    """How a run goes on and ends."""

    title = "Run"

    resume: bool = setting(False, "Go on with the run in the directory, after its last finished epoch.", recorded=False)
    load_model: bool = setting(False, "Do not train; evaluate the finished run in the directory again.", recorded=False)
    select: str = setting(
        "best_robust", f"{_SELECT}{_REFERENCE}", choices=("best_robust", "best_clean", "last", "reference")
    )
    save_every: int = setting(
        -1, "Also keep a checkpoint every N epochs; -1 keeps only those of the last and the best epoch.", lower=-1
    )
    tensorboard: bool = setting(False, "Also write TensorBoard logs; needs the extra tensorboard.")

    def check(self) -> None:
        """Checks the number of epochs."""
        if self.save_every == 0:
            raise BadFlag("--save_every=0: expected a number of epochs, or -1")


@dataclasses.dataclass
class CertifiedRun(Run):
    """The same where epochs may be compared by certificates."""

    select: str = setting(
        "best_robust",
        f"{_SELECT}or the best of --val_method, {_REFERENCE}",
        choices=("best_robust", "best_clean", "best_certified", "last", "reference"),
    )
