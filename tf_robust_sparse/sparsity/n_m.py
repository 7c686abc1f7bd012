"""N:M sparsity: an output reads N of every M consecutive inputs, the pattern of sparse tensor cores."""

import math
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_robust_sparse.layers.selection import fast_where, largest_of_groups_mask
from tf_robust_sparse.sparsity.integers import check_integer
from tf_robust_sparse.sparsity.kernel_views import kernel_view, why_no_view
from tf_robust_sparse.sparsity.mask_sparsifier import MaskSparsifier
from tf_robust_sparse.sparsity.optimizer_slots import assign_everywhere
from tf_robust_sparse.sparsity.prunable import Prunable

LARGEST_GROUP = 32


class NM(MaskSparsifier):
    """Keeps the `n` largest of every `m` consecutive entries along the input channels, and trains all of them (SR-STE).

    The network computes with `kernel * kernel_mask`. The dense kernel receives the gradient `g` of that product as if
    there were no mask (straight-through), and masked-out entries shrink: the optimizer gets
    `g + decay * (1 - kernel_mask) * kernel` before it clips. After the update the masks are chosen again. After every
    step the model holds `kernel * kernel_mask`; masked-out entries are stored in a variable of the sparsifier, which is
    part of checkpoints. Every saved model thus has exactly `n` of `m` entries.

    Input channels are the second-to-last axis of the kernels of `Dense` and convolutions, the last axis of transposed
    convolutions, and the axes that an `EinsumDense` sums over. Ties go to the first entry along that axis. Kernels
    whose inputs are no multiple of `m`, such as those that read 3 colors, stay dense.

    ```python
    report = trs.sparsify(model, sparsifier=trs.sparsity.NM(2, 4))
    ```

    Args:
        n: Number of entries of a group that stay, in [1, m - 1].
        m: Number of entries of a group, in [2, 32].
        decay: How fast masked-out entries shrink, at least 0; 0 is the plain straight-through estimator.
        interval: Number of steps between two choices of the masks, at least 1.
        fixed: Whether the first masks stay; masked-out entries are then 0, and nothing decays.

    Raises:
        ValueError: if an argument is out of its range.

    Reference: [Zhou et al., 2021](https://arxiv.org/abs/2102.04010), section 4.
    """

    def __init__(self, n: int = 2, m: int = 4, decay: float = 2e-4, interval: int = 1, fixed: bool = False) -> None:
        check_n_m(n, m)
        if isinstance(decay, bool) or not isinstance(decay, (int, float)) or not 0 <= decay < math.inf:
            raise ValueError(f"`decay` must be a number of at least 0. Received: decay={decay!r}")
        super().__init__(n / m)
        self.interval = check_integer("interval", interval, 1, "a number of steps")
        self.n, self.m, self.decay, self.fixed = n, m, float(decay), bool(fixed)
        self.straight_through = self.masks_change = not self.fixed
        self.waiting: list[Any] = []  # for each kernel: its masked-out entries, 0 elsewhere
        self._scaled: Any = None

    def misfit(self, kernel: Prunable) -> str | None:
        """Returns why groups of `m` do not fit a kernel, or `None` if they do."""
        return why_no_groups(kernel, self.m)

    def start(self) -> None:
        """Chooses the first masks."""
        self.budget = group_budget(self.sizes, self.n, self.m)
        masks = [self.largest(kernel) for kernel in self.kernels]
        if self.fixed:
            assign_everywhere(list(self._new_masks(masks)))
            return
        self.waiting = [
            self.add_state(f"{kernel.name.replace('/', '_')}_waiting", kernel.weight.shape, kernel.weight.dtype)
            for kernel in self.kernels
        ]
        self._part(masks)

    def largest(self, kernel: Prunable) -> tf.Tensor:
        """Returns the mask of the largest entries of each group."""
        view = kernel_view(kernel)
        positions, inputs, outputs = view.shape
        matrices = view.to_matrices(tf.abs(tf.convert_to_tensor(kernel.weight)))
        groups = tf.reshape(matrices, (positions, inputs // self.m, self.m, outputs))
        return view.to_kernel(tf.reshape(largest_of_groups_mask(groups, self.n, 2), view.shape))

    def check_optimizer(self, optimizer: keras.optimizers.Optimizer) -> None:
        """Checks the optimizer, and stores how it scales losses, because the decay must be scaled, too."""
        super().check_optimizer(optimizer)
        self._scaled = optimizer.scale_loss

    def mask_gradients(self, gradients: Sequence[Any], weights: Sequence[Any]) -> list[Any]:
        """Returns the unmasked gradients plus the decay of masked-out entries."""
        if self.fixed:
            return super().mask_gradients(gradients, weights)
        numbers = {id(kernel.weight): number for number, kernel in enumerate(self.kernels)}
        replicas = tf.distribute.get_strategy().num_replicas_in_sync  # the optimizer sums their gradients

        def with_decay(gradient: Any, number: int) -> tf.Tensor:
            decay = self.decay / replicas * tf.convert_to_tensor(self.waiting[number])
            return tf.convert_to_tensor(gradient) + (decay if self._scaled is None else self._scaled(decay))

        return [
            with_decay(gradient, numbers[id(weight)]) if gradient is not None and id(weight) in numbers else gradient
            for gradient, weight in zip(gradients, weights, strict=True)
        ]

    def before_update(self, optimizer: keras.optimizers.Optimizer) -> tf.Tensor:
        """Returns the step, and restores the dense kernels for the optimizer."""
        if not self.fixed:
            assign_everywhere(
                [
                    (
                        kernel.weight,
                        fast_where(*map(tf.convert_to_tensor, (kernel.mask, kernel.weight, waiting))),
                    )
                    for kernel, waiting in zip(self.kernels, self.waiting, strict=True)
                ]
            )
        return super().before_update(optimizer)

    def after_update(
        self, state: Any, optimizer: keras.optimizers.Optimizer, dense: Sequence[tf.Tensor] | None = None
    ) -> None:
        """Chooses masks if they are due, and moves masked-out entries out of the model; momentum stays dense."""
        if self.fixed:
            super().after_update(state, optimizer, dense)
            return
        if self.interval == 1:
            masks = [self.largest(kernel) for kernel in self.kernels]
        else:
            # The step counts the updates before this one, so masks change after every `interval` updates.
            masks = tf.cond(
                (state + 1) % self.interval == 0,
                lambda: [self.largest(kernel) for kernel in self.kernels],
                self.present_masks,
            )
        self._part(masks)

    def check(self, network: keras.Model) -> None:
        """Checks that each group keeps `n` entries and that the others are 0.

        Raises:
            RuntimeError: if this does not hold.
        """
        super().check(network)
        check_groups(self.kernels, self.n, self.m)

    def describe(self) -> dict[str, Any]:
        """Returns the name and the settings, ready for JSON."""
        settings = {"n": self.n, "m": self.m, "decay": self.decay, "interval": self.interval, "fixed": self.fixed}
        return {**super().describe(), **settings, "budget": self.budget}

    def _part(self, masks: Sequence[tf.Tensor]) -> None:
        """Splits dense kernels into the part in the model and the masked-out part in the sparsifier."""
        waiting = [
            (kept, fast_where(mask, tf.zeros_like(kernel.weight), tf.convert_to_tensor(kernel.weight)))
            for kept, kernel, mask in zip(self.waiting, self.kernels, masks, strict=True)
        ]
        assign_everywhere([*waiting, *self._new_masks(masks)])


def check_n_m(n: int, m: int) -> tuple[int, int]:
    """Returns `n` and `m`.

    Raises:
        ValueError: unless they are integers with `1 <= n < m <= 32`.
    """
    for name, value, low, high in (("m", m, 2, LARGEST_GROUP), ("n", n, 1, m - 1 if isinstance(m, int) else 0)):
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(
                f"n of every m entries stay: `m` must be an integer in [2, {LARGEST_GROUP}], `n` one in [1, m - 1]. "
                f"Received: {name}={value!r}"
            )
    return n, m


def why_no_groups(kernel: Prunable, m: int) -> str | None:
    """Returns why groups of `m` inputs do not fit a kernel, or `None` if they do."""
    reason = why_no_view(kernel)
    if reason:
        return reason
    inputs = kernel_view(kernel).shape[1]
    return f"its {inputs} inputs are no multiple of m={m}" if inputs % m else None


def group_budget(sizes: Sequence[int], n: int, m: int) -> int:
    """Returns how many entries stay in kernels of these sizes."""
    return sum(size // m * n for size in sizes)


def check_groups(kernels: Sequence[Prunable], n: int, m: int) -> None:
    """Checks that every group of `m` entries of each kernel keeps `n`.

    Raises:
        RuntimeError: if one does not.
    """
    for kernel in kernels:
        view = kernel_view(kernel)
        matrices = view.to_matrices(tf.cast(tf.convert_to_tensor(kernel.mask), tf.int32))
        numbers = tf.reduce_sum(tf.reshape(matrices, (-1, m, view.shape[2])), 1)
        wrong = int(tf.math.count_nonzero(numbers != n))
        if wrong:
            raise RuntimeError(f"{wrong} groups of {kernel.name} do not keep {n} of {m} entries.")
