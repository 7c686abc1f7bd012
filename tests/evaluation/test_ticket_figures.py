"""Figures of lottery tickets: all that was measured is drawn, in percent, and nothing lies over anything else."""

import numpy as np
import pytest

from tests.evaluation.figure_checks import faults, keep_figures
from tests.evaluation.test_tickets import write_tree
from tf_robust_sparse.evaluation import ticket_figures, tickets

STRATEGIES = ("reinit_orig", "reinit_rand", "reinit_none")
ATTACK = "PGD-10, Linf, ε = 0.3"


@pytest.fixture(scope="module")
def rounds(tmp_path_factory):
    return tickets.read_rounds(write_tree(tmp_path_factory.mktemp("tree"), rounds=12))


@pytest.fixture
def drawn(monkeypatch):
    return keep_figures(monkeypatch)


@pytest.mark.parametrize("strategies", [("reinit_orig",), ("reinit_orig", "reinit_rand"), STRATEGIES])
def test_curves_have_a_panel_for_each_strategy_that_was_run(rounds, drawn, tmp_path, strategies):
    runs = dict.fromkeys(strategies, rounds)
    ticket_figures.draw_curves(runs, [0, 3, 7], "adv_acc", ATTACK, [tmp_path / "x.png"], (40, 70), 1000)
    ((figure, _),) = drawn
    titles = [axes.get_title() for axes in figure.axes]
    assert len(set(titles)) == len(titles) == len(strategies)
    assert figure.axes[0].get_ylabel() == f"test accuracy (%)\nunder {ATTACK}"
    # The dense round is drawn once in a panel.
    assert [len(axes.lines) for axes in figure.axes] == [3] + [5] * (len(strategies) - 1)
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), 55)
    assert figure.axes[0].get_ylim() == (40, 70) and faults(figure) == []


def test_measures_over_sparsity_are_percent_and_name_the_attack(rounds, drawn, tmp_path):
    runs = {"reinit_orig": rounds, "reinit_none": rounds}
    ticket_figures.draw_early_stopping(runs, ATTACK, [tmp_path / "x.png"])
    ticket_figures.draw_over_sparsity(runs, 1000, ATTACK, [tmp_path / "y.png"])
    for figure, _ in drawn:
        assert figure.axes[1].get_ylabel().endswith("accuracy (%)")
        assert figure.axes[2].get_ylabel().endswith(f"accuracy (%)\nunder {ATTACK}")
        assert [len(axes.lines) for axes in figure.axes] == [2, 2, 2] and faults(figure) == []
    np.testing.assert_allclose(figure.axes[1].lines[0].get_ydata(), [90.5 - 2 * number for number in range(12)])


def test_training_layers_pixels_and_densities(rounds, drawn, tmp_path):
    kinds = {"natural": ("fgsm", rounds), "FGSM": ("fgsm", rounds)}
    ticket_figures.draw_training(kinds, {"fgsm": "FGSM, Linf, ε = 0.3", "pgd": ATTACK}, [tmp_path / "t.png"])
    ticket_figures.draw_layers(rounds, [tmp_path / "layers.png"])
    assert ticket_figures.draw_pixels(rounds, [0, 2, 5, 7, 11], [tmp_path / "pixels.png"])
    ticket_figures.draw_densities(rounds, [0, 2, 4], [tmp_path / "dists.png"])
    (training, _), (layers, _), (pixels, _), (densities, _) = drawn
    assert [len(axes.lines) for axes in training.axes] == [2, 2, 2, 3]
    np.testing.assert_allclose(training.axes[2].lines[0].get_ydata(), 10)
    assert all(tick == round(tick) for tick in layers.axes[0].get_xticks()) and len(layers.axes[0].lines) == 2
    assert sum(len(axes.images) for axes in pixels.axes) == 5
    assert densities.axes[0].get_ylabel() and len(densities.axes[0].lines) == 2
    assert [each for figure, _ in drawn for each in faults(figure)] == []
