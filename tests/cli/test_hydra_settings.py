"""Flags of pruning by learned scores: what they mean in each phase, and records that repeat a run."""

import pytest

import tf_robust_sparse as trs
from tests.cli.hydra_runs import FEW, HYDRA, checked
from tf_robust_sparse.cli import command_line, hydra, run_directory, settings, training_run
from tf_robust_sparse.cli.hydra.settings import MODES, Phases, plan, plans
from tf_robust_sparse.cli.hydra.trainers import TRAINERS


def test_flags_of_the_prune_phase_alone_are_refused_elsewhere(parse):
    prune = ("--exp_mode=prune", "--source_net=x", "--rates=learned")
    for words, message in (
        (("--exp_mode=pretrain", "--rates=learned"), "--rates=learned belongs to --exp_mode=prune or all"),
        (("--exp_mode=pretrain", "--s2ap_gamma=0.1"), "--s2ap_gamma=0.1 belongs to --exp_mode=prune or all"),
        (("--trainer=freeadv", "--s2ap_gamma=0.1"), "--s2ap_gamma=0.1 belongs to .*without --trainer=freeadv"),
        (("--harp_gamma=0.1",), "--harp_gamma=0.1 belongs to --rates=learned"),
        ((*prune, "--allocation=erk"), "with --rates=learned pass --rate_init=erk"),
        ((*prune, "--rate_start=0.01", "--k=0.1"), "--rate_start=0.01: expected more than a tenth of --k=0.1"),
    ):
        with pytest.raises(command_line.BadFlag, match=message):
            checked(parse, *words)


# Flags that say where to write, or by which words another flag was set.
WHERE = {"output_dir", *hydra.originals.ONLY_THERE}


def meaning(parse, *words):
    """All flags that mean something after their checks, and what they make of each phase."""
    flags = checked(parse, *words)
    names = set(command_line.names()) - WHERE - set(settings.meaningless())
    phases = [(each, each.first_looked_at) for each in plans()]
    return {name: flags[name].value for name in names}, phases, hydra.settings.config(trs.models.small_cnn())


MORE = [
    ("--epochs=2",),
    ("--epochs=30", "--prune_epochs=25", "--finetune_lr=0.02", "--allocation=global", "--select=last"),
    ("--epochs=30", "--distance=l_inf", "--arch=cifar_model", "--result_dir=x", "--exp_name=y", "--n_repeats=2"),
]
OWN = {
    "adv": ("--trades_start=uniform", "--pseudo_labels=x.npz", "--semisup_fraction=0.5", "--is_semisup"),
    "base": ("--norm=l2", "--val_method=adv"),
    "smooth": ("--noise_std=0.5", "--val_method=mixtrain", "--bound_chunk=9"),
    "freeadv": ("--val_method=smooth",),
    "at": ("--num_steps=3",),
    "crown-ibp": ("--schedule_length=7", "--schedule_start=2", "--final_beta=0.5", "--final_kappa=0.5"),
    "ibp": ("--schedule_length=7", "--epsilon_schedule=smoothed", "--prune_schedule_length=1"),
    "mixtrain": ("--schedule_length=7", "--mixtraink=2", "--bound_chunk=9"),
    **dict.fromkeys(("mtl-ibp", "cc-ibp", "exp-ibp"), ("--schedule_length=7", "--ibp_alpha=0.1", "--attack_scale=2.1")),
    "sabr": (
        "--schedule_length=7",
        "--box_ratio=0.1",
        "--relu_shrinkage=0.8",
        "--ibp_regularizer=0.5",
        "--num_steps=3",
    ),
}


def test_moving_variances_are_those_of_pytorch(parse, tmp_path):
    meaning(parse, *FEW, "--model=resnet18_p1", "--exp_mode=pretrain")
    run = training_run.prepare(tmp_path / "run")
    network = hydra.networks.build(run, trs.training.Phase("pretrain"), None)
    assert {layer.unbiased for layer in network.layers if isinstance(layer, trs.layers.BatchNormalization)} == {True}


@pytest.mark.parametrize(
    ("trainer", "mode"),
    [
        pytest.param(trainer, mode, marks=[] if i % 4 == j or trainer == "adv" else pytest.mark.full)
        for i, trainer in enumerate(TRAINERS)
        for j, mode in enumerate(MODES)
    ],
)
def test_the_record_of_every_kind_of_run_means_the_same(trainer, mode, tmp_path, parse):
    record, again = tmp_path / "run.flags", tmp_path / "again.flags"
    source = ("--source_net=somewhere",) if mode in ("prune", "finetune") else ()
    for more in (*MORE, ("--epochs=30", "--prune_epochs=25", *OWN[trainer])):
        words = (f"--trainer={trainer}", f"--exp_mode={mode}", "--epsilon=0.1", "--data=cifar10", *source, *more)
        expected = meaning(parse, *words)
        run_directory.write_flags(record)
        assert meaning(parse, f"--flagfile={record}", f"--output_dir={tmp_path / 'other'}") == expected, more
        run_directory.write_flags(again)
        assert again.read_text() == record.read_text()
        recorded = {line.partition("=")[0].removeprefix("--") for line in record.read_text().splitlines()}
        assert not (WHERE | set(settings.meaningless())) & recorded


def test_steps_in_l2_are_as_long_as_published(parse):
    few = ("--norm=l2", "--epsilon=0.5", "--num_steps=10")
    assert checked(parse, *few).step_size == pytest.approx(0.1) and "--step_size=0.1" in run_directory.recorded_flags()
    assert checked(parse, *few, "--step_size=0.03").step_size == 0.03
    assert checked(parse, "--epsilon=0.5").step_size == 2 / 255


FINETUNE = ("--exp_mode=finetune", "--source_net=x")
SPARSE = ("--exp_mode=pretrain", "--layer_type=subnet")


@pytest.mark.parametrize(
    ("words", "flags"),
    [
        (["--exp_mode=pretrain", "--k=0.2", "--scale_rand_init"], "k scale_rand_init"),
        ([*FINETUNE, "--allocation=erk", "--scores_init_type=default"], "allocation scores_init_type"),
        (["--optimizer=adam", "--momentum=0.5", "--warmup_lr=0.5"], "momentum warmup_lr"),
        (
            ["--trainer=ibp", "--epsilon=.1", "--const_init", "--starting_epsilon=.01", "--epsilon_schedule=smoothed"],
            "const_init starting_epsilon epsilon_schedule",
        ),
        (["--k=0.2", "--allocation=erk", "--scores_init_type=default", "--momentum=0.5", "--beta=3"], ""),
        ([*SPARSE, "--k=0.2", "--allocation=erk", "--scale_rand_init"], ""),
    ],
)
def test_flags_that_mean_nothing_are_told_of(words, flags, parse, capsys):
    checked(parse, *words)
    notes = capsys.readouterr().out.splitlines()
    assert {note.partition("=")[0].partition(" has ")[0] for note in notes} == {f"Note: --{f}" for f in flags.split()}


def test_flags_of_a_phase_count_in_it_and_nowhere_else(parse):
    def lengths(*arguments):
        parse(HYDRA, "--epochs=7", "--lr=0.3", *arguments)
        return [plan(name).epochs for name in MODES[:3]], [plan(name).rate for name in MODES[:3]]

    assert lengths() == ([7, 20, 7], [0.3, 0.1, 0.01])
    assert lengths("--prune_epochs=3", "--finetune_lr=0.2") == ([7, 3, 7], [0.3, 0.1, 0.2])
    assert lengths("--exp_mode=prune") == ([7, 7, 7], [0.3, 0.3, 0.3])
    assert lengths("--exp_mode=prune", "--prune_epochs=3")[0][1] == 3
    assert lengths("--exp_mode=finetune", "--prune_epochs=3")[0][2] == 7
    parse(HYDRA, "--source_net=x")
    assert Phases.read().names == ("prune", "finetune")
