"""Figures of features, gates and loss surfaces as a reader sees them."""

import numpy as np
import pytest

from tests.evaluation.figure_checks import faults, keep_figures
from tf_robust_sparse.evaluation.feature_figures import (
    draw_channels,
    draw_distortion_maps,
    draw_distortions,
    draw_features,
    draw_gates,
    draw_layer_distortions,
    draw_loss_surfaces,
    draw_strength,
)
from tf_robust_sparse.evaluation.loss_surface import LossSurface

ATTACK = "PGD-40, Linf, ε = 8/255"
RANDOM = np.random.default_rng(0)


@pytest.fixture
def drawn(monkeypatch):
    return keep_figures(monkeypatch)


def checked(drawn):
    """Returns the one figure that was drawn, in which nothing is wrong."""
    ((figure, _),) = drawn
    assert faults(figure) == []
    return figure


def distortions(*shape):
    return RANDOM.exponential(0.1, shape) * (RANDOM.random(shape) < 0.7)


@pytest.mark.parametrize("networks", [1, 4])
def test_the_bar_of_features_that_never_move_lies_over_no_other(drawn, tmp_path, networks):
    series = {f"network {number}": distortions(24, 24, 20) for number in range(networks)}
    draw_distortions(series, f"relu1 under {ATTACK}", tmp_path / "x.png")
    for axes, values in zip(checked(drawn).axes, series.values(), strict=True):
        bar = next(patch for patch in axes.patches if hasattr(patch, "get_x"))
        (histogram,) = (patch.get_data() for patch in axes.patches if not hasattr(patch, "get_x"))
        assert bar.get_x() + bar.get_width() < histogram.edges[0] == 0
        assert bar.get_height() == (values == 0).sum() == values.size - histogram.values.sum()
        assert min(axes.get_xticks()) >= 0  # nothing moves by less than nothing


@pytest.mark.parametrize(("networks", "channels"), [(1, 4), (2, 7)])
def test_maps_have_one_size(drawn, tmp_path, networks, channels):
    series = {f"network {number}": distortions(12, 12, channels) for number in range(networks)}
    series["network 0"][..., 1] = 0
    draw_distortion_maps(series, f"relu1 under {ATTACK}", tmp_path / "x.png")
    figure = checked(drawn)
    assert sum(len(axes.images) for axes in figure.axes) == networks * channels - 1
    sizes = {tuple(np.round(axes.get_window_extent().size)) for axes in figure.axes if axes.images}
    assert len(sizes) == 1


@pytest.mark.parametrize("layers", [3, 17])
def test_layers_and_channels(drawn, tmp_path, layers):
    names = [f"stage{number}_relu" for number in range(layers)]
    series = {each: dict(zip(names, distortions(layers), strict=True)) for each in ("AT", "ANP-VS", "dense")}
    draw_layer_distortions(series, tmp_path / "x.png", ATTACK)
    assert len(checked(drawn).axes[0].patches) == 3 * layers
    channels = {each: {"relu1": distortions(20)} for each in series}
    draw_channels(channels, "relu1", tmp_path / "x.png", ATTACK)
    axes = checked(drawn[1:]).axes[0]
    assert len(axes.lines) == 3 and axes.get_title() == f"relu1 under {ATTACK}"


@pytest.mark.parametrize("networks", [1, 2])
def test_loss_surfaces(drawn, tmp_path, networks):
    offsets = np.linspace(-8 / 255, 8 / 255, 11, dtype=np.float32)
    losses = 3 + 20 * np.add.outer(offsets, offsets**2) * np.ones((2, 1, 1))
    series = {f"network {number}": LossSurface(offsets, losses) for number in range(networks)}
    draw_loss_surfaces(series, tmp_path / "x.png")
    figure = checked(drawn)
    assert [axes.get_zlabel() for axes in figure.axes] == ["cross entropy"] * networks
    assert "pixels of [0, 1]" in figure.get_suptitle()


@pytest.mark.parametrize("channels", [3, 12])
def test_features(drawn, tmp_path, channels):
    draw_features(distortions(9, 9, channels), distortions(9, 9, channels), "relu1", tmp_path / "x.png")
    assert sum(len(axes.images) for axes in checked(drawn).axes) == 2 * channels


def test_strength(drawn, tmp_path):
    points = [(steps, 0.5 - steps / 300) for steps in (10, 20, 40, 100)]
    series = {name: {"steps": points, "epsilon": points} for name in ("AT", "ANP-VS")}
    labels = {"steps": "steps of PGD, Linf, ε = 8/255", "epsilon": "radius ε (pixels of [0, 1]), 40 steps"}
    draw_strength(series, tmp_path / "x.png", labels)
    axes = checked(drawn).axes
    assert [each.get_xlabel() for each in axes] == list(labels.values()) and len(axes[0].lines) == 2
    assert axes[0].lines[0].get_ydata()[0] == pytest.approx(100 * (0.5 - 1 / 30))


@pytest.mark.parametrize(("layers", "epochs"), [(1, 0), (2, 5), (11, 200)])
def test_gates(drawn, tmp_path, layers, epochs):
    means = {f"gate{number}": RANDOM.beta(0.3, 0.3, 64) for number in range(layers)}
    opened = {name: list(RANDOM.integers(0, 64, epochs)) for name in means} if epochs else {}
    draw_gates(means, 0.001, opened, tmp_path / "x.png")
    *gates, last = checked(drawn).axes
    of_gates = gates if epochs else [*gates, last]
    assert len(of_gates) == layers and all(axes.patches[0].get_data().values.sum() == 64 for axes in of_gates)
    if epochs:
        assert len(last.lines) == layers and all(tick == round(tick) for tick in last.get_xticks())
