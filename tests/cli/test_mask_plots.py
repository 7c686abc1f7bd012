"""Figures of masks, with their numbers."""

import json

import keras
import pytest

import tf_robust_sparse as trs
from tests.cli.conftest import run_script
from tests.cli.test_bad_input import assert_explained
from tf_robust_sparse.sparsity.mask_statistics import kept_weights, mask_statistics
from tf_robust_sparse.sparsity.mask_structure import channels_between, mask_structure

PLOTS = "run_mask_plots"


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    """A directory with a network of random scores; not to be changed."""
    directory = tmp_path_factory.mktemp("masks")
    network = trs.models.small_cnn(input_shape=(28, 28, 1), kernel="subnet", connectivity=0.1, seed=0)
    trs.save_network(network, directory)
    return directory, network


def test_figures_and_numbers(pruned, tmp_path, one_drawn):
    directory, network = pruned
    done = run_script(
        PLOTS,
        f"--network={directory}",
        "--layers=conv2,classifier",
        "--pairs=conv1:conv2",
        f"--output_dir={tmp_path / 'f'}",
    ).expect()
    layouts = ("layout_conv2.png", "layout_classifier.png", "between_conv1_conv2.png")
    names = {"kept_per_layer.png", "kept_weights.png", "structure.png", *layouts}
    assert {path.name for path in (tmp_path / "f").glob("*.png")} == names
    assert one_drawn[0][0].read_bytes()[:4] == b"\x89PNG"
    record = json.loads((tmp_path / "f/masks.json").read_text())
    assert record["layers"] == mask_statistics(network)
    assert record["kept_weights"] == kept_weights(network)
    assert record["structure"] == mask_structure(network)
    found = channels_between(network.get_layer("conv1"), network.get_layer("conv2"))
    assert record["between"] == {"conv1:conv2": found} and record["relative_cost"] is None
    assert f"conv1:conv2: {found['empty_in_both']} channels are empty in both" in done.out
    assert record["planned"] == {layer.name: layer.keep_fraction for layer in trs.layers.kernel_layers(network)}
    for layer in trs.layers.kernel_layers(network):
        assert f"{layer.name} " in done.out and str(layer.kept) in done.out


@pytest.mark.usefixtures("one_drawn")
def test_of_an_exported_network_the_one_before_tells_what_was_dropped(pruned, tmp_path):
    _, network = pruned
    trs.save_network(trs.models.small_cnn(input_shape=(28, 28, 1), seed=0), tmp_path / "dense")
    plain = trs.models.small_cnn(input_shape=(28, 28, 1))
    for layer, source in zip(trs.layers.kernel_layers(plain), trs.layers.kernel_layers(network), strict=True):
        layer.kernel.assign(source.effective_kernel)
    trs.save_network(plain, tmp_path / "plain")
    run_script(PLOTS, f"--network={tmp_path / 'plain'}").expect()
    assert not (tmp_path / "plain/figures/kept_weights.png").exists()
    run_script(PLOTS, f"--network={tmp_path / 'plain'}", f"--before={tmp_path / 'dense'}").expect()
    record = json.loads((tmp_path / "plain/figures/masks.json").read_text())
    assert record["kept_weights"] == kept_weights(network)


def test_bad_input(pruned, tmp_path):
    directory, _ = pruned
    (tmp_path / "file").write_text("")
    more = f"--output_dir={tmp_path / 'pairs'}"
    assert_explained(
        run_script(PLOTS, f"--network={directory}", "--pairs=conv1", more), "--pairs=conv1", "first:second"
    )
    # Names are looked at before the other network is.
    first = (f"--network={directory}", "--before=no")
    assert_explained(run_script(PLOTS, *first, "--layers=conv9", more), "--layers=conv9", "some of conv1, conv2")
    assert_explained(run_script(PLOTS, *first, "--pairs=conv1:conv9", more), "--pairs=conv1:conv9", "two of conv1")
    inputs = keras.Input((4, 4, 1))
    plain = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Flatten()(inputs)))
    trs.save_network(plain, tmp_path / "foreign")
    assert_explained(
        run_script(PLOTS, f"--network={tmp_path / 'foreign'}", more), "--network=", "no kernels of this package"
    )
    assert not (tmp_path / "pairs").exists()
    assert_explained(run_script(PLOTS), "--network is missing", "the directory of a run")
    assert_explained(run_script(PLOTS, f"--network={tmp_path}"), "--network=", "holds none of network.keras")
    assert_explained(run_script(PLOTS, f"--network={directory}", f"--output_dir={tmp_path / 'file'}"), "a directory")
    trs.save_network(trs.models.small_cnn(num_classes=3, input_shape=(28, 28, 1)), tmp_path / "other")
    done = run_script(
        PLOTS, f"--network={directory}", f"--before={tmp_path / 'other'}", f"--output_dir={tmp_path / 'x'}"
    )
    assert_explained(done, "--before", "pass the network that this one was pruned from")
    assert not (tmp_path / "x").exists()
