"""The phases of pruning by learned scores: exactly the intended weights change, bit by bit."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.networks import mirrored, tiny_images, tiny_network
from tf_robust_sparse import objectives, sparsity
from tf_robust_sparse.attacks import LinfPGD
from tf_robust_sparse.sparsity.scores import subnet_layers
from tf_robust_sparse.training import FreeAT, FreeRobustModel, Phase, PhaseCheck, RobustModel, coupled

X, Y = tiny_images(48)
ATTACK = LinfPGD(0.05, 0.03, 2)
OBJECTIVES = {
    "natural": lambda: objectives.Natural(),
    "trades": lambda: objectives.TRADES(ATTACK, beta=1.0),
    "stability": lambda: objectives.Stability(0.1, beta=1.0),
}
STATISTICS = {"moving_mean", "moving_variance"}
CHANGES = {
    "pretrain": {"kernel", "bias", "gamma", "beta", *STATISTICS},
    "prune": {"scores", "gamma", "beta", *STATISTICS},
    "finetune": {"kernel", "bias", "gamma", "beta", *STATISTICS},
}


def model_of(network, objective="trades", optimizer=None):
    make = OBJECTIVES.get(objective)
    model = FreeRobustModel(network, FreeAT(16, 0.05, 2)) if make is None else RobustModel(network, make())
    model.compile(optimizer or coupled("sgd", 0.05, 1e-2), run_eagerly=make is not None)
    return model


def values(network):
    return {variable.path: keras.ops.convert_to_numpy(variable).copy() for variable in network.variables}


def changed(before, network):
    after = values(network)
    return {path for path in before if not np.array_equal(before[path], after[path])}


@pytest.mark.parametrize(
    ("name", "objective"),
    [
        ("pretrain", "natural"),
        ("pretrain", "free"),
        ("prune", "trades"),
        pytest.param("prune", "stability", marks=pytest.mark.full),
        pytest.param("prune", "free", marks=pytest.mark.full),
        ("finetune", "trades"),
    ],
)
def test_exactly_the_weights_of_the_phase_change(name, objective):
    network = tiny_network("subnet")
    sparsity.set_keep_fractions(network, 0.3)
    sparsity.scaled_scores(network)
    Phase(name).begin(network)
    before = values(network)
    model = model_of(network, objective)
    model.fit(X, Y, batch_size=16, epochs=1, verbose=0, callbacks=[PhaseCheck(network)])
    expected = {path for path in before if path.split("/")[-1] in CHANGES[name]}
    assert changed(before, network) == expected
    learned = {variable.path for variable in network.trainable_variables}
    assert learned == {path for path in expected if path.split("/")[-1] not in STATISTICS}


@pytest.mark.parametrize(
    ("freeze", "expected"),
    [
        (False, {"gamma", "beta", *STATISTICS}),
        ("affine", STATISTICS),
        pytest.param(True, set(), marks=pytest.mark.full),
    ],
)
def test_batch_norm_in_the_prune_phase(freeze, expected):
    network = tiny_network("subnet")
    sparsity.set_keep_fractions(network, 0.3)
    Phase("prune", freeze).begin(network)
    before = values(network)
    model_of(network, "natural").fit(X, Y, batch_size=16, verbose=0, callbacks=[PhaseCheck(network)])
    names = {path.split("/")[-1] for path in changed(before, network)}
    assert names == {"scores", *expected}


def test_phases_follow_each_other_on_one_network():
    network = tiny_network("subnet")
    Phase("prune", freeze_batch_norm=True).begin(network)
    Phase("finetune").begin(network)
    trained = {variable.path.split("/")[-1] for variable in network.trainable_variables}
    assert trained == {"kernel", "bias", "gamma", "beta"}
    before = values(network)
    model_of(network, "natural").fit(X, Y, batch_size=16, verbose=0)
    assert {path.split("/")[-1] for path in changed(before, network)} == CHANGES["finetune"]


def test_pruned_entries_stand_still_while_the_rest_is_finetuned_without_decay():
    network = tiny_network("subnet")
    sparsity.set_keep_fractions(network, 0.3)
    Phase("finetune").begin(network)
    layer = subnet_layers(network)[1]
    mask, before = layer.compute_kernel_mask().numpy(), keras.ops.convert_to_numpy(layer.kernel).copy()
    model_of(network, "natural", coupled("sgd", 0.05, 0.0)).fit(X, Y, batch_size=16, verbose=0)
    after = keras.ops.convert_to_numpy(layer.kernel)
    np.testing.assert_array_equal(after[~mask], before[~mask])
    assert (after[mask] != before[mask]).mean() > 0.9


def test_the_optimizer_knows_only_what_trains():
    network = tiny_network("subnet")
    Phase("prune", freeze_batch_norm=True).begin(network)
    model = model_of(network)
    slots = [variable for variable in model.optimizer.variables if "momentum" in variable.path]
    assert len(slots) == 3 and all("scores" in slot.path for slot in slots)


def test_a_frozen_weight_that_changes_is_told_of():
    network = tiny_network("subnet")
    Phase("prune").begin(network)
    check = PhaseCheck(network)
    check.on_epoch_begin(0)
    layer = subnet_layers(network)[0]
    layer.scores.assign(layer.scores + 1)
    check.on_epoch_end(0)
    layer.kernel.assign(layer.kernel + 1)
    with pytest.raises(RuntimeError, match=r"frozen in this phase have changed: .*conv1/kernel"):
        check.on_epoch_end(0)
    check.on_epoch_begin(1)
    with pytest.raises(RuntimeError, match=r"None of the .* weights that train has changed"):
        check.on_epoch_end(1)


def test_a_dense_network_may_be_pretrained():
    network = tiny_network("plain")
    Phase("pretrain").begin(network)
    assert len(network.trainable_variables) == 7
    with pytest.raises(ValueError, match=r'kernel="subnet"'):
        Phase("prune").begin(network)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("pruning",), "`name` must be one of pretrain, prune, finetune"),
        (("prune", "all"), "must be False, True or"),
        (("finetune", True), "is for the prune phase"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Phase(*arguments)


@pytest.mark.full
def test_learned_scores_leave_the_order_of_magnitudes():
    network = tiny_network("subnet", batch_norm=False)
    sparsity.set_keep_fractions(network, 0.2)
    sparsity.scaled_scores(network)
    Phase("prune").begin(network)
    before = [layer.compute_kernel_mask().numpy() for layer in subnet_layers(network)]
    model = model_of(network, "natural", coupled("sgd", 0.1, 0.0))
    losses = model.fit(X, Y, batch_size=16, epochs=15, verbose=0).history["loss"]
    assert losses[-1] < 0.9 * losses[0]
    after = [layer.compute_kernel_mask().numpy() for layer in subnet_layers(network)]
    assert all((a != b).any() and a.sum() == b.sum() for a, b in zip(after, before, strict=True))


def test_free_training_moves_its_perturbation_along_the_sign():
    network = tiny_network("plain", batch_norm=False)
    model = FreeRobustModel(network, FreeAT(16, 0.05, 1))
    model.compile(keras.optimizers.SGD(1e-12))
    x, y = tf.constant(X[:16]), tf.constant(Y[:16])
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, network(x)))
    expected = 0.05 * np.sign(tape.gradient(loss, x))
    model.train_step((x, y))
    found = keras.ops.convert_to_numpy(model._perturbation)
    assert (found == expected.astype("float32")).mean() > 0.99
    for _ in range(3):
        model.train_step((x, y))
        assert np.abs(model._perturbation).max() <= np.float32(0.05)


def test_free_training_carries_its_perturbation_to_the_next_batch_by_position():
    network = tiny_network("plain", batch_norm=False)
    model = FreeRobustModel(network, FreeAT(16, 0.05, 1))
    model.compile(keras.optimizers.SGD(1e-12))
    expected = np.zeros((16, 12, 12, 1), np.float32)
    for first in (0, 16, 32):
        x, y = X[first : first + 16], Y[first : first + 16]
        x_adv = tf.constant(np.clip(x + expected, 0, 1))
        with tf.GradientTape() as tape:
            tape.watch(x_adv)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, network(x_adv)))
        inside = (x + expected >= 0) & (x + expected <= 1)  # a clipped pixel has no gradient
        moved = np.sign(tape.gradient(loss, x_adv)) * inside
        expected = np.clip(expected + np.float32(0.05) * moved, -0.05, 0.05).astype(np.float32)
        model.train_step((tf.constant(x), tf.constant(y)))
        found = keras.ops.convert_to_numpy(model._perturbation)
        assert np.isclose(found, expected, atol=1e-6).mean() > 0.99
    assert (np.abs(expected) < 0.04).mean() > 0.1  # a new perturbation would be at the bound everywhere


def test_free_training_needs_its_own_model():
    model = RobustModel(tiny_network("plain"), FreeAT(16, 0.05, 2))
    model.compile(coupled("sgd", 0.05))
    with pytest.raises(ValueError, match=r"training\.FreeRobustModel"):
        model.fit(X, Y, batch_size=16, verbose=0)


@pytest.fixture(scope="module")
def free():
    model = FreeRobustModel(tiny_network("plain"), FreeAT(16, 0.05, 4))
    model.compile(coupled("sgd", 0.05))
    return model


def _batches(size, number=48, **settings):
    return tf.data.Dataset.from_tensor_slices((X[:number], Y[:number])).batch(size, **settings)


@pytest.mark.parametrize(
    ("x", "y", "settings"),
    [
        (X, Y, {"batch_size": 8}),
        (X, Y, {"batch_size": 24}),
        (X, Y, {}),
        (X[:40], Y[:40], {"batch_size": 16}),
        (_batches(8), None, {}),
        (_batches(24, drop_remainder=True), None, {}),
        (_batches(16, 40), None, {}),
    ],
)
def test_free_training_says_which_batches_it_needs(x, y, settings, free):
    with pytest.raises(ValueError, match=r"full batches of 16 images.*drop_remainder=True.*Received: "):
        free.fit(x, y, verbose=0, **settings)


def test_free_training_updates_the_weights_in_every_repeat(free):
    before = int(free.optimizer.iterations)
    free.fit(_batches(16, 40, drop_remainder=True), validation_data=(X[:5], Y[:5]), verbose=0)
    assert int(free.optimizer.iterations) == before + 2 * 4  # full batches of a part
    free.fit(X, Y, batch_size=16, epochs=2, verbose=0)
    assert int(free.optimizer.iterations) == before + 2 * 4 + 2 * 3 * 4


@pytest.mark.full
def test_free_training_on_replicas_equals_that_on_one_device():
    def run(strategy):
        with strategy.scope():
            model = FreeRobustModel(tiny_network("plain", batch_norm=False), FreeAT(16, 0.05, 2))
            model.compile(coupled("sgd", 0.05))
        model.fit(tf.data.Dataset.from_tensor_slices((X, Y)).batch(16), verbose=0)
        return values(model.network), keras.ops.convert_to_numpy(model._perturbation)

    (one, delta), (two, delta_of_two) = run(tf.distribute.get_strategy()), run(mirrored())
    assert (np.abs(delta - delta_of_two) < 1e-6).mean() > 0.98  # signs of gradients near zero differ by rounding
    for path in one:
        np.testing.assert_allclose(one[path], two[path], atol=2e-3)


@pytest.mark.parametrize(
    "settings", [{"epsilon": 0}, {"epsilon": 2.0}, {"num_repeats": 0}, {"num_repeats": 1.5}, {"batch_size": 0}]
)
def test_bad_settings_of_free_training(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        FreeAT(**{"batch_size": 16, **settings})


def test_free_training_refuses_other_objectives():
    with pytest.raises(ValueError, match="`objective` must be a FreeAT"):
        FreeRobustModel(tiny_network("plain"), objectives.Natural())
