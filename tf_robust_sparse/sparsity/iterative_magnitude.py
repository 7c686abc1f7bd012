"""Iterative magnitude pruning: computes the next mask from the trained kernels and mask of a round."""

import logging
from collections.abc import Callable, Mapping

import numpy as np

from tf_robust_sparse import layers

CUTOFFS = ("inclusive", "exact")
Kernels = Mapping[str, np.ndarray]  # layer -> kernel or mask
PruningRule = Callable[[Kernels, Kernels], dict[str, np.ndarray]]  # kernels, masks -> masks

_log = logging.getLogger(__name__)


def prune_smallest(kernel: np.ndarray, mask: np.ndarray, fraction: float, cutoff: str = "inclusive") -> np.ndarray:
    """Returns the mask without the connections of smallest magnitude.

    The `n` connections are sorted by magnitude; the one at index `round(fraction * n)`, half to even, is the cutoff.

    Args:
        kernel: Trained kernel, any shape, compared in float32; masked-out entries are ignored.
        mask: Boolean, of the same shape.
        fraction: Fraction of the remaining connections to remove, in [0, 1].
        cutoff: `"inclusive"` also removes the cutoff and all entries that equal it: one more than asked for if all
            magnitudes differ, as in the published experiments. `"exact"` removes exactly `round(fraction * n)`; among
            equal entries, the first in memory order go.

    Returns:
        Boolean, of the shape of `mask` and within it.

    Raises:
        ValueError: if an argument is out of its range or the shapes differ.

    Reference: [Frankle and Carbin, 2019](https://arxiv.org/abs/1803.03635), section 2.
    """
    kernel, mask = np.asarray(kernel), np.asarray(mask).astype(bool)
    if kernel.shape != mask.shape:
        raise ValueError(f"`mask` must have the shape of its kernel, {kernel.shape}. Received: {mask.shape}")
    if not 0 <= fraction <= 1:
        raise ValueError(
            "`fraction` must be the fraction of remaining entries to remove, in [0, 1]; pass 0.2 to remove a fifth. "
            f"Received: fraction={fraction!r}"
        )
    if cutoff not in CUTOFFS:
        raise ValueError(f"`cutoff` must be one of {', '.join(CUTOFFS)}. Received: cutoff={cutoff!r}")
    places = np.flatnonzero(mask)
    sizes = np.abs(kernel.reshape(-1)[places])
    if not len(places):
        return mask.copy()
    if not np.isfinite(sizes).all():
        raise ValueError("The kernel must be finite where it is to be pruned. Received: NaN or infinity")
    number = int(np.round(fraction * len(places)))
    if number >= len(places):
        return np.zeros_like(mask)
    if cutoff == "exact":
        removed = places[_smallest(sizes, number)]
    else:
        largest = sizes[_smallest(sizes, number + 1)].max()
        removed = places[sizes <= largest]
        if len(removed) > 2 * max(number, 1):
            _log.warning(
                "%d of %d entries are at or below the cutoff %g, because of ties; %d were to be removed",
                len(removed),
                len(places),
                largest,
                number,
            )
    kept = mask.reshape(-1).copy()
    kept[removed] = False
    return kept.reshape(mask.shape)


def _smallest(sizes: np.ndarray, number: int) -> np.ndarray:
    """Returns a mask of the `number` smallest values; ties go to the first ones."""
    return ~np.asarray(layers.largest_mask(sizes, len(sizes) - number, last_wins=True))


def iterative_magnitude(fractions: Mapping[str, float], cutoff: str = "inclusive") -> PruningRule:
    """Returns a rule that prunes each layer by its own fraction, with `prune_smallest`.

    Args:
        fractions: Layer name -> fraction of its remaining connections to remove; every kernel must have one.
        cutoff: See `prune_smallest`.
    """

    def rule(kernels: Kernels, masks: Kernels) -> dict[str, np.ndarray]:
        if set(kernels) != set(fractions):
            raise ValueError(
                f"`fractions` must name each prunable layer: {', '.join(kernels)}. Received: {', '.join(fractions)}"
            )
        return {name: prune_smallest(kernels[name], masks[name], fractions[name], cutoff) for name in kernels}

    return rule
