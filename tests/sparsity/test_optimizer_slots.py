import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.networks import tiny_network
from tf_robust_sparse.sparsity.optimizer_slots import assign_everywhere, slots


@pytest.mark.parametrize(
    ("optimizer", "number"),
    [
        (lambda: keras.optimizers.SGD(0.1), 0),
        (lambda: keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True), 1),
        (lambda: keras.optimizers.Adam(0.1), 2),
        (lambda: keras.optimizers.AdamW(0.1, amsgrad=True), 3),
        (lambda: keras.optimizers.RMSprop(0.1, momentum=0.9, centered=True), 3),
        (lambda: keras.optimizers.Adadelta(0.1), 2),
        (lambda: keras.optimizers.Adafactor(0.1), 1),
        (lambda: keras.optimizers.Adagrad(0.1), 1),
        (lambda: keras.optimizers.Adamax(0.1), 2),
        (lambda: keras.optimizers.Ftrl(0.1), 2),
        (lambda: keras.optimizers.Lamb(0.1), 2),
        (lambda: keras.optimizers.Lion(0.1), 1),
        (lambda: keras.optimizers.Nadam(0.1), 2),
        (lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1, momentum=0.9)), 1),
    ],
)
def test_every_slot_of_a_variable_is_found_and_no_other(optimizer, number):
    network, optimizer = tiny_network(), optimizer()
    optimizer.build(network.trainable_variables)
    found = [slots(optimizer, variable) for variable in network.trainable_variables]
    assert [len(each) for each in found] == [number] * len(found)
    identities = [id(slot) for each in found for slot in each]
    assert len(set(identities)) == len(identities)
    for variable, each in zip(network.trainable_variables, found, strict=True):
        assert all(slot.shape == variable.shape for slot in each)


def test_slots_belong_to_their_variable():
    network = tiny_network()
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    optimizer.build(network.trainable_variables)
    target = network.get_layer("conv2").theta
    gradients = [tf.ones_like(v) if v is target else tf.zeros_like(v) for v in network.trainable_variables]
    optimizer.apply_gradients(zip(gradients, network.trainable_variables, strict=True))
    for variable in network.trainable_variables:
        (slot,) = slots(optimizer, variable)
        assert (np.array(slot) != 0).any() == (variable is target)


def test_slots_of_equal_names_are_told_apart():
    """Nested models with a layer of one name each, and weights whose names begin alike."""

    class TwoKernels(keras.layers.Layer):
        def build(self, input_shape):
            self.kernel, self.kernel_scale = (
                self.add_weight(name=name, shape=(4, 4)) for name in ("kernel", "kernel_scale")
            )

        def call(self, x):
            return x @ self.kernel @ self.kernel_scale

    x = pixels = keras.Input((4,))
    for name in ("one", "two"):
        inner = keras.Input((4,))
        x = keras.Model(inner, TwoKernels(name="conv")(keras.layers.Dense(4, name="dense")(inner)), name=name)(x)
    network = keras.Model(pixels, x)
    for optimizer in (keras.optimizers.SGD(0.1, momentum=0.9), keras.optimizers.Adam(0.1)):
        variables = network.trainable_variables
        assert len({variable.path for variable in variables}) < len(variables)
        optimizer.build(variables)
        for target in variables:
            gradients = [tf.ones_like(v) if v is target else tf.zeros_like(v) for v in variables]
            optimizer.apply_gradients(zip(gradients, variables, strict=True))
            moved = {id(slot) for slot in optimizer.variables[2:] if np.any(np.array(slot))}
            found = slots(optimizer, target)
            assert moved == {id(slot) for slot in found}
            assert len(found) == (2 if isinstance(optimizer, keras.optimizers.Adam) else 1)
            for slot in found:
                slot.assign(tf.zeros_like(slot))
    assert slots(optimizer, tiny_network().trainable_variables[0]) == []


def test_replicas_receive_the_same_value():
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        network = tiny_network()
        optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
        optimizer.build(network.trainable_variables)
    layer = network.get_layer("conv1")
    (slot,) = slots(optimizer, layer.theta)

    @tf.function(autograph=False)
    def run():
        strategy.run(lambda: assign_everywhere([(slot, tf.ones(slot.shape)), (layer.theta, tf.ones(slot.shape))]))

    run()
    for variable in (slot, layer.theta):
        for copy in strategy.experimental_local_results(variable.value):
            np.testing.assert_array_equal(copy, np.ones(slot.shape))
