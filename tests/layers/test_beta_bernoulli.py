"""Gates: their posterior, draws and inference, beside integrals and published values."""

import keras
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import tensorflow as tf

from tf_robust_sparse import layers, models
from tf_robust_sparse.layers.beta_bernoulli import prior_divergence
from tf_robust_sparse.layers.noise import fold_in
from tf_robust_sparse.layers.training_noise import pass_number, training_noise
from tf_robust_sparse.models.vgg import vgg16_dropout

INVERSE = {value: float(np.log(np.expm1(value))) for value in (1e-4, 0.3, 0.5, 1.0, 2.0, 3.0)}  # of softplus


def gate(a_raw, b_raw=INVERSE[1.0], units=1, **kwargs):
    layer = layers.BetaBernoulliDropout(**kwargs)
    layer.build((None, units))
    layer.a_raw.assign(np.full(units, a_raw, "float32"))
    layer.b_raw.assign(np.full(units, b_raw, "float32"))
    return layer


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [(1e-4, 1, 0), (1, 1, 8.21044), (2, 1, 8.90354), (1, 2, 7.90364), (0.5, 3, 7.11617)],
)
def test_published_divergences(a, b, expected):
    layer = gate(INVERSE[a], INVERSE[b])
    np.testing.assert_allclose(layer.kl_divergence(), expected, atol=1e-4 if expected else 1e-5)


@pytest.mark.parametrize(("b", "expected"), [(1, 0.11083), (3, 0.20944)])
def test_published_divergences_from_a_wider_prior(b, expected):
    layer = gate(INVERSE[0.5], INVERSE[b], prior=0.3)
    np.testing.assert_allclose(layer.kl_divergence(), expected, atol=1e-4)


@pytest.mark.parametrize(("initial", "expected"), [(-1, 7.04995), (2, 8.96508)])
def test_divergence_at_the_start(initial, expected):
    layer = layers.BetaBernoulliDropout(initial)
    layer.build((None, 1))
    np.testing.assert_allclose(layer.kl_divergence(), expected, atol=1e-4)


@pytest.mark.parametrize(("a", "b", "prior"), [(0.5, 1, 0.3), (0.5, 3, 0.3), (2, 0.5, 1e-4), (0.3, 2, 1e-2)])
def test_divergence_is_the_integral(a, b, prior):
    def integrand(u):  # over the quantiles of the posterior, where it has no poles
        pi = (1 - u ** (1 / b)) ** (1 / a)
        log_q = np.log(a * b) + (a - 1) * np.log(pi) + (b - 1) * np.log1p(-(pi**a))
        return log_q - scipy.stats.beta(prior, 1).logpdf(pi)

    expected, _ = scipy.integrate.quad(integrand, 1e-12, 1 - 1e-12, limit=200)
    np.testing.assert_allclose(gate(INVERSE[a], INVERSE[b], prior=prior).kl_divergence(), expected, rtol=1e-3)


@pytest.mark.parametrize(("build", "expected"), [(models.lenet_conv, 9658.4), (vgg16_dropout, 45087.6)])
def test_divergence_of_whole_networks_at_the_start(build, expected):
    assert float(prior_divergence(build(gates=True))) == pytest.approx(expected, abs=0.5)


@pytest.mark.parametrize(("a", "b", "expected"), [(1, 1, 0.5), (2, 1, 2 / 3), (1, 2, 1 / 3), (0.5, 3, 0.1)])
def test_mean_of_the_posterior(a, b, expected):
    np.testing.assert_allclose(gate(INVERSE[a], INVERSE[b]).mean(), [expected], rtol=1e-4)


@pytest.mark.parametrize(
    ("a_raw", "expected", "active"),
    [(-1, 0.238541, 1), (2, 0.680200, 1), (-5, 0.0066710, 1), (-10, 4.5404e-5, 0), (-12, 4.5404e-5, 0)],
)
def test_mean_and_threshold(a_raw, expected, active):
    layer = gate(a_raw)
    np.testing.assert_allclose(layer.mean(), [expected], rtol=1e-4, atol=1e-8)
    assert int(layer.active_units()) == active
    assert (layer.inference_scale().numpy() > 0).tolist() == [bool(active)]


def test_gates_far_below_the_threshold_are_alike():
    np.testing.assert_array_equal(gate(-10.0).mean(), gate(-12.0).mean())


def test_draws_have_the_mean_and_are_nearly_binary():
    layer = gate(INVERSE[2.0], units=200_000)
    pi = np.exp(layer.draw_log_probability(tf.constant([3, 4])))
    assert abs(pi.mean() - 2 / 3) < 0.003
    gates = layer(tf.ones((1, 200_000)), training=True).numpy()
    assert abs(gates.mean() - 2 / 3) < 0.005
    assert np.mean((gates <= 0.05) | (gates >= 0.95)) > 0.85


def test_the_probability_is_shared_by_the_batch_and_the_gate_is_not():
    layer = gate(INVERSE[1.0], units=50)
    gates = layer(tf.ones((4000, 50)), training=True).numpy()
    assert gates.std(axis=0).max() > 0.3  # examples differ
    frequencies = (gates > 0.5).mean(axis=0)  # of one uniform probability per unit: far apart; of one per gate: all 1/2
    assert frequencies.std() > 0.2


def test_channels_share_their_gate_over_positions():
    layer = layers.BetaBernoulliDropout(0.0)
    gates = layer(tf.ones((6, 5, 5, 7)), training=True).numpy()
    np.testing.assert_array_equal(gates, np.broadcast_to(gates[:, :1, :1], gates.shape))
    assert gates[:, 0, 0].std(axis=0).max() > 0.1


@pytest.mark.parametrize("b_raw", [-12.0, 0.54, 50.0])
@pytest.mark.parametrize("a_raw", [-12.0, -5.0, -1.0, 2.0, 10.0])
def test_draws_and_gradients_are_finite(a_raw, b_raw):
    layer = gate(a_raw, b_raw, units=1000)
    x = tf.ones((2, 1000))
    with tf.GradientTape() as tape:
        outputs = layer(x, training=True)
        loss = tf.reduce_sum(outputs) + layer.kl_divergence()
    gradients = tape.gradient(loss, layer.trainable_variables)
    for value in (outputs, loss, *gradients):
        assert np.isfinite(value).all()
    assert np.isfinite(layer.mean()).all()


@pytest.mark.parametrize("arguments", [{"temperature": 0}, {"prior": -1}, {"threshold": 1}])
def test_numbers_out_of_range(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        layers.BetaBernoulliDropout(**arguments)


def test_a_sequence_has_no_channels():
    with pytest.raises(ValueError, match="batch, height, width, channels"):
        layers.BetaBernoulliDropout().build((None, 4, 3))


def random_network(seed=0):
    """A small network with gates in all places: before batch norm, before a ReLU, after Flatten."""
    random = np.random.default_rng(seed)
    x = inputs = keras.Input((8, 8, 3))
    x = layers.PlainConv2D(6, 3, padding="same", name="conv1")(x)
    x = layers.BetaBernoulliDropout(0.0, 0.3, name="gate1")(x)
    x = keras.layers.ReLU(name="relu1")(layers.BatchNormalization(name="bn1")(x))
    x = layers.Dropout(0.5, name="dropout")(x)
    x = keras.layers.Flatten(name="flatten")(x)
    x = layers.BetaBernoulliDropout(0.0, 0.3, name="gate2")(x)
    network = keras.Model(inputs, layers.PlainDense(4, name="logits")(x))
    for layer in layers.gates(network):
        layer.a_raw.assign(random.normal(size=layer.a_raw.shape) * 2)
    network.get_layer("bn1").set_weights([random.uniform(0.5, 1.5, 6) for _ in range(4)])
    network.get_layer("conv1").bias.assign(random.normal(size=6))
    return network


def test_folded_and_cached_gates_change_nothing():
    network = random_network()
    x = tf.random.stateless_uniform((5, 8, 8, 3), [1, 2])
    expected = network(x, training=False)
    with layers.cached_kernels(network), layers.folded_kernels(network):
        np.testing.assert_allclose(network(x, training=False), expected, rtol=1e-4, atol=1e-5)
        with pytest.raises(RuntimeError, match="training=False"):
            network(x, training=True)
    np.testing.assert_array_equal(network(x, training=False), expected)


class TestTrainingNoise:
    """`training_noise` decides what layers draw."""

    x = tf.ones((6, 8, 8, 3))

    def logits(self, network, seed, parts=1, shared=True, x=None):
        with training_noise(network, tf.constant(seed), parts, shared):
            return network(self.x if x is None else x, training=True).numpy()

    def test_equal_seeds_give_equal_draws(self):
        network = random_network()
        np.testing.assert_array_equal(self.logits(network, [1, 2]), self.logits(network, [1, 2]))
        assert np.abs(self.logits(network, [1, 2]) - self.logits(network, [1, 3])).max() > 1e-3

    def test_outside_of_it_draws_follow_the_seed_of_tensorflow(self):
        network = random_network()
        drawn = []
        for _ in range(2):
            keras.utils.set_random_seed(5)
            drawn.append(network(self.x, training=True).numpy())
        np.testing.assert_array_equal(*drawn)
        assert np.abs(network(self.x, training=True) - drawn[0]).max() > 1e-3

    @pytest.mark.parametrize("shared", [True, False])
    def test_parts_of_a_batch_share_their_draws_if_they_should(self, shared):
        network = random_network()
        first, second = np.split(self.logits(network, [1, 2], parts=2, shared=shared), 2)
        assert np.array_equal(first, second) == shared

    def test_layers_draw_apart(self):
        x = inputs = keras.Input((40,))
        branches = [layers.BetaBernoulliDropout(0.0, name=name)(x) for name in ("one", "other")]
        network = keras.Model(inputs, branches)
        with training_noise(network, tf.constant([1, 2])):
            one, other = network(tf.ones((3, 40)), training=True)
        assert np.abs(one - other).max() > 0.5

    def test_passes_share_or_not(self):
        network = random_network()
        for shared in (True, False):
            with training_noise(network, tf.constant([1, 2]), shared=shared):
                first = network(self.x, training=True).numpy()
                with pass_number(1):
                    second = network(self.x, training=True).numpy()
            assert np.array_equal(first, second) == shared

    def test_the_block_ends(self):
        network = random_network()
        with pytest.raises(RuntimeError), training_noise(network, fold_in(tf.constant([1, 2]), 3)):
            raise RuntimeError
        assert np.abs(network(self.x, training=True) - network(self.x, training=True)).max() > 1e-4


def test_dropout_keeps_its_share_and_the_mean():
    layer = layers.Dropout(0.4)
    dropped = layer(tf.ones((100, 1000)), training=True).numpy()
    assert abs((dropped == 0).mean() - 0.4) < 0.01 and abs(dropped.mean() - 1) < 0.02
    np.testing.assert_array_equal(layer(tf.ones((2, 3)), training=False), np.ones((2, 3)))
    with pytest.raises(ValueError, match="rate"):
        layers.Dropout(1.0)
