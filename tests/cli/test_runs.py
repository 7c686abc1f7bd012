"""Whole runs on a few images: what they write, that they repeat bit by bit, every objective and sparsifier."""

import json
import os
import shutil
import subprocess
import sys

import h5py
import numpy as np
import pytest
import tensorflow as tf

import tf_robust_sparse as trs
from tests.cli.conftest import EVALUATE, ROOT, TINY, TRAIN, results, run_script

ONE_EPOCH = ("--epochs=1", "--pgd_restarts=1", "--test_examples=16")


def assert_same_weights(a, b):
    """Compares networks and whole training states, bit by bit."""
    for x, y in zip(trs.load_network(a).get_weights(), trs.load_network(b).get_weights(), strict=True):
        np.testing.assert_array_equal(x, y)
    with h5py.File(a / "checkpoints/last.weights.h5") as one, h5py.File(b / "checkpoints/last.weights.h5") as other:
        paths = []
        one["variables"].visititems(lambda path, item: paths.append(path) if isinstance(item, h5py.Dataset) else None)
        assert len(paths) > 10
        for path in paths:
            np.testing.assert_array_equal(one["variables"][path][()], other["variables"][path][()], err_msg=path)


def test_results_hold_what_a_reader_needs(finished):
    found = results(finished)
    assert 0 <= found["robust_accuracy"] <= found["clean_accuracy"] <= 1
    attack = found["attack"]
    assert attack["name"] == "LinfPGD-2x2"
    assert (attack["epsilon"], attack["num_steps"], attack["restarts"], attack["images"]) == (0.05, 2, 2, 64)
    assert found["connectivity"] == pytest.approx(0.1, abs=1e-4)
    assert found["nonzero"] == int(0.1 * found["prunable"])
    assert sum(layer["nonzero"] for layer in found["layers"]) == found["nonzero"]
    assert (found["epochs"], found["seed"], found["model"]) == (2, 0, "small_cnn")
    assert found["seconds"] > 0 and found["images_per_second"] > 0
    assert {"python", "tensorflow", "keras", "tf_robust_sparse", "foolbox"} <= set(found["versions"])
    for name in ("network.keras", "serve/saved_model.pb", "run.flags", "checkpoints/history.csv"):
        assert (finished / name).is_file()


@pytest.mark.slow
def test_run_flags_repeat_the_run_bit_by_bit_in_another_process_without_any_noise(finished, tmp_path):
    again = tmp_path / "again"
    command = [sys.executable, "run_scripts/run_connectivity_sampling.py", f"--flagfile={finished / 'run.flags'}"]
    done = subprocess.run([*command, f"--output_dir={again}"], cwd=ROOT, capture_output=True, text=True, check=True)
    # Two logical CPUs here and one there: the same bits all the same.
    assert_same_weights(finished, again)
    found, before = results(again), results(finished)
    assert found["clean_accuracy"] == before["clean_accuracy"]
    assert found["robust_accuracy"] == before["robust_accuracy"]
    repeated, first = ((run / "run.flags").read_text().splitlines() for run in (again, finished))
    assert repeated[1:] == first[1:]  # the first line has the date
    assert done.stdout.startswith("Data:")
    assert done.stderr.startswith("LinfPGD-2x2:") and len(done.stderr.splitlines()) == 1  # what was counted alone


def test_foolbox_evaluates_the_export(finished, tmp_path):
    file = tmp_path / "foolbox.json"
    done = run_script(
        EVALUATE,
        f"--saved_model={finished / 'serve'}",
        *("--data=fashion_mnist_sample", "--test_examples=64", "--pgd_epsilon=0.05", "--pgd_iters=2"),
        *("--pgd_restarts=2", f"--results_file={file}"),
    ).expect()
    found = json.loads(file.read_text())
    assert found["clean_accuracy"] == results(finished)["clean_accuracy"]
    assert found["robust_accuracy"] <= found["clean_accuracy"]
    assert (found["images"], found["num_steps"], found["restarts"], found["epsilon"]) == (64, 2, 2, 0.05)
    assert "Robust accuracy" in done.out and str(file) in done.out


@pytest.mark.full
def test_foolbox_finds_the_run_by_its_flags(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    which = ("--data", "fashion_mnist_sample", "--model", "small_cnn", "--objective", "natural", "--sparse_train")
    which = (*which, "--connectivity", "0.05", "--test_examples", "16")
    run_script(TRAIN, *TINY, *which, *ONE_EPOCH).expect()
    attack = ("--n_classes", "10", "--pgd_iters", "2", "--pgd_restarts", "1")
    run_script(EVALUATE, *which, *attack).expect()
    directory = tmp_path / "saved_models/fashion_mnist_sample_small_cnn_natural_sparse0.05"
    assert (directory / "foolbox.json").is_file() and results(directory)["objective"]["objective"] == "Natural"


def test_robust_self_training_with_magnitudes(tmp_path):
    """And with the selection of the reference, and TensorBoard."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (96, 32, 32, 3), dtype=np.uint8)
    labels = generator.integers(0, 10, 96)
    np.savez(
        tmp_path / "own.npz", x_train=images[:64], y_train=labels[:64], x_test=images[:16], y_test=np.arange(16) % 10
    )
    np.savez(tmp_path / "pseudo.npz", data=images, extrapolated_targets=labels)
    directory = tmp_path / "run"
    run_script(
        TRAIN,
        *(*TINY, f"--data={tmp_path / 'own.npz'}", "--train_examples=64", "--test_examples=16", "--epochs=1"),
        *("--batch_size=16", "--objective=rst", f"--pseudo_labels={tmp_path / 'pseudo.npz'}", "-pc", "0.2"),
        *("--sparsifier=magnitude", "--pruning_schedule=one_shot", "--allocation=global", "--select=reference"),
        *("--tensorboard", f"--output_dir={directory}"),
    ).expect()
    found = results(directory)
    assert found["objective"]["objective"] == "TRADES" and found["selected"]["by"] == "reference"
    assert found["connectivity"] == pytest.approx(0.2, abs=1e-3)
    assert (directory / "checkpoints/reference.weights.h5").exists()
    assert any((directory / "tensorboard").rglob("events*"))


@pytest.mark.full
@pytest.mark.parametrize(
    ("sparsifier", "objective", "select", "arguments", "again"),
    [
        ("none", "trades", "reference", ("--tensorboard",), False),
        (
            *("connectivity_sampling", "mart", "last"),
            ("--connectivity=0.05", "--init_policy=exact", "--dormant_policy=reference"),
            False,
        ),
        (
            *("magnitude", "mat", "best_clean"),
            ("--connectivity=0.1", "--pruning_frequency=1", "--allocation=global"),
            False,
        ),
        ("magnitude", "natural", "best_robust", ("--connectivity=0.1", "--pruning_schedule=one_shot"), True),
    ],
)
def test_sparsifiers_objectives_selection_and_their_run_flags(
    sparsifier, objective, select, arguments, again, tmp_path
):
    directory = tmp_path / "run"
    which = (f"--sparsifier={sparsifier}", f"--objective={objective}", f"--select={select}")
    run_script(TRAIN, *TINY, *which, *arguments, f"--output_dir={directory}").expect()
    found = results(directory)
    assert found["objective"]["objective"].lower() == objective and found["selected"]["by"] == select
    assert (directory / "checkpoints/reference.weights.h5").exists() == (select == "reference")
    assert any((directory / "tensorboard").rglob("events*")) == ("--tensorboard" in arguments)
    if sparsifier == "none":
        assert found["connectivity"] == 1
    else:
        assert found["connectivity"] == pytest.approx(float(arguments[0].partition("=")[2]), abs=1e-3)
    if again:
        run_script(TRAIN, f"--flagfile={directory / 'run.flags'}", f"--output_dir={tmp_path / 'again'}").expect()
        assert_same_weights(directory, tmp_path / "again")


@pytest.mark.full
@pytest.mark.parametrize("again", [False, pytest.param(True, marks=pytest.mark.full)])
def test_a_trained_network_is_pruned_at_once_and_tuned(again, finished, tmp_path):
    directory = tmp_path / "run"
    which = ("--sparsifier=obs", "--connectivity=0.05", "--obs_images=96", f"--source_net={finished}")
    still = ("--epochs=1", "--learning_rate=1e-9", "--weight_decay=0", "--select=last")
    run_script(TRAIN, *TINY, *which, *still, f"--output_dir={directory}").expect()
    found = results(directory)
    assert found["nonzero"] <= int(0.05 * found["prunable"]) == found["sparsifier"]["budget"]
    assert (found["sparsifier"]["sparsifier"], found["sparsifier"]["images"]) == ("OBS", 96)
    source, tuned = trs.load_network(finished), trs.load_network(directory)
    for one, two in zip(trs.layers.kernel_layers(source), trs.layers.kernel_layers(tuned), strict=True):
        np.testing.assert_allclose(two.bias, one.bias, atol=1e-6)  # the weights are those of the source
    assert f"--source_net={finished}\n" in (directory / "run.flags").read_text()
    if again:
        run_script(TRAIN, f"--flagfile={directory / 'run.flags'}", f"--output_dir={tmp_path / 'again'}").expect()
        assert_same_weights(directory, tmp_path / "again")
    done = run_script(TRAIN, *TINY, *which, "--model=lenet5_caffe", f"--output_dir={tmp_path / 'other'}").expect(1)
    assert done.err.startswith(f"error: --source_net={finished}: ") and "a network of the same architecture" in done.err


@pytest.mark.full
def test_mixed_precision(tmp_path):
    directory = tmp_path / "run"
    run_script(
        TRAIN, *TINY, *ONE_EPOCH, "-s", "--connectivity=0.2", "--mixed_precision", f"--output_dir={directory}"
    ).expect()
    served = tf.saved_model.load(str(directory / "serve"))
    assert served.serve(tf.zeros((3, 28, 28, 1))).dtype == tf.float32
    run_script(EVALUATE, f"--saved_model={directory / 'serve'}", *TINY[:1], *ONE_EPOCH[2:], "--pgd_iters=1").expect()


def test_load_model_evaluates_again_and_writes_nothing(finished):
    before = (finished / "results.json").read_text()
    done = run_script(TRAIN, *TINY, "--load_model", f"--output_dir={finished}").expect()
    assert f"Clean accuracy      {100 * results(finished)['clean_accuracy']:6.2f} %" in done.out
    assert f"Robust accuracy     {100 * results(finished)['robust_accuracy']:6.2f} %" in done.out
    assert (finished / "results.json").read_text() == before
    assert run_script(TRAIN, *TINY, "--load_model", f"--output_dir={finished / 'serve'}").code == 2


def test_a_finished_run_is_left_alone_or_begun_anew_and_other_seeds_give_other_networks(finished, tmp_path):
    directory = tmp_path / "run"
    shutil.copytree(finished, directory)
    (directory / "notes.txt").write_text("mine")
    again = (f"--flagfile={finished / 'run.flags'}", f"--output_dir={directory}")
    assert "nothing to resume" in run_script(TRAIN, *again, "--resume").expect().out
    assert_same_weights(finished, directory)
    run_script(TRAIN, *again, *ONE_EPOCH, "--overwrite", "--seed=5").expect()
    assert results(directory)["seed"] == 5
    assert (directory / "notes.txt").read_text() == "mine"
    a, b = (np.concatenate([w.ravel() for w in trs.load_network(d).get_weights()]) for d in (finished, directory))
    assert (a != b).any()


@pytest.mark.full
@pytest.mark.parametrize("twin", ["sparse", "dense"])
def test_sparse_beats_chance_and_its_dense_twin_trains_under_the_same_flags(twin, tmp_path):
    run_script(
        *(TRAIN, *TINY, "--train_examples=1024", "--test_examples=500", "--epochs=4", "--learning_rate=0.05"),
        *(("-s", "--connectivity=0.05") if twin == "sparse" else ()),
        *("--pgd_iters=20", "--pgd_restarts=1", "--augmentation=none", f"--output_dir={tmp_path}"),
    ).expect()
    chance = 0.1 + 3 * (0.1 * 0.9 / 500) ** 0.5
    assert results(tmp_path)["robust_accuracy"] > chance


@pytest.mark.reference_data
@pytest.mark.slow
@pytest.mark.skipif("TRS_DATA_DIR" not in os.environ, reason="needs the real data sets")
def test_cifar10_through_export_and_foolbox(tmp_path):
    directory = tmp_path / "run"
    data = ("--data=cifar10", f"--data_dir={os.environ['TRS_DATA_DIR']}", "--test_examples=16")
    run_script(
        TRAIN,
        *(*data, "--model=resnet18", "--objective=trades", "-s", "--connectivity=0.1", "--train_examples=512"),
        *("--validation_examples=16", "--epochs=1", "--batch_size=124", "--num_steps=1", "--pgd_iters=2"),
        *("--pgd_restarts=1", f"--output_dir={directory}"),
    ).expect()
    assert results(directory)["connectivity"] == pytest.approx(0.1, abs=1e-3)
    attack = ("--pgd_iters=2", "--pgd_restarts=1", "--batch_size=16")
    run_script(EVALUATE, *data, f"--saved_model={directory / 'serve'}", *attack).expect()
