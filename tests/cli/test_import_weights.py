"""Weights in the layout of the original's pickles become a network, a SavedModel and a record."""

import importlib.util
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import tf_robust_sparse as trs
from tests.cli.conftest import EVALUATE, IMPORT, TINY, TRAIN, results, run_script
from tests.cli.test_bad_input import assert_explained
from tests.saving.test_pytorch_weights import state_dict
from tf_robust_sparse.cli.sections import method
from tf_robust_sparse.models import resnet

WHICH = ("--data=fashion_mnist_sample", "--model=small_cnn", "--test_examples=64")


def published(path, kernel):
    """Writes such a file and returns the network it is of."""
    arguments = {"connectivity": 0.1} if kernel == "rewiring" else {}
    network = trs.models.small_cnn(num_classes=10, input_shape=(28, 28, 1), kernel=kernel, seed=3, **arguments)
    values = []
    for layer in trs.layers.kernel_layers(network):
        values += [layer.theta, layer.sign] if kernel == "rewiring" else [layer.kernel]
        layer.bias.assign(np.random.default_rng(0).normal(size=layer.bias.shape))
        values.append(layer.bias)
    variables = [tf.Variable(tf.cast(value, tf.float32)) for value in values]
    path.write_bytes(pickle.dumps({"param_list": variables}, protocol=4))
    return network


@pytest.mark.parametrize(
    ("kernel", "flags"),
    [
        ("rewiring", ("--sparse_train", "--connectivity=0.1")),
        ("plain", ()),
        pytest.param("rewiring", (), marks=pytest.mark.full),
    ],
)
def test_published_weights_are_imported_and_evaluated(kernel, flags, tmp_path):
    source = published(tmp_path / "best_weights.pickle", kernel)
    directory = tmp_path / "run"
    command = (*WHICH, *flags, f"--weights={tmp_path / 'best_weights.pickle'}", f"--output_dir={directory}")
    done = run_script(IMPORT, *command).expect()
    x = np.random.default_rng(0).random((4, 28, 28, 1), "float32")
    expected = source(x, training=False)
    np.testing.assert_allclose(trs.load_network(directory)(x, training=False), expected, atol=1e-5)
    served = tf.saved_model.load(str(directory / "serve"))
    np.testing.assert_allclose(served.serve(x), expected, atol=1e-5)
    found = results(directory)
    statistics = trs.sparsity.statistics.summary(source)
    assert (found["nonzero"], found["prunable"]) == (statistics["nonzero"], statistics["prunable"])
    assert f"{100 * found['clean_accuracy']:6.2f} %" in done.out and "Robust" not in done.out
    if not flags:
        return
    # What evaluates a trained run evaluates this one too.
    attack = ("--pgd_epsilon=0.02", "--pgd_iters=2", "--pgd_restarts=1")
    run_script(EVALUATE, *WHICH, f"--saved_model={directory / 'serve'}", *attack).expect()
    again = run_script(TRAIN, *TINY, "--load_model", f"--output_dir={directory}").expect()
    assert f"Clean accuracy      {100 * found['clean_accuracy']:6.2f} %" in again.out
    assert run_script(IMPORT, *command).code == 2  # holds a finished run
    run_script(IMPORT, *command, "--overwrite").expect()


def test_the_evaluation_finds_imported_weights_by_their_flags(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    published(tmp_path / "best_weights.pickle", "rewiring")
    flags = (*WHICH, "--objective=rst", "--sparse_train", "--connectivity=0.005")
    run_script(IMPORT, *flags, "--weights=best_weights.pickle").expect()
    run_script(EVALUATE, *flags, "--pgd_iters=1", "--pgd_restarts=1").expect()
    assert (tmp_path / "saved_models/fashion_mnist_sample_small_cnn_rst_sparse0.005/foolbox.json").is_file()


def test_a_pytorch_checkpoint_with_scores_is_imported(tmp_path, monkeypatch):
    """Of residual networks a short one: a block with a shortcut."""
    monkeypatch.setitem(resnet._BLOCKS, 18, (resnet._basic, (0, 1, 0, 0)))
    source = trs.models.build(
        "resnet18_p1", input_shape=(28, 28, 1), kernel="subnet", connectivity=0.1, padding_mode="symmetric", seed=3
    )
    np.savez(tmp_path / "checkpoint.npz", **state_dict(source, (3, 3, 13)))
    which = ("--data=fashion_mnist_sample", "--model=resnet18_p1", "--test_examples=16", "--k=0.1")
    command = (*which, f"--weights={tmp_path / 'checkpoint.npz'}", f"--output_dir={tmp_path / 'run'}")
    run_script(IMPORT, *command).expect()
    x = np.random.default_rng(0).random((4, 28, 28, 1), "float32")
    served = tf.saved_model.load(str(tmp_path / "run/serve"))
    np.testing.assert_allclose(served.serve(x), source(x, training=False), atol=1e-5)
    assert results(tmp_path / "run")["connectivity"] == pytest.approx(0.1, abs=1e-3)
    assert "--padding_mode=symmetric\n" in (tmp_path / "run/run.flags").read_text()
    # Evaluated without an import.
    found = tmp_path / "foolbox.json"
    attack = ("--pgd_epsilon=0", "--pgd_iters=1", "--pgd_restarts=1", f"--results_file={found}")
    run_script(EVALUATE, *which, f"--network={tmp_path / 'checkpoint.npz'}", *attack).expect()
    assert json.loads(found.read_text())["robust_accuracy"] == results(tmp_path / "run")["clean_accuracy"]
    other = (*which[:1], "--model=small_cnn", f"--output_dir={tmp_path / 'x'}")
    assert_explained(
        run_script(IMPORT, *other, f"--weights={tmp_path / 'checkpoint.npz'}"), "--weights", "convolutions"
    )
    done = run_script(IMPORT, *other, "--weights=a.pickle", "--k=0.1")
    assert_explained(done, "--k=0.1", "a PyTorch checkpoint")
    assert not (tmp_path / "x").exists()


def test_the_weights_are_looked_at_before_the_data(tmp_path):
    """There is no such data set, and none of these files gets that far."""
    where = ("--data=cifar10", f"--data_dir={tmp_path}", "--model=vgg16", f"--output_dir={tmp_path / 'x'}")
    for name, words in (
        ("network.keras", "a whole network"),
        ("net.onnx", "a published pickle of weights; the file is none of these"),
        ("a.pickle", "not a published list of weights"),
        ("net.npz", "cannot be read as a checkpoint"),
    ):
        (tmp_path / name).write_bytes(b"x")
        assert_explained(run_script(IMPORT, *where, f"--weights={tmp_path / name}"), "--weights", words)
    if importlib.util.find_spec("torch") is None:
        (tmp_path / "net.pth").write_bytes(b"x")
        done = run_script(IMPORT, *where, f"--weights={tmp_path / 'net.pth'}")
        assert_explained(done, "--weights", "python -m pip install 'tf_robust_sparse[pytorch]'")


def test_the_published_evaluation_command_reads_the_published_file(tmp_path, monkeypatch):
    """As its README places the file, with nothing imported before."""
    monkeypatch.chdir(tmp_path)
    flags = (*WHICH, "--n_classes", "10", "--objective", "at", "--sparse_train", "--connectivity", "0.01")
    attack = ("--pgd_epsilon=0.02", "--pgd_iters=2", "--pgd_restarts", "1")
    done = run_script(EVALUATE, *flags, *attack)
    folder = Path("results/fashion_mnist_sample/small_cnn")
    assert_explained(done, "--network", f"nor {folder}/sparse1_at_best_weights.pickle")
    folder.mkdir(parents=True)
    source = published(folder / "sparse1_at_best_weights.pickle", "rewiring")
    run_script(EVALUATE, *flags, *attack).expect()
    found = json.loads((folder / "sparse1_at_foolbox.json").read_text())
    images = trs.data.load("fashion_mnist_sample").take(None, 64)
    right = np.argmax(source(images.test_images / np.float32(255)), axis=1) == images.test_labels
    assert found["clean_accuracy"] == pytest.approx(np.mean(right))
    assert found["weights"].endswith("sparse1_at_best_weights.pickle")


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["--sparse_train", "--connectivity=0.1"], "sparse10_at"),
        (["--sparse_train", "--connectivity=0.005"], "sparse05_at"),
        (["--sparse_train", "--connectivity=0.29", "--objective=trades"], "sparse28_trades"),  # as there
        (["--objective=natural"], "full_natural"),
    ],
)
def test_names_of_published_files(words, name, parse):
    parse(EVALUATE, "--data=cifar10", "--model=vgg16", *words)
    assert str(method.published_weights()) == f"results/cifar10/vgg16/{name}_best_weights.pickle"
