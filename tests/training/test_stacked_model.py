import gc
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.networks import mirrored, tiny_images, tiny_network
from tf_robust_sparse import attacks, layers, models, objectives
from tf_robust_sparse.attacks import cross_entropy
from tf_robust_sparse.data.stacked_batches import stacked_batches
from tf_robust_sparse.layers.noise import fold_in
from tf_robust_sparse.models.unbiased_dense import unbiased_dense_300_100
from tf_robust_sparse.objectives import label_smoothing
from tf_robust_sparse.sparsity import masked_kernels
from tf_robust_sparse.sparsity.optimizer_slots import slots
from tf_robust_sparse.training import StackedRobustModel
from tf_robust_sparse.training.optimizers import FusedAdam
from tf_robust_sparse.training.stacked_model import NetworkState

X, Y = tiny_images(80)
ATTACK = attacks.LinfPGD(0.3, 0.1, 3, label="predicted")
ROUNDING = 2e-4  # of fifty steps of Adam, whose batched products add up in another order


def dense(seed):
    return unbiased_dense_300_100(10, (12, 12, 1), seed=seed)


def compiled(network, objective=None, optimizer=None):
    model = StackedRobustModel(
        network, objective or objectives.CleanAndAdversarial(ATTACK, label_smoothing=0.1), ATTACK
    )
    model.compile(optimizer or FusedAdam(1.2e-3), steps_per_execution=5)
    return model


def half_masks(network, seed=0):
    random = np.random.default_rng(seed)
    return {name: random.random(kernel.shape) < 0.5 for name, kernel in masked_kernels.get_kernels(network).items()}


def fitted(model, states, masks, seeds, steps=50):
    model.begin(states, masks, seeds)
    model.train_on(X, Y)
    model.fit(stacked_batches(len(Y), 16, seeds), steps_per_epoch=steps, epochs=1, verbose=0)
    return model


def state_of(network):
    return NetworkState(masked_kernels.get_kernels(network), {})


@pytest.mark.parametrize("adversarial", [pytest.param(False, marks=pytest.mark.full), True])
def test_trials_trained_together_are_what_each_is_alone(adversarial):
    def objective():
        return objectives.CleanAndAdversarial(ATTACK) if adversarial else objectives.Natural(0.1)

    networks = [dense(seed) for seed in (1, 2)]
    masks, states = [half_masks(network, seed) for seed, network in enumerate(networks)], list(map(state_of, networks))
    together = fitted(compiled(models.stack(networks), objective()), states, masks, [7, 8])
    record, measures = together.training_record(), together.measure(tf.constant(X), tf.constant(Y), [5, 6])
    alone = compiled(dense(0), objective())
    for member, seed in enumerate((7, 8)):
        fitted(alone, [states[member]], [masks[member]], [seed])
        for name, kernel in alone.states()[0].kernels.items():
            np.testing.assert_allclose(together.states()[member].kernels[name], kernel, atol=ROUNDING)
        np.testing.assert_allclose(record[member], alone.training_record()[0], atol=0.02)
        measured = alone.measure(tf.constant(X), tf.constant(Y), [(5, 6)[member]])[0]
        np.testing.assert_allclose(measures[member], measured, atol=0.02)


@pytest.mark.parametrize("l1", [0.0, pytest.param(1e-4, marks=pytest.mark.full)])
def test_pruned_entries_do_not_move_by_a_bit_in_200_steps(l1):
    network = dense(1)
    objective = objectives.Natural(0.1) if not l1 else objectives.L1Penalty(objectives.Natural(0.1), l1)
    before, masks = state_of(network), half_masks(network)
    model = fitted(compiled(network, objective), [before], [masks], [7], steps=200)
    assert int(model.optimizer.iterations) == 200
    for kernel in masked_kernels.find(network):
        off, value = ~masks[kernel.name], np.array(kernel.weight)
        np.testing.assert_array_equal(value[off], before.kernels[kernel.name][off])
        assert (value != before.kernels[kernel.name])[~off].mean() > 0.5
        for slot in slots(model.optimizer, kernel.weight):
            assert not np.any(np.array(slot)[off])
    masked_kernels.verify(network, X)


def test_a_memory_of_pruned_entries_that_was_loaded_is_cleared():
    network = dense(1)
    model = compiled(network)
    masks = half_masks(network)
    model.begin([state_of(network)], [masks], [1])
    for kernel in masked_kernels.find(network):
        for slot in slots(model.optimizer, kernel.weight):
            slot.assign(tf.ones(slot.shape))
    model.mask_slots()
    for kernel in masked_kernels.find(network):
        for slot in slots(model.optimizer, kernel.weight):
            np.testing.assert_array_equal(np.array(slot), masks[kernel.name].astype("float32"))


def test_every_round_begins_with_an_optimizer_that_remembers_nothing():
    network = dense(1)
    state, masks = state_of(network), half_masks(network)
    model = compiled(network)
    first = fitted(model, [state], [masks], [7]).states()[0].kernels
    rate = float(model.optimizer.learning_rate)
    second = fitted(model, [state], [masks], [7]).states()[0].kernels
    assert rate == pytest.approx(1.2e-3) and float(model.optimizer.learning_rate) == pytest.approx(1.2e-3)
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


def test_what_is_measured_is_what_the_network_does():
    network = dense(1)
    model = compiled(network)
    found = model.measure(tf.constant((255 * X).astype("uint8")), tf.constant(Y), [5], label_smoothing=0.0)[0]
    x = np.float32((255 * X).astype("uint8")) / 255
    logits = network(x)
    assert found.accuracy == pytest.approx(np.mean(np.argmax(logits, 1) == Y))
    assert found.clean_loss == pytest.approx(float(np.mean(cross_entropy(Y, logits))), abs=1e-5)
    assert found.loss == pytest.approx((found.clean_loss + found.adversarial_loss) / 2)
    by_truth = model.measure(tf.constant(X), tf.constant(Y), [5], attack=attacks.LinfPGD(0.3, 0.1, 3))[0]
    assert by_truth.adversarial_loss > by_truth.clean_loss
    smooth = model.measure(tf.constant(X), tf.constant(Y), [5], label_smoothing=0.1)[0]
    expected = np.mean(label_smoothing.smoothed_cross_entropy(Y, network(X), 0.1))
    assert smooth.clean_loss == pytest.approx(float(expected), abs=1e-5)


def test_an_attack_that_was_measured_with_lives_on_so_that_no_other_gets_its_place():
    model = compiled(dense(1))
    attack = attacks.LinfFGSM(0.3, label="predicted")
    model.measure(tf.constant(X[:4]), tf.constant(Y[:4]), [5], attack=attack)
    alive = weakref.ref(attack)
    del attack
    gc.collect()
    assert alive() is not None


@pytest.mark.parametrize("label", ["predicted", "true"])
def test_accuracy_under_attack_is_that_of_the_attack_called_by_hand(label):
    attack = attacks.LinfPGD(0.3, 0.1, 2, label=label)
    network, (x, y) = dense(1), tiny_images(700)
    model = StackedRobustModel(network, objectives.CleanAndAdversarial(attack), attack)
    model.compile(FusedAdam())
    right = 0
    for first in (0, 500):  # five hundred at a time
        part = slice(first, first + 500)
        x_adv = attack(network, x[part], y[part], seed=fold_in(tf.constant([5, 3]), first))
        right += int((np.argmax(network(x_adv), 1) == y[part]).sum())
    found = model.measure(tf.constant(x), tf.constant(y), [5], 3)[0]
    assert found.adversarial_accuracy == pytest.approx(right / 700, abs=2 / 700)


def test_the_record_is_of_the_steps_since_the_last_one():
    network = dense(1)
    model = fitted(compiled(network, objectives.Natural()), [state_of(network)], [half_masks(network)], [7])
    loss, accuracy, attacked = model.training_record()[0]
    assert 0 < loss < 3 and 0 < accuracy < 1 and np.isnan(attacked)
    assert np.isnan(model.training_record()).all()


def test_one_operation_of_adam_is_that_of_keras():
    start = np.random.default_rng(0).normal(size=(50, 7)).astype("float32")
    values = []
    for optimizer in (keras.optimizers.Adam(1.2e-3), FusedAdam(1.2e-3)):
        variable = keras.Variable(start)
        random = np.random.default_rng(1)
        for _ in range(20):
            optimizer.apply([tf.constant(random.normal(size=(50, 7)), tf.float32)], [variable])
        values.append(np.array(variable))
    np.testing.assert_allclose(*values, atol=1e-6)
    assert np.abs(values[0] - start).max() > 0.005
    with pytest.raises(ValueError, match="amsgrad"):
        FusedAdam(amsgrad=True)


@pytest.mark.full
def test_replicas_train_one_network_as_one_device_does():
    def trained(strategy):
        with strategy.scope():
            network = tiny_network("masked")
            model = compiled(network, optimizer=keras.optimizers.Adam(1e-3))
        state = NetworkState(masked_kernels.get_kernels(tiny_network("masked")), {})
        others = {v.path: np.array(v) for v in model._others()}
        fitted(model, [state._replace(others=others)], [half_masks(network)], [7], steps=5)
        return model.states()[0], model.training_record()[0], model.measure(tf.constant(X), tf.constant(Y), [1])[0]

    # Batch norm is per replica, so that the two differ a little.
    one, two = trained(tf.distribute.get_strategy()), trained(mirrored())
    for name, kernel in one[0].kernels.items():
        np.testing.assert_allclose(two[0].kernels[name], kernel, atol=0.02)
    np.testing.assert_allclose(two[1], one[1], atol=0.3)
    assert np.isfinite(two[2]).all()


def test_fitting_needs_places_of_examples_that_are_held():
    model = compiled(dense(1))
    with pytest.raises(ValueError, match="call `train_on` first"):
        model.fit(stacked_batches(len(Y), 16, [1]), steps_per_epoch=1, verbose=0)
    with pytest.raises(ValueError, match="train_on: labels must be as many"):
        model.train_on(X, Y[:3])
    with pytest.raises(ValueError, match=r"train_on: images must be a batch of shape \(n, 12, 12, 1\)"):
        model.train_on(np.zeros((80, 8, 8, 1), np.uint8), Y)
    model.train_on(X, Y)
    with pytest.raises(ValueError, match="integers of shape"):
        model.fit(tf.data.Dataset.from_tensors((X, Y)), verbose=0)


def test_other_examples_take_the_place_of_those_before():
    network = dense(1)
    model = compiled(network, objectives.Natural())
    losses = []
    for images in (X, 1 - X):
        model.begin([state_of(dense(1))], [masked_kernels.get_masks(network)], [7])
        model.train_on(images, Y)
        model.fit(stacked_batches(len(Y), 16, [7]), steps_per_epoch=5, verbose=0)
        losses.append(model.training_record()[0][0])
    assert losses[0] != losses[1]


def test_networks_without_masks_and_wrong_numbers_of_states_are_refused():
    with pytest.raises(ValueError, match='kernel="masked"'):
        compiled(tiny_network("plain"))
    network = dense(1)
    with pytest.raises(ValueError, match=r"each of the 1 members\. Received: 2"):
        compiled(network).begin([state_of(network)] * 2, [half_masks(network)] * 2, [1, 2])
    assert layers.kernel_layers(network)
