"""Networks made smaller from the command line."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_robust_sparse as trs
from tests.cli.conftest import TINY, TRAIN, run_script
from tests.cli.test_bad_input import assert_explained

SHRINK = "run_shrink"
FAST = ("--latency_batch_sizes=1,4", "--latency_seconds=0.05")


def test_channels_are_pruned_and_removed(tmp_path):
    run, small = tmp_path / "run", tmp_path / "small"
    run_script(
        *(TRAIN, *TINY, "--sparsifier=channel_magnitude", "--connectivity=0.5", "--pruning_frequency=1"),
        f"--output_dir={run}",
    ).expect()
    arguments = (f"--network={run}", f"--output_dir={small}", "--data=fashion_mnist_sample", "--test_examples=100")
    done = run_script(SHRINK, *arguments, *FAST).expect()
    found = json.loads((small / "shrink.json").read_text())
    assert [len(found["kept"][name]) for name in ("conv1", "conv2", "classifier")] == [8, 16, 10]
    assert found["carriers"] == {} and found["emptied"] == []  # biases of pruned channels stay at 0 behind their ReLU
    assert found["after"]["multiply_adds"] < 0.5 * found["before"]["multiply_adds"]
    assert found["after"]["parameters"] < 0.5 * found["before"]["parameters"]
    assert abs(found["after"]["file_bytes"] - (small / "network.keras").stat().st_size) < 200
    assert found["accuracy"]["agree"] == found["accuracy"]["images"] == 100
    assert found["accuracy"]["before"] == found["accuracy"]["after"]
    assert set(found["latency"]) == {"1", "4"} and all(
        v > 0 for each in found["latency"].values() for v in each.values()
    )
    assert "multiply-adds" in done.out and "ms for a batch of 4" in done.out
    x = np.random.default_rng(0).random((4, 28, 28, 1), "float32")
    expected = trs.load_network(run)(x, training=False)
    network = keras.saving.load_model(small / "network.keras")
    np.testing.assert_allclose(network(x, training=False), expected, atol=1e-4)
    served = tf.saved_model.load(str(small / "serve"))
    np.testing.assert_allclose(served.serve(x), expected, atol=1e-4)
    assert_explained(run_script(SHRINK, *arguments), "--output_dir", "--overwrite")
    run_script(SHRINK, *arguments[:2], "--overwrite", "--latency_batch_sizes=").expect()
    assert json.loads((small / "shrink.json").read_text())["latency"] == {}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), ("--network is missing",)),
        (("--network={tmp}",), ("--output_dir is missing",)),
        (("--network={tmp}/none", "--output_dir={tmp}/out"), ("--network=", "none: expected", "does not exist")),
        (("--network={tmp}/run", "--output_dir={tmp}/run"), ("--output_dir=", "holds the network itself")),
        (("--network={tmp}", "--output_dir={tmp}/o", "--latency_batch_sizes=1,x"), ("1,x", "positive integers")),
        (("--network={tmp}/odd.keras", "--output_dir={tmp}/out"), ("odd.keras", "up is of type Conv2DTranspose")),
        (("--network={tmp}/fine.keras", "--output_dir={tmp}/o", "--data=digits"), ("--data=digits", "expected")),
    ],
)
def test_bad_input(arguments, expected, tmp_path):
    x = keras.Input((9, 9, 2))
    for name, layer in (("odd", keras.layers.Conv2DTranspose(4, 3, name="up")), ("fine", keras.layers.ReLU())):
        flat = keras.layers.Flatten()(layer(x))
        trs.save_network(keras.Model(x, keras.layers.Dense(3)(flat)), tmp_path / f"{name}.keras")
    outcome = run_script(SHRINK, *(argument.format(tmp=tmp_path) for argument in arguments))
    assert_explained(outcome, *expected)
    assert not (tmp_path / "out").exists()
