"""The order in which a targeted attack aims at classes."""

import tensorflow as tf

from tf_robust_sparse.attacks.fab import DUAL
from tf_robust_sparse.attacks.losses import FAR
from tf_robust_sparse.attacks.projections import distance
from tf_robust_sparse.layers.forward import Forward

CANDIDATES = 100  # classes of the largest logits


def by_distance(forward: Forward, x: tf.Tensor, y: tf.Tensor, norm: str) -> tf.Tensor:
    """Orders classes by how near their boundary would be if the network were linear: the MALT order.

    Args:
        forward: From images to float32 logits `(batch, classes)`.
        x: `(batch, ...)`, float32, in [0, 1].
        y: `(batch,)`, int64 labels.
        norm: `"Linf"`, `"L2"` or `"L1"`, the norm of the distance.

    Returns:
        `(batch, 1 + candidates)`, int64: the class itself, then others, the nearest first. Candidates are at most 100
        classes, those of the largest logits.

    Reference: [Melamed et al., 2024](https://arxiv.org/abs/2407.02240), algorithm 1.
    """
    with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
        tape.watch(x)
        logits = forward(x)
        number = min(CANDIDATES, logits.shape[-1] - 1)
        own = tf.gather(logits, y, batch_dims=1)
        others = logits - FAR * tf.one_hot(y, logits.shape[-1])
        candidates = tf.math.top_k(tf.stop_gradient(others), number).indices
        gaps = tf.unstack(own[:, tf.newaxis] - tf.gather(logits, candidates, batch_dims=1), axis=1)
    away = [gap / (distance(tape.gradient(gap, x), tf.zeros_like(x), DUAL[norm]) + 1e-12) for gap in gaps]
    order = tf.argsort(tf.stack(away, axis=1), axis=1, stable=True)
    nearest = tf.cast(tf.gather(candidates, order, batch_dims=1), tf.int64)
    return tf.concat([y[:, tf.newaxis], nearest], axis=1)
