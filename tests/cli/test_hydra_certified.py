"""Training by bounds from the command line, through all phases."""

import csv
import time

import keras
import numpy as np
import pytest

import tf_robust_sparse as trs
from tests.cli.conftest import run_script
from tests.cli.hydra_runs import HYDRA, checked, results
from tests.cli.test_bad_input import assert_explained
from tf_robust_sparse.cli.command_line import BadFlag, BadInput
from tf_robust_sparse.cli.hydra.settings import plan
from tf_robust_sparse.cli.hydra.trainers import Validation
from tf_robust_sparse.sparsity.scores import subnet_layers

FEW = (
    *("--model=lin_2", "--batch_size=32", "--augmentation=none"),
    *("--epsilon=0.02", "--step_size=0.01", "--num_steps=2", "--pgd_iters=5", "--pgd_restarts=1"),
)
ADAM = ("--optimizer=adam", "--lr=0.001", "--prune_lr=0.001", "--finetune_lr=0.001")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A file of 120 + 24 images of 8x8 pixels, of three classes by their brightest row."""
    path, random = tmp_path_factory.mktemp("images") / "rows.npz", np.random.default_rng(0)
    arrays = {}
    for name, number in (("train", 120), ("test", 24)):
        y = np.arange(number) % 3
        x = random.integers(0, 80, (number, 8, 8, 1))
        x[np.arange(number), 2 * y + 1] += 150
        arrays |= {f"x_{name}": x.astype(np.uint8), f"y_{name}": y}
    np.savez(path, **arrays)
    return f"--data={path}"


def history(directory):
    with (directory / "checkpoints/history.csv").open() as file:
        return list(csv.DictReader(file))


OBJECTIVES = {"crown-ibp": "CrownIBP", "ibp": "IBP", "mixtrain": "MixTrain", "mtl-ibp": "MTLIBP", "sabr": "SABR"}


def check(trainer, directory, epochs):
    """What every phase leaves: verified <= attacked <= clean."""
    found = results(directory)
    assert found["epochs"] == epochs and found["objective"]["objective"] == OBJECTIVES[trainer]
    assert found["verified"]["epsilon"] == 0.02 and found["verified"]["images"] == 24
    shares = found["verified"]["accuracy"]
    assert set(shares) == {"ibp", "crown-ibp", *(["zonotope"] if trainer == "mixtrain" else [])}
    assert max(shares.values()) <= found["robust_accuracy"] <= found["clean_accuracy"]
    assert found["selected"]["by"] == "best_certified"
    assert found["selected"]["monitor"] == "val_verified_accuracy"
    return found


CROWN = (*FEW, *ADAM, "--epochs=3", "--schedule_length=2", "--trainer=crown-ibp", "--final_kappa=0.5")


@pytest.mark.full
def test_a_phase_under_bounds(images, tmp_path):
    """Sparse from the start, as the phases after the first are."""
    sparse = ("--exp_mode=pretrain", "--layer_type=subnet", "--k=0.2")
    done = run_script(HYDRA, images, *CROWN, *sparse, f"--output_dir={tmp_path / 'run'}").expect()
    assert check("crown-ibp", tmp_path / "run", 3)["connectivity"] == pytest.approx(0.2, abs=1e-3)
    assert done.out.count("Verified  ") == 1 and "by crown-ibp" in done.out


@pytest.mark.full
def test_three_phases_under_bounds(images, tmp_path):
    run = tmp_path / "run"
    more = ("--prune_epochs=1", "--finetune_epochs=2", "--k=0.2", f"--output_dir={run}")
    done = run_script(HYDRA, images, *CROWN, *more).expect()
    check("crown-ibp", run / "pretrain", 3)
    check("crown-ibp", run / "prune", 1)
    found = check("crown-ibp", run / "finetune", 2)
    assert found["connectivity"] == pytest.approx(0.2, abs=1e-3)
    assert done.out.count("Verified  ") == 3 and "by crown-ibp" in done.out
    assert len(subnet_layers(trs.load_network(run / "finetune"))) == 2


@pytest.mark.parametrize(
    ("trainer", "looked_at", "more"),
    [
        pytest.param(
            "ibp", [True, True, True], ["--epsilon_schedule=smoothed", "--final_kappa=0.5"], marks=pytest.mark.full
        ),
        ("mtl-ibp", [True, True, True], ["--ibp_alpha=0.3", "--attack_scale=2.1", "--ibp_regularizer=0.5"]),
        pytest.param("sabr", [True, True, True], ["--box_ratio=0.5"], marks=pytest.mark.full),
        pytest.param("mixtrain", [False, False, True], ["--mixtraink=2", "--bound_chunk=512"], marks=pytest.mark.full),
    ],
)
def test_other_trainers_by_bounds(trainer, looked_at, more, images, tmp_path):
    command = (
        *(HYDRA, images, *FEW, *ADAM, "--exp_mode=pretrain", "--epochs=3", "--schedule_length=1"),
        *(f"--trainer={trainer}", f"--output_dir={tmp_path / 'run'}", *more),
    )
    run_script(*command).expect()
    check(trainer, tmp_path / "run", 3)
    assert [bool(row["val_verified_accuracy"]) for row in history(tmp_path / "run")] == looked_at


def _interrupt_the_third(self, epoch, logs=None):
    self._begin = self._trained = time.perf_counter()
    if epoch == 2:
        raise KeyboardInterrupt


@pytest.mark.full
def test_a_run_whose_radius_grows_goes_on_where_it_was(images, tmp_path, monkeypatch):
    """The radius of a step is that of the uninterrupted run."""
    command = (
        *(HYDRA, images, *FEW, *ADAM, "--exp_mode=pretrain", "--trainer=ibp", "--schedule_length=3"),
        "--starting_epsilon=0.01",
    )
    whole, parts = (tmp_path / name for name in ("whole", "parts"))
    run_script(*command, "--epochs=3", f"--output_dir={whole}").expect()
    with monkeypatch.context() as patched:
        patched.setattr(trs.training.Checkpoints, "on_epoch_begin", _interrupt_the_third)
        assert run_script(*command, "--epochs=3", f"--output_dir={parts}").code
    assert len(history(parts)) == 2
    done = run_script(*command, "--epochs=3", f"--output_dir={parts}", "--resume", "--schedule_length=2")
    assert_explained(done, "--resume", "schedule_length=3")
    run_script(*command, "--epochs=3", f"--output_dir={parts}", "--resume").expect()
    assert [row["loss"] for row in history(whole)] == [row["loss"] for row in history(parts)]
    for one, two in zip(trs.load_network(whole).variables, trs.load_network(parts).variables, strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
    ("words", "val_method", "select"),
    [
        ([], "adv", "best_robust"),
        (["--trainer=base"], "base", "best_clean"),
        (["--trainer=base", "--val_method=adv"], "adv", "best_robust"),
        (["--trainer=crown-ibp"], "ibp", "best_certified"),
        (["--trainer=smooth"], "smooth", "best_certified"),
        (["--trainer=crown-ibp", "--val_method=crown-ibp", "--select=last"], "crown-ibp", "last"),
        (["--trainer=adv", "--val_method=ibp", "--select=best_clean"], "ibp", "best_clean"),
    ],
)
def test_epochs_are_compared_as_the_trainer_trains(words, val_method, select, parse):
    flags = checked(parse, "--epsilon=0.1", *words)
    assert (flags.val_method, flags.select) == (val_method, select)


def test_schedules_of_a_phase(parse):
    def lengths(*arguments):
        parse(HYDRA, "--trainer=mixtrain", "--val_method=mixtrain", "--schedule_length=7", *arguments)
        return [plan(name).first_looked_at for name in ("pretrain", "prune", "finetune")]

    assert lengths() == [8, 0, 0]
    assert lengths("--prune_schedule_length=3") == [8, 4, 0]
    assert lengths("--exp_mode=finetune")[2] == 8
    assert lengths("--exp_mode=finetune", "--finetune_schedule_length=2")[2] == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--trainer=adv", "--final_beta=0.5"], "--final_beta=0.5 belongs to --trainer=crown-ibp"),
        (["--trainer=adv", "--val_method=ibp", "--norm=l2"], "--val_method=ibp computes bounds in l-infinity"),
        (["--trainer=ibp", "--mixed_precision"], "--trainer=ibp computes bounds in float32"),
        (["--trainer=crown-ibp", "--epsilon=0"], "--epsilon=0: expected a radius above 0 and below 1"),
        (["--trainer=crown-ibp", "--epsilon=0.1", "--starting_epsilon=0.2"], "--starting_epsilon=0.2"),
        (["--trainer=smooth", "--noise_std=0"], "--noise_std=0"),
        (["--trainer=crown-ibp", "--select=best_robust"], "--select=best_certified or last"),
    ],
)
def test_what_does_not_go_together(words, message, parse):
    with pytest.raises(BadFlag) as refused:
        checked(parse, *words)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--epochs=2", "--schedule_start=50"], "--schedule_start=50 belongs to"),
        (["--epochs=9", "--schedule_length=10"], "--schedule_length=10: expected a pretrain phase of at least 10"),
        (["--epochs=9", "--schedule_length=5", "--schedule_start=5"], "--schedule_length=5 --schedule_start=5"),
        (["--epochs=9", "--prune_schedule_length=21"], "--prune_schedule_length=21: expected a prune phase"),
        (
            ["--epochs=9", "--exp_mode=finetune", "--source_net=x", "--finetune_epochs=3", "--schedule_length=4"],
            "--schedule_length=4: expected a finetune phase of at least 4",
        ),
        (["--trainer=mixtrain", "--epochs=9", "--schedule_length=8"], "a pretrain phase of at least 10"),
        (["--trainer=mixtrain", "--epochs=9", "--schedule_length=9", "--val_method=ibp"], "of at least 10"),
    ],
)
def test_a_radius_that_a_phase_does_not_reach_is_refused(words, message, parse):
    words = ("--trainer=crown-ibp", "--epsilon=0.1", *words)
    with pytest.raises(BadFlag) as refused:
        checked(parse, *words)
    assert message in str(refused.value)
    if "--schedule_start=50" not in words:
        checked(parse, *words, "--load_model")
        checked(parse, *words, "--epochs=10", "--prune_epochs=21", "--finetune_epochs=10")


@pytest.mark.parametrize("words", [["--trainer=ibp"], ["--trainer=adv", "--val_method=crown-ibp"]])
def test_a_network_without_bounds_is_named_before_it_trains(words, parse):
    inputs = keras.Input((8, 8, 3))
    outputs = keras.layers.Dense(3)(keras.layers.Flatten()(keras.layers.Activation("tanh", name="bent")(inputs)))
    parse(HYDRA, "--epsilon=0.1", *words)
    with pytest.raises(BadInput, match=r"--model.*tanh of bent"):
        Validation.read().check_network(keras.Model(inputs, outputs))
