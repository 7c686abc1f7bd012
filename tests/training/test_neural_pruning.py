"""Gates and weights, each trained for a loss of its own."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.networks import mirrored
from tf_robust_sparse import layers, models, objectives, training
from tf_robust_sparse.attacks import LinfPGD, cross_entropy
from tf_robust_sparse.layers.features import with_features
from tf_robust_sparse.layers.training_noise import joined_parts
from tf_robust_sparse.models import vgg
from tf_robust_sparse.models.vgg import vgg16_dropout
from tf_robust_sparse.saving import copy_weights, load_checkpoint, save_checkpoint
from tf_robust_sparse.training.optimizers import CoupledAdam

ATTACK = LinfPGD(0.1, 0.05, 2)
SHAPE = (16, 16, 1)


def images(count=12, seed=0):
    random = np.random.default_rng(seed)
    y = random.integers(0, 4, count)
    patterns = np.random.default_rng(9).random((4, *SHAPE))
    return (0.7 * patterns[y] + 0.3 * random.random((count, *SHAPE))).astype("float32"), y


def compiled(
    gate_rate=1.0,
    weight_rate=0.1,
    strength=0.5,
    beta=1e-3,
    seed=3,
    rate=1e-2,
    objective=None,
    network=None,
    **arguments,
):
    network = models.lenet_conv(4, SHAPE, gates=True, seed=1) if network is None else network
    if objective is None:
        inner = objectives.CleanAndAdversarial(ATTACK, weight=2 / 3, joint=True)
        objective = objectives.VulnerabilitySuppression(inner, strength)
    model = training.NeuralPruningModel(network, objective, beta, seed=seed, **arguments)
    model.compile(training.GatedAdam(rate, gate_rate=gate_rate, weight_rate=weight_rate, l2=1e-4, epsilon=1e-8))
    return model


def dense_network():
    """Two dense layers, and gates between them."""
    x = inputs = keras.Input(SHAPE)
    x = layers.PlainDense(12, kernel_initializer=keras.initializers.HeNormal(1))(keras.layers.Flatten()(x))
    x = keras.layers.ReLU()(layers.BetaBernoulliDropout()(x))
    return keras.Model(inputs, layers.PlainDense(4, kernel_initializer=keras.initializers.HeNormal(2))(x))


def split(network):
    """The variables of the gates, and all others."""
    gates = [v for layer in layers.gates(network) for v in layer.trainable_variables]
    return gates, [v for v in network.trainable_variables if all(v is not gate for gate in gates)]


@pytest.mark.parametrize("moves", ["gates", "weights"])
def test_each_rate_moves_its_own(moves):
    model = compiled(gate_rate=float(moves == "gates"), weight_rate=float(moves == "weights"))
    model.run_eagerly = True
    before = [[np.array(v) for v in part] for part in split(model.network)]
    model.fit(*images(), batch_size=12, verbose=0)
    for name, then, now in zip(("gates", "weights"), before, split(model.network), strict=True):
        moved = [np.abs(a - np.array(b)).max() for a, b in zip(then, now, strict=True)]
        assert (min(moved) > 0) if name == moves else max(moved) == 0


def test_gradients_are_those_of_the_two_losses():
    model = compiled()
    network, (x, y) = model.network, images()
    taken = {}
    model._update = lambda gradients, weights, dense, sources: taken.update(
        {v.path: np.array(g) for g, v in zip(gradients, weights, strict=True)}
    )
    seed = model._step_seed()
    with layers.cached_kernels(network), layers.folded_kernels(network):
        x_adv = model.objective.perturb(network, tf.constant(x), y, seed=seed)
    model.train_step((tf.constant(x), tf.constant(y)))
    gates, weights = split(network)
    with tf.GradientTape(persistent=True) as tape:
        with model._training_noise(seed), joined_parts(2):
            both = with_features(network)(tf.concat([x, x_adv], 0), training=True)
        (logits, logits_adv), *features = (tf.split(each, 2) for each in both)
        clean, attacked = cross_entropy(y, logits), cross_entropy(y, logits_adv)
        vulnerability = tf.add_n([tf.reduce_mean(tf.abs(a - b)) for a, b in features]) / 3
        of_gates = tf.reduce_mean(attacked) + 1e-3 * tf.add_n(
            [layer.kl_divergence() for layer in layers.gates(network)]
        )
        of_weights = tf.reduce_mean((clean + 2 * attacked) / 3) + 0.5 * vulnerability
    for loss, variables in ((of_gates, gates), (of_weights, weights)):
        for variable, expected in zip(variables, tape.gradient(loss, variables), strict=True):
            scale = np.abs(expected).max()
            assert scale > 0
            np.testing.assert_allclose(taken[variable.path], expected, atol=1e-5 * scale + 1e-8, err_msg=variable.path)


@pytest.mark.parametrize(
    "inner",
    [
        pytest.param(objectives.AT(ATTACK), marks=pytest.mark.full),
        pytest.param(objectives.MAT(ATTACK), marks=pytest.mark.full),
        objectives.TRADES(ATTACK),
        pytest.param(objectives.MART(ATTACK), marks=pytest.mark.full),
        objectives.CleanAndAdversarial(ATTACK),
    ],
    ids=lambda inner: type(inner).__name__,
)
def test_suppression_moves_no_gate(inner):
    gradients = {}
    for strength in (0.0, 5.0):
        network = models.lenet_conv(4, SHAPE, gates=True, seed=1)
        objective = objectives.VulnerabilitySuppression(inner, strength)
        model = training.NeuralPruningModel(network, objective, 1e-3, seed=3)
        model.compile(training.GatedAdam(1e-2))
        taken = gradients[strength] = {}
        model._update = lambda found, weights, dense, sources, taken=taken: taken.update(
            {v.path: np.array(g) for g, v in zip(found, weights, strict=True)}
        )
        model.train_step(tuple(tf.constant(each) for each in images()))
    gates, weights = split(network)
    for variable in gates:
        np.testing.assert_array_equal(gradients[0.0][variable.path], gradients[5.0][variable.path])
    first = weights[0].path
    assert np.abs(gradients[0.0][first] - gradients[5.0][first]).max() > 1e-4


def test_gates_follow_the_objective_that_gives_no_logits_of_attacked_images():
    network = models.lenet_conv(4, SHAPE, gates=True, seed=1)
    model = training.NeuralPruningModel(network, objectives.Natural(), 1e-3)
    model.compile(training.GatedAdam(1e-2), run_eagerly=True)
    before = np.array(network.get_layer("gate4").a_raw)
    history = model.fit(*images(40), batch_size=20, epochs=4, verbose=0).history["loss"]
    assert history[-1] < history[0] and np.abs(before - network.get_layer("gate4").a_raw).max() > 0


def test_two_rates_are_two_optimizers():
    network = models.lenet_conv(4, SHAPE, gates=True, seed=1)
    gates, weights = split(network)
    twin = models.lenet_conv(4, SHAPE, gates=True, seed=1)
    twin_gates, twin_weights = split(twin)
    one = training.GatedAdam(1e-2, gate_rate=1.0, weight_rate=0.1, l2=1e-4, epsilon=1e-8)
    two = keras.optimizers.Adam(1e-2, epsilon=1e-8), CoupledAdam(1e-3, l2=1e-4, corrected_epsilon=False)
    random = np.random.default_rng(0)
    for _ in range(3):
        gradients = {v.path: tf.constant(random.normal(size=v.shape), tf.float32) for v in network.trainable_variables}
        one.apply_gradients([(gradients[v.path], v) for v in network.trainable_variables])
        for optimizer, part in zip(two, (twin_gates, twin_weights), strict=True):
            optimizer.apply_gradients([(gradients[v.path], v) for v in part])
    for a, b in zip(gates + weights, twin_gates + twin_weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_a_resumed_run_repeats_the_uninterrupted_one(tmp_path):
    x, y = images()
    whole, first, second = compiled(), compiled(), compiled(seed=3)
    for each in (whole, first, second):
        each.run_eagerly = True
    whole.fit(x, y, batch_size=6, epochs=2, shuffle=False, verbose=0)
    first.fit(x, y, batch_size=6, epochs=1, shuffle=False, verbose=0)
    save_checkpoint(tmp_path / "state.weights.h5", first, {})
    load_checkpoint(tmp_path / "state.weights.h5", second)
    second.fit(x, y, batch_size=6, epochs=1, shuffle=False, verbose=0)
    for a, b in zip(whole.network.variables, second.network.variables, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.full
def test_two_replicas_train_as_one():
    x, y = images(16)
    alone = compiled(rate=1e-3, objective=objectives.AT(ATTACK), network=dense_network())
    alone.fit(x, y, batch_size=8, epochs=1, shuffle=False, verbose=0)
    with mirrored().scope():
        together = compiled(rate=1e-3, objective=objectives.AT(ATTACK), network=dense_network())
    together.fit(x, y, batch_size=8, epochs=1, shuffle=False, verbose=0)
    for a, b in zip(alone.network.trainable_variables, together.network.trainable_variables, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4)


def test_a_base_gives_its_weights_and_open_gates_its_answers(monkeypatch):
    monkeypatch.setitem(vgg.VGG_WIDTHS, 16, ((8, 8), (8, 8), (16, 16, 16), (32, 32, 32), (32, 32, 32)))
    base, network = vgg16_dropout(seed=4), vgg16_dropout(gates=True, seed=5)
    random = np.random.default_rng(0)
    for layer in base.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.set_weights([random.uniform(0.5, 1.5, w.shape) for w in layer.get_weights()])
    copy_weights(base, network)
    for name in [layer.name for layer in base.layers if isinstance(layer, layers.BatchNormalization)]:
        for a, b in zip(base.get_layer(name).weights, network.get_layer(name).weights, strict=True):
            np.testing.assert_array_equal(a, b)
    x = random.random((3, 32, 32, 3), "float32")
    for layer in layers.gates(network):
        layer.a_raw.assign(np.full(layer.a_raw.shape, 1e6, "float32"))
    np.testing.assert_allclose(network(x, training=False), base(x, training=False), rtol=1e-3, atol=1e-4)


def test_networks_without_gates_are_refused():
    with pytest.raises(ValueError, match="must have gates"):
        training.NeuralPruningModel(models.lenet_conv(), objectives.Natural(), 1e-3)
    with pytest.raises(ValueError, match="divergence_weight"):
        training.NeuralPruningModel(models.lenet_conv(gates=True), objectives.Natural(), -1.0)
    with pytest.raises(ValueError, match="gate_rate"):
        training.GatedAdam(gate_rate=-1.0)
