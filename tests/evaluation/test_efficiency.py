"""Published costs of pruned networks."""

import pytest

from tf_robust_sparse import layers, models
from tf_robust_sparse.evaluation.efficiency import _ARCHITECTURES, _memory, efficiency, gated_units

LENET = _ARCHITECTURES["lenet_conv"]
BETA_BERNOULLI = [64, 64, 128, 126, 251, 174, 41, 87, 81, 13, 118, 110, 25, 25, 69]  # as published


@pytest.mark.parametrize(
    ("name", "classes", "flops", "memory", "in_table"),
    [
        ("lenet_conv", 10, 4_615_940, 477_410, 477_410),
        ("vgg16_dropout", 10, 627_329_546, 16_655_818, 19_881_538),
        ("vgg16_dropout", 100, 627_421_796, 16_701_988, 20_481_748),
    ],
)
def test_whole_networks(name, classes, flops, memory, in_table):
    found, units = _ARCHITECTURES[name], gated_units(name)
    whole = efficiency(name, units, classes)
    assert whole.flops == flops
    assert whole[2:] == (1.0, 100.0, 100.0) and whole.sparsity == 0
    assert _memory(found, units, classes, 1) == memory
    assert _memory(found, units, classes, found.repeats_in_table) == in_table


def test_half_of_lenet():
    found = efficiency("lenet_conv", [10, 25, 400, 250])
    assert found.flops == 1_307_970 and _memory(LENET, [10, 25, 400, 250], 10, 1) == 139_660
    assert found.speed_up == pytest.approx(3.5291, abs=1e-4)
    assert found.memory == pytest.approx(29.2537, abs=1e-4)
    assert found.sparsity == 50


@pytest.mark.parametrize(
    ("name", "units", "sparsity", "speed_up", "memory", "in_table"),
    [
        ("lenet_conv", [14, 27, 120, 56], 84.1606, 2.8026, 11.2997, 11.2997),
        ("vgg16_dropout", [n // 2 for n in gated_units("vgg16_dropout")], 50, 3.97496, 27.6121, 27.2892),
        ("vgg16_dropout", BETA_BERNOULLI, 73.78, 2.156, 16.10, 13.64),
    ],
)
def test_published_examples(name, units, sparsity, speed_up, memory, in_table):
    found = efficiency(name, units)
    for value, expected in ((found.sparsity, sparsity), (found.memory, memory), (found.memory_in_table, in_table)):
        assert value == pytest.approx(expected, abs=5e-3 if expected == round(expected, 2) else 1e-4)
    assert found.speed_up == pytest.approx(speed_up, abs=1e-3 if speed_up == 2.156 else 1e-4)


@pytest.mark.parametrize("shape", [(28, 28, 1), (20, 20, 1), (32, 32, 3), (17, 24, 2)])
def test_images_of_another_size(shape):
    network = models.lenet_conv(7, shape, gates=True)
    units = [layer.a_raw.shape[0] for layer in layers.gates(network)]
    assert gated_units("lenet_conv", shape) == tuple(units)
    whole = efficiency("lenet_conv", units, 7, shape)
    assert (whole.sparsity, whole.speed_up, whole.memory) == (0, 1, 100)
    expected = 0
    for layer in network.layers:
        if layer.name.startswith(("conv", "dense", "classifier")):
            *size, outputs = layer.output.shape[1:]
            positions = size[0] * size[1] if size else 1
            inputs = layer.kernel.shape[0] if not size else 25 * layer.kernel.shape[2]
            expected += positions * outputs * (2 * inputs + (outputs != 7))
        elif layer.name.startswith("pool"):
            height, width, channels = layer.output.shape[1:]
            expected += 4 * height * width * channels
    assert whole.flops == expected


def test_other_numbers_are_refused():
    with pytest.raises(ValueError, match="too small"):
        gated_units("lenet_conv", (8, 8, 1))
    with pytest.raises(ValueError, match="architecture"):
        efficiency("resnet18", [1])
    for units in ([20, 50, 800], [21, 50, 800, 500], [20, 50, 800, -1]):
        with pytest.raises(ValueError, match="units"):
            efficiency("lenet_conv", units)
