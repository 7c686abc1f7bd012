import numpy as np
import tensorflow as tf

from tf_robust_sparse.objectives import kl_divergence


def test_extreme_logits_give_finite_values_and_gradients():
    p = tf.Variable([[1000.0, -1000.0, 0.0], [60.0, 0.0, 0.0]])
    q = tf.Variable([[-1000.0, 1000.0, 0.0], [0.0, 60.0, 0.0]])
    with tf.GradientTape() as tape:
        kl = kl_divergence(p, q)
    np.testing.assert_allclose(kl, [2000.0, 60.0], rtol=1e-5)
    assert all(np.isfinite(g).all() for g in tape.gradient(kl, [p, q]))


def test_gradients_flow_through_both():
    rng = np.random.default_rng(0)
    p, q = (tf.Variable(rng.normal(size=(3, 4)), dtype=tf.float32) for _ in range(2))
    with tf.GradientTape() as tape:
        kl = kl_divergence(p, q)
    grad_p, grad_q = tape.gradient(kl, [p, q])
    np.testing.assert_allclose(grad_q, tf.nn.softmax(q) - tf.nn.softmax(p), atol=1e-6)
    log_ratio = tf.nn.log_softmax(p) - tf.nn.log_softmax(q)
    np.testing.assert_allclose(grad_p, tf.nn.softmax(p) * (log_ratio - kl[:, None]), atol=1e-6)


def test_zero_for_equal_predictions_and_half_precision_input():
    logits = tf.constant([[1.0, 2.0], [0.0, 0.0]], tf.float16)
    kl = kl_divergence(logits, logits + 3)
    assert kl.dtype == tf.float32
    np.testing.assert_allclose(kl, 0, atol=1e-6)
