"""Every flagfile means what it says."""

import re

import numpy as np
import pytest

from tests.cli.conftest import EVALUATE, ROOT, TRAIN
from tf_robust_sparse.cli import command_words, hydra, recipes, settings
from tf_robust_sparse.cli.command_line import BadFlag
from tf_robust_sparse.cli.sections import method, sparsity
from tf_robust_sparse.cli.sections.data import TrainingImages
from tf_robust_sparse.cli.sections.lottery import Experiment

TRAINED = [
    name for name, recipe in recipes.recipes().items() if recipe.command == "train" and not name.startswith("modern_")
]
HYDRA = [name for name, recipe in recipes.recipes().items() if recipe.command == "hydra"]
LOTTERY = [name for name, recipe in recipes.recipes().items() if recipe.command == "lottery"]
GRIDS = {  # -> number of runs
    "lottery_grid": 24,
    "lottery_grid_l1": 16,
    "lottery_short": 8,
    "lottery_short_strategies": 3,
}


def sparsifier(images=None):
    """Returns that of the command line, for a run of 1000 steps."""
    return sparsity.build(1000, TrainingImages.read().epochs, 0, images)


def meaning(flags):
    sparse = sparsity.chosen() == "connectivity_sampling"
    return flags.data, flags.model, flags.objective, flags.connectivity if sparse else None


def test_recipes_are_as_many_as_were_published():
    published = {"train": 101, "hydra": 57, "lottery": 12, "neural": 30, "binary": 82}
    found = [recipe.command for recipe in recipes.recipes().values()]
    assert {name: found.count(name) for name in found} == published
    assert not [name for name in recipes.recipes() if (ROOT / "flags" / f"{name}.flags").exists()]
    shown = recipes.show(["binary/cifar100_resnet34_001_p1_bnn"]).splitlines()
    assert shown[0] == "# Trained signs of the small resnet34_p1 on cifar100, PGD, of RobustBinarySubNet."
    assert shown[1].startswith("# Run: trs binary --flagfile=binary/cifar100_resnet34_001_p1_bnn.flags")
    assert shown[-2:] == ["--model=resnet34_p1", "--learning_rate=0.0001"]
    assert len(recipes.show([]).splitlines()) == sum(published.values())


def test_attacks_of_one_step_keep_their_noise(parse):
    for objective in ("at", "mat"):
        parse(TRAIN, "--train_attack=n_fgsm", f"--objective={objective}")
        settings.check()
    for objective in ("trades", "mart", "natural"):
        parse(TRAIN, "--train_attack=n_fgsm", f"--objective={objective}")
        with pytest.raises(BadFlag, match=f"begins with its own noise.*Received: --objective={objective}"):
            settings.check()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--cutmix", "--objective=mart"), "--cutmix needs.*Received: --objective=mart"),
        (("--consistency=1", "--cutmix"), "no --cutmix"),
        (("--consistency=1", "--augmentation=none"), "Received: --augmentation=none"),
        (("--consistency=1", "--objective=natural"), "--consistency compares attacked images"),
        (("--guard=noise",), "needs --train_attack=n_fgsm. Received: --train_attack=pgd"),
        (("--guard=report", "--norm=l2"), "--guard=report needs --norm=linf"),
        (("--guard=report", "--objective=natural"), "watches an attack"),
        (("--guard_every=5",), "belongs to --guard=step_size, noise or report"),
        (("--dkl_beta=5",), "belongs to --objective=dkl"),
    ],
)
def test_pieces_of_the_recipe_say_what_they_go_with(parse, flags, message):
    parse(TRAIN, *flags)
    with pytest.raises(BadFlag, match=message):
        settings.check()


def test_recipes_build_what_they_name(parse):
    for name, kinds in (("cutmix_trades", ["CutMix", "TRADES"]), ("dkl", ["AWP", "DKL"]), ("n_fgsm_guard", ["AT"])):
        parse(TRAIN, f"--flagfile=flags/modern_{name}_resnet18_0.1.flags")
        settings.check()
        objective, found = method.Terms.read().build(10, True), []
        while objective is not None:
            found.append(type(objective).__name__)
            objective = getattr(objective, "objective", None)
        assert found == kinds


def test_recipes_are_flagfiles_in_a_clone_and_elsewhere(tmp_path, monkeypatch):
    name = "binary/best_settings_rn34_cifar10_bn.flags"  # a file that names a recipe next to it
    inside = list(command_words.expanded([f"--flagfile=flags/{name}"]))
    monkeypatch.chdir(tmp_path)
    for path in (f"flags/{name}", name):
        assert list(command_words.expanded([f"--flagfile={path}"])) == inside
    assert "--init=binary" in inside and "--prune_rate=0.01" in inside
    with pytest.raises(ValueError, match="expected a file of flags"):
        list(command_words.expanded(["--flagfile=flags/hydra_no.flags"]))


def test_channels_are_pruned_by_the_flagfile_of_the_sample(parse):
    flags = parse(TRAIN, "--flagfile=flags/sample_channel_magnitude.flags")
    settings.check()
    assert (flags.data, flags.model) == ("fashion_mnist_sample", "small_cnn")
    assert sparsifier().describe() == {
        "sparsifier": "ChannelMagnitudePruning",
        "connectivity": 0.5,
        "allocation": "uniform",
        "gradual": True,
        "criterion": "kernel",
    }
    assert "noise_scaling" in settings.meaningless() and "pruning_criterion" not in settings.meaningless()


def test_connections_move_by_the_flagfile_of_the_sample(parse):
    parse(TRAIN, "--flagfile=flags/sample_rigl.flags")
    settings.check()
    described = sparsifier().describe()
    assert described["sparsifier"] == "RigL" and described["allocation"] == "erk"
    assert (described["connectivity"], described["interval"], described["end_step"]) == (0.05, 20, 750)
    parse(TRAIN, "--flagfile=flags/sample_rigl.flags", "--sparsifier=static")
    with pytest.raises(BadFlag, match="--move_interval=20 belongs to --sparsifier=set or rigl or flying_bird"):
        settings.check()
    parse(TRAIN, "--sparsifier=flying_bird", "--move_interval=30", "--growth=random")
    settings.check()
    described = sparsifier().describe()
    assert described["sparsifier"] == "FlyingBird" and described["allocation"] == "igq"
    assert (described["interval"], described["late_interval"], described["end_step"]) == (30, 40, 1000)
    assert (described["drop_fraction"], described["growth"]) == (0.5, "random")
    parse(TRAIN, "--sparsifier=flying_bird_plus", "--epochs=30", "--adapt_from=0.2", "--objective=at")
    settings.check()
    described = sparsifier().describe()
    assert (described["sparsifier"], described["start_epoch"], described["end_step"]) == ("FlyingBirdPlus", 6, 1000)
    parse(TRAIN, "--sparsifier=flying_bird_plus", "--objective=at", "--validation_examples=0")
    with pytest.raises(BadFlag, match="and no --validation_examples=0"):
        settings.check()
    parse(TRAIN, "--sparsifier=rigl", "--allocation=global")
    with pytest.raises(
        BadFlag, match=r"--allocation=global does not fit.*=rigl; pass --allocation=erk or uniform or igq"
    ):
        settings.check()


def test_two_of_four_by_the_flagfile_of_the_sample(parse):
    flags = parse(TRAIN, "--flagfile=flags/sample_n_m.flags")
    settings.check()
    described = sparsifier().describe()
    assert (described["sparsifier"], described["n"], described["m"], described["fixed"]) == ("NM", 2, 4, False)
    assert flags.connectivity == described["connectivity"] == 0.5
    assert method.run_name() == "fashion_mnist_sample_small_cnn_at_n_m2of4"
    for arguments, message in (
        (["--n_m=4:2"], "--n_m=4:2: expected N:M such as 2:4"),
        (["--n_m=2"], "--n_m=2: expected N:M such as 2:4"),
        (["--n_m=1:3", "--connectivity=0.1"], "--connectivity=0.1 does not match --n_m=1:3, which keeps 0.3333"),
        (["--sparsifier=rigl", "--n_m=1:4"], "--n_m=1:4 belongs to --sparsifier=n_m; leave it out"),
    ):
        parse(TRAIN, "--flagfile=flags/sample_n_m.flags", *arguments)
        with pytest.raises(BadFlag, match=message):
            settings.check()


def test_one_shot_pruning_by_the_flagfile_of_the_sample(parse):
    flags = parse(TRAIN, "--flagfile=flags/sample_obs.flags")
    settings.check()
    assert (flags.source_net, flags.connectivity) == ("saved_models/quickstart_dense", 0.1)
    described = sparsifier(lambda: np.zeros((3, 28, 28, 1))).describe()
    assert (described["sparsifier"], described["images"], described["allocation"]) == ("OBS", 3, "uniform")
    for arguments, message in (
        (["--sparsifier=obs"], "--sparsifier=obs prunes a trained network; pass --source_net=DIR"),
        (
            ["--sparsifier=rigl", "--obs_images=9"],
            "--obs_images=9 belongs to --sparsifier=obs; leave it out",
        ),
        (["--sparsifier=obs", "--source_net=x", "--allocation=global"], "--allocation=global does not fit"),
    ):
        parse(TRAIN, *arguments)
        with pytest.raises(BadFlag, match=message):
            settings.check()


def test_blocks_by_flags(parse):
    parse(TRAIN, "--sparsifier=block", "--connectivity=0.1", "--block=2x8", "--block_pooling=max")
    settings.check()
    described = sparsifier().describe()
    assert (described["sparsifier"], described["block"], described["pooling"]) == ("BlockPruning", [2, 8], "max")
    assert described["gradual"] and described["allocation"] == "uniform"
    for arguments, message in (
        (["--block=16"], "--block=16: expected inputs x outputs, such as 1x16"),
        (["--block=0x4"], "--block=0x4: expected"),
        (
            ["--growth=random"],
            "--growth=random belongs to --sparsifier=flying_bird or flying_bird_plus; leave it out",
        ),
    ):
        parse(TRAIN, "--sparsifier=block", *arguments)
        with pytest.raises(BadFlag, match=message):
            settings.check()


@pytest.mark.parametrize("name", ["quickstart", "quickstart_dense", *TRAINED])
def test_flagfiles_parse(name, parse):
    more = ["--pseudo_labels=FILE"] if "_rst_" in name else []
    flags = parse(TRAIN, f"--flagfile=flags/{name}.flags", *more)
    settings.check()
    if name.startswith("quickstart"):
        assert meaning(flags) == ("fashion_mnist_sample", "small_cnn", "at", None if "dense" in name else 0.1)
        return
    *words, degree = re.fullmatch(r"([^_]+)_(.+)_([^_]+)_([^_]+)", name).groups()
    assert meaning(flags) == (*words, None if degree == "dense" else float(degree))
    assert (flags.epsilon, flags.step_size, flags.num_steps) == (8 / 255, 2 / 255, 10)
    assert (flags.epochs, flags.batch_size, flags.learning_rate) == (200, 128, 0.1)
    assert flags.weight_decay == (1e-3 if flags.objective == "at" else 5e-4)
    assert bool(flags.flip) == (flags.data == "svhn")
    assert method.run_name() in (name, name.replace("_0.", "_sparse0."))


@pytest.mark.parametrize("name", [name for name in recipes.recipes() if name.startswith("modern_")][::5])
def test_modern_recipes_parse(name, parse):
    flags = parse(TRAIN, f"--flagfile={name}.flags")
    settings.check()
    average = "swa" if flags.objective == "dkl" else "ema"
    assert (flags.data, flags.average, flags.flip, flags.augmentation) == ("cifar10", average, True, "crop")
    signs = {
        "dkl": flags.objective == "dkl",
        "cutmix": flags.cutmix,
        "awp": flags.awp_gamma,
        "silu": flags.activation == "silu",
        "n_fgsm_guard": flags.guard == "noise",
        "n_fgsm": flags.train_attack == "n_fgsm",
    }
    assert name.startswith("modern_" + next(kind for kind, there in signs.items() if there))
    assert (flags.sparsifier == "rigl") == (not name.endswith("dense"))


@pytest.mark.parametrize("name", [name for name in HYDRA if re.search("_(adv|smooth)_", name)])
def test_flagfiles_of_hydra_parse(name, parse):
    flags = parse("run_hydra", f"--flagfile=flags/{name}.flags")
    settings.check()
    assert name == f"hydra_{flags.data}_{flags.model}_{flags.trainer}_{flags.k}"
    assert (flags.epsilon, flags.step_size, flags.beta, flags.noise_std) == (0.031, 0.0078, 6, 0.25)
    assert (flags.exp_mode, flags.epochs, flags.prune_epochs) == ("all", 100, 20)
    assert (flags.learning_rate, flags.prune_lr, flags.finetune_lr, flags.weight_decay) == (0.1, 0.1, 0.01, 1e-4)
    assert flags.batch_size == (256 if flags.data == "cifar10" else 128) and flags.padding_mode == "symmetric"
    assert hydra.settings.run_name() == f"{flags.data}_{flags.model}_hydra_{flags.trainer}{flags.k}"


@pytest.mark.parametrize("name", [name for name in HYDRA if name.startswith("harp_")])
def test_flagfiles_of_harp_parse(name, parse):
    flags = parse("run_hydra", f"--flagfile=flags/{name}.flags")
    settings.check()
    assert name == f"harp_{flags.data}_{flags.model}_{flags.k}" and flags.trainer == "at"
    assert (flags.epsilon, flags.step_size, flags.num_steps, flags.batch_size) == (0.031, 0.0078, 10, 128)
    assert (flags.rates, flags.harp_gamma, flags.rate_start, flags.rate_init) == ("learned", 0.01, 0.1, "uniform")
    assert [hydra.settings.plan(phase).epochs for phase in ("pretrain", "prune", "finetune")] == [100, 20, 100]
    assert (flags.learning_rate, flags.prune_lr, flags.finetune_lr, flags.weight_decay) == (0.1, 0.1, 0.1, 5e-4)
    assert hydra.settings.run_name() == f"{flags.data}_{flags.model}_harp_at{flags.k}"


@pytest.mark.parametrize("name", [name for name in HYDRA if re.search("ibp|mixtrain", name)])
def test_flagfiles_of_training_by_bounds_parse(name, parse):
    flags = parse("run_hydra", f"--flagfile=flags/{name}.flags")
    hydra.originals.translate()
    settings.check()
    assert name == f"hydra_svhn_{flags.model}_{flags.trainer}_{flags.k}"
    assert (flags.optimizer, flags.epsilon, flags.weight_decay, flags.lr_schedule) == ("adam", 0.007, 1e-4, "cosine")
    assert (flags.learning_rate, flags.prune_lr, flags.finetune_lr) == (1e-3, 1e-5, 5e-4)
    assert flags.init_type == "kaiming_normal_fan_out"  # as its networks without batch norm begin
    lengths = [hydra.settings.plan(phase).epochs for phase in ("pretrain", "prune", "finetune")]
    if flags.trainer == "mixtrain":
        assert (lengths, flags.batch_size, flags.schedule_length, flags.val_method) == (
            [60, 20, 60],
            50,
            15,
            "mixtrain",
        )
        assert (flags.interval_weight, flags.mixtraink) == (0.1, 1 if flags.model == "large_cnn" else 5)
        assert [hydra.settings.plan(phase).first_looked_at for phase in ("pretrain", "prune")] == [16, 0]
    else:
        assert (lengths, flags.batch_size, flags.schedule_length, flags.val_method) == ([200, 20, 100], 128, 120, "ibp")
    assert flags.select == "best_certified"


@pytest.mark.parametrize("name", [name for name in HYDRA if "freeadv" in name])
def test_flagfiles_of_free_adversarial_training_parse(name, parse):
    flags = parse("run_hydra", f"--flagfile=flags/{name}.flags")
    settings.check()
    assert flags.model == "resnet50_imagenet" and name == f"hydra_{flags.data}_resnet50_{flags.trainer}_{flags.k}"
    assert (flags.epsilon, flags.n_repeats, flags.batch_size, flags.augmentation) == (4 / 255, 4, 256, "resized_crop")
    assert hydra.settings.plan("pretrain").epochs == 23
    assert (flags.pgd_epsilon, flags.pgd_iters) == (4 / 255, 10)


@pytest.mark.parametrize("name", LOTTERY)
def test_flagfiles_of_lottery_tickets_parse(name, parse):
    flags = parse("run_lottery_tickets", f"--flagfile=flags/{name}.flags", "--adv_train")
    settings.check()
    assert name == f"lottery_{flags.dataset}_{flags.experiment.removeprefix('reinit_')}_{flags.attack}"
    assert flags.data == {"digits": "mnist", "fashion": "fashion_mnist"}[flags.dataset]
    assert (flags.trials, flags.train_iters, flags.prune_iters, flags.batch_size) == (5, 50_000, 20, 60)
    assert (flags.learning_rate, flags.l1_reg, flags.eval_every, flags.seed) == (0.0012, 0.0, 500, 1234)
    place = f"output/{flags.dataset}/dense-300-100/{flags.experiment}/{flags.attack}/lr-0.0012_l1-0.0_advtrain-true"
    assert str(Experiment.read().directory(flags.experiment)) == place


@pytest.mark.parametrize("name", GRIDS)
def test_flagfiles_of_grids_parse(name, parse):
    flags = parse("run_lottery_grid", f"--flagfile=flags/{name}.flags")
    number = 1
    for each in ("datasets", "experiments", "attacks", "training", "l1_regs"):
        number *= len(flags[each].value)
    assert number == GRIDS[name]
    options = flags.options.split()
    parse("run_lottery_tickets", *options)
    settings.check()


def test_the_evaluation_of_the_quick_start_finds_what_it_wrote(parse):
    trained = parse(TRAIN, "--flagfile=flags/quickstart.flags")
    directory, data, epsilon = trained.output_dir, trained.data, trained.epsilon
    flags = parse(EVALUATE, "--flagfile=flags/quickstart_foolbox.flags")
    settings.check()
    assert (flags.saved_model, flags.data, flags.pgd_epsilon) == (f"{directory}/serve", data, epsilon)
    assert (flags.pgd_iters, flags.pgd_restarts) == (50, 10)


@pytest.mark.parametrize("path", sorted((ROOT / "flags").rglob("*.flags")), ids=lambda path: path.stem)
def test_flagfiles_have_a_head_with_their_command(path):
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# ") and lines[0].endswith(".")
    assert all(line.startswith(("#", "--")) and line == line.rstrip() for line in lines)
    assert not any("#" in line for line in lines if line.startswith("--"))  # it would be part of the value
    if path.parent.name != "base":
        (command,) = [line for line in lines if line.startswith("# Run: python run_scripts/")]
        assert f"--flagfile={path.relative_to(ROOT)}" in command
    for nested in re.findall(r"^--flagfile=(.*)$", path.read_text(), re.MULTILINE):
        beside = (path.parent / nested).resolve()
        assert beside.is_file() or recipes.lines_of(beside)  # wherever the script is started
