"""What every objective promises to the training step."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.attacks.networks import CLASSES, SHAPE, batch, small_network, state
from tests.networks import tiny_images, tiny_network
from tf_robust_sparse.attacks import L2PGD, LinfFGSM, LinfPGD, cross_entropy
from tf_robust_sparse.layers.forward import inference_forward
from tf_robust_sparse.objectives import AT, MART, MAT, TRADES, Natural, kl_divergence

ROUNDING = 1e-6
ATTACK = LinfPGD(8 / 255, 2 / 255, 10)
OBJECTIVES = [Natural(), AT(ATTACK), MAT(ATTACK), TRADES(ATTACK), MART(ATTACK)]
every_objective = pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: type(o).__name__)


@every_objective
@pytest.mark.parametrize("num_steps", [0, 10])
def test_perturbed_images_lie_in_the_ball_and_the_network_is_untouched(objective, num_steps):
    network, (x, y) = small_network(), batch(6)
    if objective.describe().get("attack"):
        objective = type(objective)(LinfPGD(8 / 255, 2 / 255, num_steps))
    before = state(network)
    x_adv = objective.perturb(network, x, y, seed=1)
    assert np.abs(x_adv - x).max() <= 8 / 255 + ROUNDING
    assert np.min(x_adv) >= 0 and np.max(x_adv) <= 1
    for was, now in zip(before, state(network), strict=True):
        np.testing.assert_array_equal(was, now)


def test_natural_does_not_perturb():
    network, (x, y) = small_network(), batch(6)
    assert Natural().perturb(network, x, y) is x


@pytest.mark.parametrize("size", [1, 6, 7])
def test_mat_attacks_the_first_half_of_the_batch(size):
    network, (x, y) = small_network(), batch(size)
    x_adv = MAT(ATTACK).perturb(network, x, y, seed=1).numpy()
    half = size // 2
    np.testing.assert_array_equal(x_adv[half:], x[half:])
    assert x_adv.shape == x.shape
    assert (np.abs(x_adv[:half] - x[:half]).reshape(half, 64).max(axis=1) > 1e-3).all()
    if half:
        np.testing.assert_array_equal(x_adv[:half], ATTACK(network, x[:half], y[:half], seed=1))


@pytest.mark.parametrize("cls", [AT, TRADES, MART])
def test_the_attack_of_each_objective_raises_its_own_loss(cls):
    network, (x, y) = small_network(), batch(64)
    forward = inference_forward(network)
    x_adv = cls(ATTACK).perturb(network, x, y)
    clean, attacked = forward(x), forward(x_adv)
    if cls is TRADES:
        other = MART(ATTACK).perturb(network, x, y)
        assert np.mean(kl_divergence(clean, attacked)) > np.mean(kl_divergence(clean, forward(other)))
    else:
        assert np.mean(cross_entropy(y, attacked)) > np.mean(cross_entropy(y, clean)) + 0.01


@pytest.mark.parametrize("cls", [TRADES, MART])
def test_gaussian_start_whatever_the_attack_says(cls):
    network, (x, y) = small_network(), batch(64)
    x_adv = cls(LinfPGD(8 / 255, 0.0, 1)).perturb(network, x, y)
    assert 1e-4 < np.std(x_adv - x) < 1.5e-3
    x_adv = cls(LinfFGSM(8 / 255)).perturb(network, x, y)
    assert (np.abs(x_adv - x).reshape(64, -1).max(axis=1) > 0.02).all()


@every_objective
def test_the_seed_decides(objective):
    network, (x, y) = small_network(), batch(6)
    one, again, two = (objective.perturb(network, x, y, seed=seed) for seed in (1, tf.constant([1, 0]), 2))
    np.testing.assert_array_equal(one, again)
    if not isinstance(objective, Natural):
        assert np.abs(one - two).max() > 1e-4


class Recorder:
    """A network that writes down what it is called with."""

    def __init__(self, network):
        self.network, self.calls = network, []

    def __call__(self, x, training):
        self.calls.append((float(x[0, 0, 0, 0]), training))
        return self.network(x, training=training)


@every_objective
def test_order_of_the_training_forwards(objective):
    x, y = tf.zeros((4, *SHAPE)), np.zeros(4, int)
    recorder = Recorder(small_network())
    objective.loss(recorder, x, y, tf.ones_like(x))
    expected = {Natural: [0.0], AT: [1.0], MAT: [1.0], TRADES: [0.0, 1.0], MART: [0.0, 1.0]}[type(objective)]
    assert recorder.calls == [(value, True) for value in expected]


@pytest.mark.parametrize("cls", [TRADES, MART])
def test_batch_norm_is_updated_by_each_batch_in_turn(cls):
    network, (x, y) = small_network(), batch(8)
    x_adv = np.clip(x + 0.5, 0, 1)
    expected = keras.models.clone_model(network)
    expected.set_weights(network.get_weights())
    expected(x, training=True)
    expected(x_adv, training=True)
    cls(ATTACK).loss(network, x, y, x_adv)
    for got, want in zip(network.layers[1].weights, expected.layers[1].weights, strict=True):
        np.testing.assert_array_equal(got, want)


@every_objective
@pytest.mark.parametrize("classes", [2, pytest.param(7, marks=pytest.mark.full)])
def test_compiled_step_with_any_batch_size_without_autograph(objective, classes):
    network = small_network(classes)
    traces = []

    @tf.function(
        input_signature=[
            tf.TensorSpec((None, *SHAPE)),
            tf.TensorSpec((None,), tf.int64),
            tf.TensorSpec((2,), tf.int64),
        ],
        autograph=False,
    )
    def step(x, y, seed):
        traces.append(1)
        x_adv = objective.perturb(network, x, y, seed)
        with tf.GradientTape() as tape:
            per_example, logits, *_ = objective.loss(network, x, y, x_adv)
            loss = tf.reduce_mean(per_example)
        return per_example, logits, tape.gradient(loss, network.trainable_variables)

    for size in (4, 9, 5):
        per_example, logits, gradients = step(*batch(size, classes=classes), [size, 0])
        assert per_example.shape == (size,) and per_example.dtype == tf.float32
        assert logits.shape == (size, classes) and logits.dtype == tf.float32
        assert all(np.isfinite(g).all() for g in gradients) and any(np.abs(g).max() > 0 for g in gradients)
    assert len(traces) == 1


@pytest.mark.parametrize("cls", [TRADES, MART])
def test_gradient_flows_through_both_predictions(cls):
    clean, attacked = tf.Variable(np.eye(3, CLASSES), dtype=tf.float32), tf.Variable(np.ones((3, CLASSES)) * 0.1)
    attacked = tf.Variable(tf.cast(attacked, tf.float32))
    with tf.GradientTape() as tape:
        loss, *_ = cls(ATTACK).loss(
            lambda x, training: clean + 0.0 if x[0] < 0.5 else attacked + 0.0, tf.zeros(3), [1, 2, 3], tf.ones(3)
        )
    assert all(np.abs(g).max() > 1e-3 for g in tape.gradient(loss, [clean, attacked]))


def test_l2_attack():
    network, (x, y) = small_network(), batch(6)
    x_adv = TRADES(L2PGD(0.5, num_steps=5)).perturb(network, x, y)
    length = np.linalg.norm((x_adv - x).numpy().reshape(6, -1), axis=1)
    assert length.max() <= 0.5 + ROUNDING and length.min() > 0.05


@every_objective
def test_description_is_plain(objective):
    described = objective.describe()
    assert described["objective"] == type(objective).__name__
    assert ("attack" in described) == (not isinstance(objective, Natural))
    if isinstance(objective, TRADES | MART):
        assert described["beta"] == 6.0


@pytest.mark.parametrize("cls", [AT, MAT, TRADES, MART])
@pytest.mark.parametrize("attack", [None, "pgd", LinfPGD])
def test_no_attack(cls, attack):
    with pytest.raises(ValueError, match=r"pass attacks.LinfPGD\(epsilon=8 / 255"):
        cls(attack)


@pytest.mark.parametrize("cls", [AT, MAT, TRADES, MART])
def test_targeted_attack(cls):
    with pytest.raises(ValueError, match="targeted=False"):
        cls(LinfPGD(0.1, targeted=True))


@pytest.mark.parametrize("cls", [TRADES, MART])
@pytest.mark.parametrize("beta", [-1, float("nan"), float("inf")])
def test_beta_out_of_range(cls, beta):
    with pytest.raises(ValueError, match=f"at least 0; pass beta=6.0.*Received: beta={beta}"):
        cls(ATTACK, beta=beta)


def test_trades_may_start_where_the_published_start_sees_nothing():
    """Near black images the network has no gradient: only a start further off finds what changes the prediction."""

    def network(x, training=False):
        seen = tf.nn.relu(tf.reduce_max(x, axis=[1, 2, 3]) - 0.03)
        return tf.stack([tf.zeros_like(seen), 50.0 * seen], axis=1)

    x, y = tf.zeros((8, 4, 4, 1)), tf.zeros(8, tf.int64)
    attack = LinfPGD(0.1, step_size=0.02, num_steps=10)
    published = TRADES(attack).perturb(network, x, y, seed=1)
    uniform = TRADES(attack, start="uniform").perturb(network, x, y, seed=1)
    assert tf.reduce_max(published) < 0.02
    np.testing.assert_allclose(tf.reduce_max(uniform, axis=[1, 2, 3]), 0.1, atol=1e-6)
    assert TRADES(attack, start="uniform").describe()["start"] == "uniform"
    with pytest.raises(ValueError, match=r"`start` must be one of gaussian, uniform.*start='none'"):
        TRADES(attack, start="none")


@pytest.mark.parametrize(("unbiased", "updates"), [(False, 2), (True, 2), (True, 3)])
def test_trades_may_count_clean_images_again_in_batch_norm(unbiased, updates):
    """As code that passes clean images once or twice, attacked and again clean images, in training mode."""
    x, y = tiny_images(24)
    x_adv = np.clip(x + 0.1 * np.sign(np.random.default_rng(0).normal(size=x.shape)), 0, 1).astype("float32")
    expected, found = tiny_network("plain"), tiny_network("plain")
    for network in (expected, found):
        network.get_layer("bn1").unbiased = unbiased
    for images in (*[x] * (updates - 1), x_adv, x):
        expected(images, training=True)
    objective = TRADES(ATTACK, clean_updates=updates)
    losses = tf.function(objective.loss, autograph=False)(found, tf.constant(x), tf.constant(y), tf.constant(x_adv))[0]
    norm, other = found.get_layer("bn1"), expected.get_layer("bn1")
    np.testing.assert_allclose(norm.moving_mean, other.moving_mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(norm.moving_variance, other.moving_variance, rtol=1e-5)
    np.testing.assert_allclose(losses, TRADES(ATTACK).loss(tiny_network("plain"), x, y, x_adv)[0], rtol=1e-5)
    norm.trainable, before = False, np.array(norm.moving_mean)
    objective.loss(found, x, y, x_adv)
    np.testing.assert_array_equal(norm.moving_mean, before)
    assert objective.describe()["clean_updates"] == updates and "clean_updates" not in TRADES(ATTACK).describe()
    with pytest.raises(ValueError, match="`clean_updates` is a number"):
        TRADES(ATTACK, clean_updates=0)
