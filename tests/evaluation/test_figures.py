"""Figures as a reader sees them: all that was measured is drawn, nothing is cut off or lies over anything else."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from tests.evaluation.figure_checks import faults, keep_figures
from tf_robust_sparse.evaluation import figure_style
from tf_robust_sparse.evaluation.figures import draw_certified, draw_curves, draw_examples, draw_sweep
from tf_robust_sparse.evaluation.mask_figures import (
    draw_channels_between,
    draw_kept_per_layer,
    draw_kept_weights,
    draw_layout,
    draw_structure,
)

ATTACK = "PGD-20, Linf, ε = 8/255"
LAYERS = ("conv1", *(f"stage{s}_block{b}_conv{c}" for s in (1, 2, 3, 4) for b in (1, 2) for c in (1, 2)), "classifier")
RANDOM = np.random.default_rng(0)


@pytest.fixture
def drawn(monkeypatch):
    return keep_figures(monkeypatch)


def checked(drawn):
    """Returns the one figure that was drawn, in which nothing is wrong."""
    ((figure, _),) = drawn
    assert faults(figure) == []
    return figure


def test_the_check_of_figures_finds_each_kind_of_fault(drawn):
    for fault in ("cut off", "text over text", "text over a bar", "legend over a bar", "no x label", "differ in width"):
        with figure_style.new_figure("x.png", 4, 2) as figure:
            left, right = figure.subplots(1, 2)
            for axes in (left, right):
                axes.bar([0, 1], [5, 5], label="bars")
                axes.set(xlabel="" if fault == "no x label" else "x", ylabel="y", ylim=(0, 10))
            if fault == "cut off":
                left.set_in_layout(False)
                left.set_title("a title that is far too long for its panel " * 2)
            elif fault == "text over text":
                left.annotate("one", (0.5, 8))
                left.annotate("other", (0.5, 8))
            elif fault == "text over a bar":
                left.annotate("5", (0, 3))
            elif fault == "legend over a bar":
                left.legend(loc="lower center")
            elif fault == "differ in width":
                figure.colorbar(left.imshow([[1]]), ax=left)
        found = faults(figure)
        assert any(fault in each for each in found), (fault, found)


def test_a_figure_is_written_as_png_and_as_pdf_and_is_the_same_file_each_time(tmp_path):
    points = [{"epsilon": 0.0, "robust_accuracy": 0.9}, {"epsilon": 0.1, "robust_accuracy": 0.3}]
    for name in ("a.png", "b.png"):
        draw_curves({ATTACK: points}, "Linf", tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pdf", "a.png", "b.pdf", "b.png"]
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    pdf = (tmp_path / "a.pdf").read_bytes()
    assert pdf == (tmp_path / "b.pdf").read_bytes() and pdf[:5] == b"%PDF-" and b"/Type3" not in pdf


def test_attacks_have_one_name_in_all_figures():
    described = {"attack": "LinfPGD", "norm": "Linf", "epsilon": 8 / 255, "num_steps": 20}
    assert figure_style.attack_name(described) == ATTACK
    described = {"attack": "LinfFGSM", "norm": "Linf", "epsilon": 0.3, "num_steps": 1}
    assert figure_style.attack_name(described) == "FGSM, Linf, ε = 0.3"


def test_accuracies_are_percent(drawn, tmp_path):
    points = [{"epsilon": i / 100, "robust_accuracy": 0.9 - i / 10} for i in range(5)]
    draw_curves({"PGD-50, 5 restarts": points, "FMN-100": points}, "Linf", tmp_path / "x.png")
    certified = [{"radius": 0.0, "accuracy": 0.8}, {"radius": 0.25, "accuracy": 0.5}, {"radius": 1, "accuracy": 0.1}]
    draw_certified(certified, 0.25, tmp_path / "x.png")
    series = {
        name: [
            {"value": v, "robust_accuracy": 0.4 + v, "robust_deviation": 0.01, "clean_accuracy": 0.8}
            for v in (0.1, 0.01, 0.05)
        ]
        for name in ("HYDRA", "connectivity sampling", "run_binary_subnetworks (other)")
    }
    draw_sweep(series, "--k", tmp_path / "x.png", ATTACK)
    accuracy, certificate, sweep = (figure.axes[0] for figure, _ in drawn)
    np.testing.assert_allclose(accuracy.lines[0].get_ydata(), [90, 80, 70, 60, 50])
    np.testing.assert_allclose(certificate.patches[0].get_data().values, [80, 50, 10])
    np.testing.assert_allclose(sweep.containers[0][0].get_ydata(), [41, 45, 50])  # by rising value
    assert [axes.get_ylabel() for axes in (accuracy, certificate, sweep)] == [
        *("robust accuracy (%)", "certified accuracy (%)", "accuracy (%)")
    ]
    assert ATTACK in sweep.get_title() and [each for figure, _ in drawn for each in faults(figure)] == []


def test_examples(drawn, tmp_path):
    x = RANDOM.random((2, 32, 32, 3))
    draw_examples(x, (x + 0.03).clip(0, 1), np.arange(2), np.arange(2) + 1, tmp_path / "x.png", 0.03)
    assert [len(axes.images) for axes in checked(drawn).axes] == [1] * 6


def test_what_layers_keep(drawn, tmp_path):
    rows, planned = [], {}
    for number, name in enumerate(LAYERS):
        size, share = 9 * 512 * 512, 0.001 + 0.05 * number
        row = {"name": name, "entries": size, "nonzero": int(share * size), "connectivity": share, "channels": 512}
        rows.append({**row, "filters": 512, "channels_kept": 512 - 20 * number, "filters_kept": 500})
        planned[name] = share * 1.2
    draw_kept_per_layer(rows, "resnet18", tmp_path / "x.png", planned)
    axes = checked(drawn).axes[0]
    assert len(axes.patches) == len(rows) and len(axes.texts) == len(rows)
    assert [len(line.get_xdata()) for line in axes.lines] == [len(rows)] * 3
    assert axes.texts[0].get_text() == "2,359 of 2,359,296"


def test_kept_weights(drawn, tmp_path):
    edges = np.linspace(-1, 1, 62)
    counts = {"kept": RANDOM.integers(0, 900, 61), "kept_by_magnitude": RANDOM.integers(0, 900, 61)}
    rows = [{"name": name, "edges": edges, "small_kept": 0.123, **counts} for name in LAYERS]
    draw_kept_weights(rows, tmp_path / "x.png", most=4)
    assert [len(axes.patches) for axes in checked(drawn).axes] == [2] * 4


@pytest.mark.parametrize("scale", [3, 40_000])
def test_structure(drawn, tmp_path, scale):
    counts = {"by_filter": scale * np.arange(64)[::-1], "by_channel": scale * np.arange(64)[::-1]}
    counts |= {"kernels": scale * np.arange(10)[::-1]}
    random = {f"random_{name}": values.mean() * np.ones(len(values)) for name, values in counts.items()}
    draw_structure([{"name": name, **counts, **random} for name in LAYERS], tmp_path / "x.png", most=2)
    figure = checked(drawn)
    assert [len(axes.lines) for axes in figure.axes] == [2] * 6
    assert figure.axes[2].get_ylabel() == "kernels"


@pytest.mark.parametrize("channels", [64, 2048])
def test_channels_between(drawn, tmp_path, channels):
    outputs = RANDOM.integers(0, 40, channels) * (np.arange(channels) % 3 > 0)
    draw_channels_between({"outputs": outputs, "inputs": outputs + 1}, LAYERS[1:3], tmp_path / "x.png")
    above, below = checked(drawn).axes
    assert above.patches[0].get_data().values.sum() == outputs.sum()
    assert len(above.lines[0].get_xdata()) == (outputs == 0).sum() and not below.lines
    assert ("a bar is 4 channels" in above.get_title()) == (channels == 2048)


@pytest.mark.parametrize(
    ("shape", "connections", "dot"),
    [((3, 3, 16, 16), 300, None), ((3, 3, 512, 512), 7300, "3 × 3"), ((2048, 1000), 9000, "2 × 4")],
)
def test_every_connection_of_a_mask_is_seen(drawn, tmp_path, shape, connections, dot):
    mask = np.zeros(int(np.prod(shape)), bool)
    mask[RANDOM.choice(mask.size, connections, replace=False)] = True
    draw_layout(mask.reshape(shape), "conv of resnet18", tmp_path / "x.png")
    figure = checked(drawn)
    axes, rows, columns = figure.axes[:3]
    counts = axes.images[0].get_array()
    assert counts.sum() == connections and f"{connections:,} of {mask.size:,} weights" in axes.get_title()
    assert f"a dot stands for {dot} weights" in axes.get_title() if dot else counts.max() == 1
    # On the page too: the pixel in the middle of a dot is white if and only if the dot holds no connection.
    figure.set_dpi(figure_style.PIXELS_PER_INCH)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[::-1, :, 0]
    places = axes.transData.transform(np.argwhere(np.ones(counts.shape))[:, ::-1])
    x, y = (np.floor(each).astype(int) for each in places.T)
    np.testing.assert_array_equal(pixels[y, x] < 255, (counts > 0).ravel())
    assert (rows.images[0].get_array()[:, 0] == (counts > 0).any(1)).all()
    assert (columns.images[0].get_array()[0] == (counts > 0).any(0)).all()
