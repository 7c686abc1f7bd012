"""Networks published with their cards from the command line."""

import json
import shutil
import sys
import types

import numpy as np
import pytest

import tf_robust_sparse as trs
from tests.cli.conftest import run_script
from tests.cli.test_bad_input import assert_explained

PUBLISH = "run_publish"
ROBUSTNESS = {
    **{"images": 50, "norm": "Linf", "epsilon": 0.1, "clean_accuracy": 0.5, "robust_accuracy": 0.25, "flags": ["A."]},
    **{"attacks": {"pgd": {"robust_accuracy": 0.25}}, "command": "trs eval --attacks=pgd", "seed": 0},
}


@pytest.fixture
def run(finished, tmp_path):
    """A finished run that was evaluated."""
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run/robustness.json").write_text(json.dumps(ROBUSTNESS))
    certified = {"method": "crown", "images": 9, "norm": "Linf", "epsilon": 0.1, "verified_accuracy": 0.125}
    (tmp_path / "run/certified_crown.json").write_text(json.dumps(certified))
    return tmp_path / "run"


def test_a_network_is_published_with_what_was_measured_and_uploaded(run, tmp_path, monkeypatch):
    hub = types.ModuleType("huggingface_hub")
    hub.create_repo = lambda name, exist_ok: (tmp_path / name).mkdir(parents=True)
    hub.upload_folder = lambda repo_id, folder_path: shutil.copytree(folder_path, tmp_path / repo_id / "main")
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    to = (f"--network={run}", "--name=a-net", f"--output_dir={tmp_path / 'out'}")
    run_script(PUBLISH, *to, "--repo_id=user/model").expect()
    uploaded = tmp_path / "user/model/main"
    card, text = json.loads((uploaded / "a-net.json").read_text()), (uploaded / "README.md").read_text()
    assert card["evaluation"]["attacks"] == {"pgd": 0.25} and card["certified"][0]["verified_accuracy"] == 0.125
    assert "| pgd | 25.00 % |" in text and "Reason for doubt: A." in text and "Verified by crown on 9 images" in text
    assert text.startswith("---\nlicense: apache-2.0\n") and "--objective=" in text and "--data_dir" not in text
    one, two = trs.load_network(run), trs.load_network(uploaded / "a-net.trs")
    x = np.random.default_rng(0).random((4, *one.input_shape[1:]), "float32")
    np.testing.assert_array_equal(one(x, training=False), two(x, training=False))
    assert card["weights"]["nonzero"] == trs.sparsity.statistics.nonzero(one)
    assert_explained(run_script(PUBLISH, *to), "--output_dir=", "holds a-net.trs", "--overwrite")
    (run / "robustness.json").unlink()
    assert "no robust accuracy" in run_script(PUBLISH, *to, "--overwrite").expect().out


def test_bad_input(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    to = ("--name=a", f"--output_dir={tmp_path / 'out'}")
    for flags, *words in (
        ((f"--network={run}", "--name=A b", to[1]), "--name=A b", "small letters"),
        ((f"--network={run}", *to, "--repo_id=a"), "--repo_id=a", "USER/MODEL"),
        ((f"--network={run}", *to, "--repo_id=a/b"), "--repo_id", "pip install 'tf_robust_sparse[hub]'"),
        ((f"--network={run / 'network.keras'}", *to), "--network=", "directory of a finished run"),
        ((f"--network={run}", "--name=a", f"--output_dir={run}"), "--output_dir=", "the network itself"),
    ):
        assert_explained(run_script(PUBLISH, *flags), *words)
    assert not (tmp_path / "out").exists()
