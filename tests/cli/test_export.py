"""All forms of a network from the command line, side by side."""

import json

import keras
import pytest

import tf_robust_sparse as trs
from tests.cli.conftest import run_script
from tests.cli.test_bad_input import assert_explained
from tests.networks import tiny_network

EXPORT = "run_export"


@pytest.fixture
def saved(tmp_path):
    network = trs.models.small_cnn(input_shape=(28, 28, 1), kernel="masked", seed=0)
    trs.sparsity.MagnitudePruning(0.05).attach(network)
    return trs.save_network(network, tmp_path / "network.keras")


def test_every_form_is_written_compared_and_recorded(saved, tmp_path):
    out = tmp_path / "out"
    arguments = (f"--network={saved}", f"--output_dir={out}", "--data=fashion_mnist_sample", "--test_examples=50")
    done = run_script(EXPORT, *arguments, "--calibration_images=20", "--latency_seconds=0.01").expect()
    found = json.loads((out / "results.json").read_text())
    rows = found["forms"]
    assert set(rows) | set(found["left_out"]) == {
        *(
            "saved_model",
            "saved_model-packed",
            "keras",
            "litert",
            "litert-sparse",
            "litert-int8",
            "onnx",
            "onnx-sparse",
            "compact",
            "engine",
        ),
    }
    for name, row in rows.items():
        assert row["file"] in done.out and (out / row["file"]).exists()
        assert set(row["latency"]) == {"1", "32"} and row["bytes_gzipped"] < row["bytes"]
        if name != "litert-int8":
            assert row["largest_difference_of_logits"] <= 1e-4 * max(1, found["largest_logit"])
            assert row["accuracy"] == rows["keras"]["accuracy"]
    assert rows["litert-int8"]["bytes"] < rows["litert-sparse"]["bytes"] < 0.2 * found["bytes_of_weights"]
    assert rows["saved_model-packed"]["bytes"] < 0.5 * rows["saved_model"]["bytes"]
    assert rows["compact"]["bytes"] < rows["onnx-sparse"]["bytes"] < rows["onnx"]["bytes"]
    assert found["connectivity"] == pytest.approx(0.05, rel=0.01) and found["images"] == 50
    assert_explained(run_script(EXPORT, *arguments), "--output_dir", "--overwrite")
    run_script(EXPORT, *arguments[:2], "--overwrite", "--forms=compact", "--latency_batch_sizes=").expect()
    assert {path.name for path in out.iterdir() if path.name[0] != "."} == {"network.trs", "results.json", "run.flags"}


def test_forms_that_lack_something_are_left_out_by_name_and_nothing_is_kept(tmp_path, monkeypatch):
    network = tiny_network("plain")
    x = keras.layers.LayerNormalization(name="normal")(network.layers[-2].output)
    trs.save_network(keras.Model(network.inputs, keras.layers.Dense(3)(x)), tmp_path / "odd.keras")
    arguments = ("--forms=onnx,engine,litert-int8,keras", "--latency_batch_sizes=")
    done = run_script(EXPORT, f"--network={tmp_path / 'odd.keras'}", *arguments).expect()
    for words in (
        "onnx is left out",
        "layer normal of type",
        "engine is left out",
        "litert-int8 is left out",
        "--data",
    ):
        assert words in done.out
    assert [path.name for path in tmp_path.iterdir()] == ["odd.keras"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), ("--network is missing",)),
        (
            ("--network={saved}", "--forms=onnx,caffe"),
            ("--forms=caffe", "saved_model, saved_model-packed, keras, litert"),
        ),
        (("--network={saved}", "--data=cifar10_like.npz"), ("--data=cifar10_like.npz",)),
        (("--network={saved}", "--output_dir={saved}/.."), ("--output_dir=",)),
    ],
)
def test_bad_input(arguments, expected, saved):
    assert_explained(run_script(EXPORT, *(argument.format(saved=saved) for argument in arguments)), *expected)
