"""Certificates from the command line."""

import json

import keras
import numpy as np
import pytest

import tf_robust_sparse as trs
from tests.cli.conftest import run_script
from tests.cli.drill import survive
from tests.cli.test_bad_input import assert_explained
from tests.networks import fit_last_layer
from tests.saving.test_pytorch_weights import state_dict

CERTIFY = "run_certify"
FEW = ("--data=fashion_mnist_sample", "--test_examples=24", "--n0=20", "--n=200", "--sigma=0.2", "--skip=2")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A directory with a network whose last layer was fitted to noisy images; not to be changed."""
    directory = tmp_path_factory.mktemp("certify")
    network = trs.models.small_cnn(input_shape=(28, 28, 1), kernel="subnet", connectivity=0.5, seed=0)
    fit_last_layer(network, trs.data.load("fashion_mnist_sample").take(1000, 1), noise_std=0.2)
    trs.save_network(network, directory)
    trs.export_network(network, directory / "serve")
    return directory


RADII = ("--radii=0.1,0.2", "--noise-std=0.2")


@pytest.fixture(scope="module")
def certified(run, tmp_path_factory):
    """The output and the folder of certificates of the network; not to be changed."""
    folder = tmp_path_factory.mktemp("certified")
    done = run_script(
        *(CERTIFY, *FEW, *RADII, f"--saved_model_or_network={run}", f"--results_file={folder / 'a.json'}")
    )
    return done.expect(), folder


def test_a_network_and_its_export_are_certified_alike(run, certified, tmp_path):
    export = (f"--saved_model_or_network={run / 'serve'}", f"--results_file={tmp_path / 'a.json'}")
    of_export, found = run_script(CERTIFY, *FEW, *RADII, *export).expect(), {}
    for name, done, folder in (("network", *certified), ("export", of_export, tmp_path)):
        found[name] = json.loads((folder / "a.json").read_text())
        assert (folder / "a.png").read_bytes()[:4] == b"\x89PNG"
        assert len((folder / "a.tsv").read_text().splitlines()) == 14
        assert "Certified at l2 0.200" in done.out
    record = found["network"]
    accuracies = [row["accuracy"] for row in record["certified_accuracy"]]
    assert [row["radius"] for row in record["certified_accuracy"]] == [0, 0.1, 0.2]
    assert accuracies[0] > 0.4 and accuracies == sorted(accuracies, reverse=True)
    assert all(
        row["with_probability_0.999"] < row["accuracy"] or not row["accuracy"] for row in record["certified_accuracy"]
    )
    assert record["curve"][0] == {"radius": 0.0, "accuracy": accuracies[0]}
    np.testing.assert_allclose(accuracies, [row["accuracy"] for row in found["export"]["certified_accuracy"]], atol=0.1)


def test_the_command_line_of_eval_smoothing(tmp_path):
    """Of a checkpoint with dense layers, as HYDRA's script takes one, and of one with scores."""
    network = trs.models.small_cnn(input_shape=(28, 28, 1), padding_mode="symmetric", seed=4, kernel="subnet")
    np.savez(tmp_path / "masked.npz", **state_dict(network, (7, 7, 32)))
    trs.sparsity.set_keep_fractions(network, 0.3)
    dense = trs.models.small_cnn(input_shape=(28, 28, 1), padding_mode="symmetric")
    for layer, other in zip(trs.layers.kernel_layers(dense), trs.layers.kernel_layers(network), strict=True):
        layer.kernel.assign(other.effective_kernel)
    np.savez(tmp_path / "dense.npz", **state_dict(dense, (7, 7, 32)))
    command = (
        *(CERTIFY, "--dataset", "fashion_mnist_sample", "--arch", "mnist_model", "--noise_std", "0.2", "--N0", "20"),
        *("--N", "50", "--alpha", "0.01", "--skip", "2", "--max", "7", "--num-classes", "10", "--print-freq", "10"),
        *("--test-batch-size", "16", "--batch-size", "64", "--gpu", "0"),
    )
    tables = []
    for name, more in (("dense", ["--layer-type=dense"]), ("masked", ["--layer-type=subnet", "--k=0.3"])):
        file = tmp_path / f"{name}.tsv"
        place = ("--base_classifier", tmp_path / f"{name}.npz", "--outfile", file)
        done = run_script(*command, *place, *more, f"--results_file={tmp_path / 'r.json'}").expect()
        assert "of 4 images" in done.out  # 0, 2, 4 and 6
        tables.append([line.split("\t")[:5] for line in file.read_text().splitlines()[1:] if line[0] != "#"])
    assert tables[0] == tables[1] and len(tables[0]) == 5  # and a head
    place = ("--base_classifier", tmp_path / "masked.npz")
    for words, expected in (
        (["--layer-type=subnet"], "--k=FRACTION"),
        (["--max=0"], "-1 for all images"),
        (["--normalize"], "--normalize"),
        (["--arch=cifar_model_large"], "convolutions"),
    ):
        assert_explained(run_script(*command, *place, *words), expected)


def test_goes_on_with_its_table(run, certified, tmp_path):
    command = (CERTIFY, *FEW, *RADII, f"--saved_model_or_network={run}", f"--results_file={tmp_path / 'a.json'}")
    table, text = tmp_path / "a.tsv", (certified[1] / "a.tsv").read_text()
    survive(lambda: run_script(*command), [("a.tsv", 6), ("a.json", 1)])
    assert [line.split("\t")[:5] for line in table.read_text().splitlines()] == [
        line.split("\t")[:5] for line in text.splitlines()
    ]
    done = run_script(*command, "--sigma=0.3")
    assert done.code == 1 and "of other settings" in done.err
    lock = tmp_path / ".a.tsv.lock"
    lock.write_text('{"host": "elsewhere", "process": 1, "time": "today"}')
    done = run_script(*command).expect(2)
    assert f"--outfile={table} is in use by process 1 on elsewhere since today" in done.err and str(lock) in done.err


@pytest.mark.parametrize(
    "method",
    [
        pytest.param("ibp", marks=pytest.mark.full),
        pytest.param("alpha-crown", marks=pytest.mark.full),
        "crown",
        *[pytest.param(each, marks=pytest.mark.full) for each in ("crown-ibp", "mixtrain")],
    ],
)
def test_bounds_beside_pgd(method, run, tmp_path):
    few = ("--data=fashion_mnist_sample", "--test_examples=24", "--batch_size=8", "--skip=2", "--epsilon=1/255")
    command = (CERTIFY, *few, f"--saved_model_or_network={run}", f"--method={method}", "--chunk=512")
    done = run_script(*command, f"--results_file={tmp_path / 'a.json'}").expect()
    record = json.loads((tmp_path / "a.json").read_text())
    assert record["images"] == 12 and len((tmp_path / "a.tsv").read_text().splitlines()) == 14
    assert record["verified_accuracy"] <= record["pgd_accuracy"] <= record["clean_accuracy"]
    if method != "ibp":
        assert record["verified_accuracy"] > 0
    line = f"Verified            {100 * record['verified_accuracy']:6.2f} %   {method}, "
    assert f"{line}{record['seconds_per_image']:.3g} s per image" in done.out
    times = [float(line.split("\t")[-1]) for line in (tmp_path / "a.tsv").read_text().splitlines()[2:]]
    assert record["seconds_per_image"] == pytest.approx(np.mean(times), abs=1e-3) and min(times) > 0


def test_branch_and_bound(run, tmp_path):
    few = ("--data=fashion_mnist_sample", "--test_examples=4", "--batch_size=4", "--epsilon=3/255", "--max_nodes=4")
    command = (CERTIFY, *few, f"--saved_model_or_network={run}", "--method=branch-and-bound")
    done = run_script(*command, f"--results_file={tmp_path / 'a.json'}").expect()
    record = json.loads((tmp_path / "a.json").read_text())
    lines = [line.split("\t") for line in (tmp_path / "a.tsv").read_text().splitlines()[2:]]
    shares = {name: np.mean([line[3] == name for line in lines]) for name in ("verified", "falsified", "unknown")}
    assert record["verified_accuracy"] == shares["verified"] <= record["pgd_accuracy"]
    assert record["unknown"] == shares["unknown"] and record["max_nodes"] == 4 and len(lines) == 4
    assert "Undecided" in done.out and "branch-and-bound, " in done.out


def test_bad_input(run, tmp_path):
    path, outfile = f"--saved_model_or_network={run}", f"--outfile={tmp_path / 'none.tsv'}"
    for words, *expected in (
        ([], "--saved_model_or_network is missing"),
        (["--saved_model_or_network=no"], "does not exist"),
        ([path, "--sigma=0"], "--sigma=0", "above 0"),
        ([path, "--n=10"], "--n=10", "--n0=20"),
        ([path, "--n=10000000000", outfile], "--n=1", "1000000000"),
        ([path, "--alpha=1"], "--alpha=1", "below 1"),
        ([path, f"--outfile={tmp_path}"], "--outfile", "a directory of that name"),
        ([path, "--chunk=9"], "--chunk=9 belongs to --method=ibp or"),
        ([path, "--slope=one-lb"], "--slope=one-lb belongs to --method=crown-ibp or"),
        ([path, "--max_nodes=9"], "--max_nodes=9 belongs to --method=branch-and-bound"),
    ):
        assert_explained(run_script(CERTIFY, *FEW, *words), *expected)
    assert not (tmp_path / "none.tsv").exists()
    for words, *expected in (
        ([path], "--method=ibp", "--epsilon=2/255"),
        ([path, "--epsilon=1"], "--epsilon=1", "below 1"),
        ([path, "--epsilon=0.1", "--sigma=0.1"], "--sigma=0.1 belongs to --method=smoothing"),
        ([path, "--epsilon=0.1", "--notight"], "--notight belongs to --method=crown-ibp or"),
        ([f"--saved_model_or_network={run / 'serve'}", "--epsilon=0.1"], "a SavedModel does not show its layers"),
    ):
        assert_explained(run_script(CERTIFY, "--data=fashion_mnist_sample", "--method=ibp", *words), *expected)


@pytest.mark.parametrize(
    "more", [pytest.param(("--method=ibp", "--epsilon=1/255"), marks=pytest.mark.full), ("--n0=20", "--n=200")]
)
def test_a_damaged_table_is_refused(more, run, tmp_path):
    few = ("--data=fashion_mnist_sample", "--test_examples=4", "--batch_size=2", f"--saved_model_or_network={run}")
    command = (CERTIFY, *few, *more, f"--results_file={tmp_path / 'a.json'}")
    run_script(*command).expect()
    table = tmp_path / "a.tsv"
    table.write_text(table.read_text().replace("\n2\t", "\ntwo\t"))
    assert_explained(run_script(*command), "a.tsv, line 5 is damaged")


def test_a_layer_without_bounds_is_named(tmp_path):
    x = inputs = keras.Input((28, 28, 1))
    x = keras.layers.Dense(4, activation="tanh", name="odd")(keras.layers.Flatten()(x))
    trs.save_network(keras.Model(inputs, keras.layers.Dense(10)(x)), tmp_path)
    few = ("--data=fashion_mnist_sample", "--test_examples=4", f"--saved_model_or_network={tmp_path}")
    assert_explained(run_script(CERTIFY, *few, "--method=crown", "--epsilon=0.1"), "activation tanh of odd")
    assert not (tmp_path / "certified.tsv").exists()
