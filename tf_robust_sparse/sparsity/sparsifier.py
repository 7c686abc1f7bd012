"""What a sparsifier is: it decides which connections of a network exist, and when that changes."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_robust_sparse.sparsity.allocation import check_connectivity, global_budget
from tf_robust_sparse.sparsity.optimizer_slots import check_optimizer
from tf_robust_sparse.sparsity.prunable import Prunable, find_parametrized, report_frozen


class Sparsifier:
    """Base class: knows the prunable kernels of one network and is called around every optimizer update.

    Without `trs.sparsify` a subclass works on layers of this package, those that it `fits`. It overrides what it needs
    of `mask_gradients`, `before_update` and `after_update`. All of them run inside the compiled training step, in a
    replica context, so that every replica must compute the same values.

    Args:
        connectivity: Fraction of the kernel entries kept at the end, in (0, 1]; `None` leaves it to `trs.sparsify`.

    Raises:
        ValueError: if `connectivity` is outside (0, 1].
    """

    parametrization = ""
    otherwise = ""  # what a message offers beside this parametrization
    compiles_with_xla = True
    # Whether `after_update` is given gradients of entries that are off, too; a step without them pays nothing.
    needs_dense_gradients = False
    # Whether `end_epoch` is given accuracy under attack in training, and accuracy and loss under attack in validation.
    watches_validation = False

    def __init__(self, connectivity: float | None = None) -> None:
        # `None` stands until `trs.sparsify` sets it; `attach` refuses it.
        self.connectivity: Any = None if connectivity is None else check_connectivity(connectivity)
        self.kernels: list[Prunable] = []
        self.layers: list[Any] = []
        self.frozen: list[str] = []
        self.sizes: list[int] = []
        self.budget = 0
        # Masks of kernels that have none of their own, and what else a method remembers; part of checkpoints.
        self.masks: keras.layers.Layer | None = None

    def fits(self, layer: Any) -> bool:
        """Whether a kernel layer of this package has the parametrization that the sparsifier works on."""
        return False

    def attach(self, network: keras.Model) -> None:
        """Binds the sparsifier to the prunable layers of `network` that are not frozen.

        Raises:
            ValueError: if the network has no layer of the parametrization needed, prunable layers of another one, or
                frozen layers alone, or if no connectivity was given.
        """
        if self.connectivity is None:
            raise ValueError(
                f"{type(self).__name__} needs a connectivity: pass {type(self).__name__}(connectivity=0.1), or the "
                "sparsifier to trs.sparsify(model, connectivity=0.1, sparsifier=...). Received: connectivity=None"
            )
        name = type(self).__name__
        self._hold(find_parametrized(network, self.fits, f"{name} needs", self.parametrization, self.otherwise))
        self.frozen = report_frozen(network, self.fits)

    def _hold(self, kernels: Sequence[Prunable]) -> None:
        self.kernels = list(kernels)
        self.layers = [kernel.layer for kernel in kernels]
        self.sizes = [kernel.size for kernel in kernels]
        self.budget = global_budget(self.sizes, self.connectivity)

    def check_optimizer(self, optimizer: keras.optimizers.Optimizer) -> None:
        """Checks that `optimizer` leaves the connections alone.

        Raises:
            ValueError: if it averages weights or accumulates gradients.
        """
        check_optimizer(optimizer)

    def gradient_sources(self) -> list[Any]:
        """Returns the tensors whose gradients `after_update` is given; called while the tape records."""
        return []

    def mask_gradients(self, gradients: Sequence[Any], weights: Sequence[Any]) -> list[Any]:
        """Returns the gradients of `weights`, those of this replica, as the optimizer clips and applies them."""
        return list(gradients)

    def rests(self, optimizer: keras.optimizers.Optimizer) -> Any:
        """Returns whether the optimizer leaves weights and slots alone in this step; `None` if it never does."""

    def before_update(self, optimizer: keras.optimizers.Optimizer) -> Any:
        """Returns what `after_update` needs to know of the state before the update."""

    def after_update(
        self, state: Any, optimizer: keras.optimizers.Optimizer, dense: Sequence[tf.Tensor] | None = None
    ) -> None:
        """Changes connections after the optimizer has moved the weights.

        Args:
            state: What `before_update` returned.
            optimizer: The optimizer, which has counted this update.
            dense: Gradients of the loss of all replicas with respect to `gradient_sources()`; empty if not needed.
        """

    def end_epoch(self, epoch: int, logs: Mapping[str, float]) -> None:
        """Looks at an epoch, outside of the compiled step; called if `watches_validation`.

        Args:
            epoch: Its number, from 0.
            logs: What `fit` has logged, `adversarial_accuracy`, `val_robust_accuracy` and `val_robust_loss` among it.
        """

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
        frozen = {"frozen": self.frozen} if self.frozen else {}
        return {"sparsifier": type(self).__name__, "connectivity": self.connectivity, **frozen}

    def count(self) -> list[int]:
        """Returns the number of connections per layer at present."""
        return [int(tf.math.count_nonzero(layer.compute_effective_kernel())) for layer in self.layers]
