import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.networks import tiny_dataset, tiny_network
from tf_robust_sparse import layers, objectives
from tf_robust_sparse.attacks import LinfPGD
from tf_robust_sparse.sparsity import ConnectivitySampling
from tf_robust_sparse.sparsity.optimizer_slots import slots
from tf_robust_sparse.training import RobustModel, sgdw

ATTACK = LinfPGD(epsilon=0.1, step_size=0.03, num_steps=2)
OBJECTIVES = {
    "natural": objectives.Natural(),
    "trades": objectives.TRADES(ATTACK, beta=6.0),
}


def compiled(network, objective="natural", learning_rate=0.1, weight_decay=5e-4, **settings):
    sparsifier = ConnectivitySampling(check_invariants=True, **settings)
    model = RobustModel(network, OBJECTIVES[objective], sparsifier)
    model.compile(sgdw(learning_rate, weight_decay), metrics=["accuracy"])
    return model, sparsifier


class Watcher:
    """Runs the step eagerly enough to look at theta between the update and the rewiring, and after it."""

    def __init__(self, sparsifier):
        self.between, self.after = [], []
        original = sparsifier.after_update

        def wrapped(state, optimizer, dense):
            self.between.append(self.snapshot(sparsifier))
            original(state, optimizer, dense)
            self.after.append(self.snapshot(sparsifier))

        sparsifier.after_update = wrapped

    @staticmethod
    def snapshot(sparsifier):
        return [np.array(layer.theta).ravel() for layer in sparsifier.layers]


def count(thetas):
    return sum(int((theta > 0).sum()) for theta in thetas)


@pytest.mark.parametrize(("objective", "epochs"), [pytest.param("natural", 10, marks=pytest.mark.full), ("trades", 5)])
def test_budget_holds_after_every_step(objective, epochs):
    network = tiny_network(connectivity=0.05)
    model, sparsifier = compiled(network, objective, connectivity=0.1)
    signs = [np.array(layer.sign) for layer in sparsifier.layers]

    counts = []

    class Count(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            counts.append(sum(sparsifier.count()))
            for layer in sparsifier.layers:
                theta = np.array(layer.theta)
                assert theta.min() >= 0

    model.fit(tiny_dataset(), epochs=epochs, verbose=0, callbacks=[Count()])
    assert counts == [sparsifier.budget] * 4 * epochs  # I1
    for layer, sign in zip(sparsifier.layers, signs, strict=True):  # I3
        np.testing.assert_array_equal(layer.sign, sign)
        assert set(np.unique(sign)) == {-1, 1}


def test_between_update_and_rewiring_the_count_only_falls():
    network = tiny_network(connectivity=0.05)
    # Without noise: it is added after the update and may save a connection that the update has pushed below zero.
    model, sparsifier = compiled(network, connectivity=0.1, learning_rate=0.5, noise_scaling=0.0)
    watcher = Watcher(sparsifier)
    model.run_eagerly = True
    model.fit(tiny_dataset(32), epochs=6, verbose=0)
    births = 0
    for before, between, after in zip(watcher.after, watcher.between[1:], watcher.after[1:], strict=False):
        assert count(between) <= sparsifier.budget == count(after)
        for old, moved, new in zip(before, between, after, strict=True):
            born = (moved <= 0) & (new > 0)
            births += born.sum()
            assert set(new[born]) <= {np.float32(1e-12)}  # I5
            assert not ((old <= 0) & ~born & (new > 0)).any()  # I6: dormant and not chosen stays dormant
            assert (new[new <= 0] == 0).all()
    assert births > 0
    for layer in sparsifier.layers:  # I4
        kernel = layer.effective_kernel.numpy()
        assert np.count_nonzero(kernel) == (np.array(layer.theta) > 0).sum()


def test_turnover_is_counted_and_velocity_of_the_dead_and_the_newborn_is_zero():
    network = tiny_network(connectivity=0.05)
    model, sparsifier = compiled(network, connectivity=0.1, learning_rate=0.5)
    initial = sum(sparsifier.count())
    model.fit(tiny_dataset(), epochs=5, verbose=0)
    turnover = sparsifier.turnover()
    births, deaths = (sum(turnover[name].values()) for name in ("births", "deaths"))
    assert list(turnover["births"]) == ["conv1", "conv2", "classifier"]
    assert initial + births - deaths == sparsifier.budget
    assert sum(sparsifier.turnover()["births"].values()) == 0
    for layer in sparsifier.layers:
        (velocity,) = slots(model.optimizer, layer.theta)
        theta, velocity = np.array(layer.theta), np.array(velocity)
        assert (velocity[theta <= 0] == 0).all()
        assert (velocity[theta == np.float32(1e-12)] == 0).all()
        assert (velocity[theta > 1e-6] != 0).any()
        assert theta.min() >= 0


def test_a_start_above_the_budget_shrinks_before_anything_is_born():
    network = tiny_network(connectivity=0.3)
    model, sparsifier = compiled(network, connectivity=0.2, learning_rate=0.5)
    watcher = Watcher(sparsifier)
    model.run_eagerly = True
    model.fit(tiny_dataset(64), epochs=5, verbose=0)
    totals = [count(thetas) for thetas in watcher.after]
    full = next(i for i, total in enumerate(totals) if total <= sparsifier.budget)
    assert full > 0 and totals[0] > sparsifier.budget
    assert all(a >= b for a, b in itertools.pairwise(totals[:full]))
    for between, after in zip(watcher.between[:full], watcher.after[:full], strict=True):
        assert all((a == b).all() or (b[a <= 0] <= 0).all() for a, b in zip(between, after, strict=True))
    assert totals[full:] == [sparsifier.budget] * len(totals[full:])


@pytest.mark.parametrize("start", [0.03, 0.4])
def test_exact_start_has_the_budget_before_the_first_step(start):
    network = tiny_network(connectivity=start)
    before = [np.array(layer.theta) for layer in layers.kernel_layers(network)]
    sparsifier = ConnectivitySampling(0.1, init_policy="exact")
    sparsifier.attach(network)
    assert sum(sparsifier.count()) == sparsifier.budget
    for layer, old in zip(sparsifier.layers, before, strict=True):
        new = np.array(layer.theta)
        if start > 0.1:  # only removed
            np.testing.assert_array_equal(new[new > 0], old[new > 0])
        else:  # only added, with He values
            np.testing.assert_array_equal(new[old > 0], old[old > 0])
    if start < 0.1:
        added = np.concatenate(
            [(np.array(n.theta) * (o <= 0)).ravel() for n, o in zip(sparsifier.layers, before, strict=True)]
        )
        assert added[added > 0].min() > 1e-6


def test_noise_has_the_stated_size_and_leaves_dormant_entries_alone():
    network = keras.Sequential([keras.Input((500,)), layers.RewiringDense(1_000, seed=0)])
    layer = network.layers[0]
    theta = np.full((500, 1_000), 1e-3, np.float32)
    theta[:, 500:] = 0.0
    layer.theta.assign(theta)
    sparsifier = ConnectivitySampling(0.5, noise_scaling=1e-6)
    sparsifier.attach(network)
    optimizer = sgdw(0.1, 0.0)
    optimizer.build(network.trainable_variables)

    @tf.function(autograph=False)
    def step():
        state = sparsifier.before_update(optimizer)
        optimizer.apply_gradients([(tf.zeros_like(v), v) for v in network.trainable_variables])
        sparsifier.after_update(state, optimizer)

    step()
    # theta is float32: around 1e-3 its values are 1.2e-10 apart, a thousandth of the noise.
    change = np.array(layer.theta, np.float64) - theta
    np.testing.assert_allclose(change[:, :500].std(), 1e-7, rtol=0.02)
    assert abs(change[:, :500].mean()) < 5 * 1e-7 / 500
    assert (change[:, 500:] == 0).all()


def test_l1_prior_pulls_connected_entries_down():
    network = keras.Sequential([keras.Input((4,)), layers.RewiringDense(3, seed=0)])
    layer = network.layers[0]
    layer.theta.assign(tf.fill((4, 3), 0.5))
    sparsifier = ConnectivitySampling(1.0, noise_scaling=0.0, l1=0.2)
    sparsifier.attach(network)
    optimizer = sgdw(0.1, 0.0)
    optimizer.build(network.trainable_variables)
    state = sparsifier.before_update(optimizer)
    sparsifier.after_update(state, optimizer)
    np.testing.assert_allclose(layer.theta, np.full((4, 3), 0.48), rtol=1e-6)


def test_reference_policy_lets_momentum_move_dormant_entries():
    network = tiny_network(connectivity=0.05)
    model, sparsifier = compiled(network, connectivity=0.1, learning_rate=0.5, dormant_policy="reference")
    model.fit(tiny_dataset(), epochs=4, verbose=0)
    assert sum(sparsifier.count()) >= sparsifier.budget
    assert sum(int((np.array(layer.theta) < 0).sum()) for layer in sparsifier.layers) > 0


def test_target_prior_weighs_layers_by_their_initial_connectivity():
    network = tiny_network(connectivity=0.1)
    network.get_layer("conv2").initial_connectivity = 0.4
    sparsifier = ConnectivitySampling(0.2, layer_prior="target")
    sparsifier.attach(network)
    np.testing.assert_allclose(sparsifier._weights, [72 * 0.1, 1_152 * 0.4, 1_440 * 0.1])


def test_equal_seeds_give_equal_runs_and_others_do_not():
    def run(seed):
        keras.utils.set_random_seed(0)
        network = tiny_network(connectivity=0.05)
        model, sparsifier = compiled(network, connectivity=0.1, seed=seed)
        model.run_eagerly = True
        model.fit(tiny_dataset(32), verbose=0)
        return [np.array(layer.theta) for layer in sparsifier.layers]

    first = run(1)
    for a, b in zip(first, run(1), strict=True):
        np.testing.assert_array_equal(a, b)
    assert any((a != b).any() for a, b in zip(first, run(2), strict=True))


def test_a_layer_without_connections_is_told_of():
    network = tiny_network()
    sparsifier = ConnectivitySampling(0.1)
    sparsifier.attach(network)
    network.get_layer("conv1").theta.assign(tf.zeros((3, 3, 1, 8)))
    with pytest.warns(UserWarning, match="conv1 has lost all its connections"):
        sparsifier.check(network)


def test_too_many_connections_are_told_of():
    network = tiny_network(connectivity=0.05)
    sparsifier = ConnectivitySampling(0.1)
    sparsifier.attach(network)
    network.get_layer("classifier").theta.assign(tf.ones((144, 10)))
    with pytest.raises(RuntimeError, match="more than the budget 266"):
        sparsifier.check(network)


@pytest.mark.parametrize("kernel", ["plain", "masked"])
def test_a_network_of_another_parametrization_is_refused(kernel):
    with pytest.raises(ValueError, match='needs a network built with kernel="rewiring"'):
        ConnectivitySampling(0.1).attach(tiny_network(kernel))


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"noise_scaling": -1.0}, "noise_scaling"),
        ({"l1": float("nan")}, "l1"),
        ({"dormant_policy": "thaw"}, "dormant_policy"),
        ({"init_policy": "some"}, "init_policy"),
        ({"layer_prior": "flat"}, "layer_prior"),
    ],
)
def test_settings_out_of_range_are_named(settings, name):
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        ConnectivitySampling(0.1, **settings)


@pytest.mark.parametrize("arguments", [{"use_ema": True}, {"gradient_accumulation_steps": 2}])
def test_optimizers_that_would_undo_the_sparsity_are_refused(arguments):
    model = RobustModel(tiny_network(), objectives.Natural(), ConnectivitySampling(0.1))
    with pytest.raises(ValueError, match=next(iter(arguments))):
        model.compile(keras.optimizers.SGD(0.1, **arguments))


def test_a_network_can_be_made_sparser():
    network = tiny_network(connectivity=0.2)
    _, sparser = compiled(network, connectivity=0.1)
    assert sum(sparser.count()) > sparser.budget and not sparser.within_budget()
    sparser.check(network)  # above its budget, but not above what it was given
