"""Seeded noise that does not depend on how many replicas share the batch.

A seed is an integer tensor. Shape `(2,)` means one seed for the whole batch; `(parts, 2)` means one for each of `parts`
equal, contiguous parts of it, so `(batch, 2)` means one per example. The noise of a part does not depend on the other
parts: networks that are trained side by side see the noise that each would see alone.
"""

from collections.abc import Callable

import tensorflow as tf

_Draw = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
_HANDFUL = 16


def as_seed(seed: int | tf.Tensor) -> tf.Tensor:
    """Returns the seed as an int64 tensor.

    Args:
        seed: Python integer, or an int32 or int64 tensor of shape `(2,)` or `(parts, 2)`.

    Returns:
        An int64 tensor of shape `(2,)` or `(parts, 2)`; the integer `n` becomes `[n, 0]`.

    Raises:
        ValueError: if the seed is none of these.
    """
    tensor = tf.convert_to_tensor([seed, 0] if isinstance(seed, int) else seed)
    if not tensor.dtype.is_integer or tensor.shape.rank not in (1, 2) or tensor.shape[-1] not in (2, None):
        raise ValueError(
            "`seed` must be an integer, or an integer tensor of shape (2,), or (parts, 2) for one seed per "
            f"part of the batch. Received: seed={seed}"
        )
    return tf.cast(tensor, tf.int64)


def fold_in(seed: tf.Tensor, number: int | tf.Tensor) -> tf.Tensor:
    """Derives a new seed from a seed and a number, such as that of a restart or an image.

    Args:
        seed: `(2,)` or `(batch, 2)`, integers.
        number: Integer; or, with a seed of shape `(2,)`, integers `(batch,)` for one new seed per example.

    Returns:
        An int64 seed of shape `(2,)`, or `(batch, 2)` when the seed or the number has one row per example.
    """
    seed = as_seed(seed)
    number = tf.cast(number, tf.int64)
    if number.shape.rank == 1:
        return tf.map_fn(lambda each: tf.random.experimental.stateless_fold_in(seed, each), number)
    if seed.shape.rank == 2:
        return _for_each(lambda each: tf.random.experimental.stateless_fold_in(each, number), seed, tf.int64)
    return tf.random.experimental.stateless_fold_in(seed, number)


def uniform_like(x: tf.Tensor, seed: tf.Tensor, low: float, high: float) -> tf.Tensor:
    """Returns uniform noise in `[low, high)` in the shape of `x`, float32.

    Args:
        x: `(batch, ...)`.
        seed: `(2,)` or `(parts, 2)`, integers.
        low: Lower end of the range.
        high: Upper end of the range.
    """
    return _draw_like(x, seed, lambda shape, s: tf.random.stateless_uniform(shape, s, low, high))


def normal_like(x: tf.Tensor, seed: tf.Tensor, stddev: float = 1.0) -> tf.Tensor:
    """Returns normal noise of mean 0 in the shape of `x`, float32.

    Args:
        x: `(batch, ...)`.
        seed: `(2,)` or `(parts, 2)`, integers.
        stddev: Standard deviation.
    """
    return _draw_like(x, seed, lambda shape, s: tf.random.stateless_normal(shape, s, stddev=stddev))


def _draw_like(x: tf.Tensor, seed: tf.Tensor, draw: _Draw) -> tf.Tensor:
    """Calls `draw(shape, seed)` so that the noise depends on the global batch, not on the number of replicas."""
    seed = as_seed(seed)
    shape = tf.shape(x)
    if seed.shape.rank == 2:
        parts = tf.shape(seed)[0]
        part = tf.concat([[shape[0] // parts], shape[1:]], axis=0)
        noise = _for_each(lambda each: draw(part, each), seed, tf.float32)
        noise = tf.reshape(noise, tf.concat([[parts * part[0]], shape[1:]], axis=0))
    else:
        context = tf.distribute.get_replica_context()
        replicas = 1 if context is None else context.num_replicas_in_sync
        if replicas == 1:
            noise = draw(shape, seed)
        else:
            # Replicas get equal, contiguous parts of the global batch: draw for all of it, keep this replica's rows.
            rows = shape[0]
            first = tf.cast(context.replica_id_in_sync_group, tf.int32) * rows
            noise = draw(tf.concat([[replicas * rows], shape[1:]], axis=0), seed)[first : first + rows]
    return tf.ensure_shape(noise, x.shape)


def _for_each(draw: Callable[[tf.Tensor], tf.Tensor], seeds: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Stacks `draw(seed)` for the rows of `seeds`; up to 16 are unrolled, which saves a loop in the graph."""
    if seeds.shape[0] is not None and seeds.shape[0] <= _HANDFUL:
        return tf.stack([draw(seed) for seed in tf.unstack(seeds)])
    return tf.map_fn(draw, seeds, fn_output_signature=dtype)
