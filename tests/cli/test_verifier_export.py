"""The directory for complete verifiers, from the command line."""

import json

import numpy as np
import pytest

import tf_robust_sparse as trs
from tests.certify.test_vnnlib import Property
from tests.cli.conftest import run_script
from tests.cli.test_bad_input import assert_explained
from tests.networks import fit_last_layer

EXPORT = "run_verifier_export"
DATA = "--data=fashion_mnist_sample"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A directory with a network whose last layer was fitted; not to be changed."""
    directory = tmp_path_factory.mktemp("export")
    network = trs.models.small_cnn(input_shape=(28, 28, 1), kernel="subnet", connectivity=0.2, seed=0)
    fit_last_layer(network, trs.data.load("fashion_mnist_sample").take(1000, 1))
    trs.save_network(network, directory)
    return directory


def test_a_directory_as_the_competition_has_it(run, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    out = tmp_path / "verifier"
    command = (EXPORT, DATA, f"--network={run}", f"--output_dir={out}", "--epsilon=0.02", "--timeout=60")
    done = run_script(*command, "--max_examples=8", "--skip=2").expect()
    record = json.loads((out / "export.json").read_text())
    assert sorted(record["images"] + record["left_out"]) == list(range(0, 16, 2)) and record["images"]
    lines = [line.split(",") for line in (out / "instances.csv").read_text().splitlines()]
    assert [line[1] for line in lines] == [f"vnnlib/image_{index}.vnnlib" for index in record["images"]]
    assert f"Properties          {len(lines):6d}" in done.out
    images = trs.data.load("fashion_mnist_sample")
    for (onnx, vnnlib, timeout), index in zip(lines, record["images"], strict=True):
        assert timeout == "60"
        session = onnxruntime.InferenceSession(out / onnx, providers=["CPUExecutionProvider"])
        pixels = images.test_images[index].transpose(2, 0, 1)[None].astype(np.float32) / 255
        (logits,) = session.run(None, {session.get_inputs()[0].name: pixels})
        found = Property((out / vnnlib).read_text())
        assert logits.argmax() == images.test_labels[index]
        assert not found.allows(pixels, logits)  # the image itself is no counterexample
        assert found.allows(np.clip(pixels + 0.02, 0, 1), -logits)  # a wrong answer in the ball is one
    assert_explained(run_script(*command), "--output_dir", "--overwrite")
    run_script(*command, "--overwrite", "--images=3,1").expect()
    again = json.loads((out / "export.json").read_text())
    assert sorted(again["images"] + again["left_out"]) == [1, 3]
    assert len(list((out / "vnnlib").iterdir())) == len(again["images"])


def test_bad_input(run, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    given = (EXPORT, DATA, f"--network={run}", f"--output_dir={tmp_path / 'v'}", "--epsilon=0.02")
    assert_explained(run_script(*given[:2], *given[3:]), "--network is missing")
    assert_explained(run_script(*given[:4]), "--epsilon", "2/255")
    assert_explained(run_script(*given, "--epsilon=1"), "--epsilon=1", "below 1")
    assert_explained(run_script(*given, "--images=1,99999"), "--images", "99999")
    assert_explained(run_script(*given, "--images=1", "--skip=2"), "--images", "--skip")
    (tmp_path / "w").mkdir()
    (tmp_path / "w/letter.txt").write_text("mine")
    assert_explained(run_script(*given, f"--output_dir={tmp_path / 'w'}", "--overwrite"), "--output_dir", "other files")
    wide = trs.models.small_cnn(input_shape=(32, 32, 3))
    trs.save_network(wide, tmp_path / "wide")
    assert_explained(run_script(*given, f"--network={tmp_path / 'wide'}"), "--network", "--data")
    assert not (tmp_path / "v").exists()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert_explained(run_script(*given), "tf_robust_sparse[onnx]", "without it")
