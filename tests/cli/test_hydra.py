"""Pruning by learned scores from the command line: phases, sources, resume, and bad input."""

import json
import shutil

import numpy as np
import pytest

import tf_robust_sparse as trs
from tests.cli.conftest import run_script
from tests.cli.drill import survive
from tests.cli.hydra_runs import ALL, FEW, HYDRA, results
from tests.cli.test_bad_input import assert_explained
from tests.cli.test_runs import assert_same_weights
from tests.data.test_image_files import make_imagenet
from tf_robust_sparse.sparsity.scores import subnet_layers


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """The directory of the three phases; not to be changed."""
    directory = tmp_path_factory.mktemp("hydra") / "run"
    done = run_script(HYDRA, *ALL, f"--output_dir={directory}").expect()
    return directory, done


def test_three_phases_leave_three_networks(everything):
    directory, done = everything
    pretrained, pruned, finetuned = (trs.load_network(directory / name) for name in ("pretrain", "prune", "finetune"))
    assert results(directory / "pretrain")["connectivity"] == 1
    for name, network in (("prune", pruned), ("finetune", finetuned)):
        found = results(directory / name)
        assert found["nonzero"] == sum(layer.kept for layer in subnet_layers(network))
        assert found["connectivity"] == pytest.approx(found["nonzero"] / found["prunable"])
        assert found["phase"]["phase"] == name and found["source"].endswith("pretrain" if name == "prune" else "prune")
        assert found["objective"]["objective"] == ("S2AP" if name == "prune" else "TRADES") and found["epochs"] == 2
    layers = (trs.layers.kernel_layers(network) for network in (pretrained, pruned, finetuned))
    for one, two, three in zip(*layers, strict=True):
        np.testing.assert_array_equal(one.kernel, two.kernel)  # the prune phase learns scores alone
        np.testing.assert_array_equal(two.scores, three.scores)  # the finetune phase keeps them
        mask = two.compute_kernel_mask().numpy()
        assert (np.asarray(three.kernel)[mask] != np.asarray(two.kernel)[mask]).any()
    assert done.out.count("Clean accuracy") == 3
    x = np.random.default_rng(0).random((4, 28, 28, 1), "float32")
    exported = trs.evaluation.load_saved_model(directory / "finetune/serve")
    np.testing.assert_allclose(exported(x), finetuned(x), atol=1e-5)


@pytest.mark.full
def test_an_unfinished_run_goes_on_from_a_dense_network(everything, tmp_path):
    """As if a run whose first phase a network stands for had been killed after the prune phase, and then within one."""
    directory, _ = everything
    shutil.copytree(directory / "prune", tmp_path / "run/prune")
    command = (*ALL, f"--source_net={directory / 'pretrain'}", f"--output_dir={tmp_path / 'run'}", "--resume")
    kills = [("finetune/checkpoints/last.weights.h5", 2)]
    done = survive(lambda: run_script(HYDRA, *command, "--save_dense"), kills)
    assert done.out.count("nothing to resume") == 1
    assert (tmp_path / "run/finetune/dense/network.keras").is_file()
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["finetune", "prune"]
    first, again = (trs.load_network(each / "finetune") for each in (directory, tmp_path / "run"))
    for one, two in zip(first.variables, again.variables, strict=True):
        np.testing.assert_array_equal(one, two)


def test_learned_fractions_are_found_under_a_budget_and_kept(everything):
    directory, done = everything
    pruned, finetuned = (trs.load_network(directory / name) for name in ("prune", "finetune"))
    found = results(directory / "prune")
    assert found["sparsifier"]["sparsifier"] == "LearnedRates" and found["objective"]["objective"] == "S2AP"
    kept = [layer.kept for layer in subnet_layers(pruned)]
    assert kept == [layer.kept for layer in subnet_layers(finetuned)]
    entries = sum(layer.kernel.shape.num_elements() for layer in subnet_layers(pruned))
    assert sum(kept) == found["nonzero"] <= int(0.2 * entries)
    assert f"Sparsity:  by scores, the largest {sum(kept)} of {entries}\n" in done.out
    history = json.loads((directory / "prune/checkpoints/history.json").read_text())
    assert history[0]["budget"] > history[1]["budget"] and history[1]["mask_changes"] > 0
    for one, two in zip(subnet_layers(pruned), subnet_layers(finetuned), strict=True):
        np.testing.assert_array_equal(one.compute_kernel_mask(), two.compute_kernel_mask())


@pytest.mark.full
def test_a_run_that_is_killed_between_phases_and_within_one_goes_on(everything, tmp_path):
    directory, _ = everything
    copy = tmp_path / "run"
    kills = [("prune/network.keras", 1), ("finetune/checkpoints/last.weights.h5", 2)]
    done = survive(lambda: run_script(HYDRA, *ALL, f"--output_dir={copy}", "--resume", "--save_dense"), kills)
    assert done.out.count("nothing to resume") == 2
    assert all((copy / name / "dense" / "network.keras").is_file() for name in ("pretrain", "prune", "finetune"))
    for name in ("pretrain", "prune", "finetune"):
        assert_same_weights(directory / name, copy / name)
        for measured in ("clean_accuracy", "robust_accuracy", "epochs", "selected"):
            assert results(copy / name)[measured] == results(directory / name)[measured]
        source = results(directory / name)["source"]
        assert results(copy / name)["source"] == (source and source.replace(str(directory), str(copy)))


def test_a_phase_resumes_without_its_source_and_its_record_repeats_it(everything, tmp_path):
    directory, _ = everything
    prune = (*FEW, "--exp_mode=prune", "--k=0.2", "--epochs=1", "--allocation=global", f"--output_dir={tmp_path / 'p'}")
    prune += ("--trainer=freeadv", "--n_repeats=2", "--freeze_bn", "--scaled_score_init")
    begun = (*prune, f"--source_net={directory / 'pretrain'}")
    run_script(HYDRA, *begun).expect()
    (tmp_path / "p/results.json").unlink()
    before = trs.load_network(tmp_path / "p")
    run_script(HYDRA, *prune, "--resume").expect()
    after = trs.load_network(tmp_path / "p")
    for one, two in zip(before.variables, after.variables, strict=True):
        np.testing.assert_array_equal(one, two)
    assert results(tmp_path / "p")["phase"]["freeze_batch_norm"] == "affine"
    kept = [layer.kept for layer in subnet_layers(after)]
    assert len({layer.keep_fraction for layer in subnet_layers(after)}) > 1
    assert sum(kept) == results(tmp_path / "p")["nonzero"]
    source = str(directory / "pretrain")  # is not forgotten: the record repeats the run, not its continuation
    assert results(tmp_path / "p")["source"] == source
    record = tmp_path / "p/run.flags"
    assert f"--source_net={source}\n" in record.read_text()


def test_nothing_to_go_on_with_is_no_start_from_random_weights(tmp_path):
    done = run_script(HYDRA, *FEW, "--exp_mode=prune", "--k=0.2", "--resume", f"--output_dir={tmp_path / 'run'}")
    assert_explained(done, "--exp_mode=prune --resume", "a finished epoch")
    assert not (tmp_path / "run").exists()


def test_a_finished_phase_is_evaluated_without_its_source(everything):
    directory, _ = everything
    for name in ("prune", "finetune"):
        done = run_script(
            HYDRA, *FEW, f"--exp_mode={name}", "--load_model", f"--output_dir={directory / name}"
        ).expect()
        assert "Clean accuracy" in done.out and "Note:" not in done.out


@pytest.mark.full
def test_least_weight_magnitude_is_a_finetune_phase(everything, tmp_path):
    directory, _ = everything
    done = run_script(
        HYDRA,
        *(*FEW, "--exp-mode=finetune", "--k=0.2", "--epochs=1", "--lr=0.01", "--scaled-score-init", "--trainer=base"),
        *(f"--source-net={directory / 'pretrain'}", f"--output_dir={tmp_path / 'lwm'}", "--n_repeats=3"),
    ).expect()
    assert "Note: --n_repeats=3 has no effect here; it belongs to --trainer=freeadv" in done.out
    dense, network = trs.load_network(directory / "pretrain"), trs.load_network(tmp_path / "lwm")
    for plain, layer in zip(trs.layers.kernel_layers(dense), subnet_layers(network), strict=True):
        magnitude = np.abs(np.asarray(plain.kernel))
        np.testing.assert_array_equal(layer.compute_kernel_mask(), magnitude >= np.sort(magnitude.ravel())[-layer.kept])


@pytest.mark.full
def test_free_training_prunes(everything, tmp_path):
    directory, _ = everything
    run_script(
        HYDRA,
        *(*FEW, "--exp_mode=prune", "--k=0.1", "--epochs=1", "--trainer=freeadv", "--freeze_bn"),
        *(f"--source_net={directory / 'pretrain'}", "--scaled_score_init", f"--output_dir={tmp_path / 'run'}"),
    ).expect()
    found = results(tmp_path / "run")
    assert found["connectivity"] == pytest.approx(0.1, abs=1e-3)
    assert found["phase"]["freeze_batch_norm"] == "affine"


@pytest.mark.full
@pytest.mark.parametrize(
    "more", [("--layer_type=subnet", "--scale_rand_init", "--init_type=kaiming_normal_fan_out"), ("--snip_init",)]
)
def test_sparse_from_scratch_and_snip(more, tmp_path):
    few = (*FEW, "--exp_mode=pretrain", "--k=0.1", "--epochs=1", "--lr=0.01", "--trainer=base")
    run_script(HYDRA, *few, *more, f"--output_dir={tmp_path / 'run'}").expect()
    assert results(tmp_path / "run")["connectivity"] == pytest.approx(0.1, abs=1e-3)


BAD = [
    ("prune from nothing", ["--exp_mode=prune"], "--exp_mode=prune", "--source_net=DIR"),
    ("resume with a source", ["--exp_mode=prune", "--resume", "--source_net=x"], "--source_net=x", "not both"),
    ("a source of nothing", ["--exp_mode=pretrain", "--source_net=x"], "--source_net=x", "--exp_mode=prune, finetune"),
    ("a missing source", ["--exp_mode=prune", "--source_net=no"], "--source_net=no", "the path does not exist"),
    (
        "two initialisations",
        ["--scaled_score_init", "--scores_init_type=default"],
        "--scores_init_type=default",
        "both",
    ),
    ("frozen batch norm", ["--exp_mode=pretrain", "--freeze_bn=yes"], "--freeze_bn=yes", "--exp_mode=prune"),
    ("snip elsewhere", ["--exp_mode=prune", "--source_net=x", "--snip_init"], "--snip_init", "--exp_mode=pretrain"),
    ("free training in l2", ["--trainer=freeadv", "--norm=l2"], "--trainer=freeadv", "--norm=linf"),
    ("labels of nothing", ["--trainer=freeadv", "--pseudo_labels=x"], "--pseudo_labels=x", "--trainer=freeadv"),
    ("batches of two sizes on a CPU", ["--nodrop_last"], "--nodrop_last", "TF_ENABLE_ONEDNN_OPTS=0"),
]


@pytest.mark.parametrize(("arguments", "flag", "expected"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_flags(arguments, flag, expected, tmp_path, monkeypatch):
    monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS", raising=False)
    done = run_script(HYDRA, *FEW, f"--output_dir={tmp_path / 'run'}", *arguments)
    assert_explained(done, flag, expected)
    assert not (tmp_path / "run").exists()


def test_a_source_that_does_not_fit_is_named(everything, tmp_path):
    directory, _ = everything
    prune = ("--exp_mode=prune", "--k=0.2", f"--source_net={directory / 'pretrain'}", f"--output_dir={tmp_path / 'r'}")
    done = run_script(HYDRA, *[flag.replace("small_cnn", "lenet5_caffe") for flag in FEW], *prune)
    assert_explained(done, "--source_net", "conv1/kernel is of shape (4, 4, 1, 16) in the source")
    place = ("--exp_mode=finetune", f"--output_dir={tmp_path / 'r'}")
    uniform = trs.models.small_cnn(10, (28, 28, 1), "subnet", 0.2, "symmetric")
    trs.save_network(uniform, tmp_path / "uniform")
    for source, k in ((tmp_path / "uniform", 0.3), (directory / "prune", 0.05)):  # of learned fractions less are fine
        done = run_script(HYDRA, *FEW, *place, f"--k={k}", f"--source_net={source}")
        assert_explained(done, f"--k={k}", "the prune phase, which kept 0.")
    done = run_script(HYDRA, *FEW, *place, "--k=0.2", f"--source_net={directory / 'pretrain'}")
    assert_explained(done, "--exp_mode=finetune", "without scores")
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    "phases", [("pretrain",), pytest.param(("pretrain", "prune", "finetune"), marks=pytest.mark.full)]
)
def test_imagenet_in_files_through_phases(phases, tmp_path):
    run, whole = tmp_path / "run", len(phases) == 3
    make_imagenet(tmp_path / "imagenet", train=8, val=4)
    few = (
        *("--data=imagenet", f"--data_dir={tmp_path}", "--image_size=32", "--model=small_cnn", "--k=0.2"),
        *("--trainer=base", "--epochs=1", "--prune_epochs=1", "--batch_size=4", "--epsilon=4/255"),
        *("--validation_examples=4", "--pgd_iters=1", "--pgd_restarts=1"),
    )
    places = [run / name if whole else run for name in phases]
    mode = ("--exp_mode=all",) if whole else ("--exp_mode=pretrain", "--layer_type=subnet")
    done = run_script(HYDRA, *few, *mode, f"--output_dir={run}").expect()
    assert (
        "images of 32x32x3, 3 classes" in done.out and "20 images to train on, 4 to select by, 12 to test" in done.out
    )
    for place in places:
        assert "--augmentation=resized_crop\n" in (place / "run.flags").read_text()
        assert results(place)["test_images"] == 12
    assert results(places[-1])["connectivity"] == pytest.approx(0.2, abs=1e-3)
    assert_explained(
        run_script(HYDRA, *FEW, "--augmentation=resized_crop"), "--augmentation=resized_crop", "--data=imagenet"
    )


@pytest.mark.full
def test_half_of_a_batch_may_be_pseudo_labelled_under_noise(tmp_path):
    random = np.random.default_rng(0)
    colours = {
        name: random.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8) for name, n in (("train", 128), ("test", 8))
    }
    labels = {name: np.arange(len(images)) % 10 for name, images in colours.items()}
    arrays = {f"{key}_{name}": value[name] for key, value in (("x", colours), ("y", labels)) for name in value}
    np.savez(tmp_path / "own.npz", **arrays)
    np.savez(tmp_path / "pseudo.npz", data=colours["train"][:40], extrapolated_targets=labels["train"][:40])
    trs.save_network(trs.models.small_cnn(padding_mode="symmetric", seed=0), tmp_path / "dense")
    command = (
        *(HYDRA, f"--data={tmp_path / 'own.npz'}", "--model=small_cnn", "--batch_size=32", "--num_steps=1"),
        *("--pgd_iters=1", "--pgd_restarts=1", "--exp_mode=prune", "--k=0.2", "--epochs=1", "--scaled_score_init"),
        *(f"--source_net={tmp_path / 'dense'}", f"--output_dir={tmp_path / 'run'}", "--trainer=smooth"),
        *(f"--pseudo_labels={tmp_path / 'pseudo.npz'}", "--semisup_fraction=0.5"),
    )
    done = run_script(*command, "--is_semisup").expect()
    assert "1 epochs of 7 steps" in done.out  # of 116 labelled images 16 in a batch
    found = results(tmp_path / "run")
    assert found["selected"]["monitor"] == "val_smoothed_accuracy" and "verified" not in found
    assert found["connectivity"] == pytest.approx(0.2, abs=1e-3)
