"""Binary sub-networks from the command line: a tiny run, configurations of the original, flagfiles, bad input."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import tf_robust_sparse as trs
from tests.cli.conftest import run_script
from tests.cli.drill import kill_at
from tests.cli.test_bad_input import assert_explained
from tests.data.test_image_files import make_imagenet
from tf_robust_sparse.cli import binary, recipes, run_directory, settings, training_run
from tf_robust_sparse.cli.binary.attacks import Attack
from tf_robust_sparse.cli.command_line import BadFlag, BadInput
from tf_robust_sparse.cli.sections.data import Data
from tf_robust_sparse.models import resnet
from tf_robust_sparse.sparsity.scores import subnet_layers

BINARY = "run_binary_subnetworks"
FEW = (
    *("--data=fashion_mnist_sample", "--model=resnet18_p1", "--train_examples=72", "--test_examples=32"),
    *("--batch_size=32", "--epochs=1", "--pgd_iters=1", "--pgd_restarts=1", "--epsilon=0.1", "--step_size=0.05"),
    *("--num_steps=1", "--val_num_steps=1", "--augmentation=none", "--prune_rate=0.1", "--pr_scale=0.1"),
    *("--score_init_scale=0.01", "--fan-scaled-score-mode=none", "--end-with-bn"),
)
STAGES = (
    *(*FEW, "--epochs=2", "--trainer=adv_step_fast", "--init=binary", "--pr_steps=2", "--mix=cutmix", "--save_every=1"),
    *("--debug", "--explode_th=0", "--eps_schedule=name=linear,start_v=10,slope=10", "--test_every_epoch"),
)
# What the published configurations look like, written down anew.
YAML = """
# Architecture
model_type: cResNet34
dataset: CIFAR10
num_classes: 10
log_dir: ./runs/somewhere/
normalize: cifar10
valid_ratio: 0.02
optimizer: sgd
lr: 0.1
lr_policy: cosine_lr
alpha: 0
epochs: 400
weight_decay: 0.0005
momentum: 0.9
batch_size: 256
trainer: adv_step
attack: {name: PGD, step_size: 2, threshold: 8, iter_num: 10}
conv_type: SubnetConv
bn_type: NonAffineBatchNorm
freeze_weights: True
init: binary
mode: fan_in
nonlinearity: relu
scale_fan: True
workers: 20
seed: 1234
"""


def results(directory):
    return json.loads((directory / "results.json").read_text())


# Of the shortened network: the stem, a block of two convolutions with a shortcut, nine features of each of 13 channels.
WEIGHTS = 9 * 6 + 9 * 6 * 13 + 9 * 13 * 13 + 6 * 13 + 9 * 13 * 10


@pytest.fixture(scope="module", autouse=True)
def _one_block():
    """Leaves `resnet18_p1` one block, with a shortcut of its own, of eight: the way through the script is the same."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(resnet._BLOCKS, 18, (resnet._basic, (0, 1, 0, 0)))
        yield


@pytest.fixture(scope="module")
def found(_one_block, tmp_path_factory):
    """The directory of a tiny run that was killed at its last file and went on; not to be changed.

    Beside it stands the network as it was when the run was killed.
    """
    directory = tmp_path_factory.mktemp("binary") / "run"
    with kill_at("network.trs"):
        run_script(BINARY, *STAGES, f"--output_dir={directory}")
    assert not (directory / "results.json").exists() and not (directory / "network.trs").exists()
    shutil.copy(directory / "network.keras", directory.with_name("killed.keras"))
    return directory, run_script(BINARY, *STAGES, "--resume", f"--output_dir={directory}").expect()


@pytest.fixture
def config(tmp_path):
    """Writes a configuration and returns its path."""

    def write(text=YAML, **changes):
        path = tmp_path / "config.yaml"
        lines = [line for line in text.splitlines() if line.partition(":")[0] not in changes]
        lines += [f"{name}: {value}" for name, value in changes.items() if value is not None]
        path.write_text("\n".join(lines) + "\n")
        return path

    return write


# What its aa-standard.yaml look like.
EVALUATION = """
model_type: cResNet34
dataset: Cifar10
num_classes: 10
log_dir: ./runs/cifar10-resnet34/aa
normalize: cifar10
batch_size: 512
attack: {norm: Linf, threshold: 8}
subset: test
conv_type: SubnetConv
bn_type: NonAffineBatchNorm
freeze_weights: True
mode: fan_in
nonlinearity: relu
scale_fan: True
workers: 20
seed: 1234
"""


def meaning(parse, *arguments):
    flags = parse(BINARY, *arguments)
    binary.originals.translate()
    settings.check()
    return flags


def test_a_run_finds_a_network_of_signs(found):
    directory, done = found
    network = trs.load_network(directory)
    record = results(directory)
    planned = trs.sparsity.keep_fractions(network, 0.1, "adaptive", 0.1)
    assert record["keep_fractions"] == pytest.approx(planned) and record["trainer"] == "adv_step_fast"
    for layer in subnet_layers(network):
        kernel = np.asarray(layer.effective_kernel)
        assert set(np.unique(kernel)) <= {-1, 0, 1} and np.count_nonzero(kernel) == layer.kept
    assert record["nonzero"] == sum(layer.kept for layer in subnet_layers(network))
    assert {layer.name for layer in network.layers} >= {"classifier_bn"}
    packed = trs.load_network(directory / "network.trs")
    x = np.random.default_rng(0).random((4, 28, 28, 1), "float32")
    np.testing.assert_array_equal(packed(x, training=False), network(x, training=False))
    assert "network.trs" in done.out
    assert "Unlike RobustBinarySubNet: kept perturbations are float16" in done.out
    assert "test_every_epoch" not in done.out
    row = json.loads((directory / "checkpoints/history.json").read_text())[-1]
    assert row["test_accuracy"] == pytest.approx(record["clean_accuracy"]) and 0 <= row["test_robust_accuracy"] <= 1
    assert "--trainer=adv_step_fast\n" in (directory / "run.flags").read_text()


@pytest.mark.parametrize("trainer", binary.network.LOTTERY)
def test_the_strong_and_the_weak_ticket_keep_the_mask(trainer, found, parse):
    directory, _ = found
    more = (f"--trainer={trainer}", "--init=lottery_binary", f"--pretrained={directory}", "--seed=5")
    meaning(parse, *FEW, *more)
    images, before = Data.read().load(), trs.load_network(directory)
    network = binary.network.built(images)
    binary.weights.load_pretrained(network, images)
    trs.training.Phase("finetune").begin(network)
    names = {variable.path.rpartition("/")[2] for variable in network.trainable_variables}
    assert names == {"kernel"}
    agreeing, total = 0, 0
    for one, two in zip(subnet_layers(before), subnet_layers(network), strict=True):
        old, new = np.asarray(one.effective_kernel), np.asarray(two.effective_kernel)
        np.testing.assert_array_equal(new != 0, old != 0)
        assert set(np.unique(new)) <= {-1, 0, 1}
        agreeing += (old == new)[old != 0].sum()
        total += (old != 0).sum()
    assert agreeing == total if trainer.endswith("finetune") else 0.35 < agreeing / total < 0.65  # its signs, or new
    moved = network.get_layer("stem_bn").moving_mean.numpy().any()
    assert moved == trainer.endswith("finetune")  # batch norm starts anew with new signs
    if trainer.endswith("retrain"):
        meaning(parse, *FEW, *more[:-1])  # the seed of the run that found the mask
        with pytest.raises(BadFlag, match="--seed=0 draws the signs of --pretrained again"):
            binary.weights.load_pretrained(binary.network.built(images), images)


@pytest.mark.full
def test_the_baseline_is_trained_to_be_signs(tmp_path):
    more = ("--conv_type=BinConv", "--optimizer=adam", "--lr=0.001", "--binconv-stochastic", "--attack_bn=eval")
    run_script(BINARY, *FEW, *more, "--reweight=prob", f"--output_dir={tmp_path / 'run'}").expect()
    network = trs.load_network(tmp_path / "run")
    for layer in trs.layers.kernel_layers(network):
        assert set(np.unique(layer.effective_kernel)) == {-1, 1} and np.abs(layer.kernel).max() <= 1
    assert results(tmp_path / "run")["objective"]["objective"] == "Reweighted"
    # A bit per weight; batch norm and the description.
    assert (tmp_path / "run/network.trs").stat().st_size < WEIGHTS / 8 + 3_000


def test_stages_radii_boxes_and_kept_checkpoints_and_a_run_ends_with_its_last_file(found):
    directory, _ = found
    history = json.loads((directory / "checkpoints/history.json").read_text())
    kept = [row["nonzero"] for row in history]
    assert kept == pytest.approx([0.1**0.5 * WEIGHTS, 0.1 * WEIGHTS], abs=5)
    before = trs.load_network(directory.with_name("killed.keras"))
    for one, two in zip(before.variables, trs.load_network(directory).variables, strict=True):
        np.testing.assert_array_equal(one, two)
    assert results(directory)["nonzero"] == kept[1] and results(directory)["selected"]["epoch"] == 2
    packed = (directory / "network.trs").read_bytes()
    (directory / "network.trs").unlink()  # as of a run that was killed after its results
    done = run_script(BINARY, *STAGES, "--resume", f"--output_dir={directory}").expect()
    assert "Completed:          network.trs" in done.out and (directory / "network.trs").read_bytes() == packed
    objective = results(directory)["objective"]
    assert objective["schedule"]["radii"] == pytest.approx([10 / 255, 20 / 255])
    assert objective["of"]["mix"] == "cutmix" and objective["of"]["epsilon"] == 0.1
    checkpoints = {path.name for path in (directory / "checkpoints").glob("epoch_*")}
    assert checkpoints == {"epoch_1.weights.h5", "epoch_2.weights.h5"}
    assert "--eps_schedule=name=linear,start_v=10,slope=10\n" in (directory / "run.flags").read_text()


def test_a_pretrained_network_is_taken_over(found, tmp_path):
    directory, _ = found
    more = ("--evaluate", f"--pretrained={directory / 'network.trs'}", "--init=binary", "--autoattack=apgd-ce")
    done = run_script(BINARY, *FEW, *more, f"--output_dir={tmp_path / 'run'}").expect()
    assert results(tmp_path / "run")["clean_accuracy"] == pytest.approx(results(directory)["clean_accuracy"])
    folder = tmp_path / "run/autoattack/0"
    assert f"{folder}" in done.out and "robust accuracy" in (folder / "aa-log.txt").read_text()
    record = results(folder)
    assert record["clean_accuracy"] == pytest.approx(results(directory)["clean_accuracy"])
    assert record["attacks"]["autoattack"]["epsilon"] == 0.1
    assert record["robust_accuracy"] <= results(directory)["robust_accuracy"]  # PGD with a single step
    other = (*FEW, "--evaluate", f"--pretrained={directory}", "--init=binary", "--pr_scale=1")
    assert_explained(run_script(BINARY, *other, f"--output_dir={tmp_path / 'x'}"), "--pr_scale=1", "--pr_scale=0.1")


@pytest.mark.full
def test_each_evaluation_has_a_folder_of_its_own(found, tmp_path):
    directory = tmp_path / "run"
    shutil.copytree(found[0], directory)
    (directory / "autoattack/0").mkdir(parents=True)
    more = ("-e", "--init=binary", "--autoattack=apgd-ce", "--pgd_epsilon=0.01", "--test_examples=4")
    done = run_script(BINARY, *FEW, *more, f"--output_dir={directory}").expect()
    assert f"{directory / 'autoattack/1'}" in done.out and not any((directory / "autoattack/0").iterdir())
    assert results(directory / "autoattack/1")["attacks"]["autoattack"]["epsilon"] == 0.01
    assert results(directory) == results(found[0])  # the record of the training stays


def test_a_configuration_of_the_original_is_read_as_it_is(parse, config):
    flags = meaning(parse, f"--config={config()}", "--prune-rate", "0.01", "--pr-scale", "0.1", "--end-with-bn")
    assert (flags.model, flags.data, flags.normalize, flags.trainer) == ("resnet34", "cifar10", "cifar10", "adv_step")
    assert (flags.epochs, flags.batch_size, flags.learning_rate, flags.weight_decay) == (400, 256, 0.1, 5e-4)
    assert (flags.epsilon, flags.step_size, flags.num_steps) == (8 / 255, 2 / 255, 10)
    assert (flags.init, flags.scale_fan, flags.seed, flags.valid_ratio) == ("binary", True, 1234, 0.02)
    assert (flags.prune_rate, flags.pr_scale, flags.end_with_bn) == (0.01, 0.1, True)
    assert binary.network.Network.read().kernel() == "signed"


def test_the_command_line_wins_over_the_file_and_that_over_the_default(parse, config):
    assert meaning(parse, f"--config={config()}", "--lr=0.01").learning_rate == 0.01
    assert meaning(parse, "--lr", "0.01", f"--config={config()}").learning_rate == 0.01
    assert meaning(parse, f"--config={config(lr=0.3)}").learning_rate == 0.3
    assert meaning(parse, f"--config={config(lr=None)}").learning_rate == 0.1
    # 0.1 is the default too: it is not its value but its presence that counts.
    assert meaning(parse, f"--config={config(lr=0.3)}", "--learning_rate=0.1").learning_rate == 0.1
    flags = meaning(parse, f"--config={config()}", "--data=fashion_mnist_sample", "--model=resnet18_p1")
    assert (flags.data, flags.model) == ("fashion_mnist_sample", "resnet18_p1")


def test_an_attack_is_one_setting(parse, config):
    flags = meaning(parse, f"--config={config()}", "--attack", "name=PGD,threshold=4")
    assert (flags.epsilon, flags.step_size, flags.num_steps) == (4 / 255, 2 / 255, 10)  # the others are the defaults
    flags = meaning(parse, f"--config={config()}", "--attack=name=PGD,step_size=0.01,threshold=0.03,iter_num=7")
    assert (flags.epsilon, flags.step_size, flags.num_steps) == (0.03, 0.01, 7)
    for threshold in ("8", repr(8 / 255)):  # levels and pixels
        assert meaning(parse, f"--attack=name=PGD,threshold={threshold}").epsilon == 8 / 255
    flags = meaning(
        parse,
        "--trainer=adv_step_fast",
        "--attack=name=FGSM-RS,step_size=1,threshold=2,n_class=100",
        "--eval-attack=name=PGD,step_size=0.00196078,threshold=2,iter_num=10",
    )
    assert (flags.epsilon, flags.val_epsilon, flags.val_step_size) == (2 / 255, 2 / 255, 0.00196078)
    assert flags.augmentation == "none"
    trades = config(
        trainer="adv_trades", trades_attack="{name: TradesKL, step_size: 1, threshold: 4, iter_num: 9}", beta=5.0
    )
    flags = meaning(parse, f"--config={trades}")
    assert (flags.epsilon, flags.num_steps, flags.val_epsilon, flags.beta) == (4 / 255, 9, 8 / 255, 5)


def test_the_radius_schedule_in_either_unit(parse, config):
    for text, radii in (
        ("name=const,start_v=8,warmup=2", [0, 4 / 255, 8 / 255]),
        ("name=linear,start_v=0.01,slope=0.01,max=0.025", [0.01, 0.02, 0.025]),
        ("name=exp,start_v=0.5,power=4", [0.5 / 255, 2 / 255, 8 / 255]),  # one unit, that of the largest
        ("name=cosine,start_v=8,circle=2,segs=0:1:3,seg_ratio=1:0.5:0.5", [8 / 255, 4 / 255, 3.4142136 / 255]),
    ):
        meaning(parse, f"--eps_schedule={text}", "--epochs=3")
        assert Attack.read().radii(3) == pytest.approx(radii)
    meaning(parse, f"--config={config(eps_schedule='{name: const, start_v: 4}')}")
    assert Attack.read().radii(400) == pytest.approx([4 / 255] * 400)


def test_other_settings_of_the_attack(parse):
    fast = ("--trainer=adv_step_fast",)
    flags = meaning(parse, *fast, "--attack=name=FGSM-RS,threshold=8,aug_policy=crop:vflip:acutmix")
    assert flags.mix == "acutmix" and flags.flip is True
    flags = meaning(parse, *fast, "--attack=name=FGSM-RS,threshold=8,aug_policy=crop,order=inf")
    assert flags.mix is None and flags.flip is False and flags.norm == "linf"
    assert meaning(parse, "--attack=name=PGD,threshold=128,order=2").norm == "l2"


# Every flag of the original, with a value that it takes there.
ORIGINAL = {
    **{"seed": 3, "log-dir": "x", "model_name": "a", "dataset": "cifar10", "normalize": "cifar10"},
    **{"valid_ratio": 0.02, "num-classes": 10, "model_type": "cResNet34", "prune-rate": 0.01, "pr-steps": 1},
    **{"pr-scale": 0.1, "epochs": 200, "batch-size": 256, "evaluate": True, "debug": True, "trainer": "adv_step"},
    **{"beta": 6.0, "reweight": "prob", "warmup_rw": 0, "save_every": 2, "pretrained": "FILE", "resume": True},
    **{"eps_schedule": "name=const,start_v=8", "attack": "name=PGD,threshold=8"},
    **{"eval-attack": "name=PGD,threshold=8", "trades_attack": "name=TradesKL,threshold=8", "subset": "test"},
    **{"label-smoothing": 0.1, "freeze-weights": True, "lr": 0.1, "lr-policy": "constant_lr", "min-v": 1e-4},
    **{"max-v": 1, "warmup_length": 2, "slope": 0.1, "power": 0.5, "interval": 2, "alpha": 0.1, "min-jump-pt": 3},
    **{"jump-freq": 2, "lr-adjust": 30, "lr-gamma": 0.1, "lr-epochs": "3,4", "optimizer": "sgd"},
    **{"weight-decay": 1e-4, "momentum": 0.9, "nesterov": True, "dampening": 0, "beta1": 0.9, "beta2": 0.99},
    **{"eps": 1e-8, "amsgrad": True, "nonlinearity": "relu", "leaky-relu-slope": 0.1, "init": "binary"},
    **{"scale-fan": True, "score-init-scale": 1.0, "fan-scaled-score-mode": "all", "conv-type": "SubnetConv"},
    **{"bn-type": "NonAffineBatchNorm", "first-layer-dense": True, "first-layer-type": "DenseConv"},
    **{"last-layer-dense": True, "last-layer-type": "DenseConv", "end-with-bn": True, "no-bn-decay": True},
    **{"mode": "fan_in", "start-epoch": 0, "multigpu": "0,1"},
}


@pytest.mark.parametrize(("old", "new"), [("-", "_"), ("_", "-")])
def test_every_flag_of_the_original_in_both_spellings(old, new, parse):
    words = [f"--{name.replace(old, new)}" + ("" if value is True else f"={value}") for name, value in ORIGINAL.items()]
    flags = meaning(parse, *words)
    for name, value in ORIGINAL.items():
        found = getattr(flags, name.replace("-", "_"))
        assert found == value or str(found) == str(value) or found == str(value).split(","), name
    assert flags.output_dir == "x/a/prune_rate=0.01/0"


def test_single_letters_of_the_original(parse):
    flags = meaning(parse, "-e", "-b", "64", "-a", "cResNet152")
    assert flags.load_model and flags.batch_size == 64 and flags.model == "resnet152"
    assert meaning(parse, "-a", "ResNet101_imagenet100", "--connectivity=0.2").model == "resnet101_imagenet"
    assert flags.prune_rate == 0.2 and set(binary.originals.MODELS.values()) <= set(binary.network.RESIDUAL)


def test_trials_of_a_name_are_numbered_as_in_the_published_code(parse, config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quick_start = (f"--config={config()}", "--model_name", "quick", "--log-dir", "out", "--multigpu", "0,1")
    parent = Path("out/config/quick/prune_rate=0.01")
    assert meaning(parse, *quick_start).output_dir == str(parent / "0")
    (parent / "0").mkdir(parents=True)
    assert meaning(parse, *quick_start).output_dir == str(parent / "0")  # nothing was written there
    (parent / "0/run.flags").write_text("")
    (parent / "3").mkdir()
    (parent / "3/run.flags").write_text("")
    assert meaning(parse, *quick_start).output_dir == str(parent / "1")
    for goes_on in ("--resume", "--overwrite", "--evaluate"):
        assert meaning(parse, *quick_start, goes_on).output_dir == str(parent / "3")
    flags = meaning(parse, f"--config={config()}", "--model_name=quick")
    assert flags.output_dir == "runs/somewhere/config/quick/prune_rate=0.01/0"  # the folder that the file names
    assert meaning(parse, "--model_name=quick").output_dir == "runs/quick/prune_rate=0.01/0"
    with pytest.raises(BadFlag, match="--model_name counts trials"):
        meaning(parse, "--model_name=quick", "--strategy=multi_worker")


def test_its_configuration_of_autoattack_evaluates(parse, config, found, tmp_path, capsys):
    run = tmp_path / "store/resnet34-binary-weights/quick/prune_rate=0.1/0"
    shutil.copytree(found[0], run)
    file = config(EVALUATION, dataset="x", model_type="x")
    command = (f"--config={file}", "--model_name=quick", "--dataset=fashion_mnist_sample", "--model=resnet18_p1")
    command += ("--multigpu=0,1", f"--pretrained={run}/checkpoints/model_best.pth", "--normalize=none")
    flags = meaning(parse, *command)
    assert flags.load_model and (flags.epsilon, flags.norm, flags.batch_size) == (8 / 255, "linf", 512)
    assert flags.output_dir == "runs/cifar10-resnet34/aa/config/quick/prune_rate=0.01/0"
    binary.weights.adopt_flags()
    assert "there is no model_best.pth" in capsys.readouterr().out
    # What the run recorded of its network, which the configuration does not say.
    assert (flags.end_with_bn, flags.prune_rate, flags.pr_scale, flags.init) == (True, 0.1, 0.1, "binary")
    images = Data.read().load()
    network = binary.network.built(images)
    binary.weights.load_pretrained(network, images)
    source = trs.load_network(found[0])
    np.testing.assert_array_equal(network(images.test_images[:2] / 255), source(images.test_images[:2] / 255))
    meaning(parse, *command, "--prune-rate=0.3")
    with pytest.raises(BadFlag, match=r"--prune_rate=0.3 does not match.*pass --prune_rate=0.1"):
        binary.weights.adopt_flags()


@pytest.mark.parametrize("last", [True, False])
def test_a_checkpoint_tells_whether_it_ends_with_batch_norm(last, parse, tmp_path):
    few = [word for word in FEW if word != "--end-with-bn"]
    entries = {"conv1.weight": np.zeros((6, 1, 3, 3)), **({"last.running_mean": np.zeros(10)} if last else {})}
    np.savez(tmp_path / "a.npz", **entries)
    meaning(parse, *few, "--evaluate", f"--pretrained={tmp_path / 'a.npz'}", f"--{'no' if last else ''}end_with_bn")
    images = Data.read().load()
    with pytest.raises(BadFlag, match=f"{'has a' if last else 'has no'} batch norm.*{'pass' if last else 'leave out'}"):
        binary.weights.load_pretrained(binary.network.built(images), images)


def test_its_fast_recipe_of_imagenet_parts_images_before_it_crops_them(parse, config, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    changes = {"model_type": "ResNet34_imagenet100", "dataset": "ImageNet100", "num_classes": 100, "warmup_length": 5}
    changes |= {"normalize": "imagenet100", "trainer": "adv_step_fast", "label_smoothing": 0.1}
    changes |= {"attack": "{name: FGSM-RS, step_size: 1, threshold: 2, n_class: 100}"}
    changes |= {"eval_attack": "{name: PGD, step_size: 0.00196078, threshold: 2, iter_num: 10}"}
    flags = meaning(parse, f"--config={config(**changes)}", "--prune-rate=0.01", "--end-with-bn", "--debug")
    assert (flags.data, flags.augmentation) == ("imagenet100", "resized_crop")
    assert "--label_smoothing=0.1 has no effect here" in capsys.readouterr().out
    make_imagenet(tmp_path / "imagenet", classes=("n1", "n2"), train=3)
    few = ("--data=imagenet", f"--data_dir={tmp_path}", "--image_size=32", "--batch_size=4", "--validation_examples=1")
    meaning(parse, *few, "--trainer=adv_step_fast", "--model=resnet18_p1", "--nodrop_last")
    run = training_run.prepare(tmp_path / "run")
    sizes = [(x.shape, index.shape) for x, _, index in training_run._train_batches(run, 199, with_index=True)]
    assert sizes == [((4, 32, 32, 3), (4,)), ((1, 32, 32, 3), (1,))]


def test_what_changes_nothing_is_said(parse, capsys):
    fast = ("--trainer=adv_step_fast", "--data=fashion_mnist_sample")
    meaning(parse, *fast, "-j", "20", "-p", "10", "--label_smoothing=0.1", "--trades_attack=name=TradesKL,threshold=8")
    said = capsys.readouterr().out
    for words in (
        "--workers=20 changes nothing",
        "--print_freq=10 changes nothing",
        "--label_smoothing=0.1 has no effect",
    ):
        assert words in said
    assert "trades_attack has no effect here; it belongs to --trainer=adv_trades" in said


def test_an_attack_on_the_command_line_wins_over_a_flagfile(parse, tmp_path):
    (tmp_path / "a.flags").write_text("--trainer=adv_trades\n--val_epsilon=8/255\n--epsilon=8/255\n--num_steps=3\n")
    flags = meaning(parse, f"--flagfile={tmp_path / 'a.flags'}", "--attack=name=PGD,threshold=4")
    assert (flags.val_epsilon, flags.epsilon, flags.num_steps) == (4 / 255, 8 / 255, 3)
    flags = meaning(parse, f"--flagfile={tmp_path / 'a.flags'}", "--trades_attack=name=TradesKL,threshold=2,iter_num=5")
    assert (flags.val_epsilon, flags.epsilon, flags.num_steps) == (8 / 255, 2 / 255, 5)
    (tmp_path / "b.flags").write_text("--attack=name=PGD,threshold=4\n")
    assert meaning(parse, f"--flagfile={tmp_path / 'b.flags'}", "--epsilon=0.1").epsilon == 0.1


ALIASES = "a0: &a0 [1, 1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))


@pytest.mark.parametrize(
    "text",
    [
        *("- 1\n- 2\n", "a: [1, 2\n", "a: !!python/object/apply:os.system [ls]\n", "a: 2020-99-99\n", "[1]: 2\n"),
        *(ALIASES, "lr: " + "[" * 5000 + "\n", "a: \x00\n", "lr: [1, 2]\n", "batch-size: {a: 1}\n"),
    ],
)
def test_files_that_are_no_configuration(text, parse, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(
        BadInput, match=rf"--config={path}: (expected a YAML file of settings|lr:|batch_size:)"
    ) as error:
        meaning(parse, f"--config={path}")
    assert "\n" not in str(error.value)


def test_bad_input():
    for words, expected in (
        (["--prune_rate=0"], ("--prune_rate=0", "in (0, 1]")),
        (["--config=no.yaml"], ("--config=no.yaml", "YAML file")),
        (["--mix=cutmix"], ("--mix=cutmix belongs to --trainer=adv_step_fast",)),
    ):
        assert_explained(run_script(BINARY, "--data=fashion_mnist_sample", *words), *expected)


LOTTERY = "--trainer=adv_step_lottery_finetune"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([LOTTERY], "pass --pretrained=DIR"),
        ([LOTTERY, "--pretrained=x", "--conv_type=BinConv"], "instead of --conv_type=BinConv"),
        ([LOTTERY, "--pretrained=x", "--pr_steps=2"], "--pr_steps=2: expected 1"),
        (["--nofreeze_weights"], "--nofreeze_weights does not go with --trainer=adv_step"),
        (["--first_layer_dense", "--first_layer_type=SubnetConv"], "--first_layer_dense say different things"),
        (["--pr_steps=3", "--conv_type=DenseConv"], "--pr_steps=3 needs --conv_type=SubnetConv"),
        (["--epochs=5", "--warmup_length=5"], "--warmup_length=5: expected fewer than --epochs=5"),
        (["--epochs=5", "--warmup_length=3", "--pr_steps=3"], "--pr_steps=3: expected at most 2"),
        (["--reweight=nat_max_prob"], "--reweight=nat_max_prob needs --trainer=adv_trades"),
        (["--nodrop_last"], "TF_ENABLE_ONEDNN_OPTS=0"),
        (["--strategy=mirrored", "--nodrop_last"], "--nodrop_last needs one device"),
        (["--strategy=mirrored", "--attack_bn=train"], "--attack_bn=train needs one device"),
        (["--trainer=adv_step_fast", "--norm=l2"], "needs --norm=linf"),
        (["--trainer=adv_step_fast", "--mix=cutmix", "--soft_targets"], "needs whole images"),
        (["--trainer=adv_step_fast", "--augmentation=shift"], "--augmentation=shift does not go with"),
        (["--autoattack=standart"], "standart is not an attack; pass"),
        (["--eps_schedule=name=linear"], "start"),
        (["--eps_schedule=start_v=3"], "'name' is missing"),
        (["--eps_schedule=name=linear,start_v=3,slop=3"], "'slop' is missing or unknown"),
        (["--eps_schedule=name=const,start_v=300"], "up to 300"),
        (["--dampening=0.1"], "--dampening=0.1 is a setting of the published code that is not supported; use 0"),
        (["--attack=name=PGD,threshold=8", "--epsilon=0.1"], "and --epsilon=0.1 say the same"),
        (["--attack=name=PGD,threshold=8,aug_policy=crop"], "expected name=FGSM-RS"),
        (["--attack=name=PGD,threshold=8,order=1"], "order=1: expected order=2 or inf"),
        (["--attack=name=PGD,threshold=8,n_class=100", "--n_classes=10"], "n_class=100"),
        (["--log_dir=x"], "--log_dir is the folder of --model_name"),
    ],
)
def test_what_does_not_go_together(words, message, parse, monkeypatch):
    monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS", raising=False)
    with pytest.raises(BadFlag) as refused:
        meaning(parse, "--data=fashion_mnist_sample", *words)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "cResNet20"}, "--model_type=cResNet20"),
        ({"attack": "{name: simple-aa, threshold: 8}"}, "name=simple-aa: expected name=pgd or fgsm-rs"),
        ({"attack": "{name: PGD, steps: 8}"}, "attack: no steps; expected name"),
        ({"attack": "8"}, "attack: 8: expected name"),
        ({"odd_setting": 3}, "no setting odd_setting"),
        ({"epochs": "many"}, "epochs: 'many'"),
        ({"start_epoch": "5"}, "--start_epoch=5"),
    ],
)
def test_configurations_that_make_no_sense(changes, message, parse, config):
    with pytest.raises((BadFlag, BadInput)) as refused:
        meaning(parse, f"--config={config(**changes)}")
    assert message in str(refused.value)


RECIPES = [name for name, recipe in recipes.recipes().items() if recipe.command == "binary"]


@pytest.mark.parametrize("name", [*RECIPES[::12], "binary/sample"])
def test_some_flagfiles_parse(name, parse):
    more = ["--pretrained=RUN"] if "lottery" in name else []
    flags = meaning(parse, f"--flagfile=flags/{name}.flags", *more)
    assert flags.padding_mode == "symmetric"


def test_the_best_settings_are_the_published_ones(parse):
    flags = meaning(parse, "--flagfile=flags/binary/best_settings_rn34_cifar10_bn.flags")
    assert (flags.model, flags.data, flags.conv_type, flags.init) == ("resnet34", "cifar10", "SubnetConv", "binary")
    assert (flags.prune_rate, flags.pr_scale, flags.score_init_scale) == (0.01, 0.1, 0.01)
    assert (flags.fan_scaled_score_mode, flags.end_with_bn, flags.trainer) == ("none", True, "adv_step")
    assert (flags.epochs, flags.batch_size, flags.learning_rate, flags.lr_policy) == (400, 256, 0.1, "cosine_lr")
    assert (flags.epsilon, flags.step_size, flags.num_steps, flags.seed) == (8 / 255, 2 / 255, 10, 1234)
    flags = meaning(parse, "--flagfile=flags/binary/best_settings_rn34_imagenet100_bn_fast.flags")
    assert (flags.model, flags.data, flags.trainer) == ("resnet34_imagenet", "imagenet100", "adv_step_fast")
    assert (flags.epochs, flags.warmup_length, flags.weight_decay, flags.momentum) == (100, 5, 2**-15, 0.875)
    assert (flags.epsilon, flags.step_size, flags.val_step_size) == (2 / 255, 1 / 255, 0.00196078)
    assert flags.augmentation == "resized_crop"  # before the crops that move perturbations along
    fast = ("--trainer=adv_step_fast", "--data=imagenet100")
    assert meaning(parse, *fast).augmentation == "resized_crop"
    assert meaning(parse, *fast, "--augmentation=none").augmentation == "none"
    assert meaning(parse).batch_size == 256


@pytest.mark.parametrize("trainer", binary.network.TRAINERS)
def test_recorded_flags_repeat_the_run(trainer, parse, tmp_path):
    more = {
        "adv_step": ["--attack=name=PGD,step_size=2,threshold=8"],
        # It mirrors by itself: --flip goes with --augmentation=none.
        "adv_step_fast": ["--attack=name=FGSM-RS,step_size=2,threshold=8", "--flip", "--mix=cutmix"],
        "adv_trades": ["--epsilon=0.1", "--beta=3"],
    }.get(trainer, ["--init=lottery_binary", "--pretrained=somewhere"])
    few = [word for word in FEW if not word.startswith(("--epsilon", "--step_size", "--num_steps"))]
    flags = meaning(parse, *few, f"--trainer={trainer}", *more)
    names = [*settings.identity(), "augmentation", "flip", "epsilon", "beta"]
    expected = {name: flags[name].value for name in names}
    run_directory.write_flags(tmp_path / "run.flags")
    recorded = (tmp_path / "run.flags").read_text()
    assert "--attack=" not in recorded and ("--mix=" in recorded) == (trainer == "adv_step_fast")
    # Records of earlier versions hold the defaults of all flags.
    again = meaning(parse, f"--flagfile={tmp_path / 'run.flags'}", "--carry", "--nosoft_targets", "--explode_th=5.0")
    assert {name: again[name].value for name in names} == expected


def test_fixed_masks_stay_and_their_weights_train(parse, tmp_path):
    meaning(parse, *FEW, "--conv_type=FixedSubnetConv", "--nofreeze_weights", "--prune_rate=0.3")
    run = training_run.prepare(tmp_path / "run")
    network = binary.weights.network(run)
    names = {variable.path.split("/")[-1] for variable in network.trainable_variables}
    assert "kernel" in names and "scores" not in names
    mask = np.array(network.get_layer("stem").effective_kernel) != 0
    model = binary.training.model(run, network)
    images = np.random.default_rng(0).random((8, *network.input_shape[1:]), "float32")
    model.fit(images, np.arange(8) % 10, epochs=1, batch_size=8, verbose=0)
    np.testing.assert_array_equal(np.array(network.get_layer("stem").effective_kernel) != 0, mask)
    meaning(parse, *FEW, "--conv_type=FixedSubnetConv")
    with pytest.raises(BadFlag, match="FixedSubnetConv leaves nothing to train"):
        binary.weights.network(training_run.prepare(tmp_path / "run"))


def test_the_numerics_are_those_of_the_published_code(parse, tmp_path, monkeypatch):
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    meaning(parse, *FEW, "--trainer=adv_trades", "--label_smoothing=0.1", "--nodrop_last")
    run = training_run.prepare(tmp_path / "run")
    network = binary.weights.network(run)
    norms = [layer for layer in network.layers if isinstance(layer, trs.layers.BatchNormalization)]
    assert norms and all(layer.unbiased for layer in norms)  # of PyTorch
    model = binary.training.model(run, network)
    assert model.objective.clean_updates == 2 and model.objective.label_smoothing == 0.1
    assert model.validation_attack.norm == "linf" and model.validation_attack.keep_best
    assert run.steps_per_epoch == -(-len(run.images.train_labels) // 32)
    meaning(parse, *FEW, "--norm=l2")
    run = training_run.prepare(tmp_path / "run")
    model = binary.training.model(run, network)
    assert model.validation_attack.norm == "l2" and model.validation_attack.keep_best
    assert isinstance(model.objective.attack, trs.attacks.L2PGD) and model.objective.attack.keep_best
    assert run.steps_per_epoch == 2
    assert meaning(parse, *FEW, "--strategy=mirrored").drop_last
    assert any("over all replicas" in text for text in binary.training.deviations())


def test_a_recipe_as_published_differs_in_what_it_says_alone(parse, config, monkeypatch):
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    quick_start = (f"--config={config()}", "--prune-rate=0.01", "--pr-scale=0.1", "--end-with-bn")
    meaning(parse, *quick_start, "--test_every_epoch", "--nodrop_last")
    assert binary.training.deviations() == ["masks, signs, crops and attacks are drawn from seeds of their own"]
    meaning(parse, "--data=fashion_mnist_sample")
    assert any("--valid_ratio" in text for text in binary.training.deviations())
    assert any("--freeze_weights" in text for text in binary.training.deviations())
    mixed = ("--trainer=adv_step_fast", "--mix=cutmix", "--nocarry", "--eps_schedule=name=const,start_v=2")
    meaning(parse, *quick_start, *mixed)
    said = " ".join(binary.training.deviations())
    assert "shared by area" in said and "epoch before" in said and "float16" not in said and "eps_schedule" not in said


def test_scores_of_the_last_layer_alone(parse, tmp_path):
    meaning(parse, *FEW, "--conv_type=DenseConv", "--last_layer_type=SubnetConv")
    network = binary.weights.network(training_run.prepare(tmp_path / "run"))
    last = network.get_layer("classifier")
    assert last.scores.trainable and not last.kernel.trainable and network.get_layer("stem").kernel.trainable


def test_a_ticket_needs_where_it_was_found(parse, tmp_path):
    meaning(parse, *FEW, "--trainer=adv_step_lottery_retrain", "--init=lottery_binary", "--resume")
    with pytest.raises(BadFlag, match="no checkpoint to --resume from"):
        binary.weights.network(training_run.prepare(tmp_path / "run"))


def test_what_is_evaluated_is_the_network_of_the_last_stage(parse):
    kept = []
    for words in ([], ["--epochs=2", "--pr_steps=2"]):
        meaning(parse, *FEW, *words, "--evaluate", "--prune_rate=0.04")
        kept.append(trs.sparsity.statistics.summary(binary.network.built(Data.read().load()))["nonzero"])
    assert kept[0] == kept[1]


def test_evaluation_minds_how_the_run_was_trained(found):
    directory, _ = found
    for words, message in (("--model=resnet50", "--model=resnet50"), ("--prune_rate=0.7", "--prune_rate=0.7")):
        assert_explained(run_script(BINARY, "--evaluate", words, f"--output_dir={directory}"), message)
