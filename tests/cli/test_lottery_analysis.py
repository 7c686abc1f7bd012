"""Figures, tables and grids of lottery tickets from the command line."""

import csv

import numpy as np
import pytest

from tests.cli.conftest import run_script
from tests.cli.lottery_runs import ANALYSIS, GRID, RUN, TINY
from tests.evaluation.test_tickets import curve_values, write_tree
from tf_robust_sparse.cli import processes, settings
from tf_robust_sparse.cli.commands import lottery_grid
from tf_robust_sparse.cli.sections.lottery import Experiment

FIGURES = (
    *("test_acc", "test_adv_acc", "test_loss", "test_early_stop_iteration", "test_over_sparsity", "layers", "pixels"),
    *("dists_reinit_orig", "dists_reinit_none"),
)


def test_the_analysis_draws_what_there_is_and_warns_of_the_rest(tmp_path):
    place = tmp_path / "digits/dense-300-100"
    for offset, strategy in enumerate(("reinit_orig", "reinit_none")):
        write_tree(place / strategy / "pgd/lr-0.0012_l1-0.0_advtrain-true", offset=-offset / 10)
    done = run_script(ANALYSIS, "--attack=pgd", "--adv_train", "--formats=svg", f"--base_dir={tmp_path}").expect()
    assert "Warning: without reinit_rand" in done.out
    directory = place / "analysis/pgd/lr-0.0012_l1-0.0_advtrain-true"
    for name in FIGURES:
        assert "<svg" in (directory / f"{name}.svg").read_text()
    with (directory / "comparison.csv").open() as file:
        found = {(row["remain %"], row["strategy"]): row for row in csv.DictReader(file)}
    assert len(found) == 1 + 2 * 3
    values = [curve_values(trial, 0, 1000)[1] for trial in (0, 1)]
    assert found["100.0", "dense"]["accuracy %"] == f"{100 * np.mean(values):.2f} ± {100 * np.std(values):.2f} (2)"
    assert found["100.0", "dense"]["early stop"] == "500 ± 0"


def test_tables_have_means_and_deviations_of_both_kinds_of_training(tmp_path):
    place = tmp_path / "fashion/dense-300-100/reinit_orig"
    write_tree(place / "fgsm/lr-0.0012_l1-0.0_advtrain-false")
    write_tree(place / "fgsm/lr-0.0012_l1-0.0_advtrain-true", offset=-0.1)
    done = run_script(ANALYSIS, "--table", "--step=1000", f"--base_dir={tmp_path}").expect()
    assert "Warning" in done.out
    with (tmp_path / "tables/fashion.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["remain %"] == "100.0"
    assert rows[0]["FGSM natural"] == "90.50 ± 0.50 (2) / 80.50 ± 0.50 (2)"
    assert rows[0]["FGSM attack"] == "55.00 ± 5.00 (2) / 55.00 ± 5.00 (2)"
    assert rows[0]["PGD natural"] == "- / -"
    written = {f"fashion{part}.{suffix}" for part in ("", "_tickets") for suffix in ("md", "csv", "txt")}
    written |= {f"fashion_training.{suffix}" for suffix in ("svg", "png", "pdf")}
    assert {path.name for path in (tmp_path / "tables").iterdir()} == written
    assert (tmp_path / "tables/fashion_training.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "tables/fashion_training.pdf").read_bytes()[:5] == b"%PDF-"
    assert "10.00 ± 0.00 (2)" in (tmp_path / "tables/fashion_tickets.md").read_text()  # PGD beside FGSM


def test_tables_are_of_the_data_set_of_the_flags_too_and_named_by_what_is_not_as_published(tmp_path):
    place = tmp_path / "cifar10/small_cnn/reinit_orig/fgsm/lr-0.0012_l1-0.0001_advtrain-false_rewind-trained"
    write_tree(place)
    options = ("--dataset=cifar10", "--model=small_cnn", "-l1", "1e-4", "--rewind_step=trained", "--table")
    run_script(ANALYSIS, *options, f"--base_dir={tmp_path}").expect()
    assert (tmp_path / "tables/cifar10_small_cnn_l1-0.0001_rewind-trained_tickets.md").is_file()


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--labels=abc", "--labels=abc: expected percentages"),
        ("--formats=gif", "--formats=gif: expected some of"),
    ],
)
def test_bad_flags_of_the_analysis_are_named(argument, words, tmp_path):
    write_tree(tmp_path / "digits/dense-300-100/reinit_orig/fgsm/lr-0.0012_l1-0.0_advtrain-false")
    assert words in run_script(ANALYSIS, argument, f"--base_dir={tmp_path}").expect(2).err


@pytest.mark.parametrize("more", [(), ("--table",)])
def test_an_analysis_of_nothing_says_what_is_missing(more, tmp_path):
    done = run_script(ANALYSIS, *more, f"--base_dir={tmp_path}").expect(1)
    assert "expected" in done.err and str(tmp_path) in done.err


@pytest.fixture
def commands(monkeypatch):
    """The commands of a grid, as script and arguments, which are not run."""
    found = []
    monkeypatch.setattr(lottery_grid, "process", lambda script, *words: found.append((script, *words)))
    monkeypatch.setattr(processes, "run", lambda commands, **_: [0])
    return found


def test_a_grid_passes_on_what_it_varies_and_analyses_what_it_ran(tmp_path, commands, parse):
    options = "--options=--trials=1 --train_iters=10 --eps=0.1"
    run_script(GRID, "--datasets=sample", "--experiments=reinit_orig", options, f"--base_dir={tmp_path}").expect()
    assert [command[0] for command in commands] == [RUN] * 4 + [ANALYSIS] * 5
    assert commands[1][1:] == (
        *("--dataset=sample", "--experiment=reinit_orig", "--attack=fgsm", "--l1_reg=0.0", "--adv_train"),
        *("--trials=1", "--train_iters=10", "--eps=0.1", "--resume", f"--base_dir={tmp_path}"),
    )
    assert "--noadv_train" in commands[0] and "--attack=pgd" in commands[2]
    assert ["--table" in command for command in commands] == [False] * 8 + [True]
    places = set()
    for script, *arguments in commands[:-1]:
        parse(script, *arguments)
        settings.check()
        places.add(Experiment.read().directory("reinit_orig"))
    assert len(places) == 4


def test_a_grid_without_analysis_and_with_flags_that_some_strategies_have_no_use_for(tmp_path, commands):
    grid = (
        *(
            "--datasets=sample",
            "--attacks=fgsm",
            "--training=natural",
            "--options=--rewind_step=trained --prune_iters=3",
        ),
        *("--experiments=reinit_orig,reinit_none,no_pruning", f"--base_dir={tmp_path}"),
    )
    run_script(GRID, *grid).expect()
    runs, analyses = commands[:3], commands[3:]
    assert [command[-1] for command in runs] == [f"--base_dir={tmp_path}", "--rewind_step=0", "--rewind_step=0"]
    assert ["--prune_iters=0" in command for command in runs] == [False, False, True]
    assert len(analyses) == 2 and all("--rewind_step=trained" in command for command in analyses)
    del commands[:]
    run_script(GRID, *grid, "--noanalysis").expect()
    assert commands == runs


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--options=--dataset=digits",), 2, "the grid sets --dataset itself"),
        (("--data_dirs=a,b",), 2, "expected one for each"),
        (("--attacks=cw",), 2, "--attacks=cw: expected some of"),
        (("--datasets=sample,letters",), 2, "--dataset=letters"),
        (("--options=--train_iter=10",), 2, "such as train_iters"),
        (("--options=--percents=conv1=0.1",), 2, "expected layers of hidden_1"),
        (("--options=--rewind_step=60000",), 2, "a step before the last of round 0"),
        (("--datasets=sample,digits", "--data_dirs=.,nowhere"), 1, "no files of mnist found"),
    ],
)
def test_a_grid_is_checked_as_a_whole_before_its_first_run(arguments, code, words, commands, tmp_path):
    done = run_script(GRID, "--datasets=sample", *arguments, f"--base_dir={tmp_path}").expect(code)
    assert words in done.err and not commands


@pytest.mark.full
def test_what_a_grid_runs_ends_in_figures_and_tables(tmp_path, commands):
    options = " ".join(["--options=--trials=1 --processes=1", *TINY[1:]])
    grid = ("--datasets=sample", "--experiments=reinit_orig", "--attacks=pgd", "--training=natural")
    run_script(GRID, *grid, options, f"--base_dir={tmp_path}").expect()
    for script, *arguments in list(commands):
        run_script(script, *arguments).expect()
    assert list(tmp_path.glob("sample/*/analysis/pgd/*/test_acc.svg"))
    assert (tmp_path / "tables/sample.md").is_file()
