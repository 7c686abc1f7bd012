import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.networks import tiny_dataset, tiny_network
from tf_robust_sparse import layers, objectives
from tf_robust_sparse.sparsity import MagnitudePruning, schedules
from tf_robust_sparse.sparsity.optimizer_slots import slots
from tf_robust_sparse.training import RobustModel


def trained(sparsifier, optimizer=None, epochs=3, callbacks=()):
    network = tiny_network("masked")
    model = RobustModel(network, objectives.Natural(), sparsifier)
    model.compile(optimizer or keras.optimizers.SGD(0.1, momentum=0.9, weight_decay=1e-3))
    model.fit(tiny_dataset(), epochs=epochs, verbose=0, callbacks=list(callbacks))
    return model


def counts(network):
    return [int(tf.math.count_nonzero(layer.effective_kernel)) for layer in layers.kernel_layers(network)]


def test_one_shot_keeps_the_largest_entries_of_each_kernel():
    network = tiny_network("masked")
    before = [np.array(layer.kernel) for layer in layers.kernel_layers(network)]
    MagnitudePruning(0.1).attach(network)
    for layer, old in zip(layers.kernel_layers(network), before, strict=True):
        kept = np.array(layer.kernel_mask)
        assert kept.sum() == int(0.1 * old.size)
        assert np.abs(old[kept]).min() >= np.abs(old[~kept]).max()
        np.testing.assert_array_equal(layer.effective_kernel, np.where(kept, old, 0))


def test_global_allocation_compares_all_kernels():
    network = tiny_network("masked")
    before = [np.array(layer.kernel) for layer in layers.kernel_layers(network)]
    MagnitudePruning(0.1, allocation="global").attach(network)
    masks = [np.array(layer.kernel_mask) for layer in layers.kernel_layers(network)]
    assert sum(mask.sum() for mask in masks) == 266
    kept = min(np.abs(old[mask]).min() for old, mask in zip(before, masks, strict=True))
    dropped = max(np.abs(old[~mask]).max() for old, mask in zip(before, masks, strict=True))
    assert kept >= dropped


@pytest.mark.parametrize("optimizer", [lambda: keras.optimizers.Adam(0.01), lambda: None])
def test_pruned_entries_stay_at_zero_under_momentum_and_decay(optimizer):
    model = trained(MagnitudePruning(0.1), optimizer())
    assert counts(model.network) == [7, 115, 144]
    for layer in layers.kernel_layers(model.network):
        off = ~np.array(layer.kernel_mask)
        assert (np.array(layer.kernel)[off] == 0).all()
        for slot in slots(model.optimizer, layer.kernel):
            assert (np.array(slot)[off] == 0).all()
    model.sparsifier.check(model.network)


def test_gradual_schedule_falls_to_the_target():
    seen = []
    look = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: seen.append(sum(counts(look.model.network)))
    )
    trained(MagnitudePruning(0.1, schedules.polynomial(0.1, end_step=8, frequency=2)), epochs=3, callbacks=[look])
    assert seen[0] > seen[-1] and all(a >= b for a, b in itertools.pairwise(seen))
    assert seen[-1] == 7 + 115 + 144


def test_a_schedule_ends_at_its_last_step_whatever_its_frequency():
    sparsifier = MagnitudePruning(0.1, schedules.polynomial(0.1, end_step=7, frequency=4))
    model = trained(sparsifier, epochs=3)
    assert sum(counts(model.network)) == 7 + 115 + 144 and sparsifier.within_budget()


def test_schedules_are_those_of_the_library():
    """To the last bit, and a schedule object of the library counts as one of ours."""
    import tensorflow_model_optimization as tfmot

    theirs, when = tfmot.sparsity.keras, {"begin_step": 100, "end_step": 1_000, "frequency": 50}
    for ours, decay in [
        (schedules.polynomial(0.05, initial_connectivity=0.8, **when), theirs.PolynomialDecay(1 - 0.8, 0.95, **when)),
        (schedules.polynomial(0.3, 977, power=2), theirs.PolynomialDecay(0.0, 1 - 0.3, 0, 977, power=2)),
        (schedules.constant(0.3, 10, frequency=5), theirs.ConstantSparsity(1 - 0.3, 10, frequency=5)),
    ]:
        adapted = schedules.from_tfmot(decay)
        for step in (0, 10, 99, 100, 130, 150, 333, 700, 977, 1_000, 1_050):
            now, sparsity = decay(tf.constant(step, tf.int64))
            expected = (bool(now) or step == decay.end_step, 1 - float(sparsity))
            assert tuple(each.numpy() for each in ours(tf.constant(step))) == expected
            assert tuple(each.numpy() for each in adapted(tf.constant(step))) == expected
    with pytest.raises(TypeError, match=r"must be a tfmot.sparsity.keras.PruningSchedule. Received: schedule=0\.1"):
        schedules.from_tfmot(0.1)


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match='`allocation` must be "uniform" or "global"'):
        MagnitudePruning(0.1, allocation="erk")
    with pytest.raises(ValueError, match="before `end_step`"):
        schedules.polynomial(0.1, end_step=5, begin_step=5)
    with pytest.raises(ValueError, match="frequency=0"):
        schedules.constant(0.1, frequency=0)
    with pytest.raises(ValueError, match='kernel="masked"'):
        MagnitudePruning(0.1).attach(tiny_network("rewiring"))


@pytest.mark.parametrize("allocation", ["uniform", "global"])
@pytest.mark.parametrize("gradual", [False, True])
def test_large_kernels_keep_exactly_the_truncated_product(allocation, gradual):
    network = keras.Sequential([keras.Input((1_536,)), layers.MaskedDense(1_536)])  # 2,359,296 entries
    schedule = schedules.polynomial(0.01, end_step=1, frequency=1) if gradual else None
    sparsifier = MagnitudePruning(0.01, schedule, allocation)
    sparsifier.attach(network)
    optimizer = keras.optimizers.SGD(0.1)
    optimizer.build(network.trainable_variables)
    for _ in range(3):
        optimizer.apply_gradients([(tf.zeros_like(v), v) for v in network.trainable_variables])
        sparsifier.after_update(sparsifier.before_update(optimizer), optimizer)
    assert counts(network) == [23_592] == [sparsifier.budget]
