"""A table with a row per training example; every replica holds the rows of its own examples."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf


class ReplicaTable:
    """A row for each of `number` examples; replica r of R holds the rows of the examples r, r + R, r + 2 R, ...

    So each replica needs a part of the memory, and no replica needs the writes of another. A batch must bring each
    replica its own examples: `data.train_dataset(with_index=True, parts=R)`.

    In a checkpoint the rows are in the order of the examples, whatever the number of replicas. All workers must take
    part in collecting them. Create the table in the scope of the strategy that trains.

    Args:
        path: Name of the table in a checkpoint.
        number: Number of rows.
        row_shape: Shape of a row.
        dtype: Type of the entries.
        rows: Function from `first` and `last` to the initial rows `first, ..., last - 1`.
    """

    def __init__(
        self,
        path: str,
        number: int,
        row_shape: tuple[int, ...],
        dtype: str,
        rows: Callable[[int, int], np.ndarray],
    ) -> None:
        self.path = path
        self.shape = (number, *row_shape)
        self.dtype = dtype
        self._strategy = tf.distribute.get_strategy()
        self._replicas = self._strategy.num_replicas_in_sync
        self._part = keras.Variable(
            lambda shape, dtype: tf.zeros(shape, dtype),
            (-(-number // self._replicas), *row_shape),
            dtype,
            trainable=False,
            autocast=False,
            aggregation="only_first_replica",
            synchronization="on_read" if self._replicas > 1 else "auto",  # each replica has values of its own
            name=path,
        )
        step = 1024 * self._replicas  # in parts, because all rows drawn as float32 would need twice the memory
        for first in range(0, number, step):
            self._write_all(first, rows(first, min(first + step, number)))

    def read(self, index: tf.Tensor) -> tf.Tensor:
        """Returns the rows of examples of this replica: `(batch, *row_shape)`.

        Args:
            index: `(batch,)`, integers, indices of examples.

        Raises:
            tf.errors.InvalidArgumentError: at run time, if another replica holds a row.
        """
        return tf.raw_ops.ResourceGather(
            resource=self._part.value.handle, indices=self._places(index), dtype=tf.as_dtype(self.dtype)
        )

    def write(self, index: tf.Tensor, rows: tf.Tensor) -> None:
        """Replaces the rows of examples of this replica, see `read`."""
        tf.raw_ops.ResourceScatterUpdate(
            resource=self._part.value.handle, indices=self._places(index), updates=tf.cast(rows, self.dtype)
        )

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Returns all rows in the order of the examples, collected from all replicas."""
        parts = self._strategy.gather(self._strategy.run(lambda: tf.identity(self._part.value)), axis=0).numpy()
        parts = parts.reshape(self._replicas, -1, *self.shape[1:])
        found = parts.swapaxes(0, 1).reshape(-1, *self.shape[1:])[: self.shape[0]]
        return found if dtype is None else found.astype(dtype)

    def assign(self, rows: np.ndarray) -> None:
        """Replaces all rows."""
        self._write_all(0, np.asarray(rows))

    def _write_all(self, first: int, rows: np.ndarray) -> None:
        """Replaces the rows from `first` on, which is a multiple of the number of replicas."""

        def write() -> None:
            replica = self._replica()
            mine = rows[replica :: self._replicas]
            places = np.arange(len(mine)) + first // self._replicas
            tf.raw_ops.ResourceScatterUpdate(resource=self._part.value.handle, indices=places, updates=mine)

        self._strategy.run(write)

    def _places(self, index: tf.Tensor) -> tf.Tensor:
        if self._replicas == 1:
            return index
        of = tf.cast(index % self._replicas, tf.int32)
        message = f"each replica needs its own examples; pass data.train_dataset(..., parts={self._replicas})"
        with tf.control_dependencies([tf.debugging.assert_equal(of, self._replica_id(), message)]):
            return index // self._replicas

    def _replica_id(self) -> tf.Tensor:
        return tf.cast(tf.distribute.get_replica_context().replica_id_in_sync_group, tf.int32)

    def _replica(self) -> int:
        return int(tf.get_static_value(self._replica_id()))
