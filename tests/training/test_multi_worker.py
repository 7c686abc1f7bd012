"""Two processes on loopback that train one network, as two machines would."""

import json

import h5py
import numpy as np
import pytest
import tensorflow as tf

from tests.training import cluster, worker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

# Halves of a batch are summed in another order than the whole: units in the last place of float32 over eight steps.
ROUNDING = 2e-6


def test_two_workers_equal_one_process(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for directory in (one, two):
        directory.mkdir()
    cluster.run(["-W", "error::UserWarning", "-m", "tests.training.worker", two], workers=2)
    with tf.device("CPU:0"):
        worker.main(one)
    first, second, alone = (np.load(path) for path in (two / "worker0.npz", two / "worker1.npz", one / "worker0.npz"))
    assert set(first) == set(second) == set(alone)
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])
        np.testing.assert_allclose(first[name].astype(float), alone[name].astype(float), atol=ROUNDING)
        np.testing.assert_array_equal(first[name] > 0, alone[name] > 0)  # the same connections, no less
    logs = [json.loads(path.read_text()) for path in (two / "worker0.json", two / "worker1.json", one / "worker0.json")]
    assert logs[0] == logs[1]
    for line, expected in zip(logs[0], logs[2], strict=True):
        # In the last line the last batch is uneven: an attack starts elsewhere there, all else is the same.
        names = set(line) - ({"robust_accuracy"} if "epoch" not in line else set())
        assert set(line) == set(expected)
        assert {name: line[name] for name in names} == pytest.approx({name: expected[name] for name in names}, rel=1e-4)
    assert logs[0][0]["births"] > 0
    assert (two / "checkpoints0" / "last.weights.h5").exists()
    assert not (two / "checkpoints1").exists()  # worker 0 alone writes


def weights(path):
    """The variables of a checkpoint by name."""
    found = {}
    with h5py.File(path) as file:
        file["variables"].visititems(
            lambda name, item: found.update({name: item[()]} if hasattr(item, "dtype") else {})
        )
    return found


@pytest.mark.full
def test_a_run_on_two_workers_goes_on_after_a_stop(tmp_path):
    """Worker 0 alone writes. What was on disk after the first epoch goes on to the same end, bit by bit.

    Perturbations of images, of which each worker keeps its own, are the hardest part of a checkpoint.
    """

    (tmp_path / "keeper.py").write_text(KEEPER)

    def command(output_dir, copy="", *more):
        return [
            tmp_path / "keeper.py",
            output_dir,
            copy,
            "run_scripts/run_binary_subnetworks.py",
            "--flagfile=flags/binary/sample.flags",
            "--train_examples=80",
            "--test_examples=16",
            "--validation_examples=16",
            "--batch_size=32",
            "--epochs=2",
            "--val_num_steps=1",
            "--pgd_iters=1",
            "--pgd_restarts=1",
            "--strategy=multi_worker",
            f"--output_dir={output_dir}",
            *more,
        ]

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    outputs = cluster.run(command(whole, parts), workers=2)
    assert "Robust accuracy" in outputs[0] and "Robust accuracy" not in outputs[1]
    assert "Worker:    1 of 2; worker 0 writes\n" in outputs[1] and "Objective: " in outputs[1]
    assert outputs[1].rstrip().endswith(f"Finished:  worker 0 has written {whole}")
    assert json.loads((whole / "results.json").read_text())["epochs"] == 2
    assert {path.name for path in whole.iterdir()} >= {"network.keras", "serve", "run.flags", "checkpoints"}
    assert len(json.loads((whole / "checkpoints" / "history.json").read_text())) == 2
    assert len(json.loads((parts / "checkpoints" / "history.json").read_text())) == 1
    assert not (parts / "results.json").exists()

    first = weights(parts / "checkpoints" / "last.weights.h5")["tables/perturbations"]
    cluster.run(command(parts, "", "--resume"), workers=2)
    assert len(json.loads((parts / "checkpoints" / "history.json").read_text())) == 2
    expected, found = (weights(each / "checkpoints" / "last.weights.h5") for each in (whole, parts))
    assert set(expected) == set(found)
    for name in expected:
        np.testing.assert_array_equal(expected[name], found[name], err_msg=name)
    table = expected["tables/perturbations"]
    assert table.shape == (64, 36, 36, 1)
    moved = (table != first).any((1, 2, 3))
    assert moved[0::2].all() and moved[1::2].all()  # all images are seen in an epoch, by both workers


# Runs the script with a network of one block. If told where to, it also copies the directory as it was when the first
# epoch was on disk: what a stopped run leaves. Otherwise it ends with the second epoch on disk.
KEEPER = """
import json, os, runpy, shutil, sys
_, directory, copy, *sys.argv = sys.argv
sys.path.insert(0, os.getcwd())
from tf_robust_sparse import training
from tf_robust_sparse.models import resnet

resnet._BLOCKS[18] = resnet._basic, (1, 0, 0, 0)
original = training.Checkpoints.on_epoch_end

def keep(self, epoch, logs=None):
    original(self, epoch, logs)
    if copy and epoch == 0 and json.loads(os.environ["TF_CONFIG"])["task"]["index"] == 0:
        shutil.copytree(directory, copy, ignore=shutil.ignore_patterns(".*"))
    if not copy and epoch == 1:
        os._exit(0)

training.Checkpoints.on_epoch_end = keep
runpy.run_path(sys.argv[0], run_name="__main__")
"""
