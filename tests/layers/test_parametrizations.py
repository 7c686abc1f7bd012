"""Each parametrization: its effective kernel, gradients, initial state, configuration, and its Keras traps."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_robust_sparse import layers
from tf_robust_sparse.layers.kernel_layer import DenseOperation

FORMS = [(kernel, i) for kernel in layers.KERNELS for i in (0, 1)]


@pytest.fixture
def policy():
    yield keras.config.set_dtype_policy
    keras.config.set_dtype_policy("float32")


def layer_of(kernel, is_conv, **kwargs):
    return layers.KERNELS[kernel][1](5, 3, **kwargs) if is_conv else layers.KERNELS[kernel][0](5, **kwargs)


def inputs_of(is_conv, batch=4):
    return np.random.default_rng(0).normal(size=(batch, 6, 6, 3) if is_conv else (batch, 7)).astype("float32")


def one_kernel(theta, sign):
    layer = layers.RewiringDense(1, use_bias=False)
    layer.build((None, len(theta)))
    layer.theta.assign(np.reshape(theta, (-1, 1)))
    layer.positive.assign(np.reshape(sign, (-1, 1)) > 0)
    return layer


def test_rewiring_kernel_and_gradient_are_exact():
    tf.where([True], [1.0], -0.0)  # which eager TensorFlow remembers as the Python number 0
    layer = one_kernel([0.5, -0.1, 0.0, 1e-12], [1, 1, -1, -1])
    with tf.GradientTape() as tape:
        kernel = layer.effective_kernel
        total = tf.reduce_sum(kernel * tf.constant([[1.0], [2.0], [3.0], [4.0]]))
    np.testing.assert_array_equal(kernel[:, 0], np.float32([0.5, 0, 0, -1e-12]))
    assert not np.signbit(kernel[2, 0])  # a dormant entry is 0, not -0
    np.testing.assert_array_equal(tape.gradient(total, layer.theta.value)[:, 0], [1, 0, 0, -4])


def test_gradient_of_the_loss_through_the_layer():
    layer = one_kernel([0.5, -0.1, 0.0, 1e-12], [1, 1, -1, -1])
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(layer(tf.constant([[1.0, 2.0, 3.0, 4.0]])))
    np.testing.assert_array_equal(tape.gradient(total, layer.theta.value)[:, 0], [1, 0, 0, -4])


def test_dormant_entries_take_no_gradient_even_where_the_kernel_is_not_finite():
    layer = one_kernel([0.5, -np.inf], [1, 1])
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(layer(tf.constant([[1.0, 2.0]])))
    np.testing.assert_array_equal(tape.gradient(total, layer.theta.value)[:, 0], [1, 0])


def test_masked_kernel_and_gradient_are_exact():
    layer = layers.MaskedDense(1)
    layer.build((None, 4))
    assert layer.kernel_mask.numpy().all()
    layer.kernel.assign([[0.5], [-2.0], [3.0], [-np.inf]])
    layer.kernel_mask.assign([[True], [True], [False], [False]])
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(layer(tf.constant([[1.0, 2.0, 3.0, 4.0]])))
    np.testing.assert_array_equal(layer.effective_kernel[:, 0], [0.5, -2, 0, 0])
    np.testing.assert_array_equal(tape.gradient(total, layer.kernel.value)[:, 0], [1, 2, 0, 0])


@pytest.mark.parametrize(("kernel", "is_conv"), FORMS)
@pytest.mark.parametrize("options", [{}, {"use_bias": False, "activation": "relu"}])
def test_outputs_are_those_of_the_keras_layer(kernel, is_conv, options):
    layer = layer_of(kernel, is_conv, **options, **({"padding": "same", "strides": 2} if is_conv else {}))
    x = inputs_of(is_conv)
    outputs = layer(x)
    if layer.bias is not None:
        layer.bias.assign(np.arange(5.0))
        outputs = layer(x)
    plain = layer.plain_class.from_config(layer.plain_config())
    plain.build(x.shape)
    plain.kernel.assign(layer.effective_kernel)
    if layer.bias is not None:
        plain.bias.assign(layer.bias)
    np.testing.assert_allclose(outputs, plain(x), atol=1e-5)
    assert tuple(outputs.shape) == layer.compute_output_shape(x.shape)


@pytest.mark.parametrize(("kernel", "is_conv"), FORMS)
def test_config_round_trip(kernel, is_conv):
    initializer = keras.initializers.GlorotUniform(seed=2)
    options = {
        "rewiring": {"initial_connectivity": 0.5, "seed": 3},
        "learned_rate": {"scores_initializer": keras.initializers.GlorotUniform(seed=4)},
    }.get(kernel, {})
    layer = layer_of(kernel, is_conv, activation="relu", kernel_initializer=initializer, name="mine", **options)
    again = type(layer).from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    x = inputs_of(is_conv)
    np.testing.assert_array_equal(layer(x), again(x))  # the seeds are part of the configuration


@pytest.mark.parametrize(("kernel", "is_conv"), FORMS)
def test_keras_file_keeps_every_weight(kernel, is_conv, tmp_path):
    """Keras trap: a subclass of keras.layers.Dense would save only the variables that Dense knows."""
    x = inputs_of(is_conv)
    source = keras.Input(x.shape[1:])
    network = keras.Model(source, layer_of(kernel, is_conv)(source))
    (layer,) = layers.kernel_layers(network)
    if kernel == "masked":
        layer.kernel_mask.assign(np.random.default_rng(0).random(layer.kernel_mask.shape) < 0.5)
    network.save(tmp_path / "a.keras")
    loaded = keras.saving.load_model(tmp_path / "a.keras")
    assert [v.name for v in loaded.variables] == [v.name for v in network.variables]
    for a, b in zip(network.variables, loaded.variables, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
        assert a.dtype == b.dtype
    np.testing.assert_array_equal(network(x), loaded(x))


def test_no_kernel_layer_is_a_subclass_of_the_keras_layer():
    for form in layers.KERNELS.values():
        for each in form:
            assert not issubclass(each, (keras.layers.Dense, keras.layers.Conv2D))


@pytest.mark.parametrize("name", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize(("kernel", "is_conv"), FORMS)
def test_variables_stay_float32_under_mixed_precision(kernel, is_conv, name, policy):
    policy(name)
    layer = layer_of(kernel, is_conv)
    x = inputs_of(is_conv)
    drawn = {"training": True} if kernel == "bayesian" else {}  # in inference the spread of the weights is left out
    with tf.GradientTape() as tape:
        outputs = layer(x, **drawn)
        total = tf.reduce_sum(tf.cast(outputs, "float32"))
    assert outputs.dtype.name == name.removeprefix("mixed_")
    kinds = {"kernel": "float32", "theta": "float32", "positive": "bool", "kernel_mask": "bool", "bias": "float32"}
    kinds |= dict.fromkeys(("scores", "rate", "kernel_rho", "bias_rho"), "float32")
    assert {v.name: v.dtype for v in layer.variables} == {v.name: kinds[v.name] for v in layer.variables}
    assert layer.effective_kernel.dtype == tf.float32
    gradients = tape.gradient(total, [v.value for v in layer.trainable_variables])
    assert all(gradient.dtype == tf.float32 for gradient in gradients)


def test_newborn_connection_lives_in_half_precision(policy):
    policy("mixed_float16")
    layer = one_kernel([1e-12], [-1])
    assert layer.theta.numpy()[0, 0] == np.float32(1e-12)
    assert np.count_nonzero(layer.effective_kernel) == 1


@pytest.mark.parametrize("is_conv", [False, True])
def test_rewiring_start(is_conv):
    layer = layer_of("rewiring", is_conv, initial_connectivity=0.3, seed=1)
    layer.build((None, 20, 20, 100) if is_conv else (None, 1000))
    theta, sign = layer.theta.numpy(), layer.sign.numpy()
    fan_in = 900 if is_conv else 1000
    assert np.count_nonzero(theta > 0) == int(0.3 * fan_in * 5)
    assert (theta[theta <= 0] == 0).all()  # dormant entries start at 0
    assert set(np.unique(sign)) == {-1, 1}
    assert abs(sign.mean()) < 4 / np.sqrt(sign.size)
    assert np.sqrt(np.mean(theta[theta > 0] ** 2)) == pytest.approx(np.sqrt(2 / fan_in), rel=0.06)
    assert theta.max() <= 2 / 0.87962566 * np.sqrt(2 / fan_in) * 1.001  # truncated at two standard deviations
    assert abs(np.corrcoef(sign.ravel(), (theta > 0).ravel())[0, 1]) < 0.06


def test_two_unseeded_layers_differ():
    """Keras trap: an initializer instance is stateless and repeats its values for equal shapes."""
    for kernel in layers.KERNELS:
        first, second = layer_of(kernel, False), layer_of(kernel, False)
        first.build((None, 7))
        second.build((None, 7))
        assert (first.effective_kernel != second.effective_kernel).numpy().any()
    shared = keras.initializers.HeNormal()
    first, second = (layers.RewiringDense(5, kernel_initializer=shared) for _ in range(2))
    first.build((None, 7))
    second.build((None, 7))
    assert (first.theta != second.theta).numpy().any()


def test_global_seed_fixes_a_rewiring_layer():
    def state():
        keras.utils.set_random_seed(4)
        layer = layers.RewiringDense(5, initial_connectivity=0.5)
        layer.build((None, 7))
        return layer.theta.numpy(), layer.sign.numpy()

    for a, b in zip(state(), state(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: layers.RewiringDense(0), r"`units` must be a positive integer. Received: units=0"),
        (lambda: layers.PlainDense(2.0), r"`units` must be a positive integer. Received: units=2.0"),
        (lambda: layers.MaskedConv2D(True, 3), r"`filters` must be a positive integer. Received: filters=True"),
        (lambda: layers.PlainConv2D(4, (3, 3, 3)), r"`kernel_size` must be an integer or a pair"),
        (lambda: layers.PlainConv2D(4, 3, strides=0), r"`strides` must be a positive integer"),
        (lambda: layers.PlainConv2D(4, 3, padding="symmetric"), r"keras.layers.ZeroPadding2D.*'symmetric'"),
        (lambda: layers.RewiringDense(4, initial_connectivity=0), r"in \(0, 1\].*initial_connectivity=0"),
        (lambda: layers.RewiringDense(4, initial_connectivity=1.1), r"in \(0, 1\].*initial_connectivity=1.1"),
        (lambda: layers.PlainDense(4).build((None, None)), r"last dimension .* must be known"),
        (lambda: layers.PlainConv2D(4, 3).build((None, 8, 8, None)), r"number of channels .* must be known"),
        (lambda: layers.PlainConv2D(4, 3, name="c")(keras.Input((2, 2, 1))), r"reach c are smaller than its kernel"),
        (lambda: layers.PlainDense(4)(np.zeros((2, 3, 4))), r"expected ndim=2"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_operation_without_a_kernel_form_says_so():
    with pytest.raises(NotImplementedError, match="DenseOperation must mix in a parametrization"):
        DenseOperation(3).build((None, 4))


@pytest.mark.parametrize("kernel", ["masked", "rewiring"])
def test_replicas_agree_on_what_a_sparsifier_assigns(kernel):
    """Keras trap: without aggregation an assigned variable drifts apart, with "mean" a mask turns fractional."""
    # Collectives of two strategies in one process get the same keys and clash; this reduction has none.
    reduction = tf.distribute.ReductionToOneDevice()
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], cross_device_ops=reduction)
    with strategy.scope():
        layer = layer_of(kernel, False)
        layer.build((None, 7))
        optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
        optimizer.build(layer.trainable_variables)

    def assign():
        for variable in layer.variables:
            if variable.name in ("kernel_mask", "theta"):
                random = tf.random.uniform(variable.shape)  # another draw in each replica
                variable.assign(random > 0.5 if variable.dtype == "bool" else random)

    def step():
        with tf.GradientTape() as tape:
            total = tf.reduce_sum(layer(tf.random.normal((4, 7))) ** 2)
        gradients = tape.gradient(total, [v.value for v in layer.trainable_variables])
        optimizer.apply_gradients(zip(gradients, layer.trainable_variables, strict=True))
        assign()

    tf.function(lambda: strategy.run(step), autograph=False)()
    for variable in layer.variables:
        first, second = strategy.experimental_local_results(variable.value)
        np.testing.assert_array_equal(first.numpy(), second.numpy())
        if variable.name == "kernel_mask":
            assert 0 < np.count_nonzero(first) < first.numpy().size
