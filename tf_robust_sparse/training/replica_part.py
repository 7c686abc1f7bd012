"""A replica's part of a batch, which may be smaller than the others' parts, or empty."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import tensorflow as tf


class ReplicaPart(NamedTuple):
    """The part of a batch that a replica computes on.

    Attributes:
        x: `(batch, ...)`, at least one image.
        y: `(batch,)`, int64.
        number: Number of examples that count, or `None` for all.
        total: Number of images on all replicas together, a float32 scalar; `None` for one replica.
    """

    x: tf.Tensor
    y: tf.Tensor
    number: tf.Tensor | None = None
    total: tf.Tensor | None = None

    def counted(self, values: tf.Tensor | None) -> tf.Tensor | None:
        """Returns the rows of `values` `(batch, ...)` that count."""
        return values if values is None or self.number is None else values[: self.number]


def replica_part(x: tf.Tensor, y: tf.Tensor) -> ReplicaPart:
    """Returns the part of this replica; an empty part gets the first image of the first replica, which does not count.

    Convolutions refuse empty batches, and batch norm should see an image rather than zeros. One sum over the replicas
    carries this image and the number of all images.
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
    """Returns dense gradients, summed over the replicas; they are 0 for sources that the loss does not depend on."""
    dense = [
        tf.zeros(source.shape) if gradient is None else tf.convert_to_tensor(gradient)
        for gradient, source in zip(gradients, sources, strict=True)
    ]
    context = tf.distribute.get_replica_context()
    if context.num_replicas_in_sync == 1 or not dense:
        return dense
    return list(context.all_reduce(tf.distribute.ReduceOp.SUM, dense))
