"""What a sparsifier is: it decides which connections of a network exist, and when that changes."""

from typing import Any

import keras
import tensorflow as tf

from tf_robust_sparse import layers
from tf_robust_sparse.sparsity.allocation import check_connectivity, global_budget
from tf_robust_sparse.sparsity.optimizer_slots import check_optimizer


class Sparsifier:
    """Base class: knows the prunable layers of one network and is called around every optimizer update.

    A subclass names the weights it needs (`needs`) and overrides `before_update` and `after_update`. Both run inside
    the compiled training step, in a replica context, so that every replica must compute the same values.

    Args:
        connectivity: Fraction of the kernel entries kept at the end, in (0, 1].

    Raises:
        ValueError: if `connectivity` is outside (0, 1].
    """

    needs: tuple[str, ...] = ()
    kernel_form = ""
    compiles_with_xla = True

    def __init__(self, connectivity: float) -> None:
        self.connectivity = check_connectivity(connectivity)
        self.layers: list[Any] = []
        self.sizes: list[int] = []
        self.budget = 0

    def attach(self, network: keras.Model) -> None:
        """Binds the sparsifier to the prunable layers of `network`.

        Raises:
            ValueError: if the network has no layer of the kernel form needed, or prunable layers of another form.
        """
        kernels = layers.kernel_layers(network)
        fitting = [layer for layer in kernels if all(hasattr(layer, name) for name in self.needs)]
        others = [layer for layer in kernels if layer.prunable and layer not in fitting]
        if not fitting or others:
            raise ValueError(
                f'{type(self).__name__} needs a network built with kernel="{self.kernel_form}". Received layers: '
                f"{sorted({type(layer).__name__ for layer in (others or kernels or network.layers)})}"
            )
        self.layers = fitting
        self.sizes = [int(tf.size(layer.compute_effective_kernel())) for layer in fitting]
        self.budget = global_budget(self.sizes, self.connectivity)

    def check_optimizer(self, optimizer: keras.optimizers.Optimizer) -> None:
        """Checks that `optimizer` leaves the connections alone.

        Raises:
            ValueError: if it averages weights or accumulates gradients.
        """
        check_optimizer(optimizer)

    def before_update(self, optimizer: keras.optimizers.Optimizer) -> Any:
        """Returns what `after_update` needs to know of the state before the update."""

    def after_update(self, state: Any, optimizer: keras.optimizers.Optimizer) -> None:
        """Changes connections after the optimizer has moved the weights."""

    def check(self, network: keras.Model) -> None:
        """Checks the number of connections of `network`; called whenever it is saved.

        Raises:
            RuntimeError: if there are more than the sparsifier allows at present.
        """

    def within_budget(self) -> bool:
        """Tells whether the network has come down to the connections it is meant to end with.

        A network that is pruned gradually, or starts above its budget, is more robust before; no such state may be
        chosen as the best one.
        """
        return sum(self.count()) <= self.budget

    def turnover(self) -> dict[str, Any]:
        """Returns counters of what changed since the last call, ready for JSON."""
        return {}

    def describe(self) -> dict[str, Any]:
        """Returns the name and the settings, ready for JSON."""
        return {"sparsifier": type(self).__name__, "connectivity": self.connectivity}

    def count(self) -> list[int]:
        """Returns the number of connections per layer at present."""
        return [int(tf.math.count_nonzero(layer.compute_effective_kernel())) for layer in self.layers]
