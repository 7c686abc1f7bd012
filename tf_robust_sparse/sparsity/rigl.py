"""RigL: the smallest weights are replaced by the connections with the largest gradients."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tf_robust_sparse.sparsity.dynamic_sparsity import DynamicSparsity


class RigL(DynamicSparsity):
    """Drops the smallest weights of each kernel and grows the entries with the largest gradients of the training loss.

    The loss is that of the objective, under adversarial training the robust one, over all replicas. In a step that
    moves connections, the optimizer does not update weights and slots.

    ```python
    report = trs.sparsify(model, connectivity=0.1, sparsifier=trs.sparsity.RigL(end_step=3_000))
    ```

    Args: see `DynamicSparsity`.

    Reference: [Evci et al., 2020](https://arxiv.org/abs/1911.11134), algorithm 1.
    """

    needs_dense_gradients = True
    keeps_gradient_step = False

    def growth_scores(self, number: int, dense: Sequence[tf.Tensor] | None, seed: Any) -> tf.Tensor:
        """Returns the absolute gradients."""
        return finite_sizes(dense, number, "RigL")


def finite_sizes(dense: Sequence[tf.Tensor] | None, number: int, name: str) -> tf.Tensor:
    """Returns the absolute gradients of kernel `number`, with 0 for values that are not finite.

    Raises:
        ValueError: if the training step passes no gradients.
    """
    if not dense:
        raise ValueError(
            f"{name} needs the gradients of the training step; train with a RobustModel. Received: {dense}"
        )
    sizes = tf.abs(dense[number])
    return tf.where(tf.math.is_finite(sizes), sizes, 0.0)
