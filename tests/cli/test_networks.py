"""Networks from anywhere, by one function."""

import keras
import numpy as np
import pytest

import tf_robust_sparse as trs
from tests.cli.conftest import ROBUSTNESS
from tests.saving.test_pytorch_weights import state_dict
from tf_robust_sparse.cli import networks
from tf_robust_sparse.cli.command_line import BadFlag, BadInput
from tf_robust_sparse.cli.networks import Kind

X = np.random.default_rng(0).random((4, 28, 28, 1), "float32")


def small(**more):
    return trs.models.build("small_cnn", input_shape=(28, 28, 1), padding_mode="symmetric", **more)


@pytest.fixture
def _flags(parse):
    parse(ROBUSTNESS)


@pytest.mark.usefixtures("_flags")
def test_every_form_of_a_network_is_loaded(tmp_path):
    network = small(seed=3)
    trs.save_network(network, tmp_path / "run")
    trs.export_network(network, tmp_path / "run/serve")
    trs.saving.save_compact(network, tmp_path / "a.trs")
    network.save_weights(tmp_path / "a.weights.h5")
    plain = trs.saving.strip(network)
    plain.save(tmp_path / "whole.h5")
    np.savez(tmp_path / "a.npz", **state_dict(network, (7, 7, 32)))
    forms = {
        "run": Kind.RUN,
        "run/network.keras": Kind.KERAS,
        "a.trs": Kind.COMPACT,
        "whole.h5": Kind.HDF5,
        "a.weights.h5": Kind.HDF5,
        "run/serve": Kind.SAVED_MODEL,
        "a.npz": Kind.PYTORCH,
    }
    for name, kind in forms.items():
        assert networks.kind(tmp_path / name) is kind
        found = networks.load(tmp_path / name, "network", lambda _: small(seed=4))
        np.testing.assert_allclose(found(X), network(X, training=False), atol=1e-6, err_msg=name)
        assert isinstance(found, keras.Model) == (kind is not Kind.SAVED_MODEL)


@pytest.mark.usefixtures("_flags")
def test_a_checkpoint_of_a_run_gives_the_network_of_that_epoch(finished):
    found = networks.load(finished / "checkpoints/best_robust.weights.h5", "network")
    for one, two in zip(found.get_weights(), trs.load_network(finished).get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.usefixtures("_flags")
def test_anything_else_is_explained(finished, tmp_path):
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    (tmp_path / "a.npz").write_bytes(b"")
    (tmp_path / "a.h5").write_bytes(b"")
    (tmp_path / "a.onnx").write_bytes(b"")
    for name, words in (
        ("no", "a PyTorch checkpoint or a published pickle of weights; the path does not exist"),
        ("a.onnx", "the file is none of these"),
        (".", "the directory holds none of network.keras, saved_model.pb"),
        ("run", "unfinished"),
    ):
        with pytest.raises(BadFlag, match=f"--network={tmp_path / name}: expected the directory of a run, .*{words}"):
            networks.load(tmp_path / name, "network", lambda _: small())
    with pytest.raises(BadFlag, match=f"or a published pickle of weights; .* pass {finished}, which it was made of"):
        networks.load(finished / "serve", "network", lambda _: small(), layers=True)
    with pytest.raises(BadFlag, match=r"or the directory of a SavedModel; .* run_import_weights.py --weights=.*a\.npz"):
        networks.load(tmp_path / "a.npz", "network")
    with pytest.raises(BadInput, match="cannot be read as a checkpoint"):
        networks.load(tmp_path / "a.npz", "network", lambda _: pytest.fail("the file is looked at first"))
    with pytest.raises(BadInput, match="not an HDF5 file"):
        networks.load(tmp_path / "a.h5", "network")
