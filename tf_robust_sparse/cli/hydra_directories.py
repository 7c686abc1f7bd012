"""Where the phases of pruning by learned scores are written, and where a source is found."""

import os
from pathlib import Path

from absl import flags

from tf_robust_sparse.cli import hydra_flags, run_directory
from tf_robust_sparse.cli.command_line import BadFlag

FLAGS = flags.FLAGS

LATEST = "latest_exp"
_RESULT_DIR = "./trained_models"


def check() -> None:
    """Checks the flags that say where to write, before any work.

    Raises:
        BadFlag: if they contradict each other.
    """
    if FLAGS.result_dir and not FLAGS.exp_name:
        raise BadFlag(f"--result_dir={FLAGS.result_dir}: expected --exp_name=NAME with it. Received: no such flag")
    if not FLAGS.exp_name:
        if FLAGS.exp_mode == "all" and not FLAGS.load_model:
            _check_folder(_folder())
        return
    if FLAGS.output_dir:
        raise BadFlag("--output_dir and --exp_name both say where to write; pass one. Received: both")
    if Path(FLAGS.exp_name).name in ("", "..") or Path(FLAGS.exp_name).is_absolute():
        raise BadFlag(f"--exp_name={FLAGS.exp_name}: expected a name, with its folder in --result_dir")
    if FLAGS.overwrite:
        raise BadFlag(
            f"--overwrite: every run of --exp_name={FLAGS.exp_name} gets a directory of its own, so drop --overwrite; "
            "to replace a run, name its directory by --output_dir. Received: both"
        )
    if FLAGS.strategy == "multi_worker":
        raise BadFlag("--strategy=multi_worker: expected --output_dir, which all workers share. Received: --exp_name")


def _folder() -> Path:
    """Returns the folder of the phases, where --exp_name does not say it."""
    return run_directory.chosen(Path("saved_models") / hydra_flags.run_name())


def _check_folder(folder: Path) -> None:
    """Checks that a folder of phases holds nothing else."""
    found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    strangers = [name for name in found if name not in hydra_flags.MODES and not name.startswith(".")]
    if strangers:
        raise BadFlag(
            f"--output_dir={folder}: expected a new or empty directory, or one of pretrain, prune and finetune, as "
            f"--exp_mode=all writes. Received: one with other files, such as {strangers[0]}"
        )


def directory(phase: str) -> Path:
    """Returns the directory of a phase.

    With --exp_name, as HYDRA's code has it, that is `RESULT_DIR/NAME/PHASE/NUMBER--SETTINGS`, of the next number, or,
    to resume or evaluate a run, of the last one.
    """
    if not FLAGS.exp_name:
        folder = _folder()
        return folder if FLAGS.output_dir and FLAGS.exp_mode != "all" else folder / phase
    folder = Path(FLAGS.result_dir or _RESULT_DIR).expanduser() / FLAGS.exp_name / phase
    found = _numbered(folder)
    if found and (FLAGS.resume or FLAGS.load_model):
        return found[max(found)]
    warmup = f"warmuplr-{FLAGS.warmup_lr}_warmupepochs-{FLAGS.warmup_epochs}"
    settings = f"trainer-{FLAGS.trainer}_lr-{hydra_flags.rate(phase)}_epochs-{hydra_flags.own_epochs(phase)}_{warmup}"
    return folder / f"{max(found, default=0) + 1}--k-{FLAGS.k:.2f}_{settings}"


def _numbered(folder: Path) -> dict[int, Path]:
    names = {path.name.partition("--")[0]: path for path in folder.glob("*--*")}
    return {int(number): path for number, path in names.items() if number.isdecimal()}


def point_at(finished: Path) -> None:
    """Lets `latest_exp` beside a finished run of --exp_name name that run."""
    if not FLAGS.exp_name:
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


def source() -> Path | None:
    """Returns the path of --source_net, or `None`, and lets the record of the run name it."""
    if not FLAGS.source_net:
        return None
    found = run_of(Path(FLAGS.source_net).expanduser())
    FLAGS.source_net = str(found)
    return found


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
    if source is None or not FLAGS.overwrite:
        return
    run, written = source.resolve(), target.resolve()
    if written == run or written in run.parents:
        raise BadFlag(
            f"--overwrite: --source_net={source} lies in {target}, whose run it would remove; pass another "
            "--output_dir. Received: both"
        )
