"""Runs the scripts inside this process, where TensorFlow is loaded already, as a shell would run them."""

import contextlib
import fcntl
import importlib
import io
import itertools
import json
import os
import runpy
import sys
from pathlib import Path
from typing import NamedTuple

import keras
import pytest
from absl import flags, logging

from tests.cli.binary_runs import YAML
from tf_robust_sparse.cli import command_line, report, settings
from tf_robust_sparse.cli.main import command
from tf_robust_sparse.cli.report import draw_curve
from tf_robust_sparse.evaluation import figure_style
from tf_robust_sparse.models import resnet
from tf_robust_sparse.training import robust_model

robust_accuracy = importlib.import_module("tf_robust_sparse.evaluation.robust_accuracy")  # the function has its name

ROOT = Path(__file__).parents[2]
TRAIN, EVALUATE, IMPORT = "run_connectivity_sampling", "run_foolbox_eval", "run_import_weights"
ROBUSTNESS = "run_robustness_eval"
# Two epochs of three steps: a few seconds.
TINY = (
    *("--data=fashion_mnist_sample", "--model=small_cnn", "--train_examples=256", "--test_examples=64", "--epochs=2"),
    *("--batch_size=64", "--num_steps=2", "--pgd_iters=2", "--pgd_restarts=2", "--epsilon=0.05", "--step_size=0.02"),
)


class Outcome(NamedTuple):
    """How a script ended."""

    code: int
    out: str
    err: str

    def expect(self, code=0):
        """Returns itself, after a look at the exit code."""
        assert self.code == code, f"exit code {self.code}, expected {code}\n{self.out}\n{self.err}"
        return self


def run_script(script, *arguments):
    """Runs a script with these arguments, with its own flags, and leaves no trace in this process."""
    out, err = io.StringIO(), io.StringIO()
    argv, path, verbosity = sys.argv, list(sys.path), logging.get_verbosity()
    sys.argv = [str(ROOT / "run_scripts" / f"{script}.py"), *map(str, arguments)]
    code = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as ended:
        code = ended.code or 0
    finally:
        sys.argv, sys.path[:] = argv, path
        logging.set_verbosity(verbosity)
        keras.config.set_dtype_policy("float32")
        forget_flags()
    return Outcome(code, out.getvalue(), err.getvalue())


def forget_flags():
    """Removes the flags that a script defined, so that the next one can define its own."""
    names = {"s", *command_line.names(), *command_line._aliases}
    by_module = (
        flags.FLAGS.flags_by_module_dict(),
        flags.FLAGS.flags_by_module_id_dict(),
        flags.FLAGS.key_flags_by_module_dict(),
    )
    for defined in itertools.chain(*(lists.values() for lists in by_module)):
        defined[:] = [flag for flag in defined if flag.name not in names]  # absl would look for each flag in turn
    for name in names:
        if name in flags.FLAGS:
            delattr(flags.FLAGS, name)
    flags.FLAGS["log_dir"].unparse()  # a flag of absl's, which the originals have too
    command_line._sections.clear()
    command_line._aliases.clear()
    settings.forget()


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)  # the tests name flagfiles from here


_drawn = {}


def _kind():
    """The function that draws, `draw_...`."""
    frame = sys._getframe()
    while not frame.f_code.co_name.startswith("draw_"):
        frame = frame.f_back
    return frame.f_code.co_name


@pytest.fixture(scope="package", autouse=True)
def _brief():
    """Leaves out of runs, also of those that tests share, what takes as long as they train and has tests of its own.

    No learning curves, which `with_curves` brings back; no search for masked gradients; and of the figures one of each
    kind is drawn, for others stand copies: `tests/evaluation` looks at what is on them.
    """
    draw = figure_style.save_figure

    def save(figure, paths):
        for path in paths:
            kind = _kind(), path.suffix
            if kind not in _drawn:
                draw(figure, [path])
                _drawn[kind] = path.read_bytes()
            path.write_bytes(_drawn[kind])

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(figure_style, "save_figure", save)
        patched.setattr(report, "draw_curve", lambda *given: None)
        patched.setattr(robust_model, "warn_of_masked_gradients", lambda *given: None)
        patched.setattr(robust_accuracy, "masked_gradients", lambda *given: [])
        yield


@pytest.fixture
def with_curves(monkeypatch):
    """Runs draw their learning curves."""
    monkeypatch.setattr(report, "draw_curve", draw_curve)


@pytest.fixture
def one_drawn(monkeypatch):
    """Of the figures the first is drawn, for the others stand empty files."""
    draw, files = figure_style.save_figure, []

    def save(figure, paths):
        if not files:
            draw(figure, paths)
        for path in paths:
            path.touch()
        files.append(paths)

    monkeypatch.setattr(figure_style, "save_figure", save)
    return files


@pytest.fixture
def parse():
    """Returns a function that parses a command line of a script and returns its flags, without running it."""

    def parsed(script, *arguments):
        forget_flags()
        command_line.define(command(script))
        command_line._parse([script, *map(str, arguments)])
        return flags.FLAGS

    yield parsed
    forget_flags()


@pytest.fixture(scope="module")
def one_block():
    """Leaves `resnet18_p1` one block, with a shortcut of its own, of eight: the way through the script is the same."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(resnet._BLOCKS, 18, (resnet._basic, (0, 1, 0, 0)))
        yield


@pytest.fixture
def config(tmp_path):
    """Writes a configuration of the published code of binary sub-networks and returns its path."""

    def write(text=YAML, **changes):
        path = tmp_path / "config.yaml"
        lines = [line for line in text.splitlines() if line.partition(":")[0] not in changes]
        lines += [f"{name}: {value}" for name, value in changes.items() if value is not None]
        path.write_text("\n".join(lines) + "\n")
        return path

    return write


def results(directory):
    return json.loads((Path(directory) / "results.json").read_text())


@pytest.fixture(scope="package")
def finished(tmp_path_factory):
    """The directory of a tiny finished sparse run; not to be changed. Processes that share the tests share it."""
    place = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        place = place.parent
    directory = place / "finished" / "run"
    with (place / "finished.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (directory / "results.json").exists():
            run_script(TRAIN, *TINY, "-s", "--connectivity=0.1", f"--output_dir={directory}").expect()
    return directory
