"""Shrinking of depthwise, separable, and grouped convolutions."""

import keras
import numpy as np
import pytest

from tests.saving.networks import images
from tests.saving.test_shrink import assert_equal_logits
from tf_robust_sparse import runtime, saving


def _grouped_network(layer):
    """A layer on six channels between 1x1 convolutions, whose kernels are all ones."""
    inputs = keras.Input((6, 6, 2))
    x = keras.layers.Conv2D(6, 1, activation="relu", name="before", kernel_initializer="ones")(inputs)
    x = layer(x)
    x = keras.layers.Conv2D(3, 1, name="after", kernel_initializer="ones")(x)
    return keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x))


@pytest.mark.parametrize(
    ("layer", "unread", "kept", "left"),
    [
        (keras.layers.DepthwiseConv2D(3), [0, 4], [1, 2, 3, 5], {"depth_multiplier": 1}),
        (keras.layers.DepthwiseConv2D(3, depth_multiplier=2), [0, 1, 3, 11], [1, 2, 3, 4, 5], {"depth_multiplier": 2}),
        (keras.layers.DepthwiseConv2D(3, depth_multiplier=2), range(0, 12, 2), range(6), {"depth_multiplier": 1}),
        (keras.layers.Conv2D(6, 3, groups=3), [2, 3], [0, 1, 4, 5], {"groups": 2, "filters": 4}),
        (keras.layers.Conv2D(6, 3, groups=3), [0, 2, 3, 4], [0, 1, 4, 5], {"groups": 2, "filters": 2}),
        (keras.layers.Conv2D(6, 3, groups=3), [0, 3, 4], range(6), {"groups": 3, "filters": 3}),
        (keras.layers.Conv2D(6, 3, groups=3), range(4), [4, 5], {"groups": 1, "filters": 2}),
    ],
)
def test_groups_go_as_a_whole_or_each_loses_as_much(layer, unread, kept, left):
    """The second case keeps both channels of each input, because one input needs both."""
    layer = type(layer).from_config({**layer.get_config(), "name": "grouped"})
    network = _grouped_network(layer)
    after = network.get_layer("after")
    kernel = after.kernel.numpy()
    kernel[:, :, list(unread)] = 0
    after.kernel.assign(kernel)
    small, report = saving.shrink(network)
    assert report.kept["before"] == list(kept)
    assert {name: small.get_layer("grouped").get_config()[name] for name in left} == left
    assert_equal_logits(network, small, images(8, shape=(6, 6, 2)))


def test_a_separable_convolution_becomes_two():
    network = _grouped_network(keras.layers.SeparableConv2D(5, 3, depth_multiplier=2, padding="same", name="separable"))
    layer = network.get_layer("separable")
    depthwise, pointwise, bias = layer.get_weights()
    pointwise[:, :, [0, 1, 6]] = 0
    pointwise[..., 2] = 0
    layer.set_weights([depthwise, pointwise, bias + 0.3])
    small, report = saving.shrink(network)
    assert report.kept["before"] == [1, 2, 3, 4, 5] and report.kept["separable"] == [0, 1, 3, 4]
    assert small.get_layer("separable_depthwise").kernel.shape == (3, 3, 5, 2)
    assert report.before.multiply_adds == 36 * (2 * 6 + 9 * 12 + 12 * 5 + 5 * 3)
    assert report.after.multiply_adds == 36 * (2 * 5 + 9 * 10 + 10 * 4 + 4 * 3)
    assert_equal_logits(network, small, images(8, shape=(6, 6, 2)))


def test_nested_models_are_taken_apart():
    inner = keras.Sequential(
        [keras.Input((6, 6, 8)), keras.layers.Conv2D(8, 3, name="spread"), keras.layers.ReLU()], name="inner"
    )
    x = inputs = keras.Input((6, 6, 8))
    x = keras.layers.Activation("relu", name="first")(
        keras.layers.Add()([x, keras.layers.Conv2D(8, 1, name="conv")(x)])
    )
    middle = keras.Model(inputs, keras.layers.Flatten()(inner(x)), name="middle")
    inputs = keras.Input((6, 6, 2))
    network = keras.Model(
        inputs, keras.layers.Dense(3)(middle(keras.layers.Conv2D(8, 1, name="conv", kernel_initializer="ones")(inputs)))
    )
    network.layers[-1].kernel.assign(np.where(np.arange(128)[:, np.newaxis] % 8 < 4, network.layers[-1].kernel, 0))
    small, report = saving.shrink(network)
    assert report.kept["middle_inner_spread"] == [0, 1, 2, 3]
    assert report.kept["conv"] == report.kept["middle_conv"] == list(range(8)) and small.get_layer("middle_first")
    x = images(8, shape=(6, 6, 2))
    assert_equal_logits(network, small, x)
    np.testing.assert_allclose(runtime.compile(network)(x), network(x), rtol=1e-5, atol=1e-5)


def test_a_layer_that_a_nested_model_calls_twice_is_named():
    relu = keras.layers.ReLU(name="relu")
    inputs = keras.Input((6, 6, 8))
    inner = keras.Model(inputs, relu(keras.layers.Conv2D(8, 1)(relu(inputs))), name="inner")
    network = keras.Sequential([keras.Input((6, 6, 8)), inner, keras.layers.Flatten(), keras.layers.Dense(3)])
    with pytest.raises(ValueError, match="The layer inner_relu is called twice"):
        saving.shrink(network)
