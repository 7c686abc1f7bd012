"""Cached kernels and folded batch norm change the speed, not the result, and stay in their block and thread."""

import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_robust_sparse import layers
from tf_robust_sparse.layers import kernel_seam

# A folded network multiplies scale and kernel first, so its logits differ by rounding.
FOLD_TOLERANCE = {"float32": 1e-5, "mixed_float16": 5e-3, "mixed_bfloat16": 4e-2}  # times the largest logit


@pytest.fixture(params=FOLD_TOLERANCE)
def policy(request):
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_dtype_policy("float32")


def network_of(kernel="rewiring", bias=True, center=True, scale=True):
    dense, conv = layers.KERNELS[kernel]
    x = inputs = keras.Input((8, 8, 3))
    x = conv(6, 3, padding="same", use_bias=bias, name="stem")(x)
    x = layers.BatchNormalization(name="bn", center=center, scale=scale)(x)
    x = keras.layers.ReLU(name="relu")(x)
    h = conv(6, 3, padding="same", use_bias=False, name="conv1")(x)
    h = layers.BatchNormalization(name="bn1")(h)
    x = keras.layers.Add(name="add")([h, x])
    x = layers.BatchNormalization(name="not_after_a_kernel")(x)
    x = conv(4, 1, activation="relu", name="activated")(x)
    x = layers.BatchNormalization(name="after_an_activation")(x)
    x = keras.layers.Flatten(name="flatten")(x)
    network = keras.Model(inputs, dense(3, name="out", dtype="float32")(x))
    random = np.random.default_rng(0)
    for layer in network.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.set_weights([random.uniform(0.5, 1.5, w.shape) for w in layer.get_weights()])
        elif getattr(layer, "bias", None) is not None:
            layer.bias.assign(random.normal(size=layer.bias.shape))
        if hasattr(layer, "kernel_mask"):
            layer.kernel_mask.assign(random.random(layer.kernel_mask.shape) < 0.5)
    return network


def images():
    return tf.constant(np.random.default_rng(1).random((4, 8, 8, 3), "float32"))


def count(monkeypatch, network):
    """Returns a list that grows by the name of the layer whenever an effective kernel of `network` is computed."""
    calls = []
    for form in {type(layer) for layer in layers.kernel_layers(network)}:

        def compute(self, original=form.compute_effective_kernel):
            calls.append(self.name)
            return original(self)

        monkeypatch.setattr(form, "compute_effective_kernel", compute)
    return calls


def cases(options):
    """Every parametrization in float32, and every one of the options and policies with some forms."""
    forms, (first, *others), (float32, *half) = list(layers.KERNELS), options, FOLD_TOLERANCE
    yield from ((form, first, float32) for form in forms)
    yield from (("masked", other, float32) for other in others)
    for i, form in enumerate(forms):
        yield form, options[i % len(options)], half[i % 2]


@pytest.mark.parametrize(("kernel", "options", "policy"), cases([{}]), indirect=["policy"])
def test_network_with_cached_kernels_is_the_same_network(kernel, options, policy):
    network = network_of(kernel)
    expected = network(images(), training=False)
    with layers.cached_kernels(network):
        np.testing.assert_array_equal(network(images(), training=False), expected)
    np.testing.assert_array_equal(network(images(), training=False), expected)


@pytest.mark.parametrize(
    ("kernel", "options", "policy"),
    cases([{}, {"bias": False}, {"center": False}, {"scale": False}]),
    indirect=["policy"],
)
def test_folded_network_is_the_same_network(kernel, options, policy):
    network, x = network_of(kernel, **options), images()

    def logits_and_gradient():
        with tf.GradientTape() as tape:
            tape.watch(x)
            logits = network(x, training=False)
            total = tf.reduce_sum(logits[:, 0])
        return logits, tape.gradient(total, x)

    tolerance = FOLD_TOLERANCE[policy]
    expected = logits_and_gradient()
    for cache in (False, True):
        with layers.cached_kernels(network) if cache else tf.name_scope("none"):
            with layers.folded_kernels(network):
                folded = logits_and_gradient()
            after = logits_and_gradient()
        np.testing.assert_allclose(folded[0], expected[0], atol=tolerance * max(1, np.abs(expected[0]).max()))
        if policy == "float32":  # in half precision the rounding of one ReLU's input turns a gradient on or off
            np.testing.assert_allclose(folded[1], expected[1], atol=tolerance * max(1, np.abs(expected[1]).max()))
        for a, b in zip(after, expected, strict=True):
            np.testing.assert_array_equal(a, b)


def folded(network):
    return [(layer, follower) for layer, found in kernel_seam.foldable_followers(network) for follower in found]


def test_which_batch_norms_are_folded():
    assert [(layer.name, follower.name) for layer, follower in folded(network_of())] == [
        ("stem", "bn"),
        ("conv1", "bn1"),
    ]


def test_shared_layers_are_not_folded():
    x = keras.Input((4,))
    shared, norm = layers.PlainDense(4, name="shared"), layers.BatchNormalization(name="norm")
    network = keras.Model(x, norm(shared(norm(shared(x)))))
    assert folded(network) == []
    y = layers.PlainDense(4, name="read_twice")(x)
    network = keras.Model(x, [layers.BatchNormalization(name="norm")(y), y])
    assert folded(network) == []


def test_batch_norm_over_another_axis_is_not_folded():
    x = keras.Input((4, 4, 4))
    network = keras.Model(x, layers.BatchNormalization(axis=1)(layers.PlainConv2D(4, 1)(x)))
    assert folded(network) == []
    network = keras.Model(x, layers.BatchNormalization(axis=3)(layers.PlainConv2D(4, 1)(x)))
    assert len(folded(network)) == 1


def test_subclassed_model_is_cached_and_left_unfolded():
    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner = network_of()

        def call(self, x, training=None):
            return self.inner(x, training=training)

    model = Subclassed()
    expected = model(images())
    assert len(layers.kernel_layers(model)) == 4
    with layers.cached_kernels(model), layers.folded_kernels(model):
        np.testing.assert_array_equal(model(images(), training=False), expected)


@pytest.mark.parametrize("kernel", layers.KERNELS)
def test_each_kernel_is_computed_once(kernel, monkeypatch):
    network = network_of(kernel)
    calls = count(monkeypatch, network)
    with layers.cached_kernels(network), layers.folded_kernels(network):
        for _ in range(3):
            network(images(), training=False)
        assert [layer.effective_kernel.dtype for layer in layers.kernel_layers(network)] == ["float32"] * 4
    assert sorted(calls) == ["activated", "conv1", "out", "stem"]
    network(images())
    assert len(calls) == 8


def test_gradients_flow_through_cached_kernels_to_the_variables():
    network = network_of()
    variables = [v.value for v in network.trainable_variables]

    def gradients(cached):
        with tf.GradientTape() as tape, layers.cached_kernels(network) if cached else tf.name_scope("none"):
            total = tf.reduce_sum(network(images(), training=False) ** 2)
        return tape.gradient(total, variables)

    for a, b in zip(gradients(True), gradients(False), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_assignments_take_effect_after_the_block():
    network = network_of("plain")
    x = images()
    before = network(x)
    with layers.cached_kernels(network):
        for layer in layers.kernel_layers(network):
            layer.kernel.assign(tf.zeros_like(layer.kernel))
        np.testing.assert_array_equal(network(x), before)
    assert np.ptp(network(x).numpy(), axis=0).max() == 0


def test_an_error_ends_the_block():
    network = network_of()
    with pytest.raises(ZeroDivisionError), layers.cached_kernels(network), layers.folded_kernels(network):
        raise ZeroDivisionError
    assert not kernel_seam._block.kernels
    assert not kernel_seam._block.cached
    assert not kernel_seam._block.folded


def test_training_mode_inside_a_fold_is_an_error():
    network = network_of()
    with layers.folded_kernels(network), pytest.raises(RuntimeError, match="training=False"):
        network(images(), training=True)


@pytest.mark.parametrize("blocks", ["fs", "sf", "fsf", "sfs", "ff", "ss"])
def test_blocks_nest_in_any_order(blocks):
    network = network_of()
    expected = network(images(), training=False)

    def enter(rest):
        np.testing.assert_allclose(network(images(), training=False), expected, atol=1e-5)
        if rest:
            with {"f": layers.folded_kernels, "s": layers.cached_kernels}[rest[0]](network):
                enter(rest[1:])
            np.testing.assert_allclose(network(images(), training=False), expected, atol=1e-5)

    enter(blocks)


def test_settling_one_network_leaves_the_fold_of_another():
    first, second = network_of(), network_of()
    with layers.folded_kernels(first), layers.cached_kernels(second):
        assert kernel_seam.is_folded(first.get_layer("bn"))
        with layers.cached_kernels(keras.Sequential([first])):
            assert not kernel_seam.is_folded(first.get_layer("bn"))


def test_each_thread_has_its_own_blocks():
    network = network_of("plain")
    x = images()
    expected = network(x, training=False).numpy()
    seen = {}

    def other():
        seen["outside"] = network(x, training=False).numpy()
        with layers.cached_kernels(network), layers.folded_kernels(network):
            seen["inside"] = network(x, training=False).numpy()
        seen["folded"] = kernel_seam.is_folded(network.get_layer("bn"))

    with layers.cached_kernels(network):
        for layer in layers.kernel_layers(network):
            layer.kernel.assign(2 * layer.kernel)
        with layers.folded_kernels(network):
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
            np.testing.assert_allclose(network(x, training=False), expected, atol=1e-4)
    assert not seen["folded"]
    assert np.abs(seen["outside"] - expected).max() > 1e-3  # the other thread sees the doubled kernels
    np.testing.assert_allclose(seen["inside"], seen["outside"], atol=1e-4)


def test_replicas_settle_their_own_kernels():
    # Collectives of two strategies in one process get the same keys and clash; this reduction has none.
    reduction = tf.distribute.ReductionToOneDevice()
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], cross_device_ops=reduction)
    with strategy.scope():
        network = network_of()
    x = images()

    @tf.function(autograph=False)
    def logits():
        def step():
            with layers.cached_kernels(network), layers.folded_kernels(network):
                first = network(x, training=False)
                tf.distribute.get_replica_context().merge_call(lambda strategy: None)  # the threads take turns here
                return first, network(x, training=False)

        return strategy.run(step)

    expected = network(x, training=False)
    for values in logits():
        for value in strategy.experimental_local_results(values):
            np.testing.assert_allclose(value, expected, atol=1e-5)


def test_compiled_attack_loop_reads_the_cached_kernels():
    """Keras trap: AutoGraph is off in train_step, so loops are tf.while_loop; tensors made outside must reach in."""
    network = network_of()

    def body(i, x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            total = tf.reduce_sum(network(x, training=False) ** 2)
        return i + 1, x + 0.01 * tf.sign(tape.gradient(total, x))

    @tf.function(autograph=False)
    def attack(x):
        with layers.cached_kernels(network), layers.folded_kernels(network):
            return tf.while_loop(lambda i, x: i < 3, body, (0, x), maximum_iterations=3)[1]

    x = images()
    expected = x
    for _ in range(3):
        _, expected = body(0, expected)
    np.testing.assert_allclose(attack(x), expected, atol=1e-5)


def test_batch_norm_outside_a_fold_is_that_of_keras():
    ours, theirs = layers.BatchNormalization(momentum=0.9), keras.layers.BatchNormalization(momentum=0.9)
    x = np.random.default_rng(0).normal(size=(8, 4, 4, 3)).astype("float32")
    np.testing.assert_array_equal(ours(x, training=False), theirs(x, training=False))
    for training in (True, False, True):  # one fused operation in training, which rounds otherwise
        np.testing.assert_allclose(ours(x, training=training), theirs(x, training=training), atol=1e-6)
    for a, b in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_no_penalty_leaks_out_of_an_attack():
    network = network_of()
    with layers.cached_kernels(network), layers.folded_kernels(network):
        network(images(), training=False)
    assert network.losses == []


def test_kernel_layers_lists_a_shared_layer_once_and_enters_nested_models():
    inner = keras.Sequential([keras.Input((4,)), layers.PlainDense(4, name="a"), layers.MaskedDense(4, name="b")])
    shared = layers.RewiringDense(4, name="shared")
    x = keras.Input((4,))
    network = keras.Model(x, layers.PlainDense(2, name="out")(shared(inner(shared(x)))))
    assert sorted(layer.name for layer in layers.kernel_layers(network)) == ["a", "b", "out", "shared"]
    assert [layer.name for layer in layers.kernel_layers(inner)] == ["a", "b"]
