"""Sparse evolutionary training (SET): the smallest weights are replaced by random connections."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tf_robust_sparse.sparsity.dynamic_sparsity import DynamicSparsity


class SET(DynamicSparsity):
    """Drops the smallest weights of each kernel and grows random connections.

    The optimizer updates the weights in every step.

    ```python
    report = trs.sparsify(model, connectivity=0.1, sparsifier=trs.sparsity.SET(end_step=3_000))
    ```

    Args: see `DynamicSparsity`.

    Reference: [Mocanu et al., 2018](https://arxiv.org/abs/1707.04780), algorithm 1.
    """

    def growth_scores(self, number: int, dense: Sequence[tf.Tensor] | None, seed: Any) -> tf.Tensor:
        """Returns uniform draws."""
        return tf.random.stateless_uniform(self.kernels[number].weight.shape, seed)
