"""RobustModel as a Keras model: what a step does, and what fit, evaluate and predict report."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.networks import tiny_dataset, tiny_images, tiny_network
from tests.training.robust_models import ATTACK, OBJECTIVES, X, Y, compiled
from tf_robust_sparse import layers, objectives, saving
from tf_robust_sparse.attacks import LinfPGD
from tf_robust_sparse.evaluation import robust_accuracy
from tf_robust_sparse.sparsity import ConnectivitySampling, MagnitudePruning
from tf_robust_sparse.sparsity.optimizer_slots import slots
from tf_robust_sparse.training import RobustModel, StopOnNaN, sgdw

# Attacked images, and sums over a batch, go through other kernels of the library in eager mode than in a graph.
ROUNDING = 1e-5


def state(model):
    return [np.array(v) for v in [*model.network.variables, *model.optimizer.variables]]


def assert_same(first, second):
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


def moving_statistics(network):
    return np.concatenate([np.array(v).ravel() for v in network.non_trainable_variables if "moving" in v.path])


@pytest.mark.parametrize(
    ("objective", "sparsifier"),
    [
        ("natural", "dense"),
        ("at", "connectivity_sampling"),
        pytest.param("mat", "magnitude", marks=pytest.mark.full),
        ("trades", "magnitude"),
        pytest.param("mart", "connectivity_sampling", marks=pytest.mark.full),
        pytest.param("suppressed", "dense", marks=pytest.mark.full),
    ],
)
def test_every_objective_and_every_sparsifier_train(objective, sparsifier):
    model = compiled(objective, sparsifier)
    loss = model.fit(tiny_dataset(), epochs=8, verbose=0).history["loss"]
    assert loss[-1] < 0.9 * loss[0]
    kept = sum(int(tf.math.count_nonzero(layer.effective_kernel)) for layer in layers.kernel_layers(model.network))
    budget = {"dense": 2_664, "connectivity_sampling": 799, "magnitude": 21 + 345 + 432}[sparsifier]
    assert kept == budget


def test_plain_keras_use():
    model = compiled("at", "dense", validation_attack=ATTACK)
    x, y = tiny_images(48)
    history = model.fit(x, y, 16, epochs=2, validation_data=tiny_images(20, seed=1), verbose=0).history
    assert set(history) == {"loss", "accuracy", "val_loss", "val_accuracy", "val_robust_accuracy"}
    assert all(isinstance(value, float) for values in history.values() for value in values)
    report = model.evaluate(x, y, verbose=0, return_dict=True)
    assert set(report) == {"loss", "accuracy", "robust_accuracy"}
    assert len(model.evaluate(tiny_dataset(), verbose=0)) == 3
    logits = model.predict(x, verbose=0)
    np.testing.assert_allclose(logits, model.network(x, training=False), atol=ROUNDING)
    np.testing.assert_array_equal(model.predict(tiny_dataset(48), verbose=0).argmax(-1), logits.argmax(-1))
    assert set(model.train_on_batch(x[:16], y[:16], return_dict=True)) == {"loss", "accuracy"}
    assert set(model.test_on_batch(x[:16], y[:16], return_dict=True)) == {"loss", "accuracy", "robust_accuracy"}


def test_reported_numbers_equal_a_hand_written_evaluation():
    model = compiled("natural", "dense", validation_attack=ATTACK)
    model.fit(tiny_dataset(), epochs=6, verbose=0)
    x, y = tiny_images(24, seed=2)
    report = model.evaluate(x, y, batch_size=24, verbose=0, return_dict=True)
    logits = model.network(x, training=False)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(y, logits)
    assert report["loss"] == pytest.approx(float(loss), abs=ROUNDING)
    assert report["accuracy"] == pytest.approx(np.mean(np.argmax(logits, -1) == y))
    strong = LinfPGD(epsilon=0.05, step_size=0.03, num_steps=2, random_start=False)
    model = RobustModel(model.network, OBJECTIVES["at"], validation_attack=strong)
    model.compile(metrics=["accuracy"])
    report = model.evaluate(x, y, batch_size=24, verbose=0, return_dict=True)
    x_adv = strong(model.network, x, y)
    robust = np.mean(np.argmax(model.network(x_adv, training=False), -1) == y)
    assert report["robust_accuracy"] == pytest.approx(robust)
    assert report["robust_accuracy"] < report["accuracy"]


@pytest.mark.parametrize(("objective", "updates"), [("natural", 1), ("at", 1), ("mat", 1), ("trades", 2), ("mart", 2)])
def test_batch_norm_statistics_move_in_the_loss_only(objective, updates):
    """The attack sees batch norm in inference mode; the loss updates it once per training-mode batch."""
    model = compiled(objective)
    x, y = tiny_images(16)
    before, weights = moving_statistics(model.network), model.network.get_weights()
    seen = []
    original = model.objective.perturb, model.objective.loss
    calls = []

    class Spy(objectives.Objective):
        def perturb(self, network, x, y, seed=None):
            x_adv = original[0](network, x, y, seed=seed)
            np.testing.assert_array_equal(moving_statistics(network), before)
            return x_adv

        def loss(self, network, x, y, x_adv):
            def counted(inputs, training):
                assert training is True
                calls.append(np.array(inputs))
                return network(inputs, training=training)

            result = original[1](counted, x, y, x_adv)
            seen.append(moving_statistics(network))
            return result

    model.objective = Spy()
    model.run_eagerly = True
    model.train_on_batch(x, y)
    assert len(calls) == updates
    network = tiny_network()
    network.set_weights(weights)
    for inputs in calls:
        network(inputs, training=True)
    np.testing.assert_allclose(seen[0], moving_statistics(network), atol=ROUNDING)
    assert (seen[0] != before).any()
    assert_same([moving_statistics(model.network)], seen)


@pytest.mark.parametrize("sparsifier", ["connectivity_sampling", pytest.param("magnitude", marks=pytest.mark.full)])
def test_kernels_are_computed_once_per_step_and_nothing_is_traced_again(sparsifier, monkeypatch):
    model = compiled("trades", sparsifier)
    calls, traces = {}, []
    for layer in layers.kernel_layers(model.network):

        def counted(layer=layer, original=layer.compute_effective_kernel):
            calls[layer.name] = calls.get(layer.name, 0) + 1
            return original()

        monkeypatch.setattr(layer, "compute_effective_kernel", counted)
    monkeypatch.setattr(model, "train_step", lambda data, step=model.train_step: traces.append(1) or step(data))
    model.fit(tiny_dataset(), epochs=1, verbose=0)
    assert calls == dict.fromkeys(("conv1", "conv2", "classifier"), 1)
    model.fit(tiny_dataset(), epochs=3, initial_epoch=1, verbose=0)
    assert len(traces) == 1
    assert set(calls.values()) == {1}


def last_logs(objective, log_terms):
    model = RobustModel(tiny_network("plain"), objective, log_terms=log_terms)
    model.compile(keras.optimizers.SGD(0.01), run_eagerly=True)
    fitted = model.fit(tiny_dataset(), validation_data=tiny_dataset(), epochs=2, verbose=0).history
    return {name: values[-1] for name, values in fitted.items()}


def test_terms_of_the_loss_are_logged_on_demand():
    inner = objectives.CleanAndAdversarial(ATTACK, 0.25, joint=True)
    objective = objectives.VulnerabilitySuppression(inner, 0.5)
    logs = last_logs(objective, True)
    names = ("clean_loss", "adversarial_loss", "adversarial_accuracy", "vulnerability")
    terms = {name: logs.pop(name) for name in names}
    assert logs == last_logs(objective, False)
    total = 0.75 * terms["clean_loss"] + 0.25 * terms["adversarial_loss"] + 0.5 * terms["vulnerability"]
    assert total == pytest.approx(logs["loss"], rel=1e-5) and terms["vulnerability"] > 0
    assert 0 <= terms["adversarial_accuracy"] <= 1


@pytest.mark.full
def test_terms_of_other_losses():
    logs = last_logs(objectives.L1Penalty(objectives.AT(ATTACK), 1e-3), True)
    assert set(logs) == {"loss", "val_loss", "adversarial_loss", "adversarial_accuracy"}
    assert logs["adversarial_loss"] < logs["loss"]
    assert set(last_logs(objectives.Natural(), True)) == {"loss", "val_loss"}


def test_gradients_do_not_flow_through_the_attack():
    """The images depend on a bias here; as the tape stands still during `perturb`, the bias does not learn from it."""

    class Dependent(objectives.Natural):
        def perturb(self, network, x, y, seed=None):
            return x + tf.reduce_sum(network.get_layer("classifier").bias)

        def loss(self, network, x, y, x_adv):
            per_example, logits, *_ = super().loss(network, x, y, x_adv)
            return tf.reduce_mean(x_adv, (1, 2, 3)) + 0.0 * per_example, logits

    model = RobustModel(tiny_network("plain"), Dependent())
    model.compile(keras.optimizers.SGD(0.1))
    before = model.network.get_weights()
    model.train_on_batch(X, Y)
    trained = [np.array(v) for v in model.network.trainable_variables]
    assert_same(trained, [w for w, v in zip(before, model.network.weights, strict=True) if v.trainable])


def test_seeds_decide_everything():
    def trained(seed):
        keras.utils.set_random_seed(0)
        model = compiled("at", seed=seed)
        model.run_eagerly = True
        model.fit(tiny_dataset(32), verbose=0)
        return state(model)

    first = trained(1)
    assert_same(first, trained(1))
    assert any((a != b).any() for a, b in zip(first, trained(2), strict=True))


def test_a_step_by_hand():
    """One dense layer, x -> logits, SGDW with momentum: two steps against NumPy."""
    x, y = tiny_images(8)
    rate, decay = 0.1, 5e-4
    network = keras.Sequential(
        [keras.Input((12, 12, 1)), keras.layers.Flatten(), layers.RewiringDense(10, seed=3, initial_connectivity=0.5)]
    )
    layer = network.layers[-1]
    sign, theta, bias = np.array(layer.sign, np.float64), np.array(layer.theta, np.float64), np.zeros(10)
    model = RobustModel(network, objectives.Natural(), ConnectivitySampling(0.5, noise_scaling=0.0))
    model.compile(sgdw(rate, decay))
    flat, labels = x.reshape(8, -1).astype(np.float64), np.eye(10)[y]
    velocity, bias_velocity = np.zeros_like(theta), np.zeros(10)
    born = np.zeros(theta.shape, bool)
    for _ in range(2):
        model.train_on_batch(x, y)
        connected = theta > 0
        logits = flat @ np.where(connected, sign * theta, 0) + bias
        p = np.exp(logits - logits.max(1, keepdims=True))
        error = (p / p.sum(1, keepdims=True) - labels) / 8
        velocity = 0.9 * velocity - rate * np.where(connected, sign * (flat.T @ error), 0)
        bias_velocity = 0.9 * bias_velocity - rate * error.sum(0)
        theta = theta - decay * theta + velocity
        bias = bias - decay * bias + bias_velocity
        dead = theta <= 0
        theta[dead], velocity[dead] = 0, 0
        born = np.array(layer.theta) == np.float32(1e-12)
        assert born.sum() == 720 - (theta > 0).sum()
        theta[born] = 1e-12
    np.testing.assert_allclose(layer.theta, theta, atol=1e-6)
    np.testing.assert_allclose(layer.bias, bias, atol=1e-6)
    assert born.any()


def test_a_restored_step_is_bit_exact(tmp_path):
    model, other = compiled("at", "magnitude"), compiled("at", "magnitude")
    model.run_eagerly = other.run_eagerly = True
    model.fit(tiny_dataset(), verbose=0)
    saving.save_checkpoint(tmp_path / "a.weights.h5", model, {})
    saving.load_checkpoint(tmp_path / "a.weights.h5", other)
    x, y = tiny_images(16, seed=5)
    for each in (model, other):
        each.train_on_batch(x, y)
    assert_same(state(model), state(other))


def test_other_ways_to_run_give_the_same_weights():
    def trained(**arguments):
        model = RobustModel(tiny_network("masked"), OBJECTIVES["at"], MagnitudePruning(0.2), validation_attack=ATTACK)
        model.compile(sgdw(0.05, 5e-4), metrics=["accuracy"], **arguments)
        history = model.fit(
            tiny_dataset(48), validation_data=tiny_dataset(20), verbose=0, callbacks=[StopOnNaN()]
        ).history
        assert "val_robust_accuracy" in history
        return state(model)

    expected = trained()
    for arguments in ({"steps_per_execution": 3}, {"run_eagerly": True}):
        for a, b in zip(expected, trained(**arguments), strict=True):
            np.testing.assert_allclose(a, b, atol=ROUNDING)


def test_the_wrapper_is_a_model_that_can_be_attacked():
    model = compiled("at")
    assert robust_accuracy(model, (X, Y), ATTACK) == robust_accuracy(model.network, (X, Y), ATTACK)


def test_mixed_precision_keeps_theta_and_the_learning_rate():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = compiled("at", optimizer=keras.optimizers.LossScaleOptimizer(sgdw(0.05, 5e-4), initial_scale=2.0**8))
        kinds = {layer.compute_dtype for layer in layers.kernel_layers(model.network)}
    finally:
        keras.config.set_dtype_policy("float32")
    assert kinds == {"float16"}
    rates = []
    original = model.sparsifier.before_update
    model.sparsifier.before_update = lambda optimizer: rates.append(original(optimizer)) or rates[-1]
    model.run_eagerly = True
    model.train_on_batch(X, Y)
    assert float(rates[0].learning_rate) == pytest.approx(0.05)
    model.run_eagerly = False
    model.make_train_function(force=True)
    loss = model.fit(tiny_dataset(), epochs=8, verbose=0, callbacks=[StopOnNaN()]).history["loss"]
    assert loss[-1] < 0.9 * loss[0]
    assert int(model.optimizer.iterations) == 33
    for layer in layers.kernel_layers(model.network):
        assert layer.theta.dtype == "float32"
        (velocity,) = slots(model.optimizer, layer.theta)
        assert velocity.dtype == "float32"
    assert sum(model.sparsifier.count()) == model.sparsifier.budget


def test_keras_scales_the_loss_by_itself_and_an_overflow_only_skips_the_update():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = compiled("natural", "dense")
        assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
        before = [np.array(v) for v in model.network.trainable_variables]
        model.optimizer.dynamic_scale.assign(2.0**40)
        model.train_on_batch(X, Y)
    finally:
        keras.config.set_dtype_policy("float32")
    assert float(model.optimizer.dynamic_scale) < 2.0**40
    assert_same([np.array(v) for v in model.network.trainable_variables], before)
