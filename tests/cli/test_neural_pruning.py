"""Neural pruning from the command line: base, gates on it, and evaluation by white and black box."""

import functools
import importlib
import json
import shutil

import keras
import numpy as np
import pytest

import tf_robust_sparse as trs
from tests.cli.conftest import results, run_script
from tests.cli.drill import survive
from tests.cli.test_bad_input import assert_explained
from tests.cli.test_runs import assert_same_weights
from tf_robust_sparse.cli import neural, recipes, run_directory, settings, training_run
from tf_robust_sparse.cli.command_line import BadFlag
from tf_robust_sparse.evaluation.latency import median_latency
from tf_robust_sparse.models import vgg

efficiency = importlib.import_module("tf_robust_sparse.evaluation.efficiency")  # the function has its name

SCRIPT = "run_neural_pruning"
TINY = (
    *("--net=lenet_conv", "--data=fashion_mnist_sample", "--train_examples=256", "--test_examples=64", "--n_epochs=2"),
    *("--lr_schedule=constant", "--eps=0.1", "--step_size=0.05", "--pgd_steps=2", "--pgd_iters=2"),
)
FLAGFILES = sorted(
    name.removeprefix("neural/") for name, recipe in recipes.recipes().items() if recipe.command == "neural"
)


GATED = (*TINY, "--mode=bbd", "--adv_train", "--beta_weight=4", "--lambda_weight=1e-3", "--init_lr=0.1")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A base, gates trained on it, and an untrained source of black-box attacks."""
    place = tmp_path_factory.mktemp("runs")
    run_script(SCRIPT, *TINY, f"--output_dir={place / 'base'}").expect()
    gated = run_script(SCRIPT, *GATED, f"--init_from={place / 'base'}", f"--output_dir={place / 'gated'}").expect()
    assert "Objective: VulnerabilitySuppression" in gated.out
    trs.save_network(trs.models.lenet_conv(seed=1), place / "source")
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


@pytest.mark.full
def test_a_run_that_is_killed_goes_on_bit_by_bit(runs, tmp_path):
    command = (SCRIPT, *GATED, f"--init_from={runs / 'base'}", f"--output_dir={tmp_path / 'run'}", "--resume")
    survive(lambda: run_script(*command), [("checkpoints/last.weights.h5", 2)])
    assert_same_weights(runs / "gated", tmp_path / "run")
    for measured in ("clean_accuracy", "robust_accuracy", "white_box", "efficiency", "init_from"):
        assert results(tmp_path / "run")[measured] == results(runs / "gated")[measured]


def test_what_an_epoch_logs(runs):
    logs = {name: json.loads((runs / name / "checkpoints" / "history.json").read_text()) for name in ("base", "gated")}
    base, gated = logs["base"][-1], logs["gated"][-1]
    assert {"loss", "accuracy", "learning_rate"} <= set(base) and base["learning_rate"] == pytest.approx(1e-3)
    assert not {"adversarial_loss", "vulnerability", "divergence", "zero_units"} & set(base)
    assert (gated["gate_learning_rate"], gated["learning_rate"]) == pytest.approx((0.1, 0.01))
    assert gated["zero_units"] == pytest.approx(results(runs / "gated")["efficiency"]["sparsity"])
    assert gated["clean_loss"] > 0 and 0 <= gated["adversarial_accuracy"] <= 1 and gated["vulnerability"] > 0
    weighted = (gated["clean_loss"] + 2 * gated["adversarial_loss"]) / 3 + 1e-3 * gated["vulnerability"]
    images = 256
    of_gates = gated["loss"] - weighted  # the divergence, at its mean of the epoch and so above that of its end
    assert of_gates > 4 * gated["divergence"] / images
    assert len(logs["gated"]) == 2


@pytest.mark.parametrize("kind", ["at", "vs", "trades", "bp", "bnn"])
def test_what_is_minimized(kind, runs, parse, tmp_path):
    words = {
        "at": ["--adv_train", "--novulnerability", "--adv_weight=3", "--nojoint_bn"],
        "vs": ["--adv_train", "--mode=bbd", "--lambda_weight=0.5", "--vulnerability_type=max", "--beta_weight=4"],
        "trades": [
            "--adv_train",
            "--robust_loss=trades",
            "--trades_beta=5",
            "--novulnerability",
            "--novs_shared_noise",
        ],
        "bp": ["--mode=bbd", "--beta_weight=4"],
        "bnn": ["--adv_train", "--novulnerability", "--kl_weight=50"],
    }[kind]
    net = "lenet_conv_bayes" if kind == "bnn" else "lenet_conv"
    parse(
        SCRIPT,
        *TINY[1:],
        f"--net={net}",
        *words,
        f"--init_from={runs / 'base'}" if "--mode=bbd" in words else "--seed=1",
    )
    settings.check()
    run = training_run.prepare(tmp_path / "run")
    model = neural.objects.model(run, neural.objects.network(run))
    objective, optimizer = model.objective, model.optimizer
    assert optimizer.epsilon == 1e-8 and model.shared_noise is (kind != "trades")
    assert optimizer.l2 == (0 if kind == "bnn" else 1e-4)
    if kind == "at":
        assert type(objective) is trs.objectives.CleanAndAdversarial
        assert (objective.adversarial_weight, objective.joint) == (pytest.approx(3 / 4), False)
    elif kind == "vs":
        assert (objective.strength, objective.kind, objective.objective.joint) == (0.5, "max", True)
        assert objective.objective.adversarial_weight == pytest.approx(2 / 3)
        assert model.divergence_weight == pytest.approx(4 / 256)
    elif kind == "trades":
        assert type(objective) is trs.objectives.TRADES and objective.beta == 5
    elif kind == "bp":
        assert type(objective) is trs.objectives.Natural
        assert model.divergence_weight == pytest.approx(1 / 256)  # beta is for attacked images
    else:
        assert type(objective) is trs.objectives.KLPenalty and objective.strength == pytest.approx(1 / (256 * 50))


def test_the_source_begins_elsewhere(parse, tmp_path):
    kernels = []
    for words in (["--adv_train"], ["--adv_train", "--train_source"]):
        parse(SCRIPT, *TINY, *words)
        kernels.append(
            np.array(neural.objects.network(training_run.prepare(tmp_path / "run")).get_layer("conv1").kernel)
        )
    assert np.abs(kernels[0] - kernels[1]).max() > 0.1


@pytest.mark.parametrize("words", [["--adv_train"], []])
def test_the_source_of_black_boxes_is_trained_as_the_target_is(words, runs):
    black = (SCRIPT, *TINY, *words, "--eval_mode=attack", "--nowhite_box", f"--output_dir={runs / 'gated'}")
    line = assert_explained(run_script(*black), "--source=", "attack_source/base")
    assert ("/adv_train/attack_source" in line) == bool(words)


def test_gates_standardize_images_as_their_base_does(parse, capsys):
    base, built = (trs.models.build("vgg16_dropout") for _ in range(2))
    base.get_layer("standardization").epsilon = 1 / 3072  # of older versions
    neural.objects.check_start(base, built, "somewhere")
    assert built.get_layer("standardization").get_config()["epsilon"] == 1 / 3072
    assert "epsilon=0.000325521, as of somewhere" in capsys.readouterr().out


def test_what_differs_from_the_published_code_is_listed(parse):
    parse(SCRIPT, *TINY, "--adv_train")
    lenet = neural.settings.deviations()
    parse(SCRIPT, *TINY[1:], "--net=vgg16", "--adv_train", "--mode=bbd", "--novulnerability")
    vgg = neural.settings.deviations()
    assert any("first layer" in text for text in lenet) and not any("first layer" in text for text in vgg)
    assert any("pixels of [0, 1]" in text for text in vgg) and not any("pixels of [0, 1]" in text for text in lenet)


def test_features_are_layers():
    for network in neural.settings.NETWORKS.values():
        if network.features is None:  # all ReLUs
            continue
        names = {layer.name for layer in trs.models.build(network.builder).layers}
        assert set(network.features) <= names


@pytest.mark.full
def test_vgg16_from_the_command_line(tmp_path, monkeypatch):
    """With one convolution in each of its five blocks."""
    monkeypatch.setitem(vgg.VGG_WIDTHS, 16, ((64,), (16,), (16,), (16,), (16,)))
    whole = efficiency._ARCHITECTURES["vgg16_dropout"]
    short = whole._replace(channels=(64, 16, 16, 16, 16), pooled=(1, 2, 3, 4, 5))
    monkeypatch.setitem(efficiency._ARCHITECTURES, "vgg16_dropout", short)
    chosen = neural.settings.NETWORKS["vgg16"]
    features = ("relu1", "relu2", "relu3", "relu4", "relu5", "dense14", "relu14")
    monkeypatch.setitem(neural.settings.NETWORKS, "vgg16", chosen._replace(features=features))
    x = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), np.uint8)
    np.savez(tmp_path / "a.npz", x_train=x, y_train=np.arange(40) % 10, x_test=x[:8], y_test=np.arange(8))
    few = (SCRIPT, "--net=vgg16", f"--data={tmp_path / 'a.npz'}", "--n_epochs=1", "--batch_size=20", "--pgd_iters=1")
    run_script(*few, f"--output_dir={tmp_path / 'base'}").expect()
    gated = (*few, "--mode=bbd", "--adv_train", "--pgd_steps=1", f"--output_dir={tmp_path / 'gated'}")
    done = run_script(*gated, f"--init_from={tmp_path / 'base'}").expect()
    found = results(tmp_path / "gated")
    assert len(found["white_box"]["vulnerability_per_layer"]) == 7
    assert "augmentation" not in done.out and found["efficiency"]["units"][:2] == [64, 16]
    flags = (tmp_path / "base" / "run.flags").read_text()
    assert "--augmentation=crop" in flags
    shutil.rmtree(tmp_path / "base")
    again = run_script(*gated, "--resume").expect()  # the base is not needed any more
    assert "nothing to resume" in again.out
    other = run_script(*few, "--mode=bbd", f"--init_from={tmp_path / 'gated'}", "--input_norm=none")
    assert_explained(other, "--init_from", "standardization", "--input_norm")


def test_gates_begin_with_the_weights_and_statistics_of_the_base(runs, parse, tmp_path):
    parse(SCRIPT, *TINY, "--mode=bbd", f"--init_from={runs / 'base'}")
    settings.check()
    run = training_run.prepare(tmp_path / "run")
    network, base = neural.objects.network(run), trs.load_network(runs / "base")
    for layer in base.layers:
        for a, b in zip(layer.weights, network.get_layer(layer.name).weights, strict=True):
            np.testing.assert_array_equal(a, b)


def test_evaluation_writes_costs_and_attacks(runs, monkeypatch):
    monkeypatch.setattr(neural.objects, "median_latency", functools.partial(median_latency, seconds=0.02))
    coarse = functools.partial(neural.objects.evaluation_loss_surface, points=5)
    monkeypatch.setattr(neural.objects, "evaluation_loss_surface", coarse)
    gated = (SCRIPT, *TINY, "--mode=bbd", "--adv_train", f"--output_dir={runs / 'gated'}")
    cost = run_script(*gated, "--eval_mode=test").expect()
    assert "speed up" in cost.out and "batch of 64" in cost.out
    written = json.loads((runs / "gated" / "cost.json").read_text())
    left = written["materialised"]
    assert left["units"]["conv1"] == written["active_units"][0] and 0 < left["parameters"] <= 100
    assert set(left["latency"]) == {"1", "64", "256"} and min(left["latency"]["1"].values()) > 0
    monkeypatch.setattr(neural.objects, "median_latency", lambda networks, _: dict.fromkeys(networks, 1.0))
    stricter = run_script(*gated, "--eval_mode=test", "--thres=0.5").expect()
    assert "speed up" in stricter.out
    network = trs.load_network(runs / "gated")
    open_at_half = [int(np.sum(np.array(layer.mean()) > 0.5)) for layer in trs.layers.gates(network)]
    assert json.loads((runs / "gated" / "cost.json").read_text())["active_units"] == open_at_half
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


@pytest.mark.full
def test_networks_that_draw_their_weights_for_images_of_another_size(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (40, 20, 24, 3), np.uint8)
    np.savez(tmp_path / "a.npz", x_train=x, y_train=np.arange(40) % 4, x_test=x[:8], y_test=np.arange(8) % 4)
    few = (SCRIPT, "--net=lenet_conv_bayes", f"--data={tmp_path / 'a.npz'}", "--n_epochs=1", "--batch_size=20")
    run_script(*few, "--adv_train", "--pgd_steps=1", "--pgd_iters=1", f"--output_dir={tmp_path / 'run'}").expect()
    found = results(tmp_path / "run")
    assert found["objective"]["objective"] == "KLPenalty"
    assert found["objective"]["strength"] == pytest.approx(1 / (40 * 100))
    assert found["efficiency"] == {"memory": 200, "speed_up": 0.5, "sparsity": 0}


def test_units_of_images_of_another_size(parse):
    parse(SCRIPT, "--net=lenet_conv")
    found = neural.objects.efficiency(trs.models.lenet_conv(4, (20, 24, 3)))
    assert found["units"] == [20, 50, 2 * 3 * 50, 500] and (found["speed_up"], found["memory"]) == (1, 100)


@pytest.mark.parametrize("name", FLAGFILES)
def test_flagfiles_parse(name, parse):
    flags = parse(SCRIPT, f"--flagfile=flags/neural/{name}.flags")
    settings.check()
    data, _, row = name.partition("_")
    assert (flags.data, flags.epochs, flags.batch_size, flags.validation_examples) == (data, 200, 64, 0)
    assert flags.mode == ("bbd" if row in ("bp", "anp", "anp_vs") else "base")
    assert flags.adv_train == (row not in ("standard", "bp"))
    assert neural.settings.Network.read().kind.is_bayesian == (row == "at_bnn")
    assert (flags.adv_train and flags.vulnerability) == row.endswith("_vs")
    published = {"mnist": (0.3, 0.01, 20, 4, 1e-3), "cifar10": (0.03, 0.007, 10, 2, 1e-4)}
    expected = published.get(data, (0.03, 0.007, 10, 1, 0.1))
    assert (flags.epsilon, flags.step_size, flags.num_steps, flags.beta_weight, flags.lambda_weight) == expected
    assert neural.settings.Attack.read().for_evaluation().num_steps == 40


@pytest.mark.parametrize("name", [name for name in FLAGFILES if name.startswith(("mnist", "cifar10_"))])
def test_recorded_flags_repeat_the_run(name, parse, tmp_path):
    flags = parse(SCRIPT, f"--flagfile=flags/neural/{name}.flags")
    settings.check()
    expected = {each: flags[each].value for each in (*settings.identity(), "augmentation", "epsilon", "num_steps")}
    run_directory.write_flags(tmp_path / "run.flags")
    again = parse(SCRIPT, f"--flagfile={tmp_path / 'run.flags'}")
    settings.check()
    assert {each: again[each].value for each in expected} == expected


@pytest.mark.parametrize(
    ("net", "images", "mode", "boundaries", "rates"),
    [
        ("lenet_conv", 60_000, "base", (93_700, 131_180), (1e-3, 1e-4, 1e-5)),
        ("lenet_conv", 60_000, "bbd", (93_700, 131_180), (1e-2, 1e-3, 1e-4)),
        ("vgg16", 50_000, "base", (78_100, 124_960), (1e-3, 1e-4, 1e-5)),
        ("vgg16", 50_000, "bbd", (78_100, 124_960), (1e-2, 1e-3, 1e-4)),
    ],
)
def test_learning_rates(net, images, mode, boundaries, rates, parse):
    parse(SCRIPT, f"--net={net}", f"--mode={mode}", "--init_from=somewhere")
    steps = trs.data.steps_per_epoch(images, 64)
    assert steps == {60_000: 937, 50_000: 781}[images]
    optimizer = neural.settings.Optimizer.read().build(neural.settings.Network.read(), 200 * steps)
    schedule = optimizer._learning_rate
    assert isinstance(schedule, keras.optimizers.schedules.PiecewiseConstantDecay)
    assert tuple(schedule.boundaries) == boundaries and tuple(schedule.values) == pytest.approx(rates)
    if mode == "bbd":
        assert (optimizer.gate_rate, optimizer.weight_rate) == (1, 0.1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--net=lenet_conv_bayes", "--mode=bbd"], "pass --net=lenet_conv or vgg16"),
        (["--net=vgg16_bayes", "--mixed_precision"], "float32"),
    ],
)
def test_what_does_not_go_together(words, message, parse):
    parse(SCRIPT, *words)
    with pytest.raises(BadFlag) as refused:
        settings.check()
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["--weight_rate=0.2", "--init_lr=0.1", "--thres=0.1"], "weight_rate init_lr thres"),
        (["--adv_train", "--attack=fgsm", "--step_size=0.1", "--pgd_steps=3"], "step_size pgd_steps"),
        (["--mode=bbd", "--adv_train", "--init_lr=0.2", "--novs_shared_noise"], ""),
    ],
)
def test_flags_that_mean_nothing_are_said(words, names, parse, capsys):
    parse(SCRIPT, *words)
    settings.check()
    notes = capsys.readouterr().out.splitlines()
    assert {line.split("--")[1].split()[0].split("=")[0] for line in notes} == set(names.split())


def test_what_is_missing_is_named(tmp_path, monkeypatch, runs):
    monkeypatch.chdir(tmp_path)
    done = run_script(SCRIPT, *TINY, "--mode=bbd")
    assert_explained(done, "--mode=bbd", "--init_from", "saved_models/lenet_conv/fashion_mnist_sample/default/base")
    assert_explained(run_script(SCRIPT, *TINY, "--eval_mode=test"), "--output_dir", "does not exist")
    black = ("--eval_mode=attack", "--nowhite_box", f"--output_dir={runs / 'gated'}")
    assert_explained(run_script(SCRIPT, *TINY, *black), "--source", "sample/attack_source/base")
    assert_explained(run_script(SCRIPT, *TINY, "--attack_ord=2"), "attack_ord")
    bayes = (*TINY[1:], "--net=lenet_conv_bayes", "--eval_mode=test", f"--output_dir={runs / 'gated'}")
    assert_explained(run_script(SCRIPT, *bayes), "--net=lenet_conv_bayes", "--net=lenet_conv")
    dropped = (*TINY, f"--init_from={runs / 'gated'}", f"--output_dir={tmp_path / 'run'}")
    assert_explained(run_script(SCRIPT, *dropped), "--init_from", "gates", "--mode=bbd")
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
        settings.check()
        assert str(neural.settings.directory()) == f"saved_models/{expected}"
