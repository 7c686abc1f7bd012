"""Command lines of HYDRA's published code mean what they mean there."""

import functools
import re

import numpy as np
import pytest

import tf_robust_sparse as trs
from tests.cli.conftest import ROOT, run_script
from tests.cli.hydra_runs import FEW, HYDRA, checked, results
from tests.saving.test_pytorch_weights import state_dict
from tf_robust_sparse.cli import command_line, hydra, run_directory, training_run
from tf_robust_sparse.cli.command_line import BadFlag, BadInput
from tf_robust_sparse.cli.hydra.directories import Place
from tf_robust_sparse.cli.hydra.settings import Phases, plan
from tf_robust_sparse.data.pipeline import auxiliary_batch_size
from tf_robust_sparse.sparsity.scores import subnet_layers
from tf_robust_sparse.training.by_epoch import epoch_rates

PRETRAIN = ("--arch", "vgg16_bn", "--dataset", "CIFAR10", "--exp-mode", "pretrain")
CROWN_IBP = """
# in the form of its configurations
arch: "vgg16_bn"
exp_name: "temp"
exp_mode: "pretrain"
layer_type: "subnet"
init_type: "kaiming_normal"
k: 1.0
trainer: "base"
optimizer: "adam"
lr: 0.001
lr_schedule: "cosine"
val_method: base
dataset: CIFAR10
batch_size: 64
test_batch_size: 128
data_dir: "./datasets"
data_fraction: 1.0
semisup_data: "tinyimages"
semisup_fraction: 1.0
epsilon: 0.007
clip_min: 0
clip_max: 1
distance: "l_inf"
schedule_start: 0
starting_epsilon: 0
schedule_length: 60
mean: !!python/tuple [0.485, 0.456, 0.406]
gpu: "0"
seed: 1234
print_freq: 500"""


@pytest.fixture
def meaning(parse):
    """Returns a function from a command line to the flags that it comes to."""

    return functools.partial(checked, parse)


@pytest.fixture
def configs(tmp_path):
    path = tmp_path / "configs_crown-ibp.yml"
    path.write_text(CROWN_IBP)
    return f"--configs={path}"


def values(flags, names):
    return {name: flags[name].value for name in names}


def test_names_of_hydra(parse, meaning):
    flags = meaning(
        *("--arch", "vgg16_bn", "--dataset", "CIFAR10", "--exp-mode", "prune", "--k", "0.01"),
        *("--scaled-score-init", "--source-net", "x", "--trainer", "adv", "--val-method", "adv", "--save-dense"),
        *("--result-dir", "trained", "--exp-name", "one", "--num-classes", "10", "--data-fraction", "0.5"),
        *("--distance", "l_2", "--gpu", "0", "--print-freq", "10", "--test-batch-size", "5", "--clip-max", "1.0"),
    )
    assert (flags.model, flags.data, flags.norm, flags.k) == ("vgg16", "cifar10", "l2", 0.01)
    assert (flags.n_classes, flags.save_dense, flags.select) == (10, True, "best_robust")
    for arch, model in hydra.originals.MODELS.items():
        flags = parse(HYDRA, f"--arch={arch}")
        hydra.originals.translate()
        assert flags.model == model in trs.models.NETWORKS


def test_what_is_not_given_is_as_there_and_ours_on_our_command_lines(meaning, monkeypatch):
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    published = {
        **{"trainer": "base", "val_method": "base", "k": 1.0, "lr_schedule": "cosine_ref", "augmentation": "crop"},
        **{"flip": True, "seed": 1234, "epochs": 100, "learning_rate": 0.1, "weight_decay": 1e-4, "optimizer": "sgd"},
        **{"epsilon": 8 / 255, "step_size": 2 / 255, "num_steps": 10, "batch_size": 128, "init_type": None},
    }
    published |= {"init_type": "kaiming_normal_fan_out_vgg", "drop_last": False, "clean_updates": 1}
    assert values(meaning(*PRETRAIN), published) == published
    assert meaning(*PRETRAIN, "--dataset=SVHN").flip is True  # as its loader mirrors digits too
    assert meaning(*PRETRAIN, "--trainer=adv").clean_updates == 3
    monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS")
    assert meaning(*PRETRAIN).drop_last is True  # where an odd batch may crash
    given = {"trainer": "adv", "lr_schedule": "step", "flip": False, "seed": 3, "augmentation": "none"}
    words = [f"--{name}={value}" for name, value in given.items()]
    assert values(meaning(*PRETRAIN, *words), given) == given
    ours = {"trainer": "adv", "val_method": "adv", "k": 0.1, "lr_schedule": "cosine", "augmentation": "shift"}
    ours |= {"flip": None, "seed": 0, "init_type": None, "drop_last": True, "clean_updates": 1}
    for words in (("--data=cifar10", "--model=vgg16"), ("--data=cifar10", "--exp_name=x", "--gpu=0")):
        assert values(meaning(*words), ours) == ours


@pytest.mark.parametrize(
    ("arch", "there", "ours"),
    [
        ("vgg16_bn", "kaiming_uniform", "kaiming_uniform_fan_out_vgg"),
        ("vgg16_bn", "signed_const", "signed_const"),
        ("resnet18", "kaiming_normal", "pytorch"),
        ("wrn_28_4", "kaiming_normal", "kaiming_normal_fan_out_wrn"),
        ("mnist_model", "kaiming_normal", "pytorch"),
        ("ResNet50", "kaiming_normal", "kaiming_normal_fan_out"),
    ],
)
def test_networks_begin_as_there(arch, there, ours, meaning):
    assert meaning("--arch", arch, "--exp-mode=pretrain", "--init_type", there).init_type == ours
    if there == "kaiming_normal":
        assert meaning("--arch", arch, "--exp-mode=pretrain").init_type == ours
        with pytest.raises(BadFlag, match=r"--init_type=signed_const: expected kaiming_normal, as HYDRA draws"):
            vgg = arch.startswith("vgg")
            meaning("--arch", arch, "--exp-mode=pretrain", "--init_type", "lottery_binary" if vgg else "signed_const")
    prune = meaning("--arch", arch, "--exp-mode=prune", "--source-net=x", "--init_type", there)
    assert prune.init_type is None  # nothing is drawn


def test_a_configuration_lies_between_command_line_and_defaults(configs, meaning, capsys):
    file = {
        **{"model": "vgg16", "data": "cifar10", "norm": "linf", "optimizer": "adam", "learning_rate": 0.001},
        **{"batch_size": 64, "epsilon": 0.007, "schedule_length": 60, "exp_mode": "pretrain", "layer_type": "subnet"},
        **{"lr_schedule": "cosine_ref", "momentum": 0.9, "pseudo_labels": None, "exp_name": "temp"},
        "trainer": "crown-ibp",
    }
    crown = ("--trainer=crown-ibp", "--val_method=ibp")
    assert values(meaning(configs, *crown, "--train_examples=9"), file) == file
    flags = meaning(
        *(configs, *crown, "--arch", "cifar_model_large", "--dataset", "SVHN", "--lr=0.5", "--exp-name=mine"),
        *("--batch-size", "128", "--epochs", "200", "--schedule_length", "120"),
    )
    assert (flags.model, flags.data, flags.learning_rate, flags.batch_size) == ("large_cnn", "svhn", 0.5, 128)
    assert (flags.epochs, flags.schedule_length, flags.exp_name) == (200, 120, "mine")
    assert (flags.optimizer, flags.init_type) == ("adam", "kaiming_normal_fan_out")
    flags = meaning(configs, "--trainer=adv", "--val_method=adv")  # to which the settings of bounds mean nothing
    assert (flags.schedule_length, flags.epsilon) == (0, 0.007)
    assert not any("schedule_length" in line for line in run_directory.recorded_flags())
    prune = ("--exp-mode=prune", "--source-net=x", "--epochs=20")
    meaning(configs, *crown, *prune)  # a schedule longer than its phase
    assert "Note: --schedule_length=60: expected a prune phase of at least 60 epochs" in capsys.readouterr().out


def test_the_sub_network_command_only_prunes(configs, meaning, capsys):
    """That of its README, which leaves --exp-mode out."""
    adv = ("--trainer", "adv", "--val-method", "adv")
    flags = meaning("--arch", "wrn_28_4", configs, *adv, "--k", "0.5", "--source-net", "x")
    assert (flags.exp_mode, Phases.read().names, flags.k, flags.epochs) == ("prune", ("prune",), 0.5, 100)
    assert "without --exp_mode is the prune phase" in capsys.readouterr().out


def test_the_record_says_it_in_our_flags(configs, meaning, tmp_path):
    pickle = tmp_path / "labels.pickle"
    pickle.touch()
    more = ("--trainer=smooth", "--val_method=smooth", "--is-semisup", f"--semisup-data={pickle}", "--exp-name=mine")
    flags = meaning(configs, "--arch", "wrn_28_4", *more, "--dataset", "SVHN")
    before = {name: flags[name].value for name in command_line.names() if name not in hydra.originals.ONLY_THERE}
    record = tmp_path / "run.flags"
    run_directory.write_flags(record)
    flags = meaning(f"--flagfile={record}")
    assert not hydra.originals.given()
    assert {name: flags[name].value for name in before} == before
    assert (flags.batch_size, flags.lr_schedule, flags.flip) == (128, "cosine_ref", True)


@pytest.mark.parametrize("given", ["--semisup-data=tinyimages", "--configs", "FILE"])
def test_semisup_batches_hold_as_many_labeled_images_as_there(given, configs, meaning, tmp_path):
    pickle = tmp_path / "tiny_images/ti_top_50000_pred_v3.1.pickle"
    words = {"--configs": configs, "FILE": f"--semisup-data={pickle}"}.get(given, given)
    command = ("--is-semisup", *PRETRAIN, words, "--trainer=adv", f"--data-dir={tmp_path}", "--batch-size=128")
    with pytest.raises(BadFlag, match=r"--semisup_data=.*tiny_images/ti_top_50000_pred_v3.1.pickle"):
        meaning(*command)
    pickle.parent.mkdir()
    pickle.touch()
    flags = meaning(*command)
    assert (flags.pseudo_labels, flags.batch_size, flags.rst_frac) == (str(pickle), 256, 0.5)
    auxiliary = auxiliary_batch_size(flags.batch_size, flags.rst_frac)
    assert trs.data.steps_per_epoch(50_000, flags.batch_size, auxiliary) == 390  # and 80 images more there
    assert flags.semisup_fraction == (1.0 if given == "--configs" else 0.25)


def test_rates_are_as_there(meaning):
    """Free training stretches them over all epochs; a warm-up before steps is as fast as the rest."""
    words = ("--arch=ResNet50", "--dataset=imagenet", "--exp-mode=pretrain", "--trainer=freeadv", "--epochs=90")
    assert meaning(*words).undivided_schedule
    expected = epoch_rates("cosine_ref", 0.1, 90)[:23]
    assert plan("pretrain").rates == expected and expected[-1] > 0.08
    assert meaning("--data=imagenet", "--model=resnet50_imagenet", "--trainer=freeadv", "--epochs=90")
    assert plan("pretrain").rates == epoch_rates("cosine", 0.1, 23)
    meaning(*PRETRAIN, "--lr-schedule=step", "--epochs=10", "--warmup-epochs=2", "--warmup-lr=0.01")
    assert plan("pretrain").rates == pytest.approx([0.1] * 10 + [0.01, 0.001])


def test_what_is_accepted_silently_there(meaning, capsys):
    for words in (("--freeze-bn", "--k", "0.1"), ("--k=0.1", "--freeze-bn")):
        flags = meaning("--exp-mode=prune", "--source-net=x", *PRETRAIN[:4], *words)
        assert (flags.freeze_bn, flags.k) == ("affine", 0.1)
    flags = meaning(*PRETRAIN, "--k=1.0", "--beta=6", "--schedule_length=3", "--mixtraink=5", "--freeze_bn=affine")
    assert (flags.schedule_length, flags.mixtraink, flags.freeze_bn) == (0, 1, "no")
    assert meaning(*PRETRAIN, "--semisup-data=tinyimages", "--semisup-fraction=0.5").pseudo_labels is None
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--arch=vgg16_bn", "--model=resnet18"], "--arch=vgg16_bn and --model=resnet18"),
        (["--result_dir=x"], "--result_dir=x is the folder of --exp_name=NAME"),
        (["--result_dir=x", "--exp_name=y", "--output_dir=z"], "--output_dir=z and --exp_name=y both say where"),
        (["--exp_name=y", "--overwrite"], "--overwrite: every run of --exp_name=y gets a directory of its own"),
        (["--is_semisup"], "--semisup_data=None: expected tinyimages"),
        (["--data_fraction=0.5", "--train_examples=9"], "both say how many"),
        (["--val_method=base", "--select=best_robust"], "pass --select=best_clean or last"),
        ([*PRETRAIN, "--normalize"], "--normalize is not taken"),
        ([*PRETRAIN, "--clip-max=255"], "--clip_max=255: expected 1"),
        ([*PRETRAIN, "--start-epoch=3"], "--start_epoch=3: expected --resume"),
        (["--gpu=first"], "--gpu=first: expected numbers of GPUs"),
        ([*PRETRAIN, "--epochs=1"], "--epochs=1: expected at least 2 in the phase pretrain"),
        (["--configs=there/is/none.yml"], "--configs=there/is/none.yml: expected a YAML file"),
    ],
)
def test_what_does_not_go_together(words, message, meaning):
    with pytest.raises((BadFlag, BadInput), match=re.escape(message)):
        meaning(*words)


@pytest.mark.parametrize(("text", "message"), [("epochz: 3", "no setting epochz"), ("lr: fast", "lr: 'fast'")])
def test_a_configuration_that_cannot_be_meant_is_named(text, message, meaning, tmp_path):
    (tmp_path / "bad.yml").write_text(text)
    with pytest.raises(BadInput, match=rf"bad.yml: .*{message}"):
        meaning(f"--configs={tmp_path / 'bad.yml'}")


def test_every_deviation_is_told_of_and_in_the_docs(meaning):
    docs = " ".join((ROOT / "docs/hydra.md").read_text().split())
    for name, (_, how) in hydra.originals.DEVIATIONS.items():
        assert f"| {name} |" in docs and how.partition(";")[0] in docs.replace("`", "")
    full = training_run.odd_batches_may_crash()
    meaning(*PRETRAIN, "--trainer=adv")
    assert len(hydra.originals.deviations()) == 1 + full
    meaning(*PRETRAIN, "--trainer=freeadv", "--validation_examples=0", "--select=last")
    assert len(hydra.originals.deviations()) == 1 + 1


def test_each_run_of_a_name_has_a_directory_of_its_own(meaning, tmp_path):
    def directory(phase, *words):
        meaning("--arch=cifar_model", "--dataset=SVHN", f"--result-dir={tmp_path}", "--exp-name=one", *words)
        return Place.read().directory(phase)

    prune = ("--exp-mode=prune", "--source-net=x", "--k=0.1", "--trainer=adv", "--epochs=20")
    name = "--k-0.10_trainer-adv_lr-0.1_epochs-20_warmuplr-0.1_warmupepochs-0"
    first = directory("prune", *prune)
    assert first == tmp_path / f"one/prune/1{name}"
    first.mkdir(parents=True)
    assert directory("pretrain", "--exp-mode=pretrain").parent == tmp_path / "one/pretrain"
    second = directory("prune", *prune)
    assert second.name == f"2{name}"
    (first / "network.keras").touch()
    Place.read().point_at(first)
    assert directory("prune", "--exp-mode=prune", "--resume") == first
    latest = tmp_path / "one/prune/latest_exp/checkpoint/checkpoint.pth.tar"
    flags = meaning("--arch=cifar_model", "--exp-mode=finetune", f"--source-net={latest}")
    assert hydra.directories.source().resolve() == first.resolve()
    second.mkdir()
    Place.read().point_at(second)  # without --exp-name there is nothing to point at
    assert hydra.directories.source().resolve() == first.resolve()
    flags.exp_name = "one"
    Place.read().point_at(second)
    assert (tmp_path / "one/prune/latest_exp").resolve() == second.resolve()
    meaning("--arch=cifar_model", "--exp-name=one", "--exp-mode=pretrain")
    assert str(Place.read().directory("pretrain")).startswith("trained_models/one/pretrain/1--k-1.00_trainer-base")


def test_messages_name_the_flag_that_says_where(meaning, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words, said in (
        (["--exp-name=one", "--arch=cifar_model"], "--exp_name=one: trained_models/one/pretrain/1--k"),
        (["--output_dir=here"], "--output_dir=here holds other files"),
        ([], "saved_models/cifar10_vgg16_hydra_adv0.1/pretrain, where a run with these flags is"),
    ):
        meaning("--exp-mode=pretrain", *words)
        directory = Place.read().directory("pretrain")
        directory.mkdir(parents=True)
        (directory / "notes.txt").touch()
        with pytest.raises(BadFlag, match=re.escape(said)):
            run_directory.check(directory)


def test_phases_without_any_directory_do_not_meet(meaning):
    for words in (("--exp_mode=pretrain",), ("--exp_mode=prune", "--source_net=x"), ()):
        meaning("--data=cifar10", *words)
        assert str(Place.read().directory("prune")) == "saved_models/cifar10_vgg16_hydra_adv0.1/prune"


def test_all_phases_are_not_written_beside_other_files(tmp_path, meaning):
    (tmp_path / "pretrain").mkdir()
    meaning("--data=cifar10", f"--output_dir={tmp_path}")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(BadFlag, match=r"such as notes.txt.*pretrain, prune and finetune"):
        meaning("--data=cifar10", f"--output_dir={tmp_path}")


def test_a_source_is_not_overwritten(tmp_path, meaning):
    (tmp_path / "run").mkdir()
    for place in (tmp_path / "run", tmp_path / "run/network.keras"):
        words = ("--exp_mode=prune", f"--source_net={place}", f"--output_dir={tmp_path / 'run'}")
        meaning(*words, "--overwrite")
        with pytest.raises(BadFlag, match="whose run it would remove"):
            hydra.directories.check_source(hydra.directories.source(), Place.read().directory("prune"))
        meaning(*words)
        hydra.directories.check_source(hydra.directories.source(), Place.read().directory("prune"))


@pytest.mark.parametrize("finetune", [False, pytest.param(True, marks=pytest.mark.full)])
def test_its_scripts_from_a_checkpoint_of_pytorch(finetune, tmp_path, configs):
    source = trs.models.small_cnn(input_shape=(28, 28, 1), kernel="subnet", padding_mode="symmetric", seed=4)
    checkpoint = tmp_path / "checkpoint.npz"
    np.savez(checkpoint, **state_dict(source, (7, 7, 32)))
    few = [word.replace("--data=", "--dataset=").replace("--model=small_cnn", "--arch=mnist_model") for word in FEW]
    few = [word for word in few if not word.startswith("--train_examples")]
    command = (HYDRA, *few, configs, "--trainer=adv", "--gpu=0", f"--result-dir={tmp_path}")
    command = (*command, "--k=0.2", "--data-fraction=0.032", "--exp-name=run", "--epochs=1", "--lr-schedule=step")
    prune = ("--exp-mode=prune", f"--source-net={checkpoint}", "--scaled-score-init", "--save-dense")
    done = run_script(*command, *prune).expect()
    assert "231 images to train on, 25 to select by" in done.out
    assert (
        done.out.count("Unlike HYDRA: ") == 1 + training_run.odd_batches_may_crash()
        and "Note: --gpu=0 has no effect here" in done.out
    )
    assert f"1 epochs of {4 - training_run.odd_batches_may_crash()} steps" in done.out
    latest = tmp_path / "run/prune/latest_exp"
    network = trs.load_network(latest)
    for layer, other in zip(trs.layers.kernel_layers(network), trs.layers.kernel_layers(source), strict=True):
        np.testing.assert_array_equal(layer.kernel, other.kernel)
    dense = trs.load_network(latest / "dense")
    x = np.random.default_rng(0).random((4, 28, 28, 1), "float32")
    np.testing.assert_allclose(dense(x), network(x), atol=1e-6)
    assert not any("tf_robust_sparse" in type(layer).__module__ for layer in dense.layers)
    if finetune:
        more = ("--exp-mode=finetune", f"--source-net={latest}/checkpoint/checkpoint.pth.tar", "--lr=0.01")
        run_script(*command, *more, "--trainer=base").expect()
        tuned = tmp_path / "run/finetune/latest_exp"
        pairs = zip(*(subnet_layers(trs.load_network(each)) for each in (latest, tuned)), strict=True)
        for layer, other in pairs:
            np.testing.assert_array_equal(layer.scores, other.scores)
        assert results(tuned)["source"] == str(latest.resolve())  # which latest_exp may not stand for later
        assert f"--source_net={latest.resolve()}\n" in (tuned / "run.flags").read_text()
    done = run_script(*command, "--evaluate", f"--source-net={checkpoint}", "--val_method=ibp").expect()
    assert "% by ibp" in done.out and "Network             " in done.out
    clean = float(re.search(r"Clean accuracy +([\d.]+) %", done.out)[1]) / 100
    trs.sparsity.set_keep_fractions(source, 0.2)
    images = trs.data.load("fashion_mnist_sample").take(None, 64)
    expected = np.mean(np.argmax(source(images.test_images / np.float32(255)), axis=1) == images.test_labels)
    assert clean == pytest.approx(expected, abs=1e-4)
