"""Whole channels are pruned, and the network without them says the same."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_robust_sparse as trs
from tests.networks import tiny_dataset, tiny_images, tiny_network
from tf_robust_sparse import layers, objectives, saving
from tf_robust_sparse.sparsity import ChannelMagnitudePruning, schedules
from tf_robust_sparse.training import RobustModel


def kept(network):
    """Which columns of each mask are on; each is on or off as a whole."""
    found = []
    for layer in layers.kernel_layers(network):
        mask = layer.kernel_mask.numpy().reshape(-1, layer.kernel.shape[-1])
        assert (mask.all(axis=0) == mask.any(axis=0)).all()
        found.append(mask.any(axis=0))
    return found


def test_the_largest_channels_of_each_kernel_are_kept():
    network = tiny_network("masked")
    sizes = [np.abs(layer.kernel.numpy()).reshape(-1, layer.kernel.shape[-1]).sum(axis=0) for layer in kernels(network)]
    sparsifier = ChannelMagnitudePruning(0.3)
    sparsifier.attach(network)
    first, second, last = kept(network)
    assert [first.sum(), second.sum(), last.sum()] == [2, 4, 10]
    for mask, size in zip((first, second), sizes, strict=False):
        assert size[mask].min() >= size[~mask].max()
    assert sparsifier.within_budget() and sum(sparsifier.count()) == sparsifier.budget == 2 * 9 + 4 * 72 + 1440


def kernels(network):
    return layers.kernel_layers(network)


def test_all_together_every_kernel_keeps_one():
    network = tiny_network("masked")
    kernels(network)[0].kernel.assign(100 * kernels(network)[0].kernel)
    sparsifier = ChannelMagnitudePruning(0.25, allocation="global")
    sparsifier.attach(network)
    assert [mask.sum() for mask in kept(network)] == [5, 1, 10]  # 6 of 24
    assert sparsifier.within_budget()


def test_scales_of_batch_norm_decide():
    network = tiny_network("masked")
    network.get_layer("bn1").gamma.assign([0.1, -0.9, 0.2, 0.8, 0.3, 0.0, 0.4, 0.5])
    ChannelMagnitudePruning(0.25, criterion="batch_norm").attach(network)
    first, second, _ = kept(network)
    assert np.flatnonzero(first).tolist() == [1, 3]
    assert second.all()  # no batch norm follows
    with pytest.raises(ValueError, match=r'criterion="batch_norm".*conv1, conv2'):
        ChannelMagnitudePruning(0.5, criterion="batch_norm").attach(tiny_network("masked", batch_norm=False))


@pytest.mark.parametrize(
    ("allocation", "criterion"),
    [
        *(("uniform", "kernel"), ("global", "batch_norm")),
        *(pytest.param(*each, marks=pytest.mark.full) for each in (("uniform", "batch_norm"), ("global", "kernel"))),
    ],
)
def test_trained_gradually_and_shrunk(allocation, criterion):
    network = tiny_network("masked")
    schedule = schedules.polynomial(0.5, end_step=8, frequency=2)
    sparsifier = ChannelMagnitudePruning(0.5, schedule, allocation, criterion)
    model = RobustModel(network, objectives.Natural(), sparsifier)
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9, weight_decay=1e-3))
    before = []
    look = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: before.append(np.concatenate(kept(network)))
    )
    model.fit(tiny_dataset(), epochs=3, verbose=0, callbacks=[look])
    assert before[0].sum() > before[-1].sum()
    assert all((later <= earlier).all() for earlier, later in itertools.pairwise(before))
    assert sparsifier.within_budget()
    sparsifier.check(network)
    x, _ = tiny_images(32)
    small, report = saving.shrink(network, fold_batch_norm=True)
    np.testing.assert_allclose(small(x), network(x, training=False), atol=1e-4)
    left = [int(mask.sum()) for mask in kept(network)]
    assert [len(report.kept[layer.name]) for layer in kernels(network)] == pytest.approx(left, abs=1)  # or a carrier
    assert report.after.multiply_adds < 0.8 * report.before.multiply_adds


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="`criterion` must be one of kernel, batch_norm"):
        ChannelMagnitudePruning(0.1, criterion="l2")
    network = keras.Sequential([keras.Input((4,)), layers.MaskedDense(3)])
    with pytest.raises(ValueError, match="No kernel but the last"):
        ChannelMagnitudePruning(0.5).attach(network)
    assert tf.reduce_all(network.layers[0].kernel_mask)


def keras_network():
    """Plain Keras layers: in a nested model, transposed and separable, and two kernels in front of the output."""
    x = inputs = keras.Input((8, 8, 3))
    inner = [
        keras.Input((8, 8, 3)),
        keras.layers.Conv2D(12, 3, strides=2, name="conv"),
        keras.layers.BatchNormalization(),
    ]
    x = keras.Sequential([*inner, keras.layers.DepthwiseConv2D(2, name="depthwise")], name="inner")(x)
    x = keras.layers.SeparableConv2D(10, 3, padding="same", activation="relu", name="separable")(x)
    up = keras.layers.Conv2DTranspose(6, 3, padding="same", name="up")(x)
    x = keras.layers.Conv2D(6, 1, name="side")(up)
    x = keras.layers.Flatten()(keras.layers.Add()([keras.layers.Dense(6, name="last")(up), x]))
    return keras.Model(inputs, keras.layers.Reshape((-1, 6))(x))


@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_channels_of_any_keras_model(allocation):
    model = keras_network()
    report = trs.sparsify(model, 0.5, ChannelMagnitudePruning(allocation=allocation), min_size=1)
    off = {
        kernel.name.split("/")[-2]: ~np.any(
            np.moveaxis(kernel.mask.numpy(), -2 if "up" in kernel.name else -1, 0), axis=(1, 2, 3)
        )
        for kernel in report.sparsified
        if len(kernel.weight.shape) == 4
    }
    assert {name: len(units) for name, units in off.items()} == {"conv": 12, "separable": 10, "up": 6, "side": 6}
    (last,) = (kernel for kernel in report.sparsified if "last" in kernel.name)
    assert last.mask.numpy().all() and not off["side"].any()
    assert sum(units.sum() for units in off.values()) == 14 and report.sparsifier.within_budget()


def test_an_application_of_keras_trains_and_shrinks():
    model = keras.applications.MobileNetV2(
        weights=None, input_shape=(32, 32, 3), alpha=0.35, classes=10, classifier_activation=None
    )
    random = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.5
            layer.gamma.assign(random.uniform(0.5, 1.5, layer.gamma.shape))
    report = trs.sparsify(model, 0.5, ChannelMagnitudePruning(criterion="batch_norm"))
    trainer = RobustModel(model, objectives.Natural(), report.sparsifier)
    trainer.compile(keras.optimizers.SGD(0.01))
    x = random.random((32, 32, 32, 3), np.float32)
    trainer.fit(x, np.arange(32) % 10, batch_size=16, epochs=2, verbose=0)
    small, shrunk = saving.shrink(model, fold_batch_norm=True)
    assert shrunk.after.multiply_adds < 0.6 * shrunk.before.multiply_adds
    expected = model(x, training=False)
    np.testing.assert_allclose(small(x), expected, atol=1e-4 * np.abs(expected).max())
