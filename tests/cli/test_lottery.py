"""Runs of lottery tickets from the command line: files, resume, names, images and levels on record."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from absl import flags

import tf_robust_sparse as trs
from tests.cli.conftest import run_script
from tests.cli.lottery_runs import ANALYSIS, NAME, RUN, TINY
from tf_robust_sparse.cli import command_line, devices, run_directory, settings
from tf_robust_sparse.cli.sections.lottery import Experiment, Images, Variants
from tf_robust_sparse.cli.sections.rounds import Rounds
from tf_robust_sparse.saving.round_files import read_arrays, round_directory

REFERENCE = os.environ.get("TRS_DATA_DIR")


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """The folder of a tiny finished experiment; not to be changed."""
    folder = tmp_path_factory.mktemp("output")
    done = run_script(RUN, *TINY, "--trials=2", "--adv_train", f"--base_dir={folder}").expect()
    assert "266200 / 266200 weights, 100.0 % remain" in done.out and "trial 1: test loss" in done.out
    return folder


def test_a_run_leaves_the_published_tree_and_its_own_records(output):
    directory = output / NAME
    assert {path.name for path in directory.iterdir()} == {
        *("trial_00", "trial_01", "config.json", "run.flags", "results.json"),
    }
    for trial in (0, 1):
        for number in range(3):
            place = round_directory(directory, trial, number)
            assert {path.name for path in place.iterdir()} == {
                *("init_kernels", "post_kernels", "masks", "next_masks", "train.csv", "valid.csv", "test.csv"),
                *("summary.json", "DONE"),
            }
            shapes = {name: array.shape for name, array in read_arrays(place / "masks").items()}
            assert shapes == {"hidden_1": (784, 300), "hidden_2": (300, 100), "output": (100, 10)}
    config = json.loads((directory / "config.json").read_text())
    assert config["flags"]["train_iters"] == 20 and config["versions"]["tensorflow"] and config["devices"]
    results = json.loads((directory / "results.json").read_text())
    assert [row["label"] for row in results["rounds"]] == ["100.0", "80.0", "64.1"]
    assert results["test_images"] == {"measured": 50, "available": 50}


@pytest.mark.full
@pytest.mark.slow
def test_processes_leave_what_one_process_leaves(output, tmp_path):
    """Up to rounding, for products of one thread and of several may add up in another order."""
    options = (*TINY, "--trials=2", "--adv_train", "--prune_iters=0", "--processes=2", f"--base_dir={tmp_path}")
    assert "2 processes, in which 1 are trained" in run_script(RUN, *options).expect().out
    assert {path.name for path in (tmp_path / NAME).iterdir()} == {path.name for path in (output / NAME).iterdir()}
    for trial in (0, 1):
        first, second = (round_directory(base / NAME, trial, 0) for base in (output, tmp_path))
        for kernels, tolerance in (("init_kernels", 0), ("post_kernels", 1e-4)):
            one, other = read_arrays(first / kernels), read_arrays(second / kernels)
            assert all(np.abs(one[name] - other[name]).max() <= tolerance for name in one)


def test_devices_are_those_of_the_published_scripts(parse, monkeypatch, capsys):
    parse(RUN, "--devices", "0,1,2,3")
    chosen = []
    monkeypatch.setattr(devices.tf.config, "set_visible_devices", lambda gpus, kind: chosen.append(gpus))
    monkeypatch.setattr(devices.tf.config, "list_physical_devices", lambda kind: [])
    devices.choose("devices", fewer=True)
    assert "--devices=0,1,2,3 has no effect here" in capsys.readouterr().out
    assert not any("devices" in line for line in run_directory.recorded_flags())
    monkeypatch.setattr(devices.tf.config, "list_physical_devices", lambda kind: ["a", "b"])
    devices.choose("devices", fewer=True)
    with pytest.raises(command_line.BadFlag, match=r"below 2.*pass --devices=0,1"):
        devices.choose("devices")
    devices.choose("devices", fewer=True, replicas=True)
    assert chosen == [["a", "b"], ["a", "b"]] and flags.FLAGS.strategy == "mirrored"
    parse(RUN, "--devices=cpu")
    with pytest.raises(command_line.BadFlag, match="--devices=cpu: expected numbers of GPUs"):
        devices.choose("devices")


def test_trials_have_processes_where_that_is_faster(parse, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    images = None
    for arguments, expected in (
        (("--trials=3",), [[0], [1], [2]]),
        (("--trials=10",), [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]),
        (("--trials=3", "--processes=1"), [[0, 1, 2]]),
        (("--trials=3", "--processes=1", "--stacked=2"), [[0, 1], [2]]),
        (("--trials=3", "--only_trials=1,2"), [[1, 2]]),
        (("--trials=3", "--model=small_cnn"), [[0], [1], [2]]),
    ):
        parse(RUN, "--dataset=sample", *arguments)
        settings.check()
        images = images or Images.read().load()
        assert Rounds.read().parts(images) == (expected, len(arguments) == 1)


def test_a_record_of_flags_repeats_the_run(output, tmp_path):
    run_script(RUN, f"--flagfile={output / NAME / 'run.flags'}", "--prune_iters=0", f"--base_dir={tmp_path}").expect()
    for name in ("train", "valid", "test"):
        path = round_directory(Path(NAME), 1, 0) / f"{name}.csv"
        assert (tmp_path / path).read_text() == (output / path).read_text()


def test_an_experiment_is_neither_overwritten_nor_changed(output):
    place = f"--base_dir={output}"
    again = run_script(RUN, *TINY, "--trials=2", "--adv_train", place).expect(2)
    assert "pass --resume or --force" in again.err
    other = run_script(RUN, *TINY, "--trials=2", "--adv_train", "--train_iters=30", "--resume", place).expect(2)
    assert "--train_iters=30: the experiment" in other.err and "begun with 20" in other.err


def test_resume_adds_trials_and_prunings_and_force_begins_anew(tmp_path):
    short = (*TINY, "--adv_train", "--prune_iters=0", f"--base_dir={tmp_path}")
    run_script(RUN, *short, "--trials=1").expect()
    first = round_directory(tmp_path / NAME, 0, 0)
    before = {path: path.stat().st_mtime_ns for path in first.rglob("*")}
    said = run_script(RUN, *short, "--trials=3", "--prune_iters=1", "--resume").expect().out
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*")} == before
    assert "trials 1, 2, round 0, trial 1: test" in said and "trials 0, round 1, trial 0: test" in said
    assert "round 0, trial 0: test" not in said
    assert (round_directory(tmp_path / NAME, 1, 0) / "test.csv").read_text() != (first / "test.csv").read_text()
    run_script(RUN, *short, "--trials=1", "--force").expect()
    assert not (tmp_path / NAME / "trial_01").exists()


@pytest.mark.full
def test_trials_of_a_stack_stay_together_after_a_kill_between_their_marks(output, tmp_path, monkeypatch):
    """One that has finished a round more than the others would be trained without them, in other roundings."""
    command = (*TINY, "--trials=2", "--adv_train", f"--base_dir={tmp_path}")
    rename = Path.replace

    def killed(self, target):
        if Path(target) == round_directory(tmp_path / NAME, 1, 1) / "DONE":
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", killed)
        run_script(RUN, *command).expect(130)
    assert [(round_directory(tmp_path / NAME, trial, 1) / "DONE").exists() for trial in (0, 1)] == [True, False]
    said = run_script(RUN, *command, "--resume").expect().out
    assert "trials " not in said.partition("Output:")[2]  # as is said of a part of them
    assert {path.name for path in (tmp_path / NAME).iterdir()} == {path.name for path in (output / NAME).iterdir()}
    for trial in (0, 1):
        one, other = (
            read_arrays(round_directory(base / NAME, trial, 2) / "post_kernels") for base in (output, tmp_path)
        )
        assert all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.full
def test_convolutional_networks_have_tickets_too(tmp_path):
    options = ("--model=small_cnn", "--percents=conv1=0.5", "--attack=pgd", "--pgd_steps=2", "--trials=1")
    options += ("--prune_iters=1", "--train_iters=4", "--eval_every=4", "--eval_subset=20")
    options += ("--strategy=mirrored",)
    said = run_script(RUN, *TINY, *options, f"--base_dir={tmp_path}").expect().out
    assert "On the first 20 of 50 test images (--eval_subset)" in said
    (directory,) = tmp_path.glob("sample/small_cnn/reinit_orig/pgd/*")
    assert directory.name == "lr-0.0012_l1-0.0_advtrain-false_pgdsteps-2_percents-conv1=0.5"
    place = round_directory(directory, 0, 1)
    shares = {name: mask.mean() for name, mask in read_arrays(place / "masks").items()}
    assert shares["conv1"] == pytest.approx(0.5, abs=0.02) and shares["classifier"] == pytest.approx(0.9, abs=0.02)
    assert all(
        share == pytest.approx(0.8, abs=0.02) for name, share in shares.items() if name[:4] not in ("conv", "clas")
    )
    final = json.loads((place / "summary.json").read_text())["final_measures"]
    assert set(final) == {"test"}
    results = json.loads((directory / "results.json").read_text())
    assert results["test_images"] == {"measured": 20, "available": 50}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--rewind_step=soon",), "--rewind_step=soon: expected a step"),
        (("--rewind_step=60000",), "a step before the last of round 0"),
        (("--dataset=digits", "--data=cifar10"), "name different images"),
        (("--experiment=no_pruning", "--prune_iters=3"), "leave out --prune_iters=3"),
        (("--percents=hidden_1=2",), "shares in [0, 1]"),
        (("--stacked=2", "--strategy=mirrored"), "--stacked=2 needs one device"),
        (("--dataset=sample", "--percents=conv1=0.2", "--trials=1"), "expected layers of hidden_1"),
        (("--dataset=sample", "--stacked=2", "--model=small_cnn"), "without biases"),
        (("--dataset=sample", "--valid_size=8000"), "fewer than the 8000 training images"),
        (("--strategy=multi_worker",), "--strategy=multi_worker: expected none or mirrored"),
        (("--only_trials=a",), "different trials from 0 to 9"),
    ],
)
def test_bad_flags_are_named_before_any_work(arguments, words, tmp_path):
    done = run_script(RUN, *arguments, f"--base_dir={tmp_path}").expect(2)
    assert words in done.err and not list(tmp_path.iterdir())


@pytest.fixture
def own_images(tmp_path):
    """The path of a small .npz file of images."""
    random = np.random.default_rng(0)
    arrays = {}
    for split, number in (("train", 60), ("test", 20)):
        arrays[f"x_{split}"] = random.integers(0, 256, (number, 28, 28), np.uint8)
        arrays[f"y_{split}"] = np.arange(number) % 10
    np.savez(tmp_path / "own.npz", **arrays)
    return tmp_path / "own.npz"


@pytest.mark.parametrize(
    "arguments",
    [
        ("--experiment=reinit_orig", "--rewind_step=500", "--percents=hidden_1=0.5,output=0"),
        ("--experiment=reinit_rand", "--eval_subset=100", "--nosmooth_valid_labels", "--stacked=2"),
        ("--experiment=reinit_none", "-l1", "1e-4", "--attack=pgd", "--adv_train"),
        ("--experiment=no_pruning", "--strategy=mirrored"),
        ("--data=OWN",),
    ],
)
def test_the_record_of_every_kind_of_experiment_means_the_same(arguments, own_images, tmp_path, parse):
    words = [word.replace("OWN", str(own_images)) for word in arguments]
    if "--data=OWN" not in arguments:
        words.append("--dataset=sample")

    def meaning(*command):
        parse(RUN, *command, f"--base_dir={tmp_path}")
        settings.check()
        rounds, experiment = Rounds.read(), Experiment.read()
        train, held_out, test = rounds.split(Images.read().load())
        sizes = [len(part.y) for part in (train, *held_out.values(), test)]
        return rounds.plan(), experiment.directory(rounds.experiment), Variants.read().shares(), sizes

    first = meaning(*words)
    record = tmp_path / "run.flags"
    run_directory.write_flags(record, "--base_dir")
    assert meaning(f"--flagfile={record}") == first
    again = tmp_path / "again.flags"
    run_directory.write_flags(again, "--base_dir")
    assert again.read_text() == record.read_text()


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((), "lr-0.0012_l1-0.0_advtrain-false"),
        (("--adv_train", "-lr", "0.01", "-l1", "1e-4"), "lr-0.01_l1-0.0001_advtrain-true"),
        (
            ("--rewind_step=trained", "--cutoff=exact", "--attack_label=true", "--eps=0.1"),
            "lr-0.0012_l1-0.0_advtrain-false_rewind-trained_cutoff-exact_label-true_eps-0.1",
        ),
        (("--seed=7",), "lr-0.0012_l1-0.0_advtrain-false_seed-7"),
    ],
)
def test_the_name_of_an_experiment_says_what_is_not_as_published(arguments, name, parse):
    for script in (RUN, ANALYSIS):
        parse(script, *arguments)
        settings.check()
        assert Experiment.read().directory("reinit_orig").name == name


def test_rewinding_is_part_of_the_name_where_weights_are_rewound(parse):
    parse(ANALYSIS, "--rewind_step=trained")
    settings.check()
    for strategy, part in (("reinit_orig", "_rewind-trained"), ("analysis", "_rewind-trained"), ("reinit_rand", "")):
        assert Experiment.read().directory(strategy).name == f"lr-0.0012_l1-0.0_advtrain-false{part}"
    found = Experiment.read().directory("reinit_none")
    parse(RUN, "--experiment=reinit_none")
    settings.check()
    assert Experiment.read().directory("reinit_none") == found


def test_names_and_defaults_of_flags_are_the_published_ones(parse):
    flags = parse(RUN, "--lr", "0.01", "-l1", "0.5", "-b", "7", "--base-dir", "x", "--jit", "--no-jit")
    assert (flags.learning_rate, flags.l1_reg, flags.batch_size, flags.base_dir, flags.jit) == (
        0.01,
        0.5,
        7,
        "x",
        False,
    )
    parse(RUN)
    settings.check()
    experiment, images = Experiment.read(), Images.read()
    assert Rounds.read().plan() == trs.training.RoundPlan(50_000, 20, 500, 60, "reinit_orig", 0, 1234)
    assert (Rounds.read().trials, Rounds.read().valid_size, images.data, images.batch_size) == (10, 10_000, "mnist", 60)
    assert experiment == Experiment() and vars(experiment) == {
        **{"dataset": "digits", "model": "dense-300-100", "attack": "fgsm", "adv_train": False},
        **{"learning_rate": 0.0012, "l1_reg": 0.0, "base_dir": "./output", "force": False},
    }


@pytest.mark.full
@pytest.mark.parametrize("adversarial", [pytest.param("--noadv_train", marks=pytest.mark.full), "--adv_train"])
def test_a_short_run_on_the_sample_learns_and_withstands_what_it_was_trained_against(adversarial, tmp_path):
    """The small analogue of the published levels; see `test_levels_on_real_data`."""
    options = ("--dataset=sample", "--trials=1", "--prune_iters=0", "--train_iters=600", "--eval_every=300")
    run_script(RUN, *options, adversarial, f"--base_dir={tmp_path}").expect()
    kind = str(adversarial == "--adv_train").lower()
    (path,) = tmp_path.glob(f"sample/*/*/*/*_advtrain-{kind}/trial_00/prune_iter_00/summary.json")
    about = json.loads(path.read_text())
    found, under_pgd = about["final"]["test"], about["final_measures"]["test_pgd"]["adversarial_accuracy"]
    if adversarial == "--noadv_train":
        assert found["acc"] > 0.8 and found["adv_acc"] < 0.15 and under_pgd < 0.08
    else:  # what withstands FGSM does not withstand PGD
        assert found["acc"] > 0.75 and found["adv_acc"] > 0.6 and under_pgd < 0.15


def check_split(images):
    train, held_out, test = Rounds.read().split(images)
    number = len(held_out["valid"].y)
    assert held_out["valid"].x.tobytes() == images.train_images[:number].tobytes()
    assert train.x.tobytes() == images.train_images[number:].tobytes()
    assert test.x.tobytes() == held_out["test"].x.tobytes() == images.test_images.tobytes()
    assert held_out["valid"].label_smoothing == 0.1 and held_out["test"].label_smoothing == 0
    return number, len(train.y)


def test_the_first_images_are_held_out(parse):
    parse(RUN, "--dataset=sample", "--valid_size=500")
    settings.check()
    assert check_split(Images.read().load()) == (500, 7500)
    parse(RUN, "--dataset=sample", "--eval_subset=20", "--nosmooth_valid_labels")
    settings.check()
    _, held_out, test = Rounds.read().split(Images.read().load())
    assert (len(held_out["valid"].y), len(held_out["test"].y), len(test.y)) == (20, 20, 2000)
    assert held_out["valid"].label_smoothing == 0


@pytest.mark.reference_data
@pytest.mark.skipif(not REFERENCE, reason="set TRS_DATA_DIR to the folder of the real data sets")
def test_the_first_ten_thousand_digits_are_held_out(parse):
    parse(RUN, f"--data_dir={REFERENCE}")
    settings.check()
    assert check_split(Images.read().load()) == (10_000, 50_000)


FGSM, PGD = ("--attack=fgsm",), ("--attack=pgd",)


@pytest.mark.slow
@pytest.mark.reference_data
@pytest.mark.skipif(not REFERENCE, reason="set TRS_DATA_DIR to the folder of the real data sets")
@pytest.mark.parametrize(
    ("dataset", "iters", "arguments", "levels"),
    [
        ("digits", 1000, PGD, {"acc": (0.957, 0.987), "adv_acc": (0, 0.08)}),
        ("digits", 1000, FGSM, {"acc": (0.957, 0.987), "adv_acc": (0, 0.15)}),
        ("digits", 2000, (*FGSM, "--adv_train"), {"acc": (0.957, 0.987), "adv_acc": (0.75, 0.94), "pgd": (0, 0.1)}),
        ("digits", 2000, (*PGD, "--adv_train"), {"acc": (0.963, 0.993), "adv_acc": (0.2, 0.33)}),
        ("fashion", 2000, (*FGSM, "--adv_train"), {"acc": (0.841, 0.871), "adv_acc": (0.75, 0.88), "pgd": (0, 0.1)}),
    ],
)
def test_levels_on_real_data(dataset, iters, arguments, levels, tmp_path):
    """One trial against a reference of one run."""
    data_dir = (f"--data_dir={REFERENCE}",)
    if dataset == "fashion" and not any(Path(REFERENCE).glob("[Ff]ashion*")):
        data_dir = ()
    common = (f"--dataset={dataset}", *data_dir, "--trials=1", "--prune_iters=0", "--eval_every=1000")
    run_script(RUN, *common, f"--train_iters={iters}", *arguments, f"--base_dir={tmp_path}").expect()
    (path,) = tmp_path.glob("*/*/*/*/*/trial_00/prune_iter_00/summary.json")
    about = json.loads(path.read_text())
    found = dict(about["final"]["test"])
    if "test_pgd" in about["final_measures"]:
        found["pgd"] = about["final_measures"]["test_pgd"]["adversarial_accuracy"]
    for name, (low, high) in levels.items():
        assert low <= found[name] <= high, f"{name}: {found[name]}"
