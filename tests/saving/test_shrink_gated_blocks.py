"""Closed gates inside residual blocks take their channels along."""

import keras
import numpy as np
import pytest

from tests.saving.networks import images
from tests.saving.test_shrink import GATED_TOLERANCE, assert_equal_logits, gated, logits
from tf_robust_sparse import layers, models, saving
from tf_robust_sparse.models import resnet


@pytest.mark.parametrize(
    ("depth", "blocks"), [(18, (2, 1, 1, 1)), pytest.param(50, (1, 1, 1, 1), marks=pytest.mark.full)]
)
def test_gated_residual_networks(depth, blocks, monkeypatch):
    monkeypatch.setitem(resnet._BLOCKS, depth, (resnet._BLOCKS[depth][0], blocks))
    shape, variant = (16, 16, 3), models.Variant(gates=True)
    network = gated(f"resnet{depth}_p1", 0.5, input_shape=shape, variant=variant)
    gates = layers.gates(network)
    assert len(gates) == sum(blocks) * (1 if depth == 18 else 2)
    x = images(32, shape=shape)
    small, report = saving.shrink(network)
    assert np.abs(logits(small, x) - logits(network, x)).max() <= GATED_TOLERANCE
    assert_equal_logits(network, small, x)
    assert not [layer for layer in small.layers if isinstance(layer, keras.layers.Rescaling)]
    for gate in gates:
        before = gate.name.replace("gate", "conv")
        after = f"{before[:-1]}{int(before[-1]) + 1}"
        is_open = set(np.flatnonzero(gate.inference_scale()).tolist())
        extra = set(report.kept[before]) - is_open  # closed channels that are positive behind batch norm, as one
        assert is_open <= set(report.kept[before]) and extra == set(report.carriers.get(after, []))
        assert len(extra) <= 1 and len(is_open) < report.channels[before]
        assert small.get_layer(after).kernel.shape[2] == small.get_layer(before).kernel.shape[3]
    inside = {gate.name.replace("gate", "conv") for gate in gates}
    assert all(len(kept) == report.channels[name] for name, kept in report.kept.items() if name not in inside)
