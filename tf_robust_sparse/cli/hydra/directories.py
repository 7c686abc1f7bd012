"""Where the phases of pruning by learned scores are written, and where a source is found."""

import dataclasses
import os
from pathlib import Path

from absl import flags

from tf_robust_sparse.cli import run_directory
from tf_robust_sparse.cli.command_line import BadFlag
from tf_robust_sparse.cli.hydra.settings import MODES, Optimizer, Output, Phases, Scores, Trainer, plan, run_name
from tf_robust_sparse.cli.sections.machines import Machines
from tf_robust_sparse.cli.sections.run import Run
from tf_robust_sparse.cli.settings import Settings, setting

FLAGS = flags.FLAGS

LATEST = "latest_exp"


@dataclasses.dataclass
class Place(Settings):
    """Where HYDRA's code writes."""

    title = "Flags of HYDRA's code"

    result_dir: str | None = setting(None, "Parent folder of --exp_name; by default ./trained_models.", recorded=False)
    exp_name: str | None = setting(
        None, "Name of a folder with a directory per phase, each of which holds numbered runs.", recorded=False
    )

    def check(self) -> None:
        """Checks that one flag says where to write."""
        output, name = Output.read(), self.exp_name
        if not name:
            if self.result_dir:
                raise BadFlag(f"--result_dir={self.result_dir} is the folder of --exp_name=NAME; pass both")
            if Phases.read().exp_mode == "all" and not Run.read().load_model:
                _check_folder(_folder())
            return
        if output.output_dir:
            raise BadFlag(f"--output_dir={output.output_dir} and --exp_name={name} both say where to write; pass one")
        if Path(name).name in ("", "..") or Path(name).is_absolute():
            raise BadFlag(f"--exp_name={name}: expected a name, with its folder in --result_dir")
        if output.overwrite:
            raise BadFlag(
                f"--overwrite: every run of --exp_name={name} gets a directory of its own, so drop --overwrite; to "
                "replace a run, name its directory by --output_dir"
            )
        if Machines.read().strategy == "multi_worker":
            raise BadFlag(f"--strategy=multi_worker needs --output_dir, which all workers share, not --exp_name={name}")

    def directory(self, phase: str) -> Path:
        """Returns the directory of a phase.

        With --exp_name, as HYDRA's code has it, that is `RESULT_DIR/NAME/PHASE/NUMBER--SETTINGS`, of the next number,
        or, to resume or evaluate a run, of the last one.
        """
        if not self.exp_name:
            return _folder() if Output.read().output_dir and Phases.read().exp_mode != "all" else _folder() / phase
        folder = Path(self.result_dir or "./trained_models").expanduser() / self.exp_name / phase
        names = {path.name.partition("--")[0]: path for path in folder.glob("*--*")}
        found = {int(number): path for number, path in names.items() if number.isdecimal()}
        if found and (Run.read().resume or Run.read().load_model):
            return found[max(found)]
        planned, optimizer = plan(phase), Optimizer.read()
        settings = (
            f"k-{Scores.read().k:.2f}_trainer-{Trainer.read().trainer}_lr-{planned.rate}_epochs-{planned.own_epochs}_"
            f"warmuplr-{optimizer.warmup_lr}_warmupepochs-{optimizer.warmup_epochs}"
        )
        return folder / f"{max(found, default=0) + 1}--{settings}"

    def point_at(self, finished: Path) -> None:
        """Lets `latest_exp` next to a finished run of --exp_name name that run."""
        if not self.exp_name:
            return
        link = finished.parent / LATEST
        if link.exists() and not link.is_symlink():
            print(f"Note: {link} is a directory of its own and still names another run")
            return
        temporary = link.with_name(f".{LATEST}.{os.getpid()}")
        try:
            temporary.symlink_to(finished.name, target_is_directory=True)
            temporary.replace(link)
        except OSError as error:  # not every file system has links
            print(f"Note: {link} cannot be written ({error.strerror}); pass --source_net={finished}")


def _folder() -> Path:
    """Returns the folder of the phases, where --exp_name does not say it."""
    return run_directory.chosen(Path("saved_models") / run_name())


def _check_folder(folder: Path) -> None:
    """Checks that a folder of phases holds nothing else."""
    found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    others = [name for name in found if name not in MODES and not name.startswith(".")]
    if others:
        raise BadFlag(
            f"--output_dir={folder} holds other files, such as {others[0]}; expected a new or empty directory, or one "
            "of pretrain, prune and finetune, as --exp_mode=all writes"
        )


def source() -> Path | None:
    """Returns the path of --source_net, or `None`, and lets the record of the run name it."""
    path = Phases.read().source_net
    if not path:
        return None
    found = run_of(Path(path).expanduser())
    FLAGS["source_net"].value = str(found)
    return found


def recorded_source(directory: Path) -> Path | None:
    """Returns the source that the run in `directory` began with, which its record keeps when the run goes on."""
    FLAGS["source_net"].value = run_directory.recorded(directory).get("source_net")
    return source()


def run_of(path: Path) -> Path:
    """Returns the run that HYDRA's scripts name by `RUN/checkpoint/checkpoint.pth.tar`, if it is one of ours.

    `latest_exp` becomes the run that it stands for at present. Any other path is returned as it is.
    """
    run = path.parent.parent
    ours = path.parent.name == "checkpoint" and not path.exists() and (run / "network.keras").is_file()
    found = run if ours else path
    return found.resolve() if LATEST in found.parts else found


def check_source(source: Path | None, target: Path) -> None:
    """Checks that a phase does not remove the network that it begins with.

    Raises:
        BadFlag: if --overwrite would.
    """
    if source is None or not Output.read().overwrite:
        return
    run, written = source.resolve(), target.resolve()
    if written == run or written in run.parents:
        raise BadFlag(
            f"--overwrite: --source_net={source} lies in {target}, whose run it would remove; pass another --output_dir"
        )
