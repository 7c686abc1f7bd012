"""The base class of sparsifiers, which decide which connections of a network exist and when that changes."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_robust_sparse.sparsity.allocation import check_connectivity, global_budget
from tf_robust_sparse.sparsity.optimizer_slots import check_optimizer
from tf_robust_sparse.sparsity.prunable import Prunable, find_parametrized, report_frozen


class Sparsifier:
    """Base class: holds the prunable kernels of one network and is called around every optimizer update.

    Without `trs.sparsify`, a subclass works on the layers of this package that it `fits`. It overrides those of
    `mask_gradients`, `before_update` and `after_update` that it needs. They run inside the compiled training step, in a
    replica context, so every replica must compute the same values.

    Args:
        connectivity: Fraction of the kernel entries kept at the end, in (0, 1]; `None` leaves it to `trs.sparsify`.

    Raises:
        ValueError: if `connectivity` is outside (0, 1].
    """

    parametrization = ""
    otherwise = ""  # an alternative to this parametrization, for messages
    compiles_with_xla = True
    # Whether `after_update` receives the gradients of masked-out entries, too; other steps do not compute them.
    needs_dense_gradients = False
    # Whether `end_epoch` receives accuracy under attack in training, and accuracy and loss under attack in validation.
    watches_validation = False
    penalty_name = ""  # under which the log shows the `penalty` of the sparsifier; without a name there is none

    def __init__(self, connectivity: float | None = None) -> None:
        # `None` until `trs.sparsify` sets it; `attach` refuses it.
        self.connectivity: Any = None if connectivity is None else check_connectivity(connectivity)
        self.kernels: list[Prunable] = []
        self.layers: list[Any] = []
        self.frozen: list[str] = []
        self.sizes: list[int] = []
        self.budget = 0
        # Masks of kernels whose layers hold none, and other state of the method; part of checkpoints.
        self.masks: keras.layers.Layer | None = None
        self.network: Any = None  # to which state belongs

    def fits(self, layer: Any) -> bool:
        """Returns whether a kernel layer of this package has the parametrization that the sparsifier needs."""
        return False

    def attach(self, network: keras.Model) -> None:
        """Binds the sparsifier to the prunable layers of `network` that are not frozen.

        Raises:
            ValueError: if the network has no layer of the required parametrization, prunable layers of another one, or
                only frozen layers, or if no connectivity was given.
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

    def add_state(self, name: str, shape: Sequence[int], dtype: Any, initializer: Any = "zeros") -> Any:
        """Creates a variable of the sparsifier, equal on all replicas and saved in checkpoints."""
        with self.network.distribute_strategy.scope():
            return self._make_holder().add_weight(
                name=name,
                shape=tuple(shape),
                dtype=dtype,
                initializer=initializer,
                trainable=False,
                autocast=False,
                aggregation="only_first_replica",
            )

    def _make_holder(self) -> keras.layers.Layer:
        if self.masks is None:
            self.masks = keras.layers.Layer(name="sparsity_masks", dtype="float32")
            self.masks.built = True
        return self.masks

    def check_optimizer(self, optimizer: keras.optimizers.Optimizer) -> None:
        """Checks that `optimizer` does not change connections.

        Raises:
            ValueError: if it averages weights or accumulates gradients.
        """
        check_optimizer(optimizer)

    def gradient_sources(self) -> list[Any]:
        """Returns the tensors whose gradients `after_update` receives; called while the tape records."""
        return []

    def mask_gradients(self, gradients: Sequence[Any], weights: Sequence[Any]) -> list[Any]:
        """Returns this replica's gradients of `weights` as the optimizer should clip and apply them."""
        return list(gradients)

    def rests(self, optimizer: keras.optimizers.Optimizer) -> Any:
        """Returns whether the optimizer skips this step; `None` if it never skips one."""

    def before_update(self, optimizer: keras.optimizers.Optimizer) -> Any:
        """Returns the state before the update that `after_update` needs."""

    def after_update(
        self, state: Any, optimizer: keras.optimizers.Optimizer, dense: Sequence[tf.Tensor] | None = None
    ) -> None:
        """Changes connections after the optimizer has moved the weights.

        Args:
            state: The result of `before_update`.
            optimizer: The optimizer, which has already counted this update.
            dense: Gradients of the loss of all replicas with respect to `gradient_sources()`; empty if not needed.
        """

    def penalty(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the weight and the value of what is added to the loss, scalars; called if there is a `penalty_name`.

        It runs in each update, while the tape records.
        """
        raise NotImplementedError(f"{type(self).__name__} names a penalty and must return it.")

    def end_epoch(self, epoch: int, logs: Mapping[str, float]) -> None:
        """Reacts to the end of an epoch of `fit`, outside of the compiled step.

        Args:
            epoch: Its number, from 0.
            logs: The logs of `fit`; if `watches_validation`, with `adversarial_accuracy`, `val_robust_accuracy` and
                `val_robust_loss`.
        """

    def settle(self) -> None:
        """Brings the network to its final number of connections; called when training is over."""

    def check(self, network: keras.Model) -> None:
        """Checks the number of connections of `network`; called whenever it is saved.

        Raises:
            RuntimeError: if there are more than the sparsifier allows at present.
        """

    def within_budget(self) -> bool:
        """Returns whether the network has at most its final number of connections.

        Before that, a network that is pruned gradually or starts above its budget is more robust, and must not be
        chosen as the best one.
        """
        return sum(self.count()) <= self.budget

    def turnover(self) -> dict[str, Any]:
        """Returns counters of the changes since the last call, ready for JSON."""
        return {}

    def describe(self) -> dict[str, Any]:
        """Returns the name and the settings, ready for JSON."""
        frozen = {"frozen": self.frozen} if self.frozen else {}
        return {"sparsifier": type(self).__name__, "connectivity": self.connectivity, **frozen}

    def count(self) -> list[int]:
        """Returns the present number of connections of each layer."""
        return [int(tf.math.count_nonzero(layer.compute_effective_kernel())) for layer in self.layers]
