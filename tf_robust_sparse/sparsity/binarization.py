"""New random signs in every training step, for kernels that are trained to be signs."""

from typing import Any

import keras
import tensorflow as tf

from tf_robust_sparse.layers.binary import BinaryKernel
from tf_robust_sparse.sparsity.integers import check_seed
from tf_robust_sparse.sparsity.optimizer_slots import assign_everywhere
from tf_robust_sparse.sparsity.sparsifier import Sparsifier

_STREAM = 0xB1A


class StochasticBinarization(Sparsifier):
    """Draws the signs of stochastic binary kernels after every update, 1 with probability `(kernel + 1) / 2`.

    All passes of a step, including those of the attack, see the same draw; evaluation sees the last one. Draws depend
    on `seed`, the step and the layer alone.

    Args:
        seed: Integer in [0, 2**31).

    Raises:
        ValueError: if `seed` is out of its range.

    Reference: [Courbariaux et al., 2015](https://arxiv.org/abs/1511.00363), section 2.3.
    """

    parametrization = "binary"

    def __init__(self, seed: int = 0) -> None:
        super().__init__(1.0)
        self.seed = check_seed(seed)

    def fits(self, layer: Any) -> bool:
        """Returns whether the signs of a layer are drawn."""
        return isinstance(layer, BinaryKernel) and layer.stochastic

    def after_update(self, state: Any, optimizer: keras.optimizers.Optimizer, dense: Any = None) -> None:
        """Draws new signs."""
        step = tf.cast(optimizer.iterations, tf.int32)
        draws = []
        for number, layer in enumerate(self.layers):
            seed = tf.random.experimental.stateless_fold_in(tf.stack([self.seed ^ _STREAM, step]), number)
            kernel = tf.convert_to_tensor(layer.kernel)
            uniform = tf.random.stateless_uniform(kernel.shape, seed)
            draws.append((layer.positive, uniform < (kernel + 1) / 2))
        assign_everywhere(draws)

    def describe(self) -> dict[str, Any]:
        """Returns the name and the settings, ready for JSON."""
        return {"sparsifier": type(self).__name__, **({"frozen": self.frozen} if self.frozen else {})}
