"""Networks packed and unpacked from the command line."""

import json
import shutil

import keras
import numpy as np

import tf_robust_sparse as trs
from tests.cli.conftest import run_script
from tests.cli.test_bad_input import assert_explained

COMPACT = "run_compact"


def test_a_run_is_packed_and_unpacked(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    run_script(COMPACT, f"--network={tmp_path / 'run'}", "--values=float16").expect()
    half = (tmp_path / "run/network.trs").stat().st_size
    done = run_script(COMPACT, f"--network={tmp_path / 'run'}").expect()
    found = json.loads((tmp_path / "run/compact.json").read_text())
    assert found["largest_difference_of_logits"] == 0
    assert half < found["file"] == (tmp_path / "run/network.trs").stat().st_size
    assert found["bound"] <= found["compact"] < found["gzip"] < found["dense"]
    assert all(row["name"] in done.out for row in found["layers"]) and "entropy bound" in done.out
    run_script(COMPACT, f"--network={tmp_path / 'run/network.trs'}", f"--output_dir={tmp_path / 'again'}").expect()
    one, two = trs.load_network(tmp_path / "run"), trs.load_network(tmp_path / "again")
    x = np.random.default_rng(0).random((4, 28, 28, 1), "float32")
    np.testing.assert_array_equal(one(x, training=False), two(x, training=False))
    assert (tmp_path / "again/serve/saved_model.pb").exists()
    unpack = (COMPACT, f"--network={tmp_path / 'run/network.trs'}")
    assert_explained(run_script(*unpack, f"--output_dir={tmp_path / 'again'}"), "--output_dir", "--overwrite")
    run_script(*unpack, f"--output_dir={tmp_path / 'again'}", "--overwrite").expect()
    assert_explained(
        run_script(*unpack, f"--output_dir={tmp_path / 'run'}", "--overwrite"), "--output_dir=", "the network itself"
    )
    assert (tmp_path / "run/results.json").exists()


def test_a_network_of_any_image_size_is_packed(tmp_path):
    inputs = keras.Input((None, None, 1))
    x = trs.layers.MaskedConv2D(4, 3, name="conv")(inputs)
    network = keras.Model(inputs, trs.layers.MaskedDense(3)(keras.layers.GlobalAveragePooling2D()(x)))
    trs.save_network(network, tmp_path)
    run_script(COMPACT, f"--network={tmp_path}").expect()
    assert json.loads((tmp_path / "compact.json").read_text())["largest_difference_of_logits"] == 0


def test_bad_input(tmp_path):
    assert_explained(run_script(COMPACT), "--network is missing")
    (tmp_path / "a.trs").write_text("nothing")
    assert_explained(run_script(COMPACT, f"--network={tmp_path / 'a.trs'}"), "a.trs", "no compact network")
