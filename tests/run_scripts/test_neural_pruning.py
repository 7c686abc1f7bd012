"""Neural pruning from the command line: base, gates on it, and evaluation by white and black box."""

import json

import keras
import numpy as np
import pytest

import tf_robust_sparse as trs
from run_scripts import common_flags, neural_flags, training_run
from run_scripts.command_line import BadFlag
from tests.run_scripts.conftest import ROOT, results, run_script
from tests.run_scripts.test_bad_input import assert_explained

SCRIPT = "run_neural_pruning"
TINY = (
    *("--net=lenet_conv", "--data=fashion_mnist_sample", "--train_examples=256", "--test_examples=64", "--n_epochs=2"),
    *("--lr_schedule=constant", "--eps=0.1", "--step_size=0.05", "--pgd_steps=2", "--pgd_iters=2"),
)
FLAGFILES = sorted(path.stem for path in (ROOT / "flags" / "neural").glob("*.flags"))
ROWS = ("standard", "at", "at_vs", "trades", "at_bnn", "source_at", "pretrained_at", "bp", "anp", "anp_vs")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A base, gates trained on it, and the source of black-box attacks."""
    place = tmp_path_factory.mktemp("runs")
    run_script(SCRIPT, *TINY, f"--output_dir={place / 'base'}").expect()
    gated = run_script(
        *(SCRIPT, *TINY, "--mode=bbd", "--adv_train", "--beta_weight=4", "--lambda_weight=1e-3", "--init_lr=0.1"),
        *(f"--init_from={place / 'base'}", f"--output_dir={place / 'gated'}"),
    ).expect()
    assert "Objective: VulnerabilitySuppression" in gated.out
    run_script(SCRIPT, *TINY, "--adv_train", "--train_source", f"--output_dir={place / 'source'}").expect()
    return place


def test_what_a_run_leaves(runs):
    found = results(runs / "gated")
    assert found["mode"] == "bbd" and found["init_from"] == str(runs / "base")
    history = json.loads((runs / "gated" / "checkpoints" / "history.json").read_text())
    counted = [history[-1][f"active_gate{number}"] for number in range(1, 5)]
    assert found["efficiency"]["active_units"] == counted
    assert found["efficiency"]["sparsity"] == pytest.approx(100 - 100 * sum(counted) / 1370)
    assert found["white_box"]["vulnerability"] == pytest.approx(
        np.mean(list(found["white_box"]["vulnerability_per_layer"].values()))
    )
    assert len(found["white_box"]["vulnerability_per_channel"]["relu1"]) == 20
    network = trs.load_network(runs / "gated")
    assert [int(layer.active_units()) for layer in trs.layers.gates(network)] == counted
    assert results(runs / "base")["efficiency"]["speed_up"] == 1


def test_gates_begin_with_the_weights_and_statistics_of_the_base(runs, parse, tmp_path):
    parse(SCRIPT, *TINY, "--mode=bbd", f"--init_from={runs / 'base'}")
    neural_flags.check()
    run = training_run.prepare(tmp_path / "run")
    network, base = neural_flags.network(run), trs.load_network(runs / "base")
    for layer in base.layers:
        for a, b in zip(layer.weights, network.get_layer(layer.name).weights, strict=True):
            np.testing.assert_array_equal(a, b)


def test_evaluation_writes_costs_and_attacks(runs):
    gated = (SCRIPT, *TINY, "--mode=bbd", "--adv_train", f"--output_dir={runs / 'gated'}")
    cost = run_script(*gated, "--eval_mode=test").expect()
    assert "speed up" in cost.out
    written = json.loads((runs / "gated" / "cost.json").read_text())
    assert written["clean_accuracy"] == results(runs / "gated")["clean_accuracy"]
    done = run_script(*gated, "--eval_mode=attack", "--draw_loss", "--gpuid=0").expect()
    assert (runs / "gated" / "loss_surface.png").read_bytes()[:4] == b"\x89PNG" and "loss_surface.png" in done.out
    white = json.loads((runs / "gated" / "white_box.json").read_text())
    for name in ("robust_accuracy", "vulnerability"):
        assert white[name] == pytest.approx(results(runs / "gated")["white_box"][name], abs=1e-4)
    for source in ("source", "gated"):
        run_script(*gated, "--eval_mode=attack", "--nowhite_box", f"--source={runs / source}").expect()
        black = json.loads((runs / "gated" / "black_box.json").read_text())
        if source == "source":
            assert black["robust_accuracy"] >= white["robust_accuracy"] - 0.01
            assert black["vulnerability"] != white["vulnerability"]
        else:  # its own source: the white-box attack
            assert black["robust_accuracy"] == pytest.approx(white["robust_accuracy"], abs=2e-3)
            assert black["vulnerability"] == pytest.approx(white["vulnerability"], rel=1e-4)


def test_networks_that_draw_their_weights(tmp_path):
    bayes = [flag for flag in TINY if not flag.startswith("--net")]
    done = run_script(SCRIPT, *bayes, "--net=lenet_conv_bayes", "--adv_train", f"--output_dir={tmp_path / 'run'}")
    done.expect()
    found = results(tmp_path / "run")
    assert found["objective"]["objective"] == "KLPenalty"
    assert found["objective"]["strength"] == pytest.approx(1 / (256 * 100))
    assert found["efficiency"] == {"memory": 200, "speed_up": 0.5, "sparsity": 0}


@pytest.mark.parametrize("name", FLAGFILES)
def test_flagfiles_parse(name, parse):
    flags = parse(SCRIPT, f"--flagfile=flags/neural/{name}.flags")
    neural_flags.check()
    common_flags.check()
    data, _, row = name.partition("_")
    assert (flags.data, flags.epochs, flags.batch_size, flags.validation_examples) == (data, 200, 64, 0)
    assert flags.mode == ("bbd" if row in ("bp", "anp", "anp_vs") else "base")
    assert flags.adv_train == (row not in ("standard", "bp"))
    assert neural_flags.chosen().kernel == ("bayesian" if row == "at_bnn" else "plain")
    assert (flags.adv_train and flags.vulnerability) == row.endswith("_vs")
    published = {"mnist": (0.3, 0.01, 20, 4, 1e-3), "cifar10": (0.03, 0.007, 10, 2, 1e-4)}
    expected = published.get(data, (0.03, 0.007, 10, 1, 0.1))
    assert (flags.epsilon, flags.step_size, flags.num_steps, flags.beta_weight, flags.lambda_weight) == expected
    assert neural_flags.evaluation_attack().num_steps == 40


def test_there_is_a_flagfile_for_every_row():
    assert sorted(f"{data}_{row}" for data in ("mnist", "cifar10", "cifar100") for row in ROWS) == FLAGFILES


@pytest.mark.parametrize(
    ("net", "images", "mode", "boundaries", "rates"),
    [
        ("lenet_conv", 60_000, "base", (93_700, 131_180), (1e-3, 1e-4, 1e-5)),
        ("lenet_conv", 60_000, "bbd", (93_700, 131_180), (1e-2, 1e-3, 1e-4)),
        ("vgg16", 50_000, "base", (78_100, 124_960), (1e-3, 1e-4, 1e-5)),
    ],
)
def test_learning_rates(net, images, mode, boundaries, rates, parse):
    parse(SCRIPT, f"--net={net}", f"--mode={mode}", "--init_from=somewhere")
    run = training_run.TrainingRun(None, None, None, None, None, 200, images // 64, False)
    optimizer = neural_flags.optimizer(run)
    schedule = optimizer._learning_rate
    assert isinstance(schedule, keras.optimizers.schedules.PiecewiseConstantDecay)
    assert tuple(schedule.boundaries) == boundaries and tuple(schedule.values) == pytest.approx(rates)
    if mode == "bbd":
        assert (optimizer.gate_rate, optimizer.weight_rate) == (1, 0.1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--net=lenet_conv_bayes", "--mode=bbd"], "--net=lenet_conv or vgg16"),
        (["--trades_beta=3"], "--trades_beta: expected --adv_train --robust_loss=trades"),
        (["--vulnerability"], "--vulnerability: expected --adv_train"),
        (["--net=vgg16_bayes", "--mixed_precision"], "float32"),
    ],
)
def test_what_does_not_go_together(words, message, parse):
    parse(SCRIPT, *words)
    with pytest.raises(BadFlag) as refused:
        neural_flags.check()
    assert message in str(refused.value)


def test_what_is_missing_is_named(tmp_path, monkeypatch, runs):
    monkeypatch.chdir(tmp_path)
    done = run_script(SCRIPT, *TINY, "--mode=bbd")
    assert_explained(done, "--mode=bbd", "--init_from", "saved_models/lenet_conv/fashion_mnist_sample/default/base")
    assert_explained(run_script(SCRIPT, *TINY, "--eval_mode=test"), "--output_dir", "no network.keras")
    black = ("--eval_mode=attack", "--nowhite_box", f"--output_dir={runs / 'gated'}")
    assert_explained(run_script(SCRIPT, *TINY, *black), "--source", "adv_train/attack_source/base")
    assert_explained(run_script(SCRIPT, *TINY, "--attack_ord=2"), "attack_ord")
    assert_explained(run_script(SCRIPT, *TINY, "--draw_loss"), "--draw_loss", "--eval_mode=attack")
    small = run_script(SCRIPT, *TINY[1:], "--net=vgg16", f"--output_dir={tmp_path / 'run'}")
    assert_explained(small, "--model=vgg16", "32x32")
    assert not (tmp_path / "saved_models").exists() and not (tmp_path / "run").exists()


def test_directories_are_those_of_the_original(parse):
    for words, expected in (
        ([], "lenet_conv/mnist/default/base"),
        (["--mode=bbd", "--adv_train"], "lenet_conv/mnist/adv_train/default/bbd"),
        (["--net=vgg16", "--adv_train", "--train_source"], "vgg16/cifar10/adv_train/attack_source/base"),
    ):
        parse(SCRIPT, *words)
        neural_flags.check()
        assert str(neural_flags.directory()) == f"saved_models/{expected}"
