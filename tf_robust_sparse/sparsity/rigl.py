"""RigL: the smallest weights are replaced by the connections whose gradients are largest."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tf_robust_sparse.sparsity.dynamic_sparsity import DynamicSparsity


class RigL(DynamicSparsity):
    """Drops the smallest weights of each kernel and grows the entries of largest gradient of the training loss.

    The loss is that of the objective, the robust one under adversarial training, over all replicas. In a step in which
    connections move the optimizer's step does not count: weights and slots stay as they are.

    ```python
    report = trs.sparsify(model, connectivity=0.1, sparsifier=trs.sparsity.RigL(end_step=3_000))
    ```

    Args: as `DynamicSparsity`.

    Reference: [Evci et al., 2020](https://arxiv.org/abs/1911.11134), algorithm 1.
    """

    needs_dense_gradients = True
    keeps_gradient_step = False

    def growth_scores(self, number: int, dense: Sequence[tf.Tensor] | None, seed: Any) -> tf.Tensor:
        """Returns the absolute gradients."""
        return finite_sizes(dense, number, "RigL")


def finite_sizes(dense: Sequence[tf.Tensor] | None, number: int, name: str) -> tf.Tensor:
    """Returns the absolute gradients of kernel `number`, 0 for those that are not finite.

    Raises:
        ValueError: if the training step gives no gradients.
    """
    if not dense:
        raise ValueError(f"{name} needs the gradients of the training step; train with a RobustModel. Received: None")
    sizes = tf.abs(dense[number])
    return tf.where(tf.math.is_finite(sizes), sizes, 0.0)
