"""The command lines of the original training and evaluation, and its names of flags, mean what they meant there."""

import pytest

from tests.cli.conftest import EVALUATE, TRAIN
from tests.cli.test_flagfiles import meaning
from tf_robust_sparse.cli import settings
from tf_robust_sparse.cli.sections import method
from tf_robust_sparse.cli.sections.attacks import TestAttack

RESNET50 = ("--data", "cifar10", "--model", "resnet50", "--n_classes", "10")


def test_the_original_command_lines_translate(parse):
    for connectivity in ("0.01", "0.1", None):
        sparse = ["-s", "-pc", connectivity] if connectivity else []
        number = float(connectivity) if connectivity else None
        flags = parse(TRAIN, *RESNET50, *sparse, "-wd", "1e-3", "--objective", "at")
        settings.check()
        assert meaning(flags) == ("cifar10", "resnet50", "at", number)
        assert (flags.weight_decay, flags.n_classes, flags.epochs, flags.batch_size) == (1e-3, 10, 200, 128)
        written = method.default_directory()
        parse(EVALUATE, *RESNET50, *sparse, "--objective", "at")
        settings.check()
        assert method.default_directory() == written


def test_the_original_evaluation_command_finds_the_run(parse):
    command = "--data cifar10 --n_classes 10 --model resnet50 --objective at --sparse_train --connectivity 0.01"
    flags = parse(EVALUATE, *command.split(), "--pgd_iters", "50", "--pgd_restarts", "10")
    settings.check()
    assert (flags.pgd_iters, flags.pgd_restarts, TestAttack.read().epsilon) == (50, 10, 8 / 255)
    assert str(method.default_directory()) == "saved_models/cifar10_resnet50_at_sparse0.01"
    parse(TRAIN, *RESNET50, "-s", "-pc", "0.01", "-wd", "1e-3", "--objective", "at")
    assert str(method.default_directory()) == "saved_models/cifar10_resnet50_at_sparse0.01"


def test_flags_of_other_objectives_are_taken_as_there(parse, capsys):
    parse(TRAIN, *RESNET50, "--objective", "at", "--beta", "6", "--rst_frac", "0.5")
    settings.check()
    assert not capsys.readouterr().out
    parse(TRAIN, *RESNET50, "--objective", "at", "--beta", "3", "--rst_frac", "0.3")
    settings.check()
    notes = capsys.readouterr().out.splitlines()
    assert sorted(notes)[0] == "Note: --beta=3.0 has no effect here; it belongs to --objective=trades or mart or rst"
    assert len(notes) == 2 and {"beta", "rst_frac"} <= set(settings.meaningless())


def test_close_connectivities_have_their_own_directories(parse):
    names = set()
    for connectivity in ("0.01", "0.015", "0.29", "0.28", "0.005", "1e-2", "1/100"):
        parse(TRAIN, "-s", "-pc", connectivity)
        names.add(method.run_name())
    assert len(names) == 5


@pytest.mark.parametrize(
    ("alias", "name", "value"),
    [
        ("--eps_iter", "step_size", 0.01),
        ("--num_iter", "num_steps", 7),
        ("--n_epochs", "epochs", 3),
        ("-e", "epochs", 3),
        ("--batch", "batch_size", 32),
        ("-b", "batch_size", 32),
        ("--l_rate", "learning_rate", 0.2),
        ("-lr", "learning_rate", 0.2),
        ("--w_decay", "weight_decay", 0.001),
        ("-wd", "weight_decay", 0.001),
        ("-pc", "connectivity", 0.25),
        ("--noise-scaling", "noise_scaling", 1e-5),
        ("--batch-size", "batch_size", 16),
        ("--rst_frac", "rst_frac", 0.25),
    ],
)
def test_other_names_of_flags(alias, name, value, parse):
    assert parse(TRAIN, alias, value)[name].value == value
    if alias.startswith("--"):
        assert parse(TRAIN, f"{alias}={value}")[name].value == value
