"""Counts of connections by weight, channel and filter, and of the weights that a mask keeps by their value."""

import numpy as np
import pytest

from tests.networks import tiny_network
from tf_robust_sparse import layers, sparsity
from tf_robust_sparse.sparsity import statistics
from tf_robust_sparse.sparsity.mask_statistics import kept_weights, mask_statistics
from tf_robust_sparse.sparsity.scores import random_scores


def masked(kernel_mask):
    network = tiny_network("masked")
    layer = network.get_layer("conv2")
    layer.kernel_mask.assign(kernel_mask)
    return network


def test_channels_and_filters_with_a_connection_are_counted():
    mask = np.zeros((3, 3, 8, 16), bool)
    mask[0, 1, 2, 3] = mask[2, 2, 2, 4] = mask[1, 1, 7, 4] = True
    rows = {row["name"]: row for row in mask_statistics(masked(mask))}
    row = rows["conv2"]
    assert (row["nonzero"], row["entries"], row["shape"]) == (3, 1152, [3, 3, 8, 16])
    assert (row["channels"], row["channels_kept"], row["filters"], row["filters_kept"]) == (8, 2, 16, 2)
    assert row["connectivity"] == 3 / 1152
    assert (rows["classifier"]["channels"], rows["classifier"]["filters"]) == (144, 10)


def test_a_layer_without_connections_is_named():
    network = masked(np.zeros((3, 3, 8, 16), bool))
    assert statistics.empty_kernels(network) == ["conv2"]


def test_magnitude_scores_keep_the_largest_and_others_do_not():
    network = tiny_network("subnet")
    sparsity.set_keep_fractions(network, 0.2)
    sparsity.scaled_scores(network)
    for row, layer in zip(kept_weights(network), layers.kernel_layers(network), strict=True):
        assert row["small_kept"] == 0 and row["kept"] == row["kept_by_magnitude"]
        assert sum(row["kept"]) == layer.kept and sum(row["all"]) == layer.kernel.shape.num_elements()
        assert row["kept"][len(row["kept"]) // 2] == 0 < row["all"][len(row["kept"]) // 2]  # the gap around zero
    random_scores(network, seed=1)
    for row in kept_weights(network):
        assert 0.5 < row["small_kept"] < 1 and sum(row["kept"]) == sum(row["kept_by_magnitude"])


def test_weights_of_the_network_before():
    before, after = tiny_network("plain"), tiny_network("masked")
    mask = np.abs(before.get_layer("conv2").kernel.numpy()) > 0.1
    after.get_layer("conv2").kernel_mask.assign(mask)
    rows = {row["name"]: row for row in kept_weights(after, before)}
    assert rows["conv2"]["small_kept"] == 0 and sum(rows["conv2"]["kept"]) == mask.sum()
    with pytest.raises(ValueError, match="no longer holds the weights that were pruned"):
        kept_weights(before)
    with pytest.raises(ValueError, match=r"of shape \(144, 7\) in classifier"):
        kept_weights(after, tiny_network("plain", classes=7))
