"""Networks with another activation than ReLU."""

import keras
import numpy as np
import pytest

from tf_robust_sparse import models


@pytest.mark.parametrize("name", ["small_cnn", "lenet5_caffe", "resnet18_p01", "wrn28_2", "vgg2_bn", "dense_300_100"])
def test_every_activation_is_the_other_one(name):
    shape = (28, 28, 1) if name in ("lenet5_caffe", "dense_300_100") else (32, 32, 3)
    arguments = {"input_shape": shape, "kernel": "rewiring", "connectivity": 0.1, "seed": 0}
    silu, relu = models.build(name, "silu", **arguments), models.build(name, **arguments)
    of_layers = [
        keras.activations.serialize(layer.activation)
        for layer in silu.layers
        if getattr(layer, "activation", None) is not None
    ]
    assert "silu" in of_layers and "relu" not in of_layers
    assert not [layer for layer in silu.layers if isinstance(layer, keras.layers.ReLU)]
    assert [layer.name for layer in silu.layers] == [layer.name for layer in relu.layers]
    for a, b in zip(silu.get_weights(), relu.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.allclose(silu(np.ones((1, *shape))), relu(np.ones((1, *shape))))


def test_bad_activations():
    with pytest.raises(ValueError, match="activation='gelu'"):
        models.build("small_cnn", "gelu")
    with pytest.raises(ValueError, match='pass padding_mode="tf_same"'):
        models.build("resnet18_imagenet", "silu", padding_mode="symmetric", input_shape=(64, 64, 3), num_classes=10)
