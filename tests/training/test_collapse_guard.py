"""A guard against catastrophic overfitting: what it measures, when it rings, that it goes back, bit by bit."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_robust_sparse as trs
from tests.networks import mirrored, tiny_images
from tf_robust_sparse.attacks import NFGSM, LinfFGSM, LinfPGD
from tf_robust_sparse.objectives import AT
from tf_robust_sparse.training.collapse_guard import CollapseGuard, gradient_cosine, softened

X, Y = tiny_images(64)


def model_of(guard, attack=None):
    x = inputs = keras.Input((12, 12, 1))
    x = trs.layers.MaskedDense(8, activation="relu")(keras.layers.Flatten()(x))
    network = keras.Model(inputs, trs.layers.MaskedDense(10)(x))
    objective = trs.objectives.L1Penalty(AT(attack or NFGSM(0.05)), 1e-5)
    sparsifier = trs.sparsity.RigL(0.3, interval=3, end_step=100)
    model = trs.RobustModel(network, objective, sparsifier, average=trs.training.EMA(0.9), guard=guard)
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9))
    return model


class Scripted(CollapseGuard):
    """One that is told what it measures."""

    def __init__(self, accuracies=(), cosines=(), **settings):
        super().__init__(X, Y, **settings)
        self.accuracies, self.cosines = dict(accuracies), dict(cosines)

    def attach(self, model):
        super().attach(model)
        self._probe = lambda x, y, seed: self.accuracies[seed[1]]
        self._cosine = lambda x, y, seed: self.cosines.get(seed[1], 0.9)


def values(model):
    own = {id(each) for each in model.guard.state.variables}
    found = [each for each in [*model.variables, *model.optimizer.variables] if id(each) not in own]
    return [np.array(each) for each in found if not each.path.endswith(("iteration", "learning_rate"))]


def test_the_probe_goes_back_to_the_last_good_weights_and_shortens_the_step():
    """Best .6 at step 2; .4 at step 4 is not kept; below half at step 6 it rings."""
    guard = Scripted({2: (0.6, 0.7), 4: (0.4, 0.7), 6: (0.2, 0.8), 8: (0.5, 0.7)}, probe_every=2)
    model, seen = model_of(guard), {}

    class Keep(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen[int(model.optimizer.iterations)] = values(model)

    history = model.fit(X, Y, 8, epochs=1, shuffle=False, verbose=0, callbacks=[Keep()]).history
    assert guard.alarms() == [(6, "probe", pytest.approx(0.2), pytest.approx(0.6), 2)]
    for before, after in zip(seen[2], seen[6], strict=True):
        np.testing.assert_array_equal(before, after)
    assert any((before != after).any() for before, after in zip(seen[2], seen[4], strict=True))
    assert int(model.optimizer.iterations) == 8
    assert model.objective.attack.step_size == pytest.approx(0.75 * 0.05) and guard._plain.attack.step_size == 0.05
    assert history["guard_alarms"] == [1] and history["guard_accuracy"] == [pytest.approx(0.5)]


def test_the_cosine_rings_against_its_running_mean_and_widens_the_noise():
    guard = Scripted({}, {11: 0.2, 12: 0.95}, cosine_every=1, action="noise")
    model = model_of(guard)
    model.fit(X, Y, 8, epochs=2, verbose=0)
    ((step, by, value, reference, back_to),) = guard.alarms()
    assert (step, by, back_to) == (11, "cosine", -1)
    assert (value, reference) == (pytest.approx(0.2), pytest.approx(0.9))
    assert model.objective.attack.noise == 2.5


def test_early_noise_and_honest_falls_do_not_ring():
    """No alarm near chance, nor where accuracy under FGSM falls as well, nor by the first cosines."""
    accuracies = {2: (0.15, 0.2), 4: (0.05, 0.3), 6: (0.6, 0.7), 8: (0.2, 0.6)}
    guard = Scripted(accuracies, {3: 0.1}, probe_every=2, cosine_every=1)
    model_of(guard).fit(X, Y, 8, epochs=1, verbose=0)
    assert not guard.alarms()


def test_a_resumed_run_repeats_the_uninterrupted_one(tmp_path):
    """Resumed before the alarm, which goes back to weights of the epoch before, and after it."""

    def made():
        return model_of(Scripted({4: (0.6, 0.7), 8: (0.2, 0.8), 12: (0.5, 0.7)}, probe_every=4))

    def fit(model, first, last):
        x = trs.data.train_dataset(X, Y, 16, augmentation=None, epochs=last, first_epoch=first)
        model.fit(x, epochs=last, initial_epoch=first, steps_per_epoch=4, verbose=0)

    whole = made()
    for epoch in range(3):
        trs.saving.save_checkpoint(tmp_path / f"{epoch}.weights.h5", whole, {})
        fit(whole, epoch, epoch + 1)
    again = made()
    for epoch in (1, 2):
        trs.saving.load_checkpoint(tmp_path / f"{epoch}.weights.h5", again)
        fit(again, epoch, 3)
        assert [alarm.step for alarm in whole.guard.alarms()] == [8] and whole.guard.alarms() == again.guard.alarms()
        for a, b in zip([*whole.variables, *values(whole)], [*again.variables, *values(again)], strict=True):
            np.testing.assert_array_equal(a, b)


def test_two_replicas_go_back_together():
    with mirrored().scope():
        model = model_of(Scripted({2: (0.6, 0.7), 4: (0.2, 0.8)}, probe_every=2))
    model.fit(tf.data.Dataset.from_tensor_slices((X, Y)).batch(16), epochs=1, verbose=0)
    assert model.guard.alarms()[0].back_to == 2
    for variable in model.network.trainable_variables:
        first, second = (np.array(each) for each in mirrored().experimental_local_results(variable.value))
        np.testing.assert_array_equal(first, second)


def test_it_measures_accuracies_and_cosines():
    guard = CollapseGuard(X, Y)
    model = model_of(guard)
    model.fit(X, Y, 16, epochs=3, verbose=0)
    pgd, fgsm = map(float, guard._probe(X, Y, [0, 1]))
    for attack, found in ((LinfPGD(0.05, 0.0125, 10), pgd), (LinfFGSM(0.05), fgsm)):
        moved = attack(model.network, X, Y, seed=tf.constant([0, 1]))
        assert found == pytest.approx(np.mean(np.argmax(model.network(moved, training=False), -1) == Y))
    assert 0 < float(guard._cosine(X, Y, [0, 1])) < 1
    assert guard.describe()["alarms"] == [] and guard.describe()["images"] == 64


def test_the_cosine_is_that_of_finite_differences():
    generator = np.random.default_rng(0)
    kernels = [tf.constant(generator.normal(size=shape), tf.float32) for shape in ((6, 5), (5, 3))]
    x, y = generator.random((4, 6)).astype(np.float32), np.array([0, 1, 2, 0])
    moved = x + generator.uniform(-0.2, 0.2, x.shape).astype(np.float32)

    def forward(x):
        return tf.tanh(x @ kernels[0]) @ kernels[1]

    def slopes(x):
        def loss(x):
            hidden = np.tanh(x @ np.array(kernels[0], np.float64))
            logits = hidden @ np.array(kernels[1], np.float64)
            own = logits[np.arange(4), y]
            return np.log(np.exp(logits).sum(1) - np.exp(own)) - own  # the log odds, of the direction of the loss

        steps = 1e-5 * np.eye(6)
        return np.stack([(loss(x + step) - loss(x - step)) / 2e-5 for step in steps], axis=1)

    first, second = slopes(x.astype(np.float64)), slopes(moved.astype(np.float64))
    expected = (first * second).sum(1) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)
    np.testing.assert_allclose(gradient_cosine(forward, tf.constant(x), tf.constant(moved), y), expected, atol=1e-3)


def test_attacks_are_softened_again_and_again():
    attack = NFGSM(0.1)
    assert softened(attack, "noise", 3).noise == 3.5 and attack.noise == 2
    assert softened(attack, "step_size", 2).step_size == pytest.approx(0.1 * 0.75**2)
    assert softened(LinfFGSM(0.1), "step_size", 0).step_size == 0.1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CollapseGuard(X, Y, action="stop"), "action='stop'"),
        (lambda: CollapseGuard(X, Y, probe_every=0), "probe_every=0"),
        (lambda: CollapseGuard(X, Y, drop=1.0), "drop=1.0"),
        (lambda: CollapseGuard(X, Y[:3]), "labels"),
        (lambda: model_of(CollapseGuard(X, Y, action="noise"), LinfFGSM(0.1)), "widens the noise of NFGSM"),
        (lambda: model_of(CollapseGuard(X, Y), trs.attacks.L2PGD(0.5, 0.1, 1)), "l-infinity ball"),
        (lambda: model_of(0.5), "guard=0.5"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
