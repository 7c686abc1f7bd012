"""Attacks where float32 ends: no infinities as markers, no gradient that underflows."""

import numpy as np
import pytest
import tensorflow as tf

from tests.attacks.toy import toy_images, toy_labels, toy_network
from tf_robust_sparse.attacks import (
    APGD,
    FAB,
    L2PGD,
    LinfFGSM,
    LinfPGD,
    Square,
    cross_entropy,
)
from tf_robust_sparse.attacks.losses import log_odds, margin
from tf_robust_sparse.evaluation import evaluate_robustness
from tf_robust_sparse.layers import fusion


@pytest.fixture
def checked_numerics():
    tf.debugging.enable_check_numerics()
    fusion._xla_works.cache_clear()  # XLA cannot compile the checks: `compile_elementwise` finds out
    yield
    tf.debugging.disable_check_numerics()
    fusion._xla_works.cache_clear()


@pytest.mark.parametrize(
    "attack",
    [
        pytest.param(LinfPGD(0.01, num_steps=2, restarts=2), marks=pytest.mark.full),
        pytest.param(L2PGD(0.1, num_steps=2, restarts=2), marks=pytest.mark.full),
        LinfPGD(0.01, num_steps=2, keep_best=True),
        APGD(0.01, num_steps=2),
        FAB(0.01, num_steps=2, num_targets=1),
        pytest.param(FAB(0.1, "L2", targeted=False, num_steps=1), marks=pytest.mark.full),
        Square(0.01, num_queries=3),
        pytest.param(Square(0.4, "L1", num_queries=3), marks=pytest.mark.full),
    ],
    ids=repr,
)
def test_no_attack_uses_infinities_as_markers(attack, checked_numerics):
    x, y = tf.constant(toy_images()[:4]), tf.constant(toy_labels()[:4])
    call = tf.function(lambda *arguments: attack(*arguments), autograph=False)
    assert np.isfinite(call(toy_network(), x, y)).all()


def test_the_odds_are_the_cross_entropy_in_other_words():
    logits = tf.constant(np.random.default_rng(0).normal(0, 4, (50, 7)), tf.float32)
    y = tf.constant(np.arange(50) % 7)
    gradients = []
    for loss_fn in (cross_entropy, log_odds):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            loss = loss_fn(y, logits)
        gradients.append(tape.gradient(loss, logits).numpy())
    np.testing.assert_allclose(cross_entropy(y, logits), np.log1p(np.exp(loss)), rtol=1e-4, atol=1e-6)
    first, second = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in gradients)
    np.testing.assert_allclose(first, second, atol=1e-4)
    with pytest.raises(ValueError, match="integer labels"):
        log_odds(tf.zeros(3), tf.zeros((3, 2)))


def test_the_odds_keep_their_gradient_where_the_cross_entropy_has_none():
    logits, y = tf.constant([[1e4, 0.0, -1e4], [3e5, 2e5, 1e5]]), tf.constant([0, 0])
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(logits)
        losses = {loss_fn: loss_fn(y, logits) for loss_fn in (cross_entropy, log_odds)}
    assert not np.any(tape.gradient(losses[cross_entropy], logits))
    np.testing.assert_array_equal(tape.gradient(losses[log_odds], logits), [[-1, 1, 0], [-1, 1, 0]])
    np.testing.assert_array_equal(losses[log_odds], -margin(y, logits))


@pytest.mark.parametrize("attack", [LinfFGSM(0.01), LinfPGD(0.01, num_steps=5)])
def test_confidence_does_not_stop_an_attack(attack):
    """With logits times 1,000 the cross entropy is 0 in float32, and an attack on it would stand still."""
    x, y = toy_images()[:60], toy_labels()[:60]
    accuracies = [
        evaluate_robustness(toy_network(scale), (x, y), attack, batch_size=60, progress=False)["robust_accuracy"]
        for scale in (1.0, 1000.0)
    ]
    assert accuracies[0] < 0.7 and accuracies[1] <= accuracies[0] + 2 / 60
