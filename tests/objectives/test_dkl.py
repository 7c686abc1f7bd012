"""DKL: loss and gradients as in the published code, the prior of the classes, checkpoints and replicas."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_robust_sparse as trs
from tests.networks import mirrored, tiny_images, tiny_network
from tf_robust_sparse.objectives import DKL

X, Y = tiny_images(32)
ATTACK = trs.attacks.LinfPGD(0.05, 0.03, 2)


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def published(clean, attacked, weights, alpha, beta, gamma):
    """`dkl_loss` of the published code in NumPy, and its gradients by hand, for the mean over the batch."""
    n, p = len(clean), weights**gamma
    outer = p[:, :, None] * p[:, None, :]
    difference = (clean[:, :, None] - clean[:, None]) - (attacked[:, :, None] - attacked[:, None])
    mse = 0.25 * (difference**2 * outer).sum() / outer.sum()
    constant = softmax(clean)  # detached
    soft = -(constant * np.log(softmax(attacked))).sum(1).mean()
    through = (outer * difference).sum(2) / outer.sum()  # of both logits, with opposite signs
    to_attacked = -beta * through + alpha * (softmax(attacked) - constant) / n
    return beta * mse + alpha * soft, beta * through, to_attacked


@pytest.mark.parametrize("gamma", [1.0, 0.3])
def test_loss_and_gradients_are_those_of_the_published_code(gamma):
    generator = np.random.default_rng(0)
    logits = [tf.constant(generator.normal(size=(6, 10)), tf.float32) for _ in range(2)]
    y, prior = generator.integers(0, 10, 6), softmax(generator.normal(size=(10, 10)))
    objective = DKL(ATTACK, alpha=3.0, beta=7.0, gamma=gamma)
    objective.attach(tiny_network("plain"))
    objective.state.prior.assign(prior)
    passes = iter(logits)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        found = objective.loss(lambda x, training: next(passes), X[:6], y, X[:6])
        loss = tf.reduce_mean(found.per_example)
    gradients = tape.gradient(loss, logits)
    clean, attacked = (np.array(each, np.float64) for each in logits)
    value, to_clean, to_attacked = published(clean, attacked, prior[y], 3.0, 7.0, gamma)
    one_hot = np.eye(10)[y]
    natural = -(one_hot * np.log(softmax(clean))).sum(1).mean()
    assert float(loss) == pytest.approx(natural + value, rel=1e-5)
    np.testing.assert_allclose(gradients[0], to_clean + (softmax(clean) - one_hot) / 6, atol=1e-6)
    np.testing.assert_allclose(gradients[1], to_attacked, atol=1e-6)


def model_of(scope=None, objective=None):
    with scope or tf.name_scope("one"):
        layers = [keras.layers.Flatten(), keras.layers.Dense(10, kernel_initializer="zeros")]
        network = keras.Sequential([keras.Input((12, 12, 1)), *layers])
        model = trs.RobustModel(network, objective or DKL(ATTACK))
        model.compile(keras.optimizers.SGD(0.02))
    return model


def fit(model, first, last):
    batches = tf.data.Dataset.from_tensor_slices((X, Y)).batch(16).repeat()
    model.fit(batches, epochs=last, initial_epoch=first, steps_per_epoch=2, verbose=0)


def test_the_prior_is_the_mean_prediction_of_the_epoch():
    """With a rate of 0 all steps of the epoch see the same network; each image counts once, in spite of AWP."""
    model = model_of(objective=trs.objectives.AWP(DKL(ATTACK), 1e-5))
    model.network.layers[-1].kernel.assign(np.random.default_rng(0).normal(size=(144, 10)) / 4)
    model.optimizer.learning_rate = 0.0
    model.objective.objective.state.prior.assign(tf.eye(10))
    kept = Y != 3
    batches = tf.data.Dataset.from_tensor_slices((X[kept], Y[kept])).batch(4)
    model.fit(batches, epochs=1, verbose=0)
    found = np.array(model.objective.state.prior)
    predicted = softmax(np.array(model.network(X)) / 4)
    for label in set(Y):
        expected = predicted[label == Y].mean(0) if label != 3 else np.eye(10)[3]
        np.testing.assert_allclose(found[label], expected, atol=1e-4)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-6)
    assert not np.array(model.objective.state.sums).any()


def test_resumed_runs_repeat_and_replicas_share_the_prior(tmp_path):
    whole = model_of()
    fit(whole, 0, 1)
    trs.saving.save_checkpoint(tmp_path / "state.weights.h5", whole, {})
    fit(whole, 1, 3)
    again = model_of()
    trs.saving.load_checkpoint(tmp_path / "state.weights.h5", again)
    fit(again, 1, 3)
    assert len(whole.variables) == len(again.variables) > len(whole.network.variables)
    for a, b in zip(whole.variables, again.variables, strict=True):
        np.testing.assert_array_equal(a, b)
    two = model_of(mirrored().scope())
    fit(two, 0, 3)
    np.testing.assert_allclose(two.objective.state.prior, whole.objective.state.prior, atol=1e-5)
    for a, b in zip(whole.network.trainable_variables, two.network.trainable_variables, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_bad_arguments():
    for arguments, message in (
        ({"alpha": -1}, "alpha=-1"),
        ({"temperature": 0}, "positive. Received: temperature=0"),
        ({"start": "none"}, "start='none'"),
    ):
        with pytest.raises(ValueError, match=message):
            DKL(ATTACK, **arguments)
