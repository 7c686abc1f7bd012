"""A run that is interrupted, killed, out of disk or diverging goes on, and ends as if nothing had happened."""

import json
import os
import shutil
from pathlib import Path

import pytest

import tf_robust_sparse as trs
from tests.cli.conftest import TINY, TRAIN, results, run_script
from tests.cli.test_runs import assert_same_weights
from tf_robust_sparse.cli import command_line, report, run_lock
from tf_robust_sparse.saving.checkpoint import read_metadata

SPARSE = (*TINY, "-s", "--connectivity=0.1")


def interrupt_after_first_epoch(monkeypatch, directory):
    """Runs until one epoch is finished."""
    with monkeypatch.context() as patched:
        original = trs.training.Checkpoints.on_epoch_end

        def interrupted(self, epoch, logs=None):
            original(self, epoch, logs)
            raise KeyboardInterrupt

        patched.setattr(trs.training.Checkpoints, "on_epoch_end", interrupted)
        done = run_script(TRAIN, *SPARSE, f"--output_dir={directory}").expect(130)
    assert done.err == "error: interrupted; no finished epoch is lost, run the same command with --resume to go on\n"
    return directory / "checkpoints" / "last.weights.h5"


def assert_resumes_to(finished, directory):
    done = run_script(TRAIN, *SPARSE, f"--output_dir={directory}", "--resume").expect()
    assert_same_weights(finished, directory)
    for name in ("clean_accuracy", "robust_accuracy", "epochs", "nonzero", "selected"):
        assert results(directory)[name] == results(finished)[name]
    history = json.loads((directory / "checkpoints/history.json").read_text())
    assert [row["epoch"] for row in history] == [1, 2]
    return done


@pytest.mark.parametrize("more", [False, pytest.param(True, marks=pytest.mark.full)])
def test_a_run_goes_on_bit_by_bit_after_a_full_disk_and_with_more_an_interrupt_and_a_divergence(
    more, finished, tmp_path, monkeypatch
):
    checkpoint = tmp_path / "run/checkpoints/last.weights.h5"
    again, before = (TRAIN, *SPARSE, f"--output_dir={tmp_path / 'run'}", "--resume"), None
    if more:
        before = interrupt_after_first_epoch(monkeypatch, tmp_path / "run").read_bytes()
        done = run_script(*again, "--learning_rate=1e20").expect(1)
        (line,) = done.err.splitlines()
        assert line.startswith("error: The training loss became") and "smaller learning rate" in line
        assert "epoch 2" in line and "Changed:   --learning_rate=1e+20" in done.out
        assert checkpoint.read_bytes() == before
    opened, kept = Path.open, []

    def full(self, mode="r", *options, **named):
        if "last.weights.h5" in self.name and "w" in mode and checkpoint.exists():  # the second epoch has no room
            kept.append(checkpoint.read_bytes())
            self.touch()
            return opened(Path("/dev/full"), mode)
        return opened(self, mode, *options, **named)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", full)
        done = run_script(*again).expect(1)
    assert f"No space left on device: '{checkpoint.parent}" in done.err.splitlines()[-1]
    assert checkpoint.read_bytes() == kept[0] == (before or kept[0])
    assert read_metadata(checkpoint)["state"]["epoch"] == 1
    assert not list(checkpoint.parent.glob(".*"))
    assert "1 of them left" in assert_resumes_to(finished, tmp_path / "run").out


RECIPE = (
    *(*TINY, "--sparsifier=rigl", "--connectivity=0.1", "--move_interval=2", "--train_attack=n_fgsm"),
    *("--average=ema", "--average_decay=0.5", "--awp_gamma=0.01"),
)


def test_the_modern_recipe_goes_on_bit_by_bit_and_keeps_its_connections(tmp_path, monkeypatch, with_curves):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    original = trs.training.Checkpoints.on_epoch_end

    def copied(self, epoch, logs=None):
        original(self, epoch, logs)
        if epoch == 0:  # as a kill after the first epoch would leave it
            shutil.copytree(whole, parts, ignore=shutil.ignore_patterns(".*"))

    with monkeypatch.context() as patched:
        patched.setattr(trs.training.Checkpoints, "on_epoch_end", copied)
        patched.setattr(report, "draw_curve", lambda *given: None)
        run_script(TRAIN, *RECIPE, f"--output_dir={whole}").expect()
    run_script(TRAIN, *RECIPE, f"--output_dir={parts}", "--resume").expect()
    assert_same_weights(whole, parts)
    found = results(parts)
    assert found["nonzero"] == 16_624 and found["average"]["average"] == "EMA" and found["weights"] == "averaged"
    history = json.loads((parts / "checkpoints/history.json").read_text())
    robust = [epoch["val_robust_accuracy"] for epoch in history]
    assert found["best_minus_last"] == pytest.approx(max(robust) - robust[-1])
    assert all((parts / f"learning_curve.{form}").is_file() for form in ("png", "pdf"))
    done = run_script(TRAIN, *TINY, "--average_decay=0.5", f"--output_dir={tmp_path / 'new'}").expect(2)
    assert done.err == "error: --average_decay=0.5 belongs to --average=ema or swa; leave it out\n"


@pytest.mark.full
def test_resume_begins_where_nothing_is(finished, tmp_path):
    directory = tmp_path / "run"
    (directory / "checkpoints").mkdir(parents=True)  # killed before the first epoch was over
    (directory / ".run.flags.tmp-1.flags").touch()
    assert_resumes_to(finished, directory)


def contents(directory):
    return {path.relative_to(directory): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize("removed", ["checkpoints", "checkpoints/last.weights.h5"])
def test_resume_keeps_its_hands_off_a_network_without_a_checkpoint(removed, finished, tmp_path):
    directory = tmp_path / "run"
    shutil.copytree(finished, directory)
    (shutil.rmtree if removed == "checkpoints" else Path.unlink)(directory / removed)
    before = contents(directory)
    done = run_script(TRAIN, *SPARSE, f"--output_dir={directory}", "--resume").expect(2)
    assert done.err.startswith(f"error: --resume: expected {directory}/checkpoints/last.weights.h5 to go on from,")
    assert "there is results.json without it;" in done.err and done.err.count("\n") == 1
    assert contents(directory) == before


def test_resume_completes_a_finished_run(finished, tmp_path):
    directory = tmp_path / "run"
    shutil.copytree(finished, directory)
    before = contents(directory)
    shutil.rmtree(directory / "serve")
    done = run_script(TRAIN, *SPARSE, f"--output_dir={directory}", "--resume").expect()
    assert "nothing to resume" in done.out and "Completed:          serve\n" in done.out
    after = contents(directory)
    assert set(after) == set(before)
    assert all(after[name] == before[name] for name in before if name.parts[0] != "serve")


def test_a_directory_has_one_writer(finished, tmp_path):
    directory = tmp_path / "run"
    run_lock.take(directory, "")
    lock = (directory / run_lock.NAME).read_text()
    command_line.cleanups.close()
    directory.mkdir()
    (directory / run_lock.NAME).write_text(lock)
    for more in ((), ("--resume",), ("--overwrite",)):
        done = run_script(TRAIN, *SPARSE, f"--output_dir={directory}", *more).expect(2)
        assert done.err.startswith(f"error: --output_dir={directory} is in use by process {os.getpid()} on ")
        assert contents(directory) == {Path(run_lock.NAME): lock.encode()}
