"""Properties that hold for every attack, whatever its norm."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.attacks.networks import CLASSES, SHAPE, batch, small_network, state
from tf_robust_sparse.attacks import L2FGSM, L2PGD, LinfFGSM, LinfPGD, cross_entropy
from tf_robust_sparse.layers.forward import inference_forward
from tf_robust_sparse.objectives import kl_divergence

ROUNDING = 1e-6  # float32, pixels in [0, 1]
PGD = [LinfPGD, L2PGD]
ALL = [LinfPGD, L2PGD, LinfFGSM, L2FGSM]


def distance(attack, x_adv, x):
    delta = np.reshape(np.asarray(x_adv) - x, (len(x), -1))
    return np.linalg.norm(delta, ord=np.inf if attack.norm == "linf" else 2, axis=1)


STARTS, RADII, STEPS = [None, "uniform", "gaussian", "none"], [0.0, 2 / 255, 8 / 255, 1.0], [0, 1, 7]


# Every pair of two of the three once at least.
@pytest.mark.parametrize(
    ("start", "num_steps", "epsilon"),
    [(start, STEPS[(i + j) % 3], epsilon) for i, start in enumerate(STARTS) for j, epsilon in enumerate(RADII)],
)
@pytest.mark.parametrize("cls", PGD)
def test_adversarial_examples_stay_in_ball_and_pixel_range(cls, start, num_steps, epsilon):
    network, (x, y) = small_network(), batch(6)
    attack = cls(epsilon, 2 / 255, num_steps)
    before = state(network)
    x_adv = attack(network, x, y, seed=1, start=start).numpy()
    assert x_adv.shape == x.shape and x_adv.dtype == np.float32
    assert distance(attack, x_adv, x).max() <= epsilon + ROUNDING
    assert x_adv.min() >= 0 and x_adv.max() <= 1
    for was, now in zip(before, state(network), strict=True):
        np.testing.assert_array_equal(was, now)


@pytest.mark.parametrize("cls", ALL)
@pytest.mark.parametrize("random_start", [False, True])
def test_one_step_attacks_stay_in_the_ball(cls, random_start):
    network, (x, y) = small_network(), batch(6)
    attack = cls(8 / 255, random_start=random_start)
    x_adv = attack(network, x, y)
    assert distance(attack, x_adv, x).max() <= 8 / 255 + ROUNDING
    assert distance(attack, x_adv, x).min() > 1e-3


@pytest.mark.parametrize("cls", PGD)
@pytest.mark.parametrize("loss", ["cross_entropy", "kl"])
def test_ten_steps_raise_the_loss(cls, loss):
    network = small_network()
    forward = inference_forward(network)
    attack = cls(8 / 255 if cls is LinfPGD else 0.5, num_steps=10)
    start = "uniform" if loss == "cross_entropy" else "gaussian"

    @tf.function(autograph=False)
    def losses(x, y):
        clean = forward(x)
        loss_fn = cross_entropy if loss == "cross_entropy" else lambda _, logits: kl_divergence(clean, logits)
        at_start = cls(attack.epsilon, num_steps=0)(network, x, y, loss_fn, start=start)
        after = attack(network, x, y, loss_fn, start=start)
        return tf.reduce_mean(loss_fn(y, forward(at_start))), tf.reduce_mean(loss_fn(y, forward(after)))

    pairs = [losses(*map(tf.constant, batch(16, seed))) for seed in range(40)]
    assert np.mean([after >= before for before, after in pairs]) >= 0.95


@pytest.mark.parametrize("cls", PGD)
def test_targeted_attack_descends_to_the_target(cls):
    network, (x, y) = small_network(), batch(16)
    attack = cls(0.3 if cls is LinfPGD else 3.0, num_steps=20, targeted=True)
    before = cross_entropy(y, network(x)).numpy().mean()
    logits = network(attack(network, x, y))
    assert cross_entropy(y, logits).numpy().mean() < before
    assert (np.argmax(logits, axis=1) == y).mean() > 0.7  # chance is 0.2


def fooled(network, x_adv, y):
    return np.argmax(network(x_adv), axis=1) != y


@pytest.mark.parametrize("targeted", [False, True])
def test_restarts_keep_the_best_run_of_each_example(targeted):
    network, (x, y) = small_network(), batch(32)
    kwargs = {"epsilon": 0.06, "num_steps": 1, "targeted": targeted, "seed": 3}
    sign = -1 if targeted else 1

    def outcome(restarts):
        x_adv = LinfPGD(restarts=restarts, **kwargs)(network, x, y)
        wins = fooled(network, x_adv, y) != targeted
        return wins, sign * cross_entropy(y, network(x_adv)).numpy()

    wins, gains = zip(*[outcome(restarts) for restarts in (1, 2, 5, 10)], strict=True)
    for i in range(3):
        assert (wins[i + 1] >= wins[i]).all()
        same = wins[i + 1] == wins[i]
        assert (gains[i + 1][same] >= gains[i][same] - 1e-6).all()
    assert (gains[-1] > gains[0]).any()


def test_a_misclassified_example_beats_one_of_higher_loss():
    # Logits of three classes over a single pixel: the loss is highest at 1, the class is wrong only at 0.
    def model(x):
        x = tf.reshape(x, (-1, 1))
        return tf.concat([tf.zeros_like(x), tf.where(x < 0.5, 0.1, -9.0) + 0.0 * x, 0.0 * x], axis=1)

    attack = LinfPGD(0.5, num_steps=0, restarts=20)
    x_adv = attack(model, tf.fill((8, 1), 0.5), tf.zeros(8, tf.int32), loss_fn=lambda y, logits: -logits[:, 1])
    assert (x_adv.numpy() < 0.5).all()


def test_first_restart_is_the_single_run():
    network, (x, y) = small_network(), batch(8)
    single = LinfPGD(0.1, num_steps=2)(network, x, y)
    # With a loss that is the same everywhere no later run beats the first.
    constant = LinfPGD(0.1, num_steps=0, restarts=3)(network, x, y, loss_fn=lambda y, z: 0.0 * z[:, 0])
    start = LinfPGD(0.1, num_steps=0)(network, x, y)
    kept = (constant.numpy() == start.numpy()).all(axis=(1, 2, 3))
    assert kept[fooled(network, start, y)].all() and not np.array_equal(single, start)


@pytest.mark.parametrize("cls", PGD)
def test_equal_calls_give_equal_answers(cls):
    network, (x, y) = small_network(), batch(6)
    attack = cls(0.1, num_steps=3)
    np.testing.assert_array_equal(attack(network, x, y), attack(network, x, y))
    np.testing.assert_array_equal(attack(network, x, y), cls(0.1, num_steps=3, seed=0)(network, x, y))
    np.testing.assert_array_equal(attack(network, x, y, seed=5), cls(0.1, num_steps=3, seed=5)(network, x, y))
    assert np.abs(attack(network, x, y) - attack(network, x, y, seed=5)).max() > 1e-3


def test_gaussian_start_is_small_and_unclipped_before_the_first_step():
    x = tf.fill((64, 8, 8, 1), 0.5)
    delta = LinfPGD(0.5, num_steps=0)(lambda x: x[:, 0, 0], x, np.zeros(64, int), start="gaussian") - x
    assert abs(np.std(delta) - 0.001) < 5e-5
    seen = []

    def model(x):
        seen.append(float(tf.reduce_min(x)))
        return tf.reshape(x, (-1, 64))

    LinfPGD(0.5, 0.1, 1)(model, tf.zeros((4, 8, 8, 1)), [0, 1, 2, 3], start="gaussian")
    assert seen[0] < 0


def test_uniform_start_fills_the_linf_ball():
    x = tf.fill((64, 8, 8, 1), 0.5)
    delta = (LinfPGD(0.1, num_steps=0)(lambda x: x[:, 0, 0], x, np.zeros(64, int)) - x).numpy()
    assert 0.0995 < delta.max() <= 0.1 + ROUNDING and -0.1 - ROUNDING <= delta.min() < -0.0995
    assert abs(delta.std() - 0.2 / np.sqrt(12)) < 1e-3


def test_uniform_start_fills_the_l2_ball():
    attack = L2PGD(0.2, num_steps=0)
    x = np.full((4000, 3), 0.5, "float32")
    delta = attack(lambda x: x, x, np.zeros(4000, int)).numpy() - x
    length = np.linalg.norm(delta, axis=1)
    # In three dimensions the share of the volume within half the radius is one eighth.
    assert abs((length < 0.1).mean() - 1 / 8) < 0.02 and length.max() > 0.198
    assert np.abs(delta.mean(axis=0)).max() < 0.01


@pytest.mark.parametrize("cls", PGD)
def test_compiled_and_eager_agree(cls):
    network, (x, y) = small_network(), batch(6)
    attack = cls(0.1, num_steps=5, restarts=2)
    eager = attack(network, x, y)
    compiled = tf.function(lambda x, y: attack(network, x, y))(x, y)
    without_autograph = tf.function(lambda x, y: attack(network, x, y), autograph=False)(x, y)
    # The sign of a gradient of rounding size may differ for a few pixels.
    assert np.mean(np.abs(eager - compiled) > 1e-5) < 0.02
    np.testing.assert_array_equal(compiled, without_autograph)


@pytest.mark.parametrize("restarts", [1, 3])
def test_the_loop_is_traced_once(restarts):
    calls = []

    def model(x):
        calls.append(x.shape)
        return tf.reshape(x, (-1, 64))[:, :CLASSES] * 3.0

    def calls_with(num_steps):
        calls.clear()
        attack = LinfPGD(0.1, 0.01, num_steps, restarts=restarts)

        @tf.function(input_signature=[tf.TensorSpec((None, *SHAPE)), tf.TensorSpec((None,), tf.int64)])
        def step(x, y):
            x_adv = attack(model, x, y)
            assert x_adv.shape.as_list() == [None, *SHAPE]
            return x_adv

        for size in (3, 7, 2):
            step(*batch(size))
        return len(calls)

    assert calls_with(2) == calls_with(40) == (1 if restarts == 1 else 2)


def test_nothing_flows_back_through_an_attack():
    network, (x, y) = small_network(), batch(4)
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(LinfPGD(0.1, num_steps=2)(network, x, y))
    assert all(gradient is None for gradient in tape.gradient(total, network.trainable_variables))


def test_gradient_tape_of_the_attack_records_no_variable(monkeypatch):
    network, (x, y) = small_network(), batch(4)
    tapes = []
    original = tf.GradientTape.gradient

    def spy(self, *args, **kwargs):
        tapes.append(self.watched_variables())
        return original(self, *args, **kwargs)

    monkeypatch.setattr(tf.GradientTape, "gradient", spy)
    LinfPGD(0.1, num_steps=2)(network, x, y)
    assert tapes == [(), ()]


@pytest.mark.parametrize("cls", PGD)
def test_replicas_together_find_what_one_device_finds(cls):
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], cross_device_ops=tf.distribute.ReductionToOneDevice())
    with strategy.scope():
        network = small_network()
    x, y = batch(8)
    attack = cls(0.1, num_steps=3)

    @tf.function(autograph=False)
    def on_replicas():
        def one(context):
            rows = slice(context.replica_id_in_sync_group * 4, context.replica_id_in_sync_group * 4 + 4)
            return attack(network, tf.constant(x)[rows], tf.constant(y)[rows], seed=2)

        return strategy.run(lambda: one(tf.distribute.get_replica_context()))

    together = np.concatenate(strategy.experimental_local_results(on_replicas()))
    single = tf.function(lambda: attack(network, x, y, seed=2), autograph=False)()
    assert np.mean(np.abs(together - single) > 1e-5) < 0.02


@pytest.mark.parametrize("cls", PGD)
def test_zero_gradient_leaves_the_images(cls):
    x, y = batch(4)
    x_adv = cls(0.1, num_steps=3, random_start=False)(lambda x: 0.0 * tf.reshape(x, (-1, 64)), x, y)
    np.testing.assert_array_equal(x_adv, x)


def test_l2_steps_have_the_right_length_also_for_tiny_gradients():
    x = np.full((2, 4), 0.5, "float32")
    scale = tf.constant([[1e-30], [1.0]])
    attack = L2PGD(1.0, step_size=0.1, num_steps=1, random_start=False)
    x_adv = attack(lambda x: x * scale, x, [0, 1], loss_fn=lambda y, logits: logits[:, 0] + logits[:, 1])
    np.testing.assert_allclose(np.linalg.norm(x_adv - x, axis=1), 0.1, rtol=1e-5)


def test_fgsm_is_one_step_of_epsilon():
    x = np.array([[0.5, 0.5, 0.99, 0.5]], "float32")
    slope = tf.constant([[1.0, -2.0, 1.0, 0.0]])
    arguments = (lambda x: x * slope, x, [0], lambda y, logits: tf.reduce_sum(logits, axis=1))
    np.testing.assert_allclose(LinfFGSM(0.1)(*arguments), [[0.6, 0.4, 1.0, 0.5]], atol=ROUNDING)
    expected = x + 0.1 * np.array([[1, -2, 1, 0]]) / np.sqrt(6)
    np.testing.assert_allclose(L2FGSM(0.1)(*arguments), expected.clip(0, 1), atol=ROUNDING)
    assert LinfFGSM(0.1, random_start=True, step_size=0.125).step_size == 0.125


def test_default_step_size():
    assert LinfPGD(8 / 255, num_steps=50).step_size == pytest.approx(0.4 / 255)
    assert LinfPGD(8 / 255, num_steps=0).step_size == 0


def test_a_function_and_a_keras_model_get_the_same_attack():
    network, (x, y) = small_network(), batch(4)
    attack = LinfPGD(0.1, num_steps=3)
    plain = attack(lambda x: network(x, training=False), x, y)
    np.testing.assert_array_equal(plain, attack(network, x, y))


def test_saved_model_gets_the_same_attack(tmp_path):
    network, (x, y) = small_network(), batch(4)
    network.export(str(tmp_path / "serve"), verbose=False)
    loaded = tf.saved_model.load(str(tmp_path / "serve"))
    attack = LinfPGD(0.1, num_steps=3)
    x_adv = attack(loaded.serve, x, y)
    assert np.mean(np.abs(x_adv - attack(network, x, y)) > 1e-5) < 0.02


def test_mixed_precision():
    x, y = batch(4)
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        network = small_network()
    finally:
        keras.config.set_dtype_policy(policy)
    x_adv = LinfPGD(0.1, num_steps=5)(network, x, y)
    assert x_adv.dtype == tf.float32
    assert np.mean(cross_entropy(y, network(x_adv))) > np.mean(cross_entropy(y, network(x)))


@pytest.mark.parametrize("cls", ALL)
def test_config_and_description(cls):
    attack = cls(0.1, random_start=True, restarts=3, seed=4)
    again = cls.from_config(attack.get_config())
    assert again.get_config() == attack.get_config() and again.describe() == attack.describe()
    assert attack.describe()["attack"] == cls.__name__ and attack.describe()["norm"] == cls.norm
    assert {type(v) for v in attack.describe().values()} <= {str, int, float, bool}
    assert cls.__name__ in repr(attack)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            {"epsilon": -1},
            r"radius in pixels of \[0, 1\], at least 0; for 8/255 pass epsilon=8/255. Received: epsilon=-1",
        ),
        ({"epsilon": float("nan")}, "Received: epsilon=nan"),
        ({"epsilon": float("inf")}, "Received: epsilon=inf"),
        ({"epsilon": "8/255"}, "Received: epsilon=8/255"),
        ({"epsilon": 8}, "at most 1 in the linf norm; for 8/255 pass epsilon=8/255"),
        ({"epsilon": 0.1, "step_size": -0.1}, "Received: step_size=-0.1"),
        ({"epsilon": 0.1, "num_steps": -1}, "Received: num_steps=-1"),
        ({"epsilon": 0.1, "num_steps": 2.5}, "Received: num_steps=2.5"),
        ({"epsilon": 0.1, "restarts": 0}, "Received: restarts=0"),
        ({"epsilon": 0.1, "restarts": 2, "random_start": False}, "random_start=True, or restarts=1"),
        ({"epsilon": 0.1, "seed": None}, "Received: seed=None"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        LinfPGD(**arguments)


def test_l2_radius_may_exceed_one():
    assert L2PGD(3.0).epsilon == 3.0


def test_malformed_calls_are_refused():
    attack, network, (x, y) = LinfPGD(0.1, num_steps=1), small_network(), batch(4)
    with pytest.raises(ValueError, match=r"tf.cast\(x, tf.float32\) / 255"):
        attack(network, (x * 255).astype("uint8"), y)
    with pytest.raises(ValueError, match="`start` is one of"):
        attack(network, x, y, start="random")
    with pytest.raises(ValueError, match="one loss per example"):
        attack(network, x, y, loss_fn=lambda y, logits: tf.reduce_mean(cross_entropy(y, logits)))
    with pytest.raises(ValueError, match="gradient of the logits with respect to the images"):
        attack(lambda x: tf.stop_gradient(network(x)), x, y)
    with pytest.raises(TypeError, match="any callable"):
        attack("network", x, y)


def test_subclasses_by_the_old_name_of_normalize_still_work():
    with pytest.warns(DeprecationWarning, match="normalize"):

        class Halved(LinfPGD):
            def normalise(self, gradient):
                return tf.sign(gradient) / 2

    np.testing.assert_array_equal(Halved(0.1).normalize(tf.constant([[2.0, -3.0]])), [[0.5, -0.5]])
