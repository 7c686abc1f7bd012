"""Sparsifiers that hold a mask over each kernel, of our masked layers or of any Keras model."""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_robust_sparse import layers
from tf_robust_sparse.sparsity.optimizer_slots import assign_everywhere, slots
from tf_robust_sparse.sparsity.prunable import Prunable, Skipped, is_masked, some
from tf_robust_sparse.sparsity.sparsifier import Sparsifier

_log = logging.getLogger(__name__)


class MaskSparsifier(Sparsifier):
    """Base class: entries that are off stay at exactly 0, and so does what the optimizer remembers of them.

    A subclass sets the first masks in `start`, and new ones in `masks_after`.

    Args: as `Sparsifier`.
    """

    parametrization = "masked"
    masks_change = True  # whether masks may be others after an update than before it
    straight_through = False  # whether gradients of kernels are taken as if nothing were masked
    otherwise = ", or any model after trs.sparsify(model, connectivity, sparsifier)"

    def __init__(self, connectivity: float | None = None) -> None:
        super().__init__(connectivity)
        self.dense: list[str] = []  # layers that `attach` found and the method cannot prune
        self.network: Any = None

    def fits(self, layer: Any) -> bool:
        """Whether a layer has a mask."""
        return is_masked(layer)

    def attach(self, network: keras.Model) -> None:
        """Binds the sparsifier to the masked layers of `network`, unless `trs.sparsify` has bound it already.

        Raises:
            ValueError: if the network has no masked layer, the method cannot prune most of its entries, or the
                sparsifier keeps the state of another network.
        """
        if self.masks is not None:
            if self.network is not network:
                raise ValueError(
                    f"This sparsifier belongs to {self.network.name}, whose state it keeps; make a new "
                    f"{type(self).__name__} for the model that is trained, with trs.sparsify if it is of plain Keras "
                    f"layers. Received: {getattr(network, 'name', network)}"
                )
            return
        super().attach(network)
        kernels, skipped = self.fitting(self.kernels)
        size, total = sum(kernel.size for kernel in kernels), sum(self.sizes)
        if 2 * size < total:
            raise ValueError(
                f"{type(self).__name__} can prune only {size} of the {total} entries of {network.name}; choose groups "
                f"or blocks that divide its kernels. Received: {_reasons(skipped)}"
            )
        for name, reason in skipped:
            _log.warning("%s stays dense: %s", name, reason)
        self.dense = [name for name, _ in skipped]
        self.bind(network, kernels)

    def misfit(self, kernel: Prunable) -> str | None:
        """Returns why the method cannot prune a kernel, or `None` if it can."""

    def fitting(self, found: Sequence[Prunable]) -> tuple[list[Prunable], list[Skipped]]:
        """Returns the kernels that the method can prune, and the others with the reason.

        Raises:
            ValueError: if it can prune none.
        """
        reasons = [self.misfit(kernel) for kernel in found]
        skipped = [Skipped(each.name, reason) for each, reason in zip(found, reasons, strict=True) if reason]
        if len(skipped) == len(found):
            raise ValueError(f"{type(self).__name__} can prune none of the kernels. Received: {_reasons(skipped)}")
        return [each for each, reason in zip(found, reasons, strict=True) if not reason], skipped

    def bind(self, network: keras.Model, kernels: Sequence[Prunable]) -> None:
        """Binds the sparsifier to kernels of any Keras model, and sets the first masks, new ones where none are.

        Args:
            network: The model.
            kernels: Its kernels that are pruned.
        """
        self.network = network
        if any(kernel.mask is None for kernel in kernels):  # of `trs.sparsify`: tells `attach` that it has bound
            self._make_holder()
        self._hold([kernel if kernel.mask is not None else self._with_mask(kernel) for kernel in kernels])
        for layer in filter(is_masked, self.layers):
            layer.straight_through = self.straight_through
        self.start()

    def add_state(self, name: str, shape: Sequence[int], dtype: Any, initializer: Any = "zeros") -> Any:
        """Returns a new variable of the sparsifier, the same on all replicas; it is part of checkpoints."""
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

    def _with_mask(self, kernel: Prunable) -> Prunable:
        own = kernel.layer.kernel_mask if is_masked(kernel.layer) else None
        name = kernel.name.replace("/", "_")
        return kernel._replace(mask=self.add_state(name, kernel.weight.shape, "bool", "ones") if own is None else own)

    def check_optimizer(self, optimizer: keras.optimizers.Optimizer) -> None:
        """Checks the optimizer; one that remembers a training of before forgets what is off, if masks never change."""
        super().check_optimizer(optimizer)
        if not self.masks_change:
            assign_everywhere(list(self._masked_slots(self.present_masks(), optimizer)))

    def start(self) -> None:
        """Sets the first masks."""

    def masks_after(self, step: tf.Tensor, dense: Sequence[tf.Tensor] | None) -> list[tf.Tensor]:
        """Returns the mask of each kernel after an update.

        Args:
            step: How many updates came before, scalar int64.
            dense: As of `after_update`.
        """
        return self.present_masks()

    def present_masks(self) -> list[tf.Tensor]:
        """Returns the mask of each kernel as it is."""
        return [tf.convert_to_tensor(kernel.mask) for kernel in self.kernels]

    def gradient_sources(self) -> list[Any]:
        """Returns a tensor of each kernel whose gradient is dense."""
        return [kernel.gradient_source() for kernel in self.kernels]

    def mask_gradients(self, gradients: Sequence[Any], weights: Sequence[Any]) -> list[Any]:
        """Returns the gradients with zeros where a mask is off, so that they do not count when norms are clipped."""
        # The gradient of a masked layer's kernel is masked already.
        masks = {id(kernel.weight): kernel.mask for kernel in self.kernels if not is_masked(kernel.layer)}
        return [
            gradient
            if gradient is None or id(weight) not in masks
            else layers.select(tf.convert_to_tensor(masks[id(weight)]), tf.convert_to_tensor(gradient), 0)
            for gradient, weight in zip(gradients, weights, strict=True)
        ]

    def before_update(self, optimizer: keras.optimizers.Optimizer) -> tf.Tensor:
        """Notes the step, before the optimizer counts it."""
        return tf.cast(optimizer.iterations, tf.int64)

    def after_update(
        self, state: Any, optimizer: keras.optimizers.Optimizer, dense: Sequence[tf.Tensor] | None = None
    ) -> None:
        """Sets new masks if it is time to, and holds what is off, and its momentum, at 0."""
        masks = self.masks_after(state, dense)
        if self.masks_change:
            assign_everywhere([*self._new_masks(masks), *self._masked_slots(masks, optimizer)])
        else:  # gradients are masked, so that slots stay 0; some optimizers mix the entries of a matrix, as Muon does
            assign_everywhere(list(self._masked_weights(masks)))

    def check(self, network: keras.Model) -> None:
        """Checks that no entry that is off is other than zero.

        Raises:
            RuntimeError: if one is.
        """
        for kernel in self.kernels:
            off = tf.where(tf.convert_to_tensor(kernel.mask), tf.zeros_like(kernel.weight), kernel.weight)
            stray = int(tf.math.count_nonzero(off))
            if stray:
                raise RuntimeError(f"{stray} pruned entries of {kernel.name} are not zero although the mask is off.")

    def describe(self) -> dict[str, Any]:
        """Returns the name and the settings, ready for JSON."""
        return {**super().describe(), **({"dense": self.dense} if self.dense else {})}

    def count(self) -> list[int]:
        """Returns the number of connections of each kernel at present, those that still are 0 included."""
        return [int(tf.math.count_nonzero(kernel.mask)) for kernel in self.kernels]

    def _new_masks(self, masks: Sequence[tf.Tensor]) -> Iterator[tuple[Any, tf.Tensor]]:
        yield from zip((kernel.mask for kernel in self.kernels), masks, strict=True)
        yield from self._masked_weights(masks)

    def _masked_weights(self, masks: Sequence[tf.Tensor]) -> Iterator[tuple[Any, tf.Tensor]]:
        for kernel, mask in zip(self.kernels, masks, strict=True):
            yield kernel.weight, layers.select(mask, tf.convert_to_tensor(kernel.weight), 0)

    def _masked_slots(self, masks: Sequence[tf.Tensor], optimizer: Any) -> Iterator[tuple[Any, tf.Tensor]]:
        for kernel, mask in zip(self.kernels, masks, strict=True):
            for slot in slots(optimizer, kernel.weight):
                yield slot, layers.select(mask, tf.convert_to_tensor(slot), 0)


def _reasons(skipped: Sequence[Skipped]) -> str:
    return some([f"{name}: {reason}" for name, reason in skipped], 4, "; ")
