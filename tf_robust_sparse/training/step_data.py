"""The data of a training step."""

from typing import Any, NamedTuple

import tensorflow as tf

from tf_robust_sparse.objectives import Objective
from tf_robust_sparse.training.replica_part import ReplicaPart


class Step(NamedTuple):
    """The data that a training step works on.

    Attributes:
        part: Images and labels of this replica.
        seed: Seed of all random draws in this step.
        objective: The objective at this step.
        x_adv: `(batch, ...)`, the attacked images; `None` before the attack.
        kept: Data that a subclass passes from one part of the step to another.
    """

    part: ReplicaPart
    seed: tf.Tensor
    objective: Objective
    x_adv: tf.Tensor | None = None
    kept: Any = None


def images_and_labels(data: Any) -> tuple[Any, Any]:
    """Returns images and labels of a batch.

    Raises:
        ValueError: if the batch is not a pair.
    """
    if not isinstance(data, (tuple, list)) or len(data) not in (2, 3) or (len(data) == 3 and data[2] is not None):
        raise ValueError(
            "A RobustModel trains on pairs (images, labels) without sample weights. "
            f"Received: {len(data) if isinstance(data, (tuple, list)) else type(data).__name__} elements"
        )
    return data[0], data[1]


def at_least_one(*parts: Any) -> list[Any]:
    """Puts a row of zeros into an empty part of a last batch, because convolutions refuse empty batches."""
    if tf.distribute.get_strategy().num_replicas_in_sync == 1:
        return list(parts)
    return [tf.cond(tf.shape(part)[0] > 0, lambda p=part: p, lambda p=part: _one_row(p)) for part in parts]


def _one_row(part: Any) -> tf.Tensor:
    return tf.zeros((1, *part.shape[1:]), part.dtype)
