"""A replica's part of a batch, which may be smaller than the others' or empty where images run out."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import tensorflow as tf


class ReplicaPart(NamedTuple):
    """What a replica computes on.

    Attributes:
        x: `(batch, ...)`, at least one image.
        y: `(batch,)`, int64.
        number: How many of them count, or `None` for all.
        total: Images of all replicas together, a float32 scalar; `None` if there is one replica.
    """

    x: tf.Tensor
    y: tf.Tensor
    number: tf.Tensor | None = None
    total: tf.Tensor | None = None

    def counted(self, values: tf.Tensor | None) -> tf.Tensor | None:
        """The rows of `values` `(batch, ...)` that count."""
        return values if values is None or self.number is None else values[: self.number]


def replica_part(x: tf.Tensor, y: tf.Tensor) -> ReplicaPart:
    """Returns the part of this replica; an empty one gets the first image of the first replica, which does not count.

    No convolution takes an empty batch, and batch norm should see an image rather than zeros. One sum over the replicas
    carries that image and the number of all.
    """
    context = tf.distribute.get_replica_context()
    if context.num_replicas_in_sync == 1:
        return ReplicaPart(x, y)
    number, shape = tf.shape(y)[0], tf.concat([[1], tf.shape(x)[1:]], 0)
    label = tf.cast(y[:1], tf.float32)
    is_first = tf.cast(context.replica_id_in_sync_group == 0, tf.float32)
    row = tf.cond(
        number > 0,
        lambda: tf.concat([tf.reshape(x[:1], (-1,)), label], 0) * is_first,
        lambda: tf.zeros(tf.reduce_prod(shape) + 1),
    )
    row = context.all_reduce(tf.distribute.ReduceOp.SUM, tf.concat([row, [tf.cast(number, tf.float32)]], 0))
    some_x = tf.cond(number > 0, lambda: x, lambda: tf.reshape(row[:-2], shape))
    some_y = tf.cond(number > 0, lambda: y, lambda: tf.cast(row[-2:-1], tf.int64))
    return ReplicaPart(tf.ensure_shape(some_x, (None, *x.shape[1:])), tf.ensure_shape(some_y, (None,)), number, row[-1])


def summed_over_replicas(gradients: Sequence[Any], sources: Sequence[Any]) -> list[tf.Tensor]:
    """Returns dense gradients, summed over the replicas; of sources that do not reach the loss they are 0."""
    dense = [
        tf.zeros(source.shape) if gradient is None else tf.convert_to_tensor(gradient)
        for gradient, source in zip(gradients, sources, strict=True)
    ]
    context = tf.distribute.get_replica_context()
    if context.num_replicas_in_sync == 1 or not dense:
        return dense
    return list(context.all_reduce(tf.distribute.ReduceOp.SUM, dense))
