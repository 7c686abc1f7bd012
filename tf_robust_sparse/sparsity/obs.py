"""One-shot pruning by the optimal brain surgeon: the remaining weights compensate for the removed ones."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tf_robust_sparse import layers
from tf_robust_sparse.layers.selection import fast_where, largest_of_groups_mask
from tf_robust_sparse.sparsity.allocation import layer_counts, layer_fractions
from tf_robust_sparse.sparsity.integers import check_integer, check_seed
from tf_robust_sparse.sparsity.kernel_views import kernel_view
from tf_robust_sparse.sparsity.layer_inputs import call_order, second_moments, why_no_rows
from tf_robust_sparse.sparsity.mask_sparsifier import MaskSparsifier
from tf_robust_sparse.sparsity.n_m import check_groups, check_n_m, group_budget, why_no_groups
from tf_robust_sparse.sparsity.optimizer_slots import assign_everywhere
from tf_robust_sparse.sparsity.prunable import Prunable

DAMPING = 0.01  # fraction of the mean second moment, as published
BLOCK = 128


class OBS(MaskSparsifier):
    """Prunes a trained model once, so that the outputs of each layer on some images change little (SparseGPT).

    The layers are pruned one after the other, in the order in which the model calls them. For each one, the inputs are
    read from the model as pruned so far, and `prune_columns` removes entries and corrects the others. Biases and other
    weights stay the same. Afterwards the masks are fixed: training with the sparsifier tunes the remaining weights.

    ```python
    report = trs.sparsify(model, connectivity=0.5, sparsifier=trs.sparsity.OBS(x[:512]))
    report = trs.sparsify(model, sparsifier=trs.sparsity.OBS(x[:512], n_m=(2, 4)))
    ```

    Kernels of `Dense`, `EinsumDense` (attention), `Conv1D` and `Conv2D`, and of this package, are pruned; others stay
    dense. The images pass through the model once for each layer. The inputs of a convolution are its patches, at random
    positions. Time grows with the cube of the number of inputs of a kernel, memory with its square; a 3x3 kernel has 9
    inputs per channel.

    Args:
        images: `(n, ...)`, inputs of the model: training images, or attacked ones.
        connectivity: Fraction of the entries that stay, in (0, 1]; `None` leaves it to `trs.sparsify` or to `n_m`.
        n_m: `(n, m)`: n of every m consecutive inputs stay, as in `NM`.
        allocation: How connections are spread over kernels, see `layer_fractions`; not with `n_m`.
        positions: Number of positions per image that each layer samples, at least 1.
        batch_size: Number of images per forward pass.
        seed: Integer in [0, 2**31) that fixes the positions.

    Raises:
        ValueError: if an argument is out of its range.

    Reference: [Frantar and Alistarh, 2023](https://arxiv.org/abs/2301.00774), algorithm 1;
        [Hassibi et al., 1993](https://doi.org/10.1109/ICNN.1993.298572).
    """

    masks_change = False

    def __init__(
        self,
        images: Any,
        connectivity: float | None = None,
        n_m: tuple[int, int] | None = None,
        allocation: str | Mapping[str, float] = "uniform",
        positions: int = 64,
        batch_size: int = 64,
        seed: int = 0,
    ) -> None:
        if n_m is not None:
            if not isinstance(n_m, (tuple, list)) or len(n_m) != 2:
                raise ValueError(f"`n_m` must be a pair, such as (2, 4) for two of four. Received: n_m={n_m!r}")
            if allocation != "uniform":
                raise ValueError(
                    f"n_m={n_m} keeps the same fraction of every kernel; leave `allocation` out. "
                    f"Received: allocation={allocation!r}"
                )
            n, m = check_n_m(*n_m)
            if connectivity not in (None, n / m):
                raise ValueError(f"n_m={n_m} keeps {n / m:g}; leave `connectivity` out. Received: {connectivity}")
            connectivity = n / m
        super().__init__(connectivity)
        self.positions = check_integer("positions", positions, 1)
        self.batch_size = check_integer("batch_size", batch_size, 1)
        self.seed = check_seed(seed)
        self.images = np.asarray(images)
        if self.images.ndim < 2 or not len(self.images) or self.images.dtype.kind not in "fui":
            raise ValueError(
                "`images` must be an array (n, ...) of numbers that the model takes. Received: "
                f"{self.images.dtype} {self.images.shape}"
            )
        if not np.isfinite(self.images).all():
            raise ValueError("`images` must be finite. Received: images with infinities or NaN")
        self.n_m, self.allocation = n_m, allocation

    def misfit(self, kernel: Prunable) -> str | None:
        """Returns why a kernel cannot be pruned, or `None`."""
        return why_no_rows(kernel) or (why_no_groups(kernel, self.n_m[1]) if self.n_m else None)

    def start(self) -> None:
        """Prunes the model, or restores it if that fails.

        Raises:
            ValueError: if the images do not fit the model, or the inputs of a kernel cannot be read or are not finite.
        """
        shape = getattr(self.network, "input_shape", None)
        if isinstance(shape, (list, dict)) and len(shape) > 1:
            raise ValueError(
                f"OBS passes one array of images through a model; prune {self.network.name} with MagnitudePruning(). "
                f"Received: a model with {len(shape)} inputs"
            )
        if isinstance(shape, tuple) and not tf.TensorShape(shape).is_compatible_with(self.images.shape):
            raise ValueError(f"`images` must be what {self.network.name} takes, {shape}. Received: {self.images.shape}")
        order = call_order(self.network, self.kernels, self.images[:1])
        variables = [variable for kernel in self.kernels for variable in (kernel.weight, kernel.mask)]
        before = [tf.identity(variable) for variable in variables]
        counts = dict(zip([kernel.name for kernel in self.kernels], self._counts(), strict=True))
        try:
            for kernel in order:
                self._prune(kernel, counts[kernel.name])
        except ValueError:
            assign_everywhere(list(zip(variables, before, strict=True)))
            raise

    def check(self, network: Any) -> None:
        """Checks that masked-out entries are 0 and that groups keep their number of entries.

        Raises:
            RuntimeError: if this does not hold.
        """
        super().check(network)
        if self.n_m:
            check_groups(self.kernels, *self.n_m)

    def describe(self) -> dict[str, Any]:
        """Returns the name and the settings, ready for JSON."""
        return {
            **super().describe(),
            "images": len(self.images),
            "n_m": list(self.n_m) if self.n_m else None,
            "allocation": self.allocation if isinstance(self.allocation, str) else dict(self.allocation),
            "positions": self.positions,
            "seed": self.seed,
            "budget": self.budget,
        }

    def _counts(self) -> list[int]:
        """Returns how many entries of each kernel stay."""
        if self.n_m:
            self.budget = group_budget(self.sizes, *self.n_m)
            return [group_budget([size], *self.n_m) for size in self.sizes]
        sides, names = [kernel.sides for kernel in self.kernels], [kernel.name for kernel in self.kernels]
        fractions = layer_fractions(self.allocation, sides, self.connectivity, names=names)
        return layer_counts(fractions, self.sizes, self.budget)

    def _prune(self, kernel: Prunable, count: int) -> None:
        moments = second_moments(self.network, kernel, self.images, self.batch_size, self.positions, self.seed)
        if not np.isfinite(moments).all():
            raise ValueError(f"The inputs of {kernel.name} on `images` must be finite. Received: infinities or NaN")
        view = kernel_view(kernel)
        present = fast_where(tf.convert_to_tensor(kernel.mask), tf.convert_to_tensor(kernel.weight), 0)
        matrix = view.to_matrices(present)
        flat = np.asarray(tf.reshape(matrix, (-1, view.shape[2])), np.float64)
        pruned, mask = prune_columns(flat, moments, count, self.n_m)
        weight = view.to_kernel(tf.reshape(tf.cast(pruned, kernel.weight.dtype), view.shape))
        assign_everywhere([(kernel.weight, weight), (kernel.mask, view.to_kernel(tf.reshape(mask, view.shape)))])


def prune_columns(
    weights: np.ndarray, moments: np.ndarray, count: int, n_m: tuple[int, int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Prunes a matrix input by input; later inputs compensate for the removed entries.

    With `H = moments + 0.01 mean(diag(moments)) I` and `U` the upper factor of `H^-1 = U^T U`, removing an entry `w` of
    input `i` costs `w^2 / U_ii^2`, and `U_ij / U_ii * w` is subtracted from the entries of the inputs `j > i`. Inputs
    that are always 0 keep no weight. Entries are selected for 128 inputs at a time: the cheapest of all remaining
    entries are marked, as many as must still go, and those in the 128 inputs are removed. SparseGPT's code instead
    prunes the same fraction of each 128 inputs, which leaves a larger error, and also all entries as cheap as the last
    one. With `n_m`, entries are selected for each group in turn.

    Args:
        weights: `(inputs, outputs)`, float64.
        moments: The mean of `2 x x^T` over inputs `x`, `(inputs, inputs)`, float64.
        count: Number of entries that stay; ties go to the first ones.
        n_m: n of every m inputs stay, for each output.

    Returns:
        The new weights, and the mask of the remaining ones.
    """
    upper, dead = _inverse_factor(moments)
    weights = np.where(dead[:, np.newaxis], 0.0, weights)
    inputs = len(weights)
    diagonal = np.diag(upper)[:, np.newaxis]
    mask = np.ones(weights.shape, bool)
    left = weights.size - count
    block = BLOCK if n_m is None else BLOCK // n_m[1] * n_m[1]
    for begin in range(0, inputs, block):
        end = min(begin + block, inputs)
        if n_m is None:
            costs = np.full(weights.shape, np.inf)  # inf: earlier inputs are already decided
            costs[begin:] = np.square(weights[begin:] / diagonal[begin:])
            kept = np.asarray(layers.largest_mask(costs, costs.size - left))
            mask[begin:end] = kept[begin:end]
            left -= int(np.sum(~mask[begin:end]))
        # Corrections within the block are made at once, because its later inputs depend on them; those beyond it are
        # collected and made by one matrix product.
        errors = np.zeros((end - begin, weights.shape[1]))
        for i in range(begin, end):
            if n_m is not None and i % n_m[1] == 0:
                group = slice(i, i + n_m[1])
                costs = np.square(weights[group] / diagonal[group])
                mask[group] = largest_of_groups_mask(costs, n_m[0], 0)
            errors[i - begin] = np.where(mask[i], 0.0, weights[i]) / upper[i, i]
            weights[i:end] -= np.outer(upper[i, i:end], errors[i - begin])
        weights[end:] -= upper[begin:end, end:].T @ errors
    return np.where(mask, weights, 0.0), mask


def _inverse_factor(moments: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the upper triangular `U` with `(H + damping)^-1 = U^T U`, and which inputs are always 0."""
    dead = np.diag(moments) == 0
    damped = moments + np.diag(dead.astype(np.float64))
    damped = damped + DAMPING * np.mean(np.diag(damped)) * np.eye(len(damped))
    # The lower Cholesky factor of the reversed matrix, reversed again, is upper: H = R R^T, and U is the inverse of R.
    upper = np.linalg.cholesky(damped[::-1, ::-1])[::-1, ::-1]
    identity = tf.eye(len(damped), dtype=tf.float64)
    return np.asarray(tf.linalg.triangular_solve(tf.constant(upper), identity, lower=False)), dead
