"""What every objective promises."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.conformance.cases import OBJECTIVES
from tests.networks import tiny_images, tiny_network
from tf_robust_sparse import attacks, layers, objectives
from tf_robust_sparse.objectives.objective import Objective, ObjectiveAround, innermost

X, Y = tiny_images(9)


IMAGES, LABELS = tf.TensorSpec((None, *X.shape[1:])), tf.TensorSpec((None,), tf.int64)


BY_BOUNDS = ("CCIBP", "CrownIBP", "ExpIBP", "IBP", "MTLIBP", "MixTrain", "SABR")


def shallow_network():
    """For bounds, which take a layer for each layer below it."""
    x = inputs = keras.Input(X.shape[1:])
    x = layers.RewiringConv2D(4, 4, strides=4, activation="relu", initial_connectivity=0.5, seed=1)(x)
    outputs = layers.RewiringDense(10, initial_connectivity=0.5, seed=2)(keras.layers.Flatten()(x))
    return keras.Model(inputs, outputs)


# Other sides of a class that has a row by default.
MORE = {
    "AT, as the code of binary sub-networks",
    "CleanAndAdversarial, predicted labels",
    "Consistency, TRADES",
    "CutMix, AT",
    "Reweighted, TRADES",
    "ScheduledRadius, TRADES in l2",
    "Stability, noisy images alone",
    "VulnerabilitySuppression, the largest",
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.full if name in MORE else ()) for name in OBJECTIVES]
)
def test_a_finite_loss_for_every_example_of_batches_of_any_size(name):
    """Perturbing the images depends on the seed, and leaves the network as it is."""
    objective = OBJECTIVES[name]()
    network = shallow_network() if name.partition(",")[0] in BY_BOUNDS else tiny_network()

    @tf.function(input_signature=[IMAGES, LABELS, tf.TensorSpec((2,), tf.int32)], autograph=False)
    def perturb(x, y, seed):
        return objective.perturb(network, x, y, seed=seed)

    @tf.function(input_signature=[IMAGES, LABELS, IMAGES], autograph=False)
    def loss_and_gradients(x, y, x_adv):
        with tf.GradientTape() as tape:
            per_example, logits, *_ = objective.loss(network, x, y, x_adv)
            loss = tf.reduce_mean(per_example)
        return per_example, logits, tape.gradient(loss, network.trainable_variables)

    before = network.get_weights()
    first, same, other = (np.array(perturb(X, Y, [0, seed])) for seed in (1, 1, 2))
    for a, b in zip(before, network.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(first, same)
    assert (first != other).any() == (type(innermost(objective)).perturb is not Objective.perturb)
    for count in (9, 4, 2):
        x_adv = perturb(X[:count], Y[:count], [0, 1])
        per_example, logits, gradients = loss_and_gradients(X[:count], Y[:count], x_adv)
        assert x_adv.shape == (objective.views * count, *X.shape[1:]) and x_adv.dtype == tf.float32
        assert per_example.shape == (count,) and per_example.dtype == tf.float32
        assert logits.shape == (count, 10) and logits.dtype == tf.float32
        assert np.isfinite(per_example).all()
        assert all(gradient is not None and np.isfinite(gradient).all() for gradient in gradients)
    assert perturb.experimental_get_tracing_count() == loss_and_gradients.experimental_get_tracing_count() == 1


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_description_is_plain(name):
    description = OBJECTIVES[name]().describe()
    assert json.loads(json.dumps(description)) == description
    assert description["objective"] == name.partition(",")[0]


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if isinstance(OBJECTIVES[name](), ObjectiveAround)])
def test_a_wrapper_shows_what_is_inside(name):
    """At every depth, and at the radius of the step."""
    wrapper = OBJECTIVES[name]()
    objective = objectives.L1Penalty(wrapper, 0.5)
    inner = innermost(objective)
    assert objective.attack is inner.attack and set(inner.terms) <= set(objective.terms)
    assert objective.adversarial_weight == inner.adversarial_weight
    assert objective.label_smoothing == inner.label_smoothing
    assert float(objective.at_radius(tf.constant(0.25)).attack.epsilon) == 0.25
    network = shallow_network()
    alone, once = wrapper.penalty(network), objective.penalty(network)
    twice = objectives.L1Penalty(objective, 1.0).penalty(network)
    np.testing.assert_allclose(twice - alone, 3 * (once - alone), rtol=1e-5)


def test_an_objective_without_an_attack_has_honest_defaults():
    plain = objectives.KLPenalty(objectives.Natural(label_smoothing=0.1), 0.0)
    assert plain.attack is None and plain.label_smoothing == 0.1 and plain.adversarial_weight == 0
    with pytest.raises(ValueError, match="AT or TRADES"):
        plain.at_radius(tf.constant(0.1))
    with pytest.raises(ValueError, match="l-infinity ball"):
        objectives.GradAlign(objectives.AT(attacks.L2PGD(0.5, 0.2, 2)))
