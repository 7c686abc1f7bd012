"""Square attack: what it asks, when it stops, what its answers depend on, and what is refused."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from tests.attacks.networks import CLASSES, batch, small_network
from tests.attacks.square_queries import LINF_ROUNDING, SUM_ROUNDING, distance, runner, seeds_of
from tests.attacks.toy import toy_images, toy_labels, toy_network
from tf_robust_sparse.attacks.losses import margin
from tf_robust_sparse.attacks.projections import l1_ball
from tf_robust_sparse.attacks.square import Square, pair_of_pyramids
from tf_robust_sparse.layers.forward import inference_forward

EPSILONS = {"Linf": 0.05, "L2": 0.3, "L1": 2.0}
NORMS = list(EPSILONS)
WITHOUT_L1 = ["Linf", "L2", pytest.param("L1", marks=pytest.mark.full)]
MARGIN_ROUNDING = 1e-5  # sums of another order in batches of another size


class Recorder:
    """A network that finds class 0 everywhere, with a margin of 1, and remembers what it was asked."""

    def __init__(self):
        self.seen = []

    def __call__(self, x):
        logits = tf.numpy_function(self._answer, [x], tf.float32)
        return tf.ensure_shape(logits, (*x.shape[:1], CLASSES))

    def _answer(self, x):
        self.seen.append(np.array(x))
        return np.eye(CLASSES, dtype="float32")[np.zeros(len(x), int)]


def asked_by(attack, x):
    """What the attack asks on its way: the image, the starting point, and one batch per query; and its answer."""
    network = Recorder()
    y = np.zeros(len(x), "int64")
    found = tf.function(lambda: attack(network, x, y), autograph=False)().numpy()
    return network.seen, found


@pytest.mark.parametrize("norm", NORMS)
def test_every_query_is_in_the_ball_and_in_the_pixel_range(norm):
    x, _ = batch(5)
    attack = Square(EPSILONS[norm], norm, num_queries=60)
    seen, found = asked_by(attack, x)
    np.testing.assert_array_equal(found, x)  # never broken
    assert len(seen) == 1 + 1 + 60  # the image, the starting point, and one pass per query
    for x_adv in seen:
        rounding = LINF_ROUNDING if norm == "Linf" else SUM_ROUNDING
        assert distance(x_adv, x, norm).max() <= attack.epsilon + rounding
        assert x_adv.min() >= 0 and x_adv.max() <= 1
    assert len({x_adv.tobytes() for x_adv in seen}) > 50


def test_linf_queries_move_the_channels_of_a_window_to_the_border():
    x = np.full((3, 16, 12, 3), 0.5, "float32")
    attack = Square(0.1, num_queries=300)
    start, *queries = asked_by(attack, x)[0][1:]
    np.testing.assert_array_equal(start, np.broadcast_to(start[:, :1], x.shape))  # vertical stripes
    np.testing.assert_allclose(np.abs(start - x), 0.1, atol=LINF_ROUNDING)
    corners, signs = [], []
    for query, x_new in enumerate(queries):
        side = attack.side(query, 16, 12)
        _, rows, columns, _ = np.nonzero(x_new != start)
        assert np.ptp(rows) == side - 1  # the stripes are constant along a column
        assert np.ptp(columns) <= side - 1
        corners.append((rows.min(), columns.min()))
        sign = np.sign(x_new[:, rows[0], columns[0]] - 0.5)
        inside = x_new[:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        np.testing.assert_allclose(inside, np.broadcast_to(inside[:, :1], inside.shape))
        signs.append(sign)
    assert np.ptp([row for row, _ in corners]) > 6 and np.ptp([column for _, column in corners]) > 4
    # 300 throws of a coin: five standard deviations are 0.29.
    signs = np.array(signs)
    assert np.abs(signs.mean(0)).max() < 0.3
    flat = signs.reshape(300, -1)
    correlation = flat.T @ flat / 300 - np.eye(9)
    assert np.abs(correlation).max() < 0.3  # neither images nor channels share their signs


def test_the_last_place_of_a_window_is_not_drawn():
    x = np.full((1, 8, 8, 1), 0.5, "float32")
    start, *queries = asked_by(Square(0.1, num_queries=400, p_init=0.1), x)[0][1:]
    touched = np.any([x_new != start for x_new in queries], axis=(0, 1, 4))
    assert touched[:7, :7].all()
    assert not touched[7].any() and not touched[:, 7].any()


@pytest.mark.parametrize("norm", ["L2", "L1"])
def test_pyramid_queries_use_the_whole_radius_and_change_two_windows(norm):
    x = np.full((3, 32, 32, 3), 0.5, "float32")
    attack = Square(1.0, norm, num_queries=210)
    start, *queries = (x_adv - x for x_adv in asked_by(attack, x)[0][1:])
    assert np.abs(start[:, [0, 31]]).max() == 0 and np.abs(start[:, :, [0, 31]]).max() == 0
    if norm == "L2":  # five by five centered tiles, one pattern up to sign and turn
        tile = pair_of_pyramids(6, norm) / 75**0.5
        choices = np.stack([tile, -tile, tile.T, -tile.T])
        tiles = start[:, 1:31, 1:31].reshape(3, 5, 6, 5, 6, 3).transpose(0, 1, 3, 5, 2, 4).reshape(-1, 6, 6)
        gap = np.abs(tiles[:, np.newaxis] - choices).max((2, 3))
        assert gap.min(1).max() < LINF_ROUNDING
        assert (np.bincount(gap.argmin(1), minlength=4) > 20).all()  # of 225
    for query, delta in list(enumerate(queries))[202:]:
        np.testing.assert_allclose(distance(delta, 0 * x, norm), 1.0, atol=SUM_ROUNDING)
        side = attack.side(query, 32, 32)
        assert side == 11
        if norm == "L2":  # elsewhere the perturbation is the old one, rescaled
            ratio = np.median(delta / np.where(start == 0, np.inf, start), axis=(1, 2), keepdims=True)
            changed = np.abs(delta - ratio * start).max(axis=(0, 3)) > 1e-5
            assert 0 < changed.sum() <= 2 * side**2


@pytest.mark.parametrize("norm", ["L2", "L1"])
@pytest.mark.parametrize("query", [0, 30, 700])
def test_pyramid_query_written_out(norm, query):
    order, epsilon = (2, 0.8) if norm == "L2" else (1, 5.0)
    rng = np.random.default_rng(query)
    x = rng.uniform(0.3, 0.7, (2, 10, 9, 3)).astype("float32")
    delta = rng.normal(size=x.shape)
    delta *= 0.6 * epsilon / distance(delta, 0 * x, norm)[:, None, None, None]  # some of the radius is left
    attack = Square(epsilon, norm)
    key = tf.constant(rng.integers(0, 2, (2, 32)), tf.float32)
    signs = attack._signs(tf.constant(query), key, x).numpy()
    draw = attack._uniform(tf.constant(query), 0, (5,)).numpy()
    actual = attack._pyramid_proposal(
        tf.constant(query), attack._schedule(10, 9), key, tf.constant(x), tf.constant(x + delta, tf.float32), epsilon
    )

    def length(values):
        return np.linalg.norm(values.ravel(), order)

    side = attack.side(query, 10, 9)
    corners = np.floor(draw[:4] * np.maximum(np.array([10, 9, 10, 9]) - side, 1)).astype(int)
    here, there = (np.s_[row : row + side, column : column + side] for row, column in corners.reshape(2, 2))
    pattern = pair_of_pyramids(side, norm)
    pattern = pattern.T if draw[4] >= 0.5 else pattern
    for image in range(2):
        after = delta[image].copy()
        after[here] = after[there] = 0
        left = epsilon**order - length(delta[image]) ** order
        for channel in range(3):
            old = delta[image, :, :, channel]
            new = pattern * signs[image, 0, 0, channel] + old[here] / length(old[here])
            both = np.zeros((10, 9))
            both[here], both[there] = old[here], old[there]
            size = (left / 3 + length(both) ** order) ** (1 / order) * (1 if norm == "L2" else 3)
            after[..., channel][here] = new / length(new) * size
        start = tf.constant(x[image : image + 1] + after[np.newaxis], tf.float32)
        if norm == "L2":
            expected = np.clip(x[image] + after * epsilon / length(after), 0, 1)
        else:
            expected = l1_ball(start, tf.constant(x[image : image + 1]), epsilon)[0]
        np.testing.assert_allclose(actual[image], expected, atol=1e-5)


@pytest.mark.parametrize("norm", WITHOUT_L1)
def test_margins_fall_and_broken_images_stay_as_they_are(norm):
    network, (x, _) = small_network(), batch(12)
    y = np.argmax(network(x), axis=1)
    attack = Square(EPSILONS[norm] / 2, norm, num_queries=200)
    states = runner(attack, network, x.shape[1:])(x, y, until=range(0, 201, 10))
    for before, after in itertools.pairwise(states):
        assert (after["margin"].numpy() <= before["margin"].numpy()).all()
        found = before["found"].numpy()
        np.testing.assert_array_equal(after["x_best"][found], before["x_best"][found])
        assert after["found"].numpy()[found].all()
    last = states[-1]
    assert (last["margin"].numpy() < states[0]["margin"].numpy() - 0.01).mean() > 0.5
    assert 0 < last["found"].numpy().sum() < 12
    np.testing.assert_allclose(last["margin"], margin(y, network(last["x_best"])), atol=MARGIN_ROUNDING)
    np.testing.assert_array_equal(last["found"], last["margin"].numpy() <= 0)
    np.testing.assert_array_equal(last["x_found"], last["x_best"])


@pytest.mark.parametrize("norm", WITHOUT_L1)
def test_queries_stop_when_all_images_are_broken(norm):
    network, (x, _) = Recorder(), batch(4)
    attack = Square(EPSILONS[norm], norm, num_queries=500)
    x_adv = attack(network, x, np.ones(4, "int64"))
    assert len(network.seen) == 2
    np.testing.assert_array_equal(x_adv, x)  # nothing to do: the network was wrong before

    network = small_network()
    y = np.argmax(network(x), axis=1)
    *_, last = runner(Square(10 * EPSILONS[norm], norm, num_queries=500), network, x.shape[1:])(x, y)
    assert last["found"].numpy().all()
    assert last["iteration"].numpy() < 100


@pytest.mark.parametrize("norm", NORMS)
def test_answers_depend_neither_on_the_batch_nor_on_stages(norm):
    network, (x, _) = small_network(), batch(10)
    y = np.argmax(network(x), axis=1)
    attack = Square(EPSILONS[norm] / 2, norm, num_queries=150)
    run = runner(attack, network, x.shape[1:])
    whole = run(x, y)[-1]
    in_stages = run(x, y, until=[1, 60, 100, 150])[-1]
    np.testing.assert_array_equal(whole["x_best"], in_stages["x_best"])
    rows = [7, 2, 4]
    some = run(x[rows], y[rows], tf.gather(seeds_of(10), rows))[-1]
    np.testing.assert_allclose(some["x_best"], whole["x_best"].numpy()[rows], atol=LINF_ROUNDING)
    np.testing.assert_allclose(some["margin"], whole["margin"].numpy()[rows], atol=MARGIN_ROUNDING)


@pytest.mark.parametrize("norm", WITHOUT_L1)
def test_seeds_decide_everything(norm):
    network, (x, _) = small_network(), batch(12)
    y = np.argmax(network(x), axis=1)
    attack = Square(4 * EPSILONS[norm], norm, num_queries=20)
    graph = tf.function(lambda seed: attack(network, x, y, seed=seed), autograph=False)
    first, other = (graph(tf.constant([seed, 0])).numpy() for seed in (3, 4))
    np.testing.assert_array_equal(first, graph(tf.constant([3, 0])))
    np.testing.assert_allclose(first, attack(network, x, y, seed=3), atol=LINF_ROUNDING)  # eagerly
    found = np.argmax(network(first), axis=1) != y
    assert found.any()
    assert (first != other).any(axis=(1, 2, 3))[found].all()
    # The constructor's seed moves the windows also when the call has a seed of its own.
    forward, seeds, one_run = inference_forward(network), seeds_of(12), Square(0.01, norm, 2).runs(CLASSES)[0]
    pair = [
        Square(0.01, norm, 2, seed=seed).run(forward, tf.constant(x), y, seeds, one_run)["x_best"].numpy()
        for seed in (0, 1)
    ]
    assert (pair[0] != pair[1]).any()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", [(7, 11, 2), (12, 6, 1), (3, 4, 3)])
def test_images_of_any_shape(norm, shape):
    x, _ = batch(2, shape=shape)
    network = Recorder()
    Square(EPSILONS[norm], norm, num_queries=5)(network, x, np.zeros(2, "int64"))
    assert len(network.seen) == 7
    assert all(distance(x_adv, x, norm).min() > 0 for x_adv in network.seen[1:])
    assert all(np.isfinite(x_adv).all() for x_adv in network.seen)
    assert max(distance(x_adv, x, norm).max() for x_adv in network.seen) <= EPSILONS[norm] + SUM_ROUNDING


def test_more_restarts_break_more_images():
    x, y = toy_images()[1:400], toy_labels()[1:400]
    network = toy_network()
    broken = [
        np.argmax(
            network(tf.function(Square(0.01, num_queries=40, restarts=n), autograph=False)(network, x, y)), axis=1
        )
        != y
        for n in (1, 2)
    ]
    assert broken[1][broken[0]].all()
    assert broken[1].sum() > broken[0].sum()


def test_arguments_and_structure():
    attack = Square(0.5, "L2", num_queries=250, p_init=0.3, restarts=2, rescale_schedule=True, seed=7)
    assert Square.from_config(attack.get_config()).get_config() == attack.get_config()
    assert attack.get_config()["num_queries"] == 250 and attack.get_config()["rescale_schedule"] is True
    assert [(run.restart, run.rank, run.epsilons, run.iterations) for run in attack.runs(10)] == [
        (0, 0, (0.5,), (250,)),
        (1, 0, (0.5,), (250,)),
    ]
    assert attack.stages(250) == [100, 200, 250]
    assert attack.stages(200) == [100, 200]
    assert attack.stages(30) == [30]
    assert attack.name == "square" and not attack.uses_gradients and attack.gradient_passes() == 0


@pytest.mark.parametrize(
    "arguments",
    [
        {"norm": "Linfinity"},
        {"num_queries": 0},
        {"num_queries": 2.5},
        {"restarts": 0},
        {"p_init": 0.0},
        {"p_init": 1.5},
        {"p_init": "0.8"},
        {"rescale_schedule": 1},
        {"seed": 0.5},
    ],
)
def test_bad_arguments(arguments):
    with pytest.raises(ValueError, match=rf"`{next(iter(arguments))}`.*Received: {next(iter(arguments))}="):
        Square(0.1, **arguments)
