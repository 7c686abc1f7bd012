"""The directory of one run: who may write there, `run.flags`, `results.json`."""

import contextlib
import datetime
import importlib.metadata
import itertools
import json
import platform
import shutil
from pathlib import Path
from typing import Any

from absl import flags

from tf_robust_sparse import data
from tf_robust_sparse.cli import command_line, run_lock, settings
from tf_robust_sparse.cli.command_line import BadFlag
from tf_robust_sparse.cli.sections import method
from tf_robust_sparse.cli.sections.run import Output
from tf_robust_sparse.saving.atomic import check_replaceable, replace_file

FLAGS = flags.FLAGS

# Everything a run writes; --overwrite removes these and nothing else.
ARTEFACTS = (
    *("results.json", "run.flags", "network.keras", "serve", "checkpoints", "tensorboard", "dense"),
    *("foolbox.json", "robustness.json", "certified.json", "certified.tsv", "certified.png", "certified.pdf"),
    *(
        f"certified_{method}.{kind}"
        for method in ("ibp", "crown-ibp", "crown", "alpha-crown", "mixtrain", "branch-and-bound")
        for kind in ("json", "tsv")
    ),
    *("masks", "changes", "autoattack", "network.trs", "compact.json", "shrink.json"),
    *("network.c", "network.so", "compile.json", "network.onnx", "network_sparse.onnx"),
    *("serve_packed", "network.tflite", "network_sparse.tflite", "network_int8.tflite"),
    *("learning_curve.png", "learning_curve.pdf"),
    *("cost.json", "white_box.json", "black_box.json", "loss_surface.png", "loss_surface.pdf"),
)
PACKAGES = ("tf_robust_sparse", "tensorflow", "keras", "tensorflow-model-optimization", "foolbox", "numpy", "absl-py")
CHECKPOINT = Path("checkpoints", "last.weights.h5")
# What a run may have written when it is killed before its first checkpoint: nothing of it is missed.
_BEFORE_THE_FIRST_CHECKPOINT = ("run.flags", "checkpoints", "tensorboard", "masks", "changes")
# The flags that say where a run is, of which a script has some.
_PLACES = ("output_dir", "exp_name", "model_name")
_left_out: set[flags.Flag] = set()


def chosen(default: Path | None = None) -> Path:
    """Returns the directory of --output_dir, or else `default` or the one that the flags stand for."""
    given = Output.read().output_dir
    return Path(given).expanduser() if given else default or method.default_directory()


def check(directory: Path, resume: bool = False) -> bool:
    """Decides whether the run may use `directory`, and takes its lock; nothing else is written yet.

    Returns:
        Whether there is a checkpoint to resume from.

    Raises:
        BadFlag: if another process writes there, if the directory is in use and neither --resume nor --overwrite says
            what to do, or if --resume finds a network and no checkpoint to go on from.
    """
    what, overwrite = _in_the_users_words(directory), Output.read().overwrite
    if resume and overwrite:
        raise BadFlag("--resume goes on with a run and --overwrite removes it; pass one of them")
    check_directory(_PLACES[0], directory)
    run_lock.take(directory, what)
    found = sorted(path.name for path in directory.iterdir() if not path.name.startswith("."))  # as killed saves leave
    if not any(name in ARTEFACTS for name in found):
        if found:
            raise BadFlag(
                f"{what} holds other files, such as {found[0]}; pass a new or empty directory, or that of a run"
            )
        return False
    if not (resume or overwrite):
        state = "a finished run" if (directory / "results.json").exists() else "an unfinished run"
        again = "--resume to go on with it, " if "resume" in command_line.names() else ""
        raise BadFlag(f"{what} holds {state}; pass {again}--overwrite to remove it, or another directory")
    if not resume:
        return False
    if (directory / CHECKPOINT).exists():
        return True
    kept = [name for name in ARTEFACTS if name in found and name not in _BEFORE_THE_FIRST_CHECKPOINT]
    kept += [f"checkpoints/{path.name}" for path in sorted((directory / "checkpoints").glob("history.*"))]
    if kept:
        raise BadFlag(
            f"--resume: expected {directory / CHECKPOINT} to go on from, but there is {kept[0]} without it; pass "
            "another --output_dir to train, or --overwrite to remove what is there"
        )
    return False


def _in_the_users_words(directory: Path) -> str:
    """Returns the directory of a run as the command line says it."""
    for name in set(_PLACES).intersection(command_line.names()):
        if FLAGS[name].present and FLAGS[name].value:
            said = f"--{name}={FLAGS[name].value}"
            return said if Path(FLAGS[name].value).expanduser() == directory else f"{said}: {directory}"
    return f"{directory}, where a run with these flags is without --output_dir"


def check_file(name: str, path: Path) -> None:
    """Checks that the file that --`name` stands for can be written, before any work.

    Raises:
        BadFlag: if there is a directory in its place, a file in its way, or a directory that nothing may be written to.
    """
    if path.is_dir():
        raise BadFlag(f"--{name}={path}: expected a file, but there is a directory of that name")
    _check_place(name, path)


def check_directory(name: str, path: Path) -> None:
    """Checks that files can be written to the directory that --`name` stands for, which need not exist.

    Raises:
        BadFlag: if there is a file in its place or in its way, or nothing may be written there.
    """
    if path.exists() and not path.is_dir():
        raise BadFlag(f"--{name}={path}: expected a directory, but there is a file of that name")
    _check_place(name, path / "file")


def _check_place(name: str, path: Path) -> None:
    blocking = [parent for parent in path.parents if parent.is_file()]
    if blocking:
        raise BadFlag(
            f"--{name}={path}: expected a path through directories, but it leads through the file {blocking[0]}"
        )
    try:
        check_replaceable(path)
    except OSError as error:
        raise BadFlag(f"--{name}={path}: expected a place to write to; {error.strerror}") from error


def begin(directory: Path, resuming: bool = False) -> None:
    """Makes the directory and records the flags; removes an older run with --overwrite, and not otherwise."""
    if Output.read().overwrite:
        for name in ARTEFACTS:
            path = directory / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    if resuming:
        _tell_changes(directory / "run.flags")
    directory.mkdir(parents=True, exist_ok=True)
    write_flags(directory / "run.flags")


def recorded(directory: Path) -> dict[str, Any]:
    """Returns the flags that the run in `directory` was begun with, of those that this script has, by their names."""
    record, known = directory / "run.flags", set(command_line.names())
    found = {}
    for line in record.read_text().splitlines() if record.is_file() else ():
        name, equals, value = line.removeprefix("--").partition("=")
        if name not in known and name.startswith("no") and not equals:
            name, equals, value = name[2:], "=", "false"
        if line.startswith("--") and name in known:
            # Another command's flag of the same name may take other values.
            with contextlib.suppress(ValueError):
                found[name] = FLAGS[name].parser.parse(value if equals else "true")
    return found


def numbered(parent: Path) -> Path:
    """Makes and returns the directory `parent/<number>` of the lowest number, from 0, that does not exist yet."""
    for number in itertools.count():
        found = parent / str(number)
        try:
            found.mkdir(parents=True)
        except FileExistsError:
            continue
        return found
    raise AssertionError("numbers do not end")


def write_flags(record: Path, place: str = "--output_dir") -> None:
    """Writes the flagfile that repeats this run in another place, which the flag `place` names."""
    with replace_file(record) as path:
        head = f"# Written on {datetime.date.today()}; repeat with --flagfile=<this file> and another {place}."
        path.write_text("\n".join([head, *recorded_flags()]) + "\n")


def leave_out(*names: str) -> None:
    """Keeps flags out of `run.flags`: those that mean nothing to this run, or mean something by being given."""
    _left_out.update(FLAGS[name] for name in names)


def recorded_flags() -> list[str]:
    """Returns the lines of a flagfile that repeats this run: every flag with a value that the run depends on."""
    left_out = {"traceback", *settings.unrecorded(), *settings.meaningless()}
    chosen = [FLAGS[name] for name in sorted(command_line.names()) if name not in left_out]
    return [flag.serialize() for flag in chosen if flag.value is not None and flag not in _left_out]


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes `content` as JSON, whole or not at all."""
    text = json.dumps(content, indent=1, default=float) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as temporary:
        temporary.write_text(text)


def write_results(path: Path, results: dict[str, Any], images: data.ImageDataset | None = None) -> dict[str, Any]:
    """Writes results with the images and the versions of the packages that they depend on, and returns all of it."""
    used = {"data": {"name": images.name, "origin": images.origin}} if images else {}
    results = {**results, **used, "versions": versions()}
    write_json(path, results)
    return results


def versions() -> dict[str, str]:
    """Returns the versions of Python and the packages a result depends on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _tell_changes(record: Path) -> None:
    """Says which flags differ from those the run was begun with; the essential ones cannot."""
    if not record.is_file():
        return
    before = [line for line in record.read_text().splitlines() if not line.startswith("#")]
    changed = [line for line in recorded_flags() if line not in before]
    if changed:
        print(f"Changed:   {' '.join(changed)}, unlike the flags this run was begun with")
