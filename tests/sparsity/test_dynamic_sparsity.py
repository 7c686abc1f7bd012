"""Connections that move: how many, which, and what happens to the weights."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_robust_sparse as trs
from tf_robust_sparse import layers, sparsity
from tf_robust_sparse.layers.selection import fast_where
from tf_robust_sparse.sparsity.allocation import layer_counts, layer_fractions
from tf_robust_sparse.sparsity.optimizer_slots import apply_unless

RNG = np.random.default_rng(0)


def toy(sparsifier, shape=(12, 6), seed=0):
    """A dense layer of a masked kernel, in a network that a sparsifier is bound to."""
    inputs = keras.Input(shape[:1])
    outputs = layers.MaskedDense(shape[1], kernel_initializer=keras.initializers.RandomNormal(seed=seed))(inputs)
    network = keras.Model(inputs, outputs)
    sparsifier.attach(network)
    return network, network.layers[-1]


def test_the_fraction_that_moves():
    rigl = sparsity.RigL(0.1, drop_fraction=0.3, end_step=75_000)
    found = [float(rigl.fraction(tf.constant(step, tf.int64))) for step in (0, 25_000, 50_000, 75_000)]
    assert found == pytest.approx([0.3, 0.225, 0.075, 0], abs=1e-12)
    steps = [step for step in (0, 99, 100, 150, 200, 75_000, 75_100) if rigl.is_update(tf.constant(step, tf.int64))]
    assert steps == [100, 200, 75_000]
    bird = sparsity.FlyingBird(0.1, interval=30, late_interval=40, end_step=400)
    found = [float(bird.fraction(tf.constant(step, tf.int64))) for step in (0, 100, 200, 300, 400)]
    assert found == pytest.approx([0.5, 0.42751, 0.2525, 0.07749, 0.005], abs=1e-5)
    steps = [step for step in range(500) if bird.is_update(tf.constant(step, tf.int64))]
    assert steps == [30, 60, 90, 120, 150, 180, 200, 240, 280, 320, 360, 400]
    assert int(bird.number_moved(tf.constant(400, tf.int64), tf.constant(201, tf.int64))) == 2  # rounded up


def test_masks_by_hand():
    rigl = sparsity.RigL(0.5, interval=1, drop_fraction=0.6, end_step=10**9)
    _, layer = toy(rigl, (4, 4))
    mask = np.array([[1, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 0, 1]], bool)
    kernel = np.where(mask, [[0.1, -0.9, 0, 0], [0.8, 0, -0.2, 0], [0, 0.7, 0, 0.3], [-0.4, 0, 0, 0.6]], 0)
    # int(0.6 * 8) = 4 are dropped: 0.1, 0.2, 0.3 and 0.4. The second one grows again, because its gradient is large.
    gradient = np.array([[0.1, 9, 0.5, -3], [9, 0.2, 5, 0], [-4, 9, 0.3, 0.2], [0.4, 0.1, 2, 9]])
    expected = np.array([[0, 1, 0, 1], [1, 0, 1, 0], [1, 1, 0, 0], [0, 0, 1, 1]], bool)
    layer.kernel_mask.assign(mask)
    layer.kernel.assign(kernel)
    layer.bias.assign([1, 2, 3, 4])
    optimizer = keras.optimizers.SGD(1.0, momentum=0.9)
    optimizer.build([layer.kernel, layer.bias])
    optimizer.iterations.assign(7)
    state = rigl.before_update(optimizer)
    apply_unless(rigl.rests(optimizer), optimizer, [tf.ones((4, 4)), tf.ones(4)], [layer.kernel, layer.bias])
    rigl.after_update(state, optimizer, [tf.constant(gradient, tf.float32)])
    np.testing.assert_array_equal(layer.kernel_mask, expected)
    np.testing.assert_array_equal(layer.kernel, np.where(expected & mask, kernel, 0).astype("float32"))
    np.testing.assert_array_equal(layer.bias, [1, 2, 3, 4])
    assert rigl.turnover() == {"grown": {layer.name: 3}}


@pytest.mark.parametrize(
    ("kind", "updates"),
    [
        (sparsity.RigL, 300),
        *[pytest.param(kind, 1000, marks=pytest.mark.full) for kind in (sparsity.RigL, sparsity.SET)],
    ],
)
def test_hundreds_of_updates(kind, updates):
    sparsifier = kind(0.2, interval=2, drop_fraction=0.4, end_step=4000, seed=3)
    network, layer = toy(sparsifier)
    optimizer = keras.optimizers.Adam(0.01)
    optimizer.build(network.trainable_variables)
    variables = [layer.kernel, layer.kernel_mask, layer.bias, *optimizer.variables[2:]]

    @tf.function(autograph=False)
    def step(seed):
        gradients = [tf.random.stateless_normal(v.shape, seed) for v in network.trainable_variables]
        masked = [fast_where(tf.convert_to_tensor(layer.kernel_mask), gradients[0], 0), gradients[1]]
        state = sparsifier.before_update(optimizer)
        apply_unless(sparsifier.rests(optimizer), optimizer, masked, network.trainable_variables)
        sparsifier.after_update(state, optimizer, [gradients[0]])
        return [tf.convert_to_tensor(v) for v in variables]

    before, moved = [np.asarray(v) for v in variables], 0
    for number in range(1, updates):
        after = [each.numpy() for each in step(tf.constant([number, 5]))]
        (kernel, mask, *_), (new_kernel, new_mask, *_) = before, after
        assert new_mask.sum() == sparsifier.budget == 14
        born, kept = new_mask & ~mask, new_mask & mask
        assert (new_kernel[born] == 0).all() and (new_kernel[~new_mask] == 0).all()
        for slot in after[3:]:
            if slot.shape == kernel.shape:
                assert (slot[born] == 0).all() and (slot[~new_mask] == 0).all()
        if kind is sparsity.SET or number % 2 == 0:  # the optimizer's step counts
            assert (new_kernel[kept] != kernel[kept]).all()
        if number > 1 and number % 2:  # `number - 1` steps came before
            moved += born.sum()
            if kind is sparsity.RigL:
                np.testing.assert_array_equal(new_kernel[kept], kernel[kept])
                for one, two in zip(before[2:], after[2:], strict=True):
                    same = kept if one.shape == kernel.shape else ...
                    np.testing.assert_array_equal(one[same], two[same])
        else:
            assert not born.any()
        before = after
    assert moved > updates / 10


def test_allocations_as_published():
    sides = [(3, 3, 3, 64), (3, 3, 64, 128), (3, 3, 512, 512), (512, 10)]
    for connectivity, expected in (
        (0.1, [1, 0.518606, 0.0843063, 1]),
        (0.01, [0.626007, 0.0397955, 0.00646928, 1]),
    ):
        assert layer_fractions("erk", sides, connectivity) == pytest.approx(expected, rel=1e-5)
    for sizes, connectivity, expected in (
        ((100, 10_000), 0.05, [81.556, 423.444]),
        ((432, 73_728, 2_359_296, 5_120), 0.01, [415.64, 9553.66, 10925.09, 3491.36]),
    ):
        found = layer_fractions("igq", [(size,) for size in sizes], connectivity)
        assert [f * n for f, n in zip(found, sizes, strict=True)] == pytest.approx(expected, rel=1e-5)
    by_name = layer_fractions({"^a": 0.5}, [(10, 10), (30, 10)], 0.2, names=["a/kernel", "b/kernel"])
    assert by_name == pytest.approx([0.5, 0.1])


def test_counts_add_up():
    assert layer_counts([0.25, 0.25, 0.25], [10, 10, 10], 7) in ([3, 2, 2], [2, 3, 2], [2, 2, 3])
    assert layer_counts([0.001, 0.1], [10, 1000], 100) == [1, 99]
    assert layer_counts([1.0, 0.1], [5, 100], 15) == [5, 10]
    with pytest.raises(ValueError, match=r"at least 0.027 for 3 kernels of 110 entries"):
        layer_counts([0.01, 0.01, 0.01], [50, 50, 10], 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"connectivity": 0}, "connectivity=0"),
        ({"interval": 0}, "`interval` must be a number of steps, at least 1. Received: interval=0"),
        ({"drop_fraction": 1.5}, r"\[0, 1\]. Received: drop_fraction=1.5"),
        ({"start": "zeros"}, "one of random, magnitude. Received: start='zeros'"),
        ({"seed": -1}, "seed=-1"),
        ({"late_interval": 0}, "late_interval=0"),
        ({"growth": "momentum"}, "one of gradient, random. Received: growth='momentum'"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        sparsity.FlyingBird(**{"connectivity": 0.1, **arguments})


def test_bad_allocations_are_named():
    for allocation, message in (
        ("even", "one of uniform, erk, igq, adaptive.*allocation='even'"),
        ({"c": 0.5}, "no kernel matches 'c'; the kernels are a, b"),
        ({"a": 1.0}, "sets 0.5 of all entries"),
    ):
        with pytest.raises(ValueError, match=message):
            layer_fractions(allocation, [(10,), (10,)], 0.1, names=["a", "b"])


def test_a_sparsifier_without_connectivity_or_gradients_says_so():
    with pytest.raises(ValueError, match=r"RigL needs a connectivity: pass RigL\(connectivity=0.1\)"):
        toy(sparsity.RigL())
    with pytest.raises(ValueError, match="RigL needs the gradients of the training step"):
        sparsity.RigL(0.1).growth_scores(0, None, None)


def test_the_optimizer_rests_inside_a_loss_scale_too():
    inputs = keras.Input((4, 4, 1))
    hidden = layers.MaskedDense(16, activation="relu")(keras.layers.Flatten()(inputs))
    network = keras.Model(inputs, layers.MaskedDense(4)(hidden))
    rigl = sparsity.RigL(0.3, interval=2, end_step=100, seed=1)
    trainer = trs.RobustModel(network, trs.objectives.Natural(), rigl)
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1, momentum=0.9), initial_scale=8.0)
    trainer.compile(optimizer)
    x, y = RNG.random((4, 4, 4, 1), "float32"), np.arange(4)
    for number in range(6):  # connections move after 2 and 4 updates
        biases = [np.asarray(layer.bias) for layer in rigl.layers]
        trainer.train_on_batch(x, y)
        same = [(np.asarray(layer.bias) == bias).all() for layer, bias in zip(rigl.layers, biases, strict=True)]
        assert same == [number in (2, 4)] * 2
        assert int(optimizer.iterations) == number + 1 and sum(rigl.count()) == rigl.budget
    assert sum(rigl.turnover()["grown"].values()) > 0
