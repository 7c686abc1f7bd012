"""Auto-PGD against numbers of the public implementation, and its rules one by one."""

import numpy as np
import pytest
import tensorflow as tf

from tests.attacks.toy import toy_images, toy_labels, toy_network
from tf_robust_sparse.attacks import APGD
from tf_robust_sparse.attacks.checkpoints import checkpoints, windows
from tf_robust_sparse.attacks.projections import distance, linf_bounds
from tf_robust_sparse.evaluation import AutoAttack


@pytest.fixture(scope="module")
def correct():
    x, y = toy_images(), toy_labels()
    right = np.argmax(toy_network()(x), axis=-1) == y
    return tf.constant(x[right]), tf.constant(y[right], tf.int64)


def outcome(attack, correct, scale=1.0, rank=0):
    """Mean of the best losses and the number of images still classified correctly after one run."""
    x, y = correct
    run = attack.runs(10)[0]._replace(rank=rank)
    seeds = tf.zeros((len(y), 2), tf.int64)
    state = tf.function(lambda: attack.run(toy_network(scale), x, y, seeds, run), autograph=False)()
    return float(tf.reduce_mean(state["best_loss"])), int(tf.math.count_nonzero(~state["found"]))


@pytest.mark.parametrize(
    ("settings", "scale", "rank", "loss", "standing"),
    [
        ({"num_steps": 10}, 1, 0, 2.023376, 519),
        pytest.param({"num_steps": 25}, 1, 0, 2.023575, 518, marks=pytest.mark.full),
        pytest.param({}, 1, 0, 2.023663, 518, marks=pytest.mark.full),
        ({}, 1000, 0, 41.2344, 573),
        ({"norm": "L2", "epsilon": 0.1}, 1, 0, 2.014651, 555),
        pytest.param({"loss": "dlr"}, 1, 0, None, 435, marks=pytest.mark.full),
        ({"loss": "dlr"}, 1000, 0, None, 435),
        pytest.param({"loss": "dlr", "norm": "L2", "epsilon": 0.1}, 1, 0, None, 466, marks=pytest.mark.full),
        ({"loss": "targeted-dlr"}, 1, 2, None, 435),
        pytest.param({"loss": "targeted-dlr"}, 1, 3, None, 603, marks=pytest.mark.full),
        ({"loss": "targeted-dlr", "norm": "L2", "epsilon": 0.1}, 1, 2, None, 465),
    ],
)
def test_the_outcome_is_that_of_the_public_implementation(settings, scale, rank, loss, standing, correct):
    attack = APGD(**{"epsilon": 0.01, "random_start": False, **settings})
    found_loss, found_standing = outcome(attack, correct, float(scale), rank)
    assert abs(found_standing - standing) <= 3
    if loss is not None:
        assert found_loss == pytest.approx(loss, rel=2e-3)


def test_checkpoints_are_those_of_the_paper():
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(50)[:5] == [11, 21, 30, 38, 45]
    assert windows(10) == [2, 1, 1, 1, 1, 1, 1, 1, 1]
    assert windows(1) == [1]


class Scripted:
    """An attack whose losses are dictated: row `i` of `history` is loss after loss of image `i`."""

    def __init__(self, attack, start, history):
        self.attack, self.calls = attack, -1
        self.start, self.history = np.float32(start), np.float32(history)
        attack._evaluate = self.evaluate

    def evaluate(self, forward, x, y, target):
        loss = self.start if self.calls < 0 else self.history[:, self.calls]
        self.calls += 1
        return tf.constant(loss), tf.ones_like(x), tf.zeros_like(y, tf.bool)


def reduced_after_first_window(start, history):
    """Whether the step size of each image was halved at the first checkpoint of 100 steps."""
    history = np.array(history)
    attack = APGD(0.1)
    Scripted(attack, start, history)
    number = len(history)
    x, y = tf.fill((number, 2, 2, 1), 0.5), tf.zeros(number, tf.int64)
    state = attack.start(lambda x: x, x, y, tf.zeros((number, 2), tf.int64), y, tf.constant(0.1))
    radius = tf.constant(0.1)
    bounds = linf_bounds(x, radius)
    for _ in range(22):
        state = attack._step(lambda x: x, x, y, state, radius, bounds)
    assert int(state["counter"]) == 0 and int(state["window"]) == 19
    return np.array(state["step"]) < 0.19


def test_a_loss_that_rises_in_three_of_four_steps_keeps_the_step_size():
    def rising(number):  # in `number` of the 21 comparisons inside the window, and above 0 at first
        return np.cumsum([1.0] + [1.0] * number + [-0.01] * (21 - number))

    history = [rising(21), rising(16), rising(15)]
    # The first loss of the history is compared with 0: 22, 17 and 16 increases, of which 16.5 are needed.
    np.testing.assert_array_equal(reduced_after_first_window([0.0] * 3, history), [False, False, True])
    # Below 0 the first comparison is no increase.
    np.testing.assert_array_equal(
        reduced_after_first_window([-9.0] * 2, [rising(16) - 2, rising(17) - 2]), [True, False]
    )


@pytest.mark.parametrize(
    ("norm", "epsilon", "loss"),
    [
        ("L2", 0.2, "dlr"),  # of the others the conformance tests have rows
        pytest.param("Linf", 0.02, "ce", marks=pytest.mark.full),
        pytest.param("Linf", 0.02, "targeted-dlr", marks=pytest.mark.full),
        pytest.param("L1", 1.0, "ce", marks=pytest.mark.full),
        pytest.param("L1", 1.0, "dlr", marks=pytest.mark.full),
    ],
)
def test_examples_lie_in_the_ball_and_fool_the_network(norm, epsilon, loss, correct):
    x, y = correct[0][:100], correct[1][:100]
    attack = APGD(epsilon, norm, loss, num_steps=10, num_targets=2)
    x_adv = tf.function(lambda: attack(toy_network(), x, y), autograph=False)()
    away = np.array(distance(x_adv, x, norm))
    assert away.max() <= epsilon + (1e-7 if norm == "Linf" else 1e-4)
    assert float(tf.reduce_min(x_adv)) >= 0 and float(tf.reduce_max(x_adv)) <= 1
    broken = np.argmax(toy_network()(x_adv), -1) != y.numpy()
    assert broken.sum() > 10
    np.testing.assert_array_equal(away > 0, broken)  # the others are returned as they are


def test_an_image_is_on_its_own(correct):
    x, y = correct[0][:32], correct[1][:32]
    seeds = tf.stack([tf.range(32, dtype=tf.int64)] * 2, 1)
    attack = APGD(0.01, num_steps=10)
    together = attack(toy_network(), x, y, seed=seeds)
    alone = attack(toy_network(), x[5:9], y[5:9], seed=seeds[5:9])
    np.testing.assert_allclose(together[5:9], alone, atol=1e-6)


def test_gradients_are_averaged_over_the_randomness_of_a_network(correct):
    x, y = correct[0][:8], correct[1][:8]
    calls = []
    network = toy_network()

    def counting(x):
        calls.append(1)
        return network(x)

    attack = APGD(0.01, num_steps=3, eot_samples=20)
    once = attack.run(counting, x, y, tf.zeros((8, 2), tf.int64), attack.runs(10)[0])
    assert len(calls) == 20 * (3 + 1)
    plain = APGD(0.01, num_steps=3)
    np.testing.assert_allclose(
        once["x_best"], plain.run(network, x, y, tf.zeros((8, 2), tf.int64), plain.runs(10)[0])["x_best"], atol=1e-6
    )


def test_targets_never_outnumber_the_other_classes():
    attack = APGD(0.1, loss="targeted-dlr", restarts=2)
    assert [run.rank for run in attack.runs(3)] == [2, 2, 3, 3]
    assert [run.rank for run in attack.runs(2)] == [2, 2]
    assert len(attack.runs(100)) == 18


def test_the_first_phase_of_an_l1_run_is_as_sparse_as_its_start(correct):
    """The authors hand the start of the first phase over as they do between phases; a plain run changes a fifth."""
    x, y = correct[0][:4], correct[1][:4]
    seeds = tf.zeros((4, 2), tf.int64)
    for shrinking, radius in ((True, 1.5), (False, 0.5)):
        attack = APGD(0.5, "L1", num_steps=10, shrinking_radius=shrinking)
        state = attack.start(toy_network(), x, y, seeds, y, tf.constant(radius))
        changed = np.count_nonzero(np.array(state["x_current"] != x), axis=(1, 2, 3))
        pixels = np.full(4, x[0].numpy().size)
        np.testing.assert_allclose(state["fraction"], changed / pixels / 1.5 if shrinking else 0.2, rtol=1e-5)
        np.testing.assert_array_equal(state["sparsity"], changed if shrinking else pixels)


def test_the_radius_of_l1_runs_shrinks():
    (run,) = APGD(0.5, "L1").runs(10)
    assert run.epsilons == (1.5, 1.0, 0.5) and run.iterations == (30, 30, 40)
    assert APGD(0.5, "L1", shrinking_radius=False).runs(10)[0].epsilons == (0.5,)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"epsilon": 0}, "epsilon"),
        ({"epsilon": 8}, "epsilon"),
        ({"epsilon": float("nan")}, "epsilon"),
        ({"norm": "linf"}, "norm"),
        ({"loss": "hinge"}, "loss"),
        ({"num_steps": 0}, "num_steps"),
        ({"restarts": 1.5}, "restarts"),
        ({"eot_samples": 0}, "eot_samples"),
        ({"rho": 2}, "rho"),
        ({"shrinking_radius": True}, "shrinking_radius"),
        ({"seed": "x"}, "seed"),
    ],
)
def test_settings_out_of_range_are_named(settings, name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        APGD(**{"epsilon": 0.1, **settings})


def test_malt_aims_at_the_nearest_boundaries_first(correct):
    """Of a linear network the order is that of exact distances; three such targets find what nine by logits find."""
    weights = np.random.default_rng(0).normal(size=(12, 6)).astype("float32") * np.float32([1, 5, 1, 1, 0.2, 1])
    x = np.random.default_rng(1).uniform(size=(20, 2, 2, 3)).astype("float32")

    def linear(images):
        return tf.matmul(tf.reshape(images, (-1, 12)), weights)

    logits = linear(x).numpy()
    y = logits.argmax(-1)
    attack = APGD(0.01, loss="targeted-dlr", target_order="malt", num_targets=3, num_steps=10)
    order = np.array(attack.classes_by_rank(linear, tf.constant(x), tf.constant(y)))
    gaps = logits[np.arange(20), y][:, None] - logits
    steepness = np.abs(weights[:, y].T[:, :, None] - weights[None]).sum(1)
    away = np.where(np.arange(6) == y[:, None], -1, gaps / np.maximum(steepness, 1e-9))
    np.testing.assert_array_equal(order, np.argsort(away, axis=1))
    assert (order[:, 1:] != np.argsort(-logits, axis=1)[:, 1:]).any()
    standing = [
        AutoAttack(toy_network(), "Linf", 0.01, "custom", [each], batch_size=30, verbose=False).run_standard_evaluation(
            correct[0][:30].numpy(), correct[1][:30].numpy()
        )["robust_accuracy"]
        for each in (attack, APGD(0.01, loss="targeted-dlr", num_steps=10))
    ]
    assert standing[0] <= standing[1] + 0.002


def test_the_order_of_targets_is_checked():
    with pytest.raises(ValueError, match=r'`target_order` is one of logits, malt, and "logits" unless loss'):
        APGD(0.1, target_order="malt")
    attack = APGD(0.1, loss="targeted-dlr", target_order="malt", num_targets=200)
    assert len(attack.runs(1000)) == 100 and attack.get_config()["target_order"] == "malt"
