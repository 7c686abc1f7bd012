"""Sparsifiers that hold a mask for each kernel, in masked layers of this package or in any Keras model."""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_robust_sparse.layers.selection import fast_where
from tf_robust_sparse.sparsity.optimizer_slots import assign_everywhere, slots
from tf_robust_sparse.sparsity.prunable import Prunable, Skipped, is_masked, some
from tf_robust_sparse.sparsity.sparsifier import Sparsifier

_log = logging.getLogger(__name__)


class MaskSparsifier(Sparsifier):
    """Base class: masked-out entries, and the optimizer slots of these entries, stay at exactly 0.

    A subclass sets the first masks in `start`, and new ones in `masks_after`.

    Args: see `Sparsifier`.
    """

    parametrization = "masked"
    masks_change = True  # whether masks may change in an update
    straight_through = False  # whether gradients of kernels ignore the mask
    otherwise = ", or any model after trs.sparsify(model, connectivity, sparsifier)"

    def __init__(self, connectivity: float | None = None) -> None:
        super().__init__(connectivity)
        self.dense: list[str] = []  # layers found by `attach` that the method cannot prune

    def fits(self, layer: Any) -> bool:
        """Returns whether a layer has a mask."""
        return is_masked(layer)

    def attach(self, network: keras.Model) -> None:
        """Binds the sparsifier to the masked layers of `network`, unless `trs.sparsify` has bound it already.

        Raises:
            ValueError: if the network has no masked layer, the method cannot prune most of its entries, or the
                sparsifier belongs to another network.
        """
        if self.masks is not None:
            if self.network is not network:
                raise ValueError(
                    f"This sparsifier holds the state of {self.network.name}; make a new "
                    f"{type(self).__name__} for the model that is trained, with trs.sparsify if its layers are plain "
                    f"Keras layers. Received: {getattr(network, 'name', network)}"
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
        """Binds the sparsifier to kernels of any Keras model, creates missing masks, and sets the first masks.

        Args:
            network: The model.
            kernels: The kernels to prune.
        """
        self.network = network
        if any(kernel.mask is None for kernel in kernels):  # by `trs.sparsify`: `attach` then knows it is bound
            self._make_holder()
        self._hold([kernel if kernel.mask is not None else self._with_mask(kernel) for kernel in kernels])
        for layer in filter(is_masked, self.layers):
            layer.straight_through = self.straight_through
        self.start()

    def _with_mask(self, kernel: Prunable) -> Prunable:
        own = kernel.layer.kernel_mask if is_masked(kernel.layer) else None
        name = kernel.name.replace("/", "_")
        return kernel._replace(mask=self.add_state(name, kernel.weight.shape, "bool", "ones") if own is None else own)

    def check_optimizer(self, optimizer: keras.optimizers.Optimizer) -> None:
        """Checks the optimizer; if masks never change, zeroes its slots where entries are masked out."""
        super().check_optimizer(optimizer)
        if not self.masks_change:
            assign_everywhere(list(self._masked_slots(self.present_masks(), optimizer)))

    def start(self) -> None:
        """Sets the first masks."""

    def masks_after(self, step: tf.Tensor, dense: Sequence[tf.Tensor] | None) -> list[tf.Tensor]:
        """Returns the mask of each kernel after an update.

        Args:
            step: Number of earlier updates, scalar int64.
            dense: See `after_update`.
        """
        return self.present_masks()

    def present_masks(self) -> list[tf.Tensor]:
        """Returns the present mask of each kernel."""
        return [tf.convert_to_tensor(kernel.mask) for kernel in self.kernels]

    def gradient_sources(self) -> list[Any]:
        """Returns a tensor for each kernel whose gradient is dense."""
        return [kernel.gradient_source() for kernel in self.kernels]

    def mask_gradients(self, gradients: Sequence[Any], weights: Sequence[Any]) -> list[Any]:
        """Returns the gradients with zeros at masked-out entries, so that norm clipping ignores these."""
        # The gradient of a masked layer's kernel is masked already.
        masks = {id(kernel.weight): kernel.mask for kernel in self.kernels if not is_masked(kernel.layer)}
        return [
            gradient
            if gradient is None or id(weight) not in masks
            else fast_where(tf.convert_to_tensor(masks[id(weight)]), tf.convert_to_tensor(gradient), 0)
            for gradient, weight in zip(gradients, weights, strict=True)
        ]

    def before_update(self, optimizer: keras.optimizers.Optimizer) -> tf.Tensor:
        """Returns the step, before the optimizer counts it."""
        return tf.cast(optimizer.iterations, tf.int64)

    def after_update(
        self, state: Any, optimizer: keras.optimizers.Optimizer, dense: Sequence[tf.Tensor] | None = None
    ) -> None:
        """Sets new masks if an update is due, and holds masked-out entries and their momentum at 0."""
        masks = self.masks_after(state, dense)
        if self.masks_change:
            assign_everywhere([*self._new_masks(masks), *self._masked_slots(masks, optimizer)])
        else:  # gradients are masked, so slots stay 0; but some optimizers, such as Muon, mix the entries of a matrix
            assign_everywhere(list(self._masked_weights(masks)))

    def check(self, network: keras.Model) -> None:
        """Checks that masked-out entries are 0.

        Raises:
            RuntimeError: if one is not.
        """
        for kernel in self.kernels:
            off = tf.where(tf.convert_to_tensor(kernel.mask), tf.zeros_like(kernel.weight), kernel.weight)
            stray = int(tf.math.count_nonzero(off))
            if stray:
                raise RuntimeError(f"{stray} masked-out entries of {kernel.name} are not zero.")

    def describe(self) -> dict[str, Any]:
        """Returns the name and the settings, ready for JSON."""
        return {**super().describe(), **({"dense": self.dense} if self.dense else {})}

    def count(self) -> list[int]:
        """Returns the present number of connections of each kernel, including those whose weight is still 0."""
        return [int(tf.math.count_nonzero(kernel.mask)) for kernel in self.kernels]

    def _new_masks(self, masks: Sequence[tf.Tensor]) -> Iterator[tuple[Any, tf.Tensor]]:
        yield from zip((kernel.mask for kernel in self.kernels), masks, strict=True)
        yield from self._masked_weights(masks)

    def _masked_weights(self, masks: Sequence[tf.Tensor]) -> Iterator[tuple[Any, tf.Tensor]]:
        for kernel, mask in zip(self.kernels, masks, strict=True):
            yield kernel.weight, fast_where(mask, tf.convert_to_tensor(kernel.weight), 0)

    def _masked_slots(self, masks: Sequence[tf.Tensor], optimizer: Any) -> Iterator[tuple[Any, tf.Tensor]]:
        for kernel, mask in zip(self.kernels, masks, strict=True):
            for slot in slots(optimizer, kernel.weight):
                yield slot, fast_where(mask, tf.convert_to_tensor(slot), 0)


def _reasons(skipped: Sequence[Skipped]) -> str:
    return some([f"{name}: {reason}" for name, reason in skipped], 4, "; ")
