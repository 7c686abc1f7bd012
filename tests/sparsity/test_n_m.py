"""N:M sparsity: which entries stay, how the dense kernels behind them are trained, what is refused."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_robust_sparse as trs
from tests.networks import mirrored
from tf_robust_sparse import layers, objectives, sparsity
from tf_robust_sparse.layers.selection import largest_of_groups_mask

X = np.random.default_rng(0).random((8, 2, 2, 2), "float32")
Y = np.random.default_rng(1).integers(0, 4, 8)


def small(kind="plain", inputs=8):
    """Two dense layers, of Keras or of this package."""
    dense = {"plain": keras.layers.Dense, "masked": layers.MaskedDense}[kind]
    x = images = keras.Input((2, 2, inputs // 4))
    x = keras.layers.Flatten()(x)
    x = dense(16, activation="relu", kernel_initializer=keras.initializers.HeNormal(0), name="hidden")(x)
    return keras.Model(
        images, dense(4, kernel_initializer=keras.initializers.HeNormal(1), name="logits")(x), name="net"
    )


def begun(model, sparsifier, optimizer):
    if isinstance(model.layers[-1], keras.layers.Dense):
        trs.sparsify(model, sparsifier=sparsifier, min_size=1)
    trainer = trs.RobustModel(model, objectives.Natural(), sparsifier)
    trainer.compile(optimizer)
    return trainer


def go_on(trainer, epochs=2):
    trainer.fit(X, Y, batch_size=4, epochs=epochs, shuffle=False, verbose=0)
    return trainer


def by_hand(model, decay, steps=4, rate=0.1, momentum=0.9, n=2, m=4):
    """SR-STE with SGD and momentum, on dense kernels; returns what the network computes with."""
    values = [np.asarray(each) for each in model.trainable_variables]
    velocity = [np.zeros_like(each) for each in values]
    for step in range(steps):
        masks = [numpy_mask(v, n, m, 0) if v.ndim == 2 else np.ones(v.shape, bool) for v in values]
        w1, b1, w2, b2 = (tf.constant(v * mask) for v, mask in zip(values, masks, strict=True))
        part = slice(4 * (step % 2), 4 * (step % 2) + 4)
        with tf.GradientTape() as tape:
            tape.watch((w1, b1, w2, b2))
            logits = tf.nn.relu(X[part].reshape(4, 8) @ w1 + b1) @ w2 + b2
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(Y[part], logits))
        for i, gradient in enumerate(tape.gradient(loss, (w1, b1, w2, b2))):
            velocity[i] = momentum * velocity[i] - rate * (np.asarray(gradient) + decay * ~masks[i] * values[i])
            values[i] = values[i] + velocity[i]
    return [v * numpy_mask(v, n, m, 0) if v.ndim == 2 else v for v in values]


def numpy_mask(weights, n, m, axis):
    """The same mask by sorting."""
    groups = np.moveaxis(np.abs(weights), axis, -1)
    shape = groups.shape
    groups = groups.reshape(-1, m)
    mask = np.zeros(groups.shape, bool)
    np.put_along_axis(mask, np.argsort(-groups, axis=1, kind="stable")[:, :n], True, axis=1)
    return np.moveaxis(mask.reshape(shape), -1, axis)


@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 4), (3, 8), (4, 16)])
def test_groups_keep_their_largest_entries(n, m):
    values = np.random.default_rng(2).integers(0, 4, (3, m, 5)).astype("float32")  # many are equal
    np.testing.assert_array_equal(largest_of_groups_mask(values, n, 1), numpy_mask(values, n, m, 1))
    odd = np.full((m,), np.nan, "float32")
    odd[0] = np.inf
    assert np.asarray(largest_of_groups_mask(odd, n, 0)).sum() == n


def test_groups_lie_along_the_input_channels_of_every_layer():
    x = inputs = keras.Input((6, 6, 4))
    x = keras.layers.Conv2D(8, 3, name="conv")(x)
    x = keras.layers.Conv2DTranspose(4, 2, name="back")(x)
    x = keras.layers.SeparableConv2D(8, 3, name="separable")(x)
    x = keras.layers.Reshape((9, 8))(x)
    x = keras.layers.MultiHeadAttention(2, 4, name="attention")(x, x)
    x = keras.layers.Flatten()(x)
    model = keras.Model(inputs, keras.layers.Dense(4, name="logits")(x))
    dense = {each.path: np.asarray(each) for each in model.trainable_variables}
    report = trs.sparsify(model, 0.5, sparsity.NM(2, 4), min_size=1, depthwise=True)
    # Of attention the 8 inputs of a head's query are summed over, and the 2 x 4 numbers that the heads put out.
    axes = {"conv": 2, "back": 3, "separable": 2, "attention/query": 0, "logits": 0}
    found = {each.name: each for each in report.sparsified}
    for name, axis in axes.items():
        kernel = found.get(f"{name}/kernel") or found[f"{name}/pointwise_kernel"]
        expected = numpy_mask(dense[kernel.name], 2, 4, axis)
        np.testing.assert_array_equal(kernel.mask, expected, err_msg=name)
        np.testing.assert_array_equal(kernel.weight, dense[kernel.name] * expected)
    output = found["attention/attention_output/kernel"]
    expected = numpy_mask(dense[output.name].reshape(8, 8), 2, 4, 0)
    np.testing.assert_array_equal(np.asarray(output.mask).reshape(8, 8), expected)
    assert [tuple(each) for each in report.skipped] == [
        ("separable/depthwise_kernel", "a depthwise kernel, which has one input channel for each output")
    ]
    assert sum(report.sparsifier.count()) * 2 == sum(report.sparsifier.sizes) == 2 * report.sparsifier.budget
    report.sparsifier.check(model)
    found["conv/kernel"].mask.assign(tf.ones((3, 3, 4, 8), tf.bool))
    with pytest.raises(RuntimeError, match="72 groups of conv/kernel do not keep 2 of 4 entries"):
        report.sparsifier.check(model)


@pytest.mark.parametrize("way", ["plain", "mirrored and scaled", pytest.param("xla", marks=pytest.mark.full)])
def test_training_is_sr_ste(way):
    decay = 0.5  # so large that it decides
    kind, strategy = "plain" if way == "plain" else "masked", tf.distribute.get_strategy()
    if way == "mirrored and scaled":
        strategy = mirrored()
    with strategy.scope():
        model = small(kind)
        expected = by_hand(model, decay)
        optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
        if way == "mirrored and scaled":
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=8.0)
        trainer = begun(model, sparsity.NM(2, 4, decay), optimizer)
        if way == "xla":
            trainer.compile(optimizer, jit_compile=True)
        go_on(trainer)
    for variable, value in zip(model.trainable_variables, expected, strict=True):
        np.testing.assert_allclose(variable, value, atol=1e-6, err_msg=variable.path)
    trainer.sparsifier.check(model)
    assert trainer.sparsifier.count() == [64, 32]
    moved = [numpy_mask(np.asarray(each), 2, 4, 0) for each in small(kind).trainable_variables if each.ndim == 2]
    assert any(
        (np.asarray(each.mask) != old).any() for each, old in zip(trainer.sparsifier.kernels, moved, strict=True)
    )


def test_the_decay_of_one_step():
    inputs = keras.Input((1, 1, 4))
    model = keras.Model(inputs, keras.layers.Dense(1, use_bias=False)(keras.layers.Flatten()(inputs)))
    (kernel,) = model.trainable_variables
    kernel.assign([[0.4], [-0.3], [0.2], [-0.1]])
    report = trs.sparsify(model, sparsifier=sparsity.NM(2, 4, decay=0.1), min_size=1)
    optimizer = keras.optimizers.SGD(1.0)
    optimizer.build([kernel])
    (gradient,) = report.sparsifier.mask_gradients([tf.constant([[0.0], [0.0], [0.05], [0.3]])], [kernel])
    np.testing.assert_allclose(gradient, [[0.0], [0.0], [0.05 + 0.1 * 0.2], [0.3 - 0.1 * 0.1]], atol=1e-7)
    state = report.sparsifier.before_update(optimizer)
    optimizer.apply([gradient], [kernel])
    report.sparsifier.after_update(state, optimizer)
    # The dense kernel is 0.4, -0.3, 0.13, -0.39 now.
    np.testing.assert_allclose(kernel, [[0.4], [0.0], [0.0], [-0.39]], atol=1e-7)
    np.testing.assert_allclose(report.sparsifier.waiting[0], [[0.0], [-0.3], [0.13], [0.0]], atol=1e-7)


def test_a_restored_run_goes_on_bit_by_bit_and_its_model_is_ordinary(tmp_path):
    def fresh():
        return begun(small(), sparsity.NM(1, 4, 0.1, interval=3), keras.optimizers.Adam(0.05))

    whole, second = go_on(fresh()), fresh()
    trs.saving.save_checkpoint(tmp_path / "state.h5", whole, {})
    trs.saving.load_checkpoint(tmp_path / "state.h5", second)
    go_on(whole), go_on(second)
    for one, two in zip(whole.variables, second.variables, strict=True):
        np.testing.assert_array_equal(one, two, err_msg=one.path)
    whole.network.save(tmp_path / "net.keras")
    loaded = keras.saving.load_model(tmp_path / "net.keras")
    assert {type(layer).__module__.partition(".")[0] for layer in loaded.layers} == {"keras"}
    for name in ("hidden", "logits"):
        kernel = np.asarray(loaded.get_layer(name).kernel)
        assert (np.count_nonzero(kernel.reshape(-1, 4, kernel.shape[1]), axis=1) == 1).all()


@pytest.mark.parametrize(("arguments", "changes"), [({"fixed": True}, [0, 0, 0, 0]), ({"interval": 2}, [0, 1, 0, 1])])
def test_masks_change_every_interval_or_never(arguments, changes):
    model = small()
    report = trs.sparsify(model, sparsifier=sparsity.NM(2, 4, **arguments), min_size=1)
    optimizer = keras.optimizers.SGD(1.0)
    optimizer.build(model.trainable_variables)
    found = []
    for step in range(4):
        before = np.asarray(report.sparsified[0].mask)
        gradients = [tf.random.stateless_normal(each.shape, (step, 0)) for each in model.trainable_variables]
        masked = report.sparsifier.mask_gradients(gradients, model.trainable_variables)
        state = report.sparsifier.before_update(optimizer)
        optimizer.apply(masked)
        report.sparsifier.after_update(state, optimizer)
        report.sparsifier.check(model)
        found.append(int((np.asarray(report.sparsified[0].mask) != before).any()))
    assert found == changes


def test_remainders_are_skipped_or_refused():
    x = inputs = keras.Input((4, 4, 3))
    x = keras.layers.Conv2D(8, 2, name="conv")(x)
    x = keras.layers.Flatten()(x)
    model = keras.Model(inputs, keras.layers.Dense(4, name="logits")(x), name="net")
    before = model.get_weights()
    cases = [
        ({"filters": "kernel"}, "NM cannot prune conv/kernel: its 3 inputs are no multiple of m=4; leave it out"),
        ({"filters": "conv"}, "NM can prune none of the kernels. Received: conv/kernel: its 3 inputs are no"),
        ({"connectivity": 0.1}, r"the connectivity once.*NM\(n, m\) has n / m.*connectivity=0.1 in .* and 0.5 in"),
    ]
    for arguments, message in cases:
        with pytest.raises(ValueError, match=message) as raised:
            trs.sparsify(model, **{"sparsifier": sparsity.NM(2, 4), "min_size": 1, **arguments})
        assert "\n" not in str(raised.value)
    for one, two in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)
    report = trs.sparsify(model, sparsifier=sparsity.NM(2, 4), min_size=1)
    assert [each.name for each in report.sparsified] == ["logits/kernel"]
    assert "conv/kernel: dense, its 3 inputs are no multiple of m=4" in str(report)
    with pytest.raises(ValueError, match=r"none of the kernels. Received: hidden: its 8 inputs.*logits"):
        sparsity.NM(2, 3).attach(small("masked"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 4, "m": 4}, "Received: n=4"),
        ({"n": 0}, "Received: n=0"),
        ({"m": 1}, "Received: m=1"),
        ({"m": 64}, r"in \[2, 32\].*Received: m=64"),
        ({"m": 4.0}, "Received: m=4.0"),
        ({"decay": -1}, "at least 0. Received: decay=-1"),
        ({"interval": 0}, "interval=0"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        sparsity.NM(**arguments)
