"""The curves of a training: what was measured is drawn, in percent."""

import pytest

from tests.evaluation.figure_checks import faults
from tf_robust_sparse import attacks
from tf_robust_sparse.evaluation import learning_curve
from tf_robust_sparse.evaluation.learning_curve import draw_learning_curve

HISTORY = [
    {"epoch": 1, "loss": 2.0, "accuracy": 0.2, "val_loss": 2.1, "val_accuracy": 0.3, "val_robust_accuracy": 0.1},
    {"epoch": 2, "loss": 1.5, "accuracy": 0.4, "val_loss": 1.9, "val_accuracy": 0.5, "val_robust_accuracy": 0.25},
]


@pytest.mark.parametrize("attacked", [False, True])
def test_every_measured_curve_is_drawn_where_it_belongs(attacked, tmp_path, monkeypatch):
    drawn = []
    panels = learning_curve.panels
    monkeypatch.setattr(learning_curve, "panels", lambda *arguments: drawn.extend(panels(*arguments)) or drawn)
    attack = attacks.LinfPGD(8 / 255, 2 / 255, 10, keep_best=True).describe()
    draw_learning_curve(HISTORY, tmp_path / "curve.png", attack, attacked)
    assert {path.name for path in tmp_path.iterdir()} == {"curve.png", "curve.pdf"}
    loss, clean, robust = (
        {line.get_label(): [round(float(y), 6) for y in line.get_ydata()] for line in axes.lines} for axes in drawn
    )
    assert loss == {"training": [2, 1.5], "held-out": [2.1, 1.9]}
    training = {"training": [20, 40]}
    assert clean == {"held-out": [30, 50]} | ({} if attacked else training)
    assert robust == {"held-out": [10, 25]} | (training if attacked else {})
    assert "under PGD-10, Linf, ε = 8/255" in drawn[2].get_ylabel()
    assert faults(drawn[0].figure) == []


def test_no_epochs_make_no_curve(tmp_path):
    with pytest.raises(ValueError, match="at least one epoch"):
        draw_learning_curve([], tmp_path / "curve.png")
