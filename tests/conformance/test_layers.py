"""What every layer promises."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_robust_sparse as trs
from tests.conformance.cases import LAYERS, network_of
from tests.networks import mirrored
from tf_robust_sparse import layers

ROUNDING = 1e-5  # a SavedModel may fuse and reorder operations


def built(name, seed=0):
    """The network around a row, every weight away from its initial value, a third of each kernel switched off."""
    make, shape = LAYERS[name]
    layer = make()
    network = network_of(layer, shape)
    generator = np.random.default_rng(seed)
    for weight in layer.weights:
        if weight.dtype == "bool":
            weight.assign(generator.random(weight.shape) < 0.6)
        elif "theta" in weight.path:
            weight.assign(generator.normal(size=weight.shape))
        else:
            weight.assign(generator.uniform(0.5, 1.5, weight.shape))
    return layer, network


def inputs_of(name, count=6):
    return np.random.default_rng(1).random((count, *LAYERS[name][1]), "float32")


@pytest.mark.parametrize("name", LAYERS)
def test_configuration_round_trip(name):
    layer, _ = built(name)
    again = type(layer).from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    registered = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert type(registered) is type(layer)


@pytest.mark.parametrize("name", LAYERS)
def test_keras_file_round_trip_is_bit_equal(name, tmp_path):
    layer, network = built(name)
    loaded = trs.load_network(trs.save_network(network, tmp_path / "network.keras"))
    for a, b in zip(network.weights, loaded.weights, strict=True):
        assert a.dtype == b.dtype and a.trainable == b.trainable
        np.testing.assert_array_equal(a, b)
    x = inputs_of(name)
    np.testing.assert_array_equal(network(x, training=False), loaded(x, training=False))
    assert type(loaded.get_layer(layer.name)) is type(layer)


@pytest.mark.parametrize("name", LAYERS)
def test_exported_network_has_equal_logits_and_gradients(name, tmp_path):
    _, network = built(name)
    loaded = tf.saved_model.load(str(trs.export_network(network, tmp_path / "serve")))
    x = tf.constant(inputs_of(name))
    results = []
    for call in (lambda x: network(x, training=False), loaded.serve):
        with tf.GradientTape() as tape:
            tape.watch(x)
            logits = call(x)
            loss = tf.reduce_sum(logits**2)
        results.append((logits, tape.gradient(loss, x)))
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=ROUNDING)


@pytest.mark.parametrize("name", LAYERS)
def test_output_shape_is_the_computed_one(name):
    layer, _ = built(name)
    for count in (1, 5):
        x = inputs_of(name, count)
        assert tuple(layer(x).shape) == tuple(layer.compute_output_shape(x.shape))
    assert layer.compute_output_shape((None, *LAYERS[name][1]))[0] is None


@pytest.mark.parametrize(
    "name",
    [  # the kernel of a signed layer has no gradient at all
        name
        for name, (make, _) in LAYERS.items()
        if hasattr(make(), "compute_effective_kernel") and not hasattr(make(), "magnitude")
    ],
)
def test_no_gradient_reaches_an_entry_that_is_switched_off(name):
    layer, network = built(name)
    source = layer.theta if hasattr(layer, "theta") else layer.kernel
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(network(inputs_of(name), training=True) ** 2)
    gradient = tape.gradient(loss, source.value).numpy()
    on = np.array(layer.effective_kernel) != 0
    assert (gradient[~on] == 0).all()
    assert (gradient[on] != 0).any()
    assert on.all() != layer.prunable  # the rows of prunable layers do have such entries


def test_replicas_agree_after_a_training_step():
    """All rows but the dense twins of convolutions in one step: a graph for each would cost most of the time."""
    names = [name for name in LAYERS if not (name.endswith("Dense") and name.replace("Dense", "Conv2D") in LAYERS)]
    with mirrored().scope():
        rows = {name: built(name) for name in names}
        variables = [weight for _, network in rows.values() for weight in network.trainable_variables]
        optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
        optimizer.build(variables)
    inputs = {name: inputs_of(name) for name in names}
    dataset = mirrored().experimental_distribute_dataset(tf.data.Dataset.from_tensor_slices(inputs).batch(6))

    def step(batch):
        with tf.GradientTape() as tape, contextlib.ExitStack() as cached:
            loss = 0.0
            for name, (_, network) in rows.items():
                cached.enter_context(layers.cached_kernels(network))
                of_row = tf.reduce_sum(network(batch[name], training=True) ** 2, -1)
                loss += tf.nn.compute_average_loss(of_row)
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))

    before = {name: [np.array(weight) for weight in layer.weights] for name, (layer, _) in rows.items()}
    tf.function(lambda batch: mirrored().run(step, args=(batch,)), autograph=False)(next(iter(dataset)))
    for name, (layer, network) in rows.items():
        for weight in network.weights:
            first, second = mirrored().experimental_local_results(weight.value)
            np.testing.assert_array_equal(first, second, err_msg=f"{name}, {weight.path}")
        moved = [(old != np.array(weight)).any() for old, weight in zip(before[name], layer.weights, strict=True)]
        assert any(moved) or not layer.weights, name
    for slot in optimizer.variables:
        first, second = mirrored().experimental_local_results(slot.value)
        np.testing.assert_array_equal(first, second, err_msg=slot.path)
