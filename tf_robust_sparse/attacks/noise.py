"""Seeded noise that does not depend on how many replicas share the batch.

A seed is an integer tensor of shape `(2,)`, one for the whole batch, or of shape `(batch, 2)`, one per example. With
one seed per example the noise of an example does not depend on the batch it is drawn in.
"""

from collections.abc import Callable

import tensorflow as tf

_Draw = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def as_seed(seed: int | tf.Tensor) -> tf.Tensor:
    """The seed as an int64 tensor.

    Args:
        seed: Python integer, or an int32 or int64 tensor of shape `(2,)` or `(batch, 2)`.

    Returns:
        int64 tensor of shape `(2,)` or `(batch, 2)`; the integer `n` becomes `[n, 0]`.

    Raises:
        ValueError: if the seed is none of these.
    """
    tensor = tf.convert_to_tensor([seed, 0] if isinstance(seed, int) else seed)
    if not tensor.dtype.is_integer or tensor.shape.rank not in (1, 2) or tensor.shape[-1] not in (2, None):
        raise ValueError(
            "`seed` is an integer, or an integer tensor of shape (2,), or of shape (batch, 2) for one seed per "
            f"example. Received: seed={seed}"
        )
    return tf.cast(tensor, tf.int64)


def fold_in(seed: tf.Tensor, number: int | tf.Tensor) -> tf.Tensor:
    """A new seed from a seed and a number, such as that of a restart or of an image.

    Args:
        seed: `(2,)` or `(batch, 2)`, integers.
        number: Integer; or `(batch,)` integers together with a seed of shape `(2,)`, for one new seed per example.

    Returns:
        int64 seed of shape `(2,)`, or `(batch, 2)` when the seed or the number has one row per example.
    """
    seed = as_seed(seed)
    number = tf.cast(number, tf.int64)
    if number.shape.rank == 1:
        return tf.map_fn(lambda each: tf.random.experimental.stateless_fold_in(seed, each), number)
    if seed.shape.rank == 2:
        return tf.map_fn(lambda each: tf.random.experimental.stateless_fold_in(each, number), seed)
    return tf.random.experimental.stateless_fold_in(seed, number)


def uniform_like(x: tf.Tensor, seed: tf.Tensor, low: float, high: float) -> tf.Tensor:
    """Uniform noise in `[low, high)` of the shape of `x`, float32.

    Args:
        x: `(batch, ...)`.
        seed: `(2,)` or `(batch, 2)`, integers.
        low: Lower end of the range.
        high: Upper end of the range.
    """
    return _draw_like(x, seed, lambda shape, s: tf.random.stateless_uniform(shape, s, low, high))


def normal_like(x: tf.Tensor, seed: tf.Tensor, stddev: float = 1.0) -> tf.Tensor:
    """Normal noise of mean 0 of the shape of `x`, float32.

    Args:
        x: `(batch, ...)`.
        seed: `(2,)` or `(batch, 2)`, integers.
        stddev: Standard deviation.
    """
    return _draw_like(x, seed, lambda shape, s: tf.random.stateless_normal(shape, s, stddev=stddev))


def _draw_like(x: tf.Tensor, seed: tf.Tensor, draw: _Draw) -> tf.Tensor:
    """Calls `draw(shape, seed)` so that the result depends on the rows of the global batch only."""
    seed = as_seed(seed)
    shape = tf.shape(x)
    if seed.shape.rank == 2:
        noise = tf.map_fn(lambda each: draw(shape[1:], each), seed, fn_output_signature=tf.float32)
    else:
        context = tf.distribute.get_replica_context()
        replicas = 1 if context is None else context.num_replicas_in_sync
        if replicas == 1:
            noise = draw(shape, seed)
        else:
            # Replicas get equal, contiguous parts of the global batch: draw for all of it, keep the rows of this one.
            rows = shape[0]
            first = tf.cast(context.replica_id_in_sync_group, tf.int32) * rows
            noise = draw(tf.concat([[replicas * rows], shape[1:]], axis=0), seed)[first : first + rows]
    return tf.ensure_shape(noise, x.shape)
