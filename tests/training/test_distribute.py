"""Training on several replicas: they agree with each other, and with one device at the same global batch."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.networks import mirrored, tiny_images, tiny_network
from tf_robust_sparse import data, layers, objectives, sparsity
from tf_robust_sparse.attacks import L2PGD
from tf_robust_sparse.training import EMA, Checkpoints, ConnectivityLogger, RobustModel, StopOnNaN, sgdw

# In the l2 norm an attack is a continuous function of the gradient; sign() would turn a rounding error around zero into
# a whole step.
ATTACK = L2PGD(epsilon=0.5, step_size=0.25, num_steps=2)
OBJECTIVES = {"natural": objectives.Natural(), "at": objectives.AT(ATTACK), "trades": objectives.TRADES(ATTACK)}
OBJECTIVES["awp"] = objectives.AWP(OBJECTIVES["at"], 0.05)

# Halves of a batch are summed in another order than the whole: a few units in the last place of float32 per step. The
# attack of TRADES starts where the divergence is almost 0, so the rounding error of its gradient is large relative to
# the gradient, which is then normalized; since that grows from step to step, and newborn connections start at 1e-12,
# TRADES is compared over one epoch, all else over two. A loss averaged wrongly moves weights by 6e-3.
ROUNDING = {"natural": 2e-6, "at": 2e-6, "awp": 1e-5, "trades": 1e-3}

# Without noise a connection dies by its gradient alone, which rounding cannot turn around unless it is itself of the
# size of rounding: the sets of connections must be equal, not nearly so.
SPARSIFIERS = {
    "rewiring": lambda: sparsity.ConnectivitySampling(0.1, noise_scaling=0.0, check_invariants=True),
    "masked": lambda: sparsity.MagnitudePruning(0.1, sparsity.schedules.polynomial(0.1, end_step=6, frequency=2)),
    "plain": lambda: None,
}


def compiled(strategy, kernel="rewiring", objective="at", **arguments):
    with strategy.scope():
        network = tiny_network(kernel, connectivity=0.05, **arguments)
        model = RobustModel(
            network, OBJECTIVES[objective], SPARSIFIERS[kernel](), validation_attack=ATTACK, average=EMA(0.5)
        )
        model.compile(sgdw(0.1, 5e-4), metrics=["accuracy"])
    return model


def unseen(examples):
    return data.test_dataset(*tiny_images(examples, seed=1), batch_size=8)


def train(model, epochs=2, callbacks=(), validation=True, **arguments):
    return model.fit(
        data.train_dataset(*tiny_images(64), batch_size=16, epochs=epochs, **arguments),
        validation_data=unseen(16) if validation else None,
        epochs=epochs,
        initial_epoch=arguments.get("first_epoch", 0),
        steps_per_epoch=4,
        verbose=0,
        callbacks=[StopOnNaN(), *callbacks],
    ).history


def variables(model):
    return [*model.network.variables, *model.average.holder.variables, *model.optimizer.variables]


def copies(strategy, variable):
    return [np.array(copy) for copy in strategy.experimental_local_results(variable.value)]


def connections(model):
    return [np.array(layer.effective_kernel) != 0 for layer in layers.kernel_layers(model.network)]


def assert_equal_copies(strategy, model):
    for variable in variables(model):
        first, second = copies(strategy, variable)
        np.testing.assert_array_equal(first, second, err_msg=variable.path)


@pytest.mark.parametrize(
    ("kernel", "objective"),
    [pytest.param(*each, marks=pytest.mark.full) for each in (("rewiring", "at"), ("masked", "natural"))],
)
def test_replicas_stay_identical_while_connections_move(kernel, objective):
    """theta, sign, masks, momentum and batch norm statistics, though batch norm is not synchronized."""
    strategy = mirrored()
    model = compiled(strategy, kernel, objective)
    before = connections(model)
    log = ConnectivityLogger(model.network, model.sparsifier)
    history = train(model, callbacks=[log], validation=False)
    assert_equal_copies(strategy, model)
    assert any((a != b).any() for a, b in zip(before, connections(model), strict=True))
    if kernel == "rewiring":
        assert history["nonzero"] == [266, 266]
        assert all(births > 0 for births in history["births"])
        assert int(0.05 * 72) + int(0.05 * 1_152) + int(0.05 * 1_440) + sum(history["births"]) - sum(
            history["deaths"]
        ) == pytest.approx(266)


@pytest.mark.parametrize(
    ("kernel", "objective", "batch_norm"),
    [
        ("rewiring", "awp", True),
        pytest.param("rewiring", "trades", False, marks=pytest.mark.full),
        pytest.param("masked", "natural", True, marks=pytest.mark.full),
    ],
)
def test_two_replicas_equal_one_device(kernel, objective, batch_norm):
    arguments = {"kernel": kernel, "objective": objective, "batch_norm": batch_norm}
    epochs = 1 if objective == "trades" else 2
    validation = objective == "awp"
    one = compiled(tf.distribute.get_strategy(), **arguments)
    expected = train(one, epochs, validation=validation)
    strategy = mirrored()
    two = compiled(strategy, synchronized=True, **arguments)
    history = train(two, epochs, validation=validation)
    assert_equal_copies(strategy, two)
    for a, b in zip(variables(one), variables(two), strict=True):
        np.testing.assert_allclose(a, b, atol=ROUNDING[objective], err_msg=a.path)
    for a, b in zip(connections(one), connections(two), strict=True):
        np.testing.assert_array_equal(a, b)
    for name, values in expected.items():
        np.testing.assert_allclose(values, history[name], rtol=1e-4, err_msg=name)


def test_an_uneven_or_empty_part_of_the_last_batch_is_evaluated_rightly():
    """21 = 8 + 8 + 5: one replica gets 3 images, the other 2. Of 17 = 8 + 8 + 1 one replica gets none."""
    model = compiled(mirrored(), objective="natural", synchronized=True)
    for examples in (21, 17):
        report = model.evaluate(unseen(examples), verbose=0, return_dict=True)
        x, y = tiny_images(examples, seed=1)
        logits = np.array(model.network(x, training=False))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(y, logits)
        assert report["accuracy"] == pytest.approx(np.mean(logits.argmax(-1) == y))
        assert report["loss"] == pytest.approx(float(loss), abs=1e-5)
        assert 0 <= report["robust_accuracy"] <= report["accuracy"]
    np.testing.assert_allclose(model.predict(x, batch_size=8, verbose=0), logits, atol=1e-5)


@pytest.mark.parametrize(
    "synchronized", [None, pytest.param(True, marks=pytest.mark.full), pytest.param(False, marks=pytest.mark.full)]
)
def test_a_last_batch_that_leaves_a_replica_empty_counts_by_its_images(synchronized):
    """Of 17 = 8 + 8 + 1 images one replica gets none at last, of 19 two and one: the loss is a mean over all images."""
    histories, weights = [], []
    # With batch norm there is nothing to compare: the image that fills the empty part is in the statistics.
    for strategy in [mirrored()] if synchronized is not None else [tf.distribute.get_strategy(), mirrored()]:
        with strategy.scope():
            network = tiny_network("plain", batch_norm=synchronized is not None, synchronized=bool(synchronized))
            # From the image itself: the starting points of unequal parts are not those of the whole.
            attack = L2PGD(0.5, 0.25, 2, random_start=False)
            model = RobustModel(network, objectives.AT(attack), log_terms=True)
            model.compile(sgdw(0.1, 5e-4), metrics=["accuracy"])
        histories.append([model.fit(*tiny_images(n), 8, shuffle=False, verbose=0).history for n in (17, 19)])
        weights.append([np.array(v) for v in model.network.trainable_variables])
    assert all(np.isfinite(each).all() for each in weights[-1])
    if synchronized is None:
        for a, b in zip(*weights, strict=True):
            np.testing.assert_allclose(a, b, atol=ROUNDING["at"])
        for a, b in zip(*histories, strict=True):
            assert a == {name: pytest.approx(values, rel=1e-5) for name, values in b.items()}


@pytest.mark.full
@pytest.mark.slow
def test_a_resumed_run_equals_the_uninterrupted_one_on_replicas(tmp_path):
    """With batch norm that is not synchronized, which would drift apart between the replicas if it were let."""

    def run(directory, stops):
        for first, last in zip([0, *stops], [*stops, 2], strict=True):
            model = compiled(mirrored(), "masked", "natural")
            checkpoints = Checkpoints(directory, {}, {}, sparsifier=model.sparsifier)
            assert (checkpoints.restore(model) if first else 0) == first
            train(model, last, [checkpoints], validation=False, first_epoch=first)
        return [np.array(v) for v in variables(model)]

    for a, b in zip(run(tmp_path / "whole", []), run(tmp_path / "parts", [1]), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_batch_that_does_not_divide_is_refused():
    model = compiled(mirrored(), "masked", "natural")
    with pytest.raises(ValueError, match=r"multiple of the number of replicas, 2, .*a batch of 15"):
        model.fit(data.train_dataset(*tiny_images(64), batch_size=15), verbose=0)
    with pytest.raises(ValueError, match="a batch of 15"):
        model.fit(*tiny_images(64), 15, verbose=0)
