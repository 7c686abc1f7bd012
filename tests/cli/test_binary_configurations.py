"""Configurations and command lines of the published code of binary sub-networks, and records of our own."""

from pathlib import Path

import pytest

from tests.cli.binary_runs import FEW, meaning
from tests.data.test_image_files import make_imagenet
from tf_robust_sparse.cli import binary, recipes, run_directory, settings, training_run
from tf_robust_sparse.cli.binary.attacks import Attack
from tf_robust_sparse.cli.command_line import BadFlag, BadInput

pytestmark = pytest.mark.usefixtures("one_block")


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
