"""How connections are spread, beside chance; and what signs save."""

import numpy as np
import pytest

from tests.networks import tiny_network
from tf_robust_sparse import layers, models, sparsity
from tf_robust_sparse.sparsity.allocation import adaptive_fractions
from tf_robust_sparse.sparsity.mask_structure import channels_between, mask_structure


def masked(mask):
    network = tiny_network("masked")
    network.get_layer("conv2").kernel_mask.assign(mask)
    return network


def row_of(network, **arguments):
    return {row["name"]: row for row in mask_structure(network, **arguments)}["conv2"]


def test_counts_of_a_mask_written_down():
    mask = np.zeros((3, 3, 8, 16), bool)
    mask[:, :, 2, 3] = True
    mask[0, 0, 2, 4] = mask[0, 1, 5, 4] = True
    row = row_of(masked(mask))
    assert row["by_channel"] == [10, 1, 0, 0, 0, 0, 0, 0]
    assert row["by_filter"] == [9, 2, *[0] * 14]
    assert row["kernels"] == [125, 2, 0, 0, 0, 0, 0, 0, 0, 1]
    assert (row["empty_channels"], row["empty_filters"], row["empty_kernels"]) == (6, 14, 125)


def test_random_masks_have_as_many_connections_and_look_random():
    mask = np.zeros((3, 3, 8, 16), bool)
    mask[:, :, 0, :] = True
    row = row_of(masked(mask), draws=50)
    for name in ("by_channel", "by_filter"):
        assert sum(row[f"random_{name}"]) == pytest.approx(144)
        assert row[f"random_{name}"] == sorted(row[f"random_{name}"], reverse=True)
    assert sum(row["random_kernels"]) == pytest.approx(128)
    assert sum(i * n for i, n in enumerate(row["random_kernels"])) == pytest.approx(144)
    assert row["random_empty_channels"] == 0 and row["empty_channels"] == 7
    assert row["random_empty_kernels"] == pytest.approx(128 * (1 - 1 / 8) ** 9, rel=0.1)


def test_a_random_mask_is_like_chance():
    network = tiny_network("signed")
    sparsity.uniform_scores(network)
    sparsity.set_keep_fractions(network, 0.1)
    row = row_of(network, draws=50)
    np.testing.assert_allclose(row["by_filter"], row["random_by_filter"], atol=6)


def test_channels_between_two_layers():
    network = tiny_network("masked")
    first, second = network.get_layer("conv1"), network.get_layer("conv2")
    outputs, inputs = np.zeros((3, 3, 1, 8), bool), np.zeros((3, 3, 8, 16), bool)
    outputs[0, :2, 0, [0, 1]] = True  # two connections each
    inputs[0, 0, 1, :5] = inputs[1, 1, 7, :3] = True
    first.kernel_mask.assign(outputs)
    second.kernel_mask.assign(inputs)
    found = channels_between(first, second)
    assert found["outputs"] == [2, 2, 0, 0, 0, 0, 0, 0] and found["inputs"] == [0, 5, 0, 0, 0, 0, 0, 3]
    assert (found["empty_in_both"], found["without_output"], found["without_input"]) == (5, 1, 1)
    assert found["random_empty_in_both"] == 6 * 6 / 8
    with pytest.raises(ValueError, match="`second` must have as many input channels"):
        channels_between(second, first)


def test_published_cost_of_resnet34():
    """A network of signs takes 0.638305 of the operations of full precision; of the fractions that are planned."""
    network = models.build("resnet34", variant=models.Variant(classifier_bias=False))
    found = layers.kernel_layers(network)
    sizes = [int(np.prod(layer.kernel.shape)) for layer in found]
    for layer, fraction in zip(found, adaptive_fractions(sizes, 0.01, 0.1), strict=True):
        layer.keep_fraction = fraction
    cost = sparsity.relative_cost(network)
    assert cost["forward"] == pytest.approx(0.549581, abs=1e-5)
    assert cost["backward"] == pytest.approx(0.681915, abs=1e-5)
    assert cost["total"] == pytest.approx(0.638305, abs=1e-5)


def test_bad_draws():
    with pytest.raises(ValueError, match="`draws` must be the number of random masks"):
        mask_structure(tiny_network(), draws=0)
