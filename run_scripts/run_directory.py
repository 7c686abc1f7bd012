"""The directory of one run: who may write there, `run.flags`, `results.json`."""

import datetime
import importlib.metadata
import json
import platform
import shutil
from pathlib import Path
from typing import Any

from absl import flags

from run_scripts.command_line import BadFlag
from tf_robust_sparse import saving

FLAGS = flags.FLAGS

# Everything a run writes; --overwrite removes these and nothing else.
ARTEFACTS = ("results.json", "run.flags", "network.keras", "serve", "checkpoints", "tensorboard")
PACKAGES = ("tf_robust_sparse", "tensorflow", "keras", "tensorflow-model-optimization", "foolbox", "numpy", "absl-py")


def define() -> None:
    """Defines the flags of this module."""
    flags.DEFINE_string(
        "output_dir", None, "Where the run is written; by default a name made of the flags, in saved_models/."
    )
    flags.DEFINE_bool("overwrite", False, "Begin anew in a directory that holds a run already, removing what it wrote.")
    flags.DEFINE_bool("resume", False, "Go on with the run in the directory, from its last finished epoch.")


def check(directory: Path) -> bool:
    """Decides whether the run may use `directory`; nothing is written yet.

    Returns:
        Whether there is a checkpoint to resume from.

    Raises:
        BadFlag: if the directory is in use and neither --resume nor --overwrite says what to do.
    """
    if FLAGS.resume and FLAGS.overwrite:
        raise BadFlag("--resume goes on with a run and --overwrite removes it; pass one of them")
    if directory.exists() and not directory.is_dir():
        raise BadFlag(f"--output_dir={directory}: expected a directory, found a file")
    present = [name for name in ARTEFACTS if (directory / name).exists()]
    if not present:
        strangers = sorted(path.name for path in directory.iterdir()) if directory.exists() else []
        if strangers:
            raise BadFlag(
                f"--output_dir={directory} holds files of something else, such as {strangers[0]}; name another"
            )
        return False
    if not (FLAGS.resume or FLAGS.overwrite):
        state = "a finished run" if (directory / "results.json").exists() else "an unfinished run"
        raise BadFlag(f"--output_dir={directory} holds {state}; pass --resume, --overwrite or another directory")
    return FLAGS.resume and (directory / "checkpoints" / "last.weights.h5").exists()


def begin(directory: Path, resuming: bool) -> None:
    """Makes the directory, empty of an older run unless this one goes on with it, and records the flags."""
    if not resuming:
        for name in ARTEFACTS:
            path = directory / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    directory.mkdir(parents=True, exist_ok=True)
    with saving.replace_file(directory / "run.flags") as path:
        path.write_text(flags_text())


def flags_text() -> str:
    """Returns a flagfile that repeats this run: every flag of this project that has a value."""
    lines = [f"# Written on {datetime.date.today()}; repeat with --flagfile=<this file>."]
    ours = {
        flag.name: flag for module, found in FLAGS.flags_by_module_dict().items() if _is_ours(module) for flag in found
    }
    for name in sorted(ours):
        flag = FLAGS[name]
        is_alias = flag.name != name
        if flag.value is None or is_alias or name in ("overwrite", "resume", "traceback", "output_dir"):
            continue
        lines.append(flag.serialize())
    return "\n".join(line for line in lines if line) + "\n"


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes `content` as JSON, whole or not at all."""
    text = json.dumps(content, indent=1, default=float) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with saving.replace_file(path) as temporary:
        temporary.write_text(text)


def versions() -> dict[str, str]:
    """Returns the versions of Python and the packages a result depends on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _is_ours(module: str) -> bool:
    return "run_scripts" in module or Path(module).name.startswith(("run_", "common_flags", "__main__"))
