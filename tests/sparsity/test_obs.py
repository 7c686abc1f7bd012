"""One-shot pruning by OBS: what is computed, that it beats magnitude, that counts are exact, what is refused."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_robust_sparse as trs
from tests.networks import tiny_images, tiny_network
from tf_robust_sparse import objectives, sparsity
from tf_robust_sparse.sparsity.kernel_views import kernel_view
from tf_robust_sparse.sparsity.layer_inputs import kernel_rows, listening, second_moments
from tf_robust_sparse.sparsity.obs import prune_columns
from tf_robust_sparse.sparsity.prunable import find_kernels

RNG = np.random.default_rng(0)


def correlated(number=2000, size=256, seed=1):
    """Inputs of a quarter as many directions, and noise."""
    generator = np.random.default_rng(seed)
    directions = generator.normal(size=(size // 4, size)) / 16
    x = generator.normal(size=(number, size // 4)) @ directions + 0.3 * generator.normal(size=(number, size))
    return x.astype("float32")


def damped(moments):
    return moments + 0.01 * np.mean(np.diag(moments)) * np.eye(len(moments))


def test_a_dense_layer_keeps_its_outputs_better_than_by_magnitude():
    x = correlated()
    inputs = keras.Input((256,))
    model = keras.Model(inputs, keras.layers.Dense(64, kernel_initializer=keras.initializers.HeNormal(0))(inputs))
    before = np.asarray(model.layers[-1].kernel)
    outputs = x @ before
    report = trs.sparsify(model, 0.5, sparsity.OBS(x))
    after = np.asarray(model.layers[-1].kernel)
    smallest = np.sort(np.abs(before), None)[before.size // 2]
    by_magnitude = np.where(np.abs(before) >= smallest, before, 0)
    error, reference = (np.square(outputs - x @ each).sum() for each in (after, by_magnitude))
    assert error <= 0.6 * reference
    assert report.sparsifier.count() == [before.size // 2] == [np.count_nonzero(after)]
    assert (after[np.asarray(report.sparsified[0].mask)] != 0).all()


@pytest.mark.parametrize("n_m", [None, (2, 4), (1, 3)])
def test_each_step_is_the_brute_force_one(n_m):
    """What goes is taken over by the inputs that follow, by the inverse of their own part of the matrix."""
    inputs, outputs = 144, 4  # more than a block of 128 inputs
    x = correlated(400, inputs).astype("float64")
    moments = 2 / len(x) * x.T @ x
    weights = RNG.normal(size=(inputs, outputs))
    found, mask = prune_columns(weights, moments, 240, n_m)
    expected = weights.copy()
    for i in range(inputs):
        inverse = np.linalg.inv(damped(moments)[i:, i:])
        gone = np.where(mask[i], 0, expected[i])
        expected[i:] -= np.outer(inverse[:, 0] / inverse[0, 0], gone)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert (found[~mask] == 0).all()
    if n_m is None:
        assert mask.sum() == 240
    else:
        assert (mask.reshape(-1, n_m[1], outputs).sum(1) == n_m[0]).all()


def test_a_single_entry_goes_as_the_optimal_brain_surgeon_says():
    x = RNG.normal(size=(50, 6)) @ RNG.normal(size=(6, 6))
    moments = 2 / 50 * x.T @ x
    weights = RNG.normal(size=(6, 1))
    weights[0] = 1e-3  # so that the first one is cheapest, and all others may make up for it
    found, mask = prune_columns(weights, moments, 5)
    inverse = np.linalg.inv(damped(moments))
    assert not mask[0] and mask.sum() == 5
    np.testing.assert_allclose(found, weights - weights[0] / inverse[0, 0] * inverse[:, :1], atol=1e-5)


def test_inputs_that_are_always_zero_keep_no_weight():
    x = correlated(300, 32).astype("float64")
    x[:, [3, 17]] = 0
    found, mask = prune_columns(RNG.normal(size=(32, 8)), 2 / 300 * x.T @ x, 128)
    assert (found[[3, 17]] == 0).all() and not mask[[3, 17]].any() and mask.sum() == 128


def layers_of_all_kinds():
    x = inputs = keras.Input((6, 7, 3))
    x = keras.layers.Conv2D(4, (3, 2), strides=2, padding="same", name="strided")(x)
    x = keras.layers.Conv2D(6, 2, dilation_rate=2, padding="same", use_bias=False, name="dilated")(x)
    x = keras.layers.Reshape((12, 6))(x)
    x = keras.layers.Conv1D(8, 3, padding="causal", dilation_rate=2, name="causal")(x)
    x = keras.layers.MultiHeadAttention(2, 4, name="attention")(x, x)
    x = keras.layers.EinsumDense("...td,de->...te", (12, 5), name="einsum")(x)
    return keras.Model(inputs, keras.layers.Dense(3, name="logits")(x))


def test_rows_times_the_kernel_are_the_outputs_of_every_layer():
    model = layers_of_all_kinds()
    found, _ = find_kernels(model, min_size=1)
    assert len(found) == 9
    seen = {}
    with listening([kernel.layer for kernel in found], lambda layer, x: seen.update({id(layer): x})):
        model(tf.constant(RNG.normal(size=(2, 6, 7, 3)), tf.float32))
    for kernel in found:
        layer, x = kernel.layer, seen[id(kernel.layer)]
        bias = layer.bias
        view = kernel_view(kernel)
        matrix = tf.reshape(view.to_matrices(tf.convert_to_tensor(kernel.weight)), (-1, view.shape[2]))
        expected = layer(x) - (0.0 if bias is None else tf.convert_to_tensor(bias))
        np.testing.assert_allclose(
            kernel_rows(kernel, x) @ matrix, tf.reshape(expected, (-1, view.shape[2])), atol=1e-5, err_msg=kernel.name
        )


def test_a_network_of_masked_layers_and_one_of_keras_are_pruned_alike_and_better_than_by_magnitude():
    x, _ = tiny_images(64)
    ours, plain = tiny_network("masked"), tiny_network("plain")
    for one, two in zip(ours.layers, plain.layers, strict=True):
        if "kernel_mask" in [each.name for each in one.weights]:
            two.set_weights([np.asarray(each) for each in one.weights if each.name != "kernel_mask"])
    expected = ours(x, training=False)
    method = sparsity.OBS(x, 0.4, allocation="erk", positions=20, batch_size=32)
    method.attach(ours)
    report = trs.sparsify(plain, 0.4, sparsity.OBS(x, allocation="erk", positions=20, batch_size=32), min_size=1)
    assert sum(method.count()) == method.budget == int(0.4 * 2664) and method.count() == report.sparsifier.count()
    for one, two in zip(method.kernels, report.sparsified, strict=True):
        np.testing.assert_allclose(one.weight, two.weight, atol=1e-6)
    by_magnitude = tiny_network("masked")
    by_magnitude.set_weights([np.asarray(each) for each in tiny_network("masked").weights])
    reference = sparsity.SET(0.4, drop_fraction=0.0, start="magnitude")
    reference.attach(by_magnitude)
    error, worse = (tf.reduce_sum((net(x, training=False) - expected) ** 2) for net in (ours, by_magnitude))
    assert error < 0.6 * worse


def test_a_convolution_keeps_its_outputs_better_than_by_magnitude():
    x = np.random.default_rng(3).random((32, 8, 8, 1)).astype("float32")
    x = np.concatenate([np.roll(x, shift, 1) for shift in range(8)], -1) + 0.1 * RNG.random((32, 8, 8, 8), "float32")

    def convolution():
        inputs = keras.Input((8, 8, 8))
        make = keras.initializers.HeNormal(4)
        return keras.Model(inputs, keras.layers.Conv2D(16, 3, padding="same", kernel_initializer=make)(inputs))

    errors = {}
    for name, method, seen in (
        ("obs", sparsity.OBS(x[:16], positions=32), 0.5),
        ("2:4", sparsity.OBS(x[:16], n_m=(2, 4)), None),
        ("magnitude", sparsity.MagnitudePruning(), 0.5),
    ):
        model = convolution()
        outputs = model(x)
        report = trs.sparsify(model, seen, method)
        assert report.sparsifier.count() == [3 * 3 * 8 * 16 // 2]
        errors[name] = float(tf.reduce_sum((model(x) - outputs) ** 2))
        report.sparsifier.check(model)
    assert errors["obs"] < errors["2:4"] < 0.6 * errors["magnitude"]


def test_two_of_four_is_tuned_with_fixed_masks_restored_and_loaded_without_the_package(tmp_path):
    x = np.random.default_rng(5).random((16, 4, 4, 4)).astype("float32")
    y = np.random.default_rng(6).integers(0, 3, 16)

    def fresh():
        inputs = keras.Input((4, 4, 4))
        hidden = keras.layers.Conv2D(8, 2, activation="relu", kernel_initializer=keras.initializers.HeNormal(0))(inputs)
        logits = keras.layers.Dense(3, name="logits", kernel_initializer=keras.initializers.HeNormal(1))
        model = keras.Model(inputs, logits(keras.layers.Flatten()(hidden)))
        report = trs.sparsify(model, sparsifier=sparsity.OBS(x, n_m=(2, 4)), min_size=1)
        trainer = trs.RobustModel(model, objectives.Natural(), report.sparsifier)
        trainer.compile(keras.optimizers.Adam(0.01), run_eagerly=True)
        return trainer

    whole, second = fresh(), fresh()
    masks = [np.asarray(kernel.mask) for kernel in whole.sparsifier.kernels]
    whole.fit(x, y, batch_size=8, shuffle=False, verbose=0)
    trs.saving.save_checkpoint(tmp_path / "state.h5", whole, {})
    trs.saving.load_checkpoint(tmp_path / "state.h5", second)
    for trainer in (whole, second):
        trainer.fit(x, y, batch_size=8, shuffle=False, verbose=0)
    for one, two in zip(whole.variables, second.variables, strict=True):
        np.testing.assert_array_equal(one, two, err_msg=one.path)
    for kernel, mask in zip(whole.sparsifier.kernels, masks, strict=True):
        np.testing.assert_array_equal(kernel.mask, mask)
        assert (np.asarray(kernel.weight).reshape(-1, 4, kernel.weight.shape[-1]) != 0).sum(1).max() == 2
    whole.network.save(tmp_path / "net.keras")
    loaded = keras.saving.load_model(tmp_path / "net.keras")
    assert {type(layer).__module__.partition(".")[0] for layer in loaded.layers} == {"keras"}
    np.testing.assert_array_equal(loaded.get_layer("logits").kernel, whole.network.get_layer("logits").kernel)


def recurrent():
    inputs = keras.Input((4, 4))
    return keras.Model(
        inputs, keras.layers.Dense(4, name="logits")(keras.layers.LSTM(4, name="lstm")(inputs)), name="r"
    )


def overflowing():
    x = inputs = keras.Input((4, 4))
    x = keras.layers.Rescaling(1e10)(keras.layers.Dense(4, name="first")(x))
    return keras.Model(inputs, keras.layers.Dense(4, name="logits")(x))


def two_inputs():
    inputs = [keras.Input((4, 4)), keras.Input((4, 4))]
    x = keras.layers.Add()(inputs)
    return keras.Model(inputs, keras.layers.Dense(4, name="logits")(x), name="two")


@pytest.mark.parametrize(
    ("arguments", "more", "message"),
    [
        (
            {"images": np.zeros((2, 5, 4), "float32")},
            {"connectivity": 0.5},
            r"must be what r takes, \(None, 4, 4\). Received: \(2, 5, 4\)",
        ),
        ({"images": np.zeros((0, 4, 4))}, {}, r"array \(n, ...\).*float64 \(0, 4, 4\)"),
        ({"images": "x.npy"}, {}, "array.*<U5"),
        ({"images": np.full((2, 4, 4), np.nan)}, {}, "must be finite"),
        ({"positions": 0}, {}, "positions=0"),
        ({"batch_size": 2.5}, {}, "batch_size=2.5"),
        ({"seed": -1}, {}, "seed=-1"),
        ({"n_m": (4, 2)}, {}, "Received: n=4"),
        ({"n_m": "2:4"}, {}, "`n_m` must be a pair.*Received: n_m='2:4'"),
        ({"n_m": (2, 4), "allocation": "erk"}, {}, "leave `allocation` out. Received: allocation='erk'"),
        ({"connectivity": 0.5}, {"of": two_inputs}, "prune two with MagnitudePruning.*a model with 2 inputs"),
        ({"n_m": (2, 4)}, {"connectivity": 0.1}, "the connectivity once"),
        ({"n_m": (2, 4), "connectivity": 0.1}, {}, "keeps 0.5; leave `connectivity` out. Received: 0.1"),
        ({"allocation": "even"}, {"connectivity": 0.5}, "allocation='even'"),
        ({"connectivity": 0.5}, {"filters": "kernel"}, "OBS cannot prune lstm/lstm_cell/kernel: a kernel of LSTMCell"),
        ({"n_m": (2, 3)}, {}, "OBS can prune none of the kernels.*logits/kernel: its 4 inputs are no multiple of m=3"),
        (
            {"images": np.full((2, 4, 4), 1e30), "connectivity": 0.5},
            {"of": overflowing},
            "of logits/kernel on `images`",
        ),
    ],
)
def test_bad_input_is_one_line_and_changes_nothing(arguments, more, message):
    model = more.pop("of", recurrent)()
    before = model.get_weights()
    with pytest.raises(ValueError, match=message) as raised:
        method = sparsity.OBS(**{"images": RNG.random((2, 4, 4)), **arguments})
        trs.sparsify(model, sparsifier=method, min_size=1, **more)
    assert "\n" not in str(raised.value)
    for one, two in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


@keras.saving.register_keras_serializable("tests")
class Compiled(keras.layers.Layer):
    """A layer of the user's that calls another one in a compiled function."""

    def build(self, shape):
        self.inner = keras.layers.Dense(4, name="inner")
        self.inner.build(shape)
        self.built = True

    def call(self, x):
        return tf.function(self.inner)(x)


def test_inner_layers_are_heard_or_named():
    x = RNG.random((6, 4, 4)).astype("float32")
    inputs = keras.Input((4, 4))
    model = keras.Model(inputs, keras.layers.TimeDistributed(keras.layers.Dense(4, name="part"))(inputs))
    (kernel,), _ = find_kernels(model, min_size=1)
    rows = x.reshape(-1, 4)
    np.testing.assert_allclose(second_moments(model, kernel, x, 4, 64, 0), 2 * rows.T @ rows / 24, rtol=1e-5)
    model = keras.Model(inputs, Compiled(name="own")(inputs))
    with pytest.raises(
        ValueError, match=r"own/inner/kernel cannot be read, because .* calls it in a compiled function"
    ):
        trs.sparsify(model, 0.5, sparsity.OBS(x), min_size=1)
