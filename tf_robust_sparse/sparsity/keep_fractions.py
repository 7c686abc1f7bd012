"""Which fraction of each subnet kernel stays."""

import math
from collections.abc import Mapping, Sequence

import keras
import numpy as np

from tf_robust_sparse import layers
from tf_robust_sparse.layers.subnet import kept_entries
from tf_robust_sparse.sparsity import allocation as rules
from tf_robust_sparse.sparsity.scores import subnet_layers

ALLOCATIONS = (*rules.ALLOCATIONS, "global", "lamp")


def keep_fractions(
    network: keras.Model, connectivity: float, allocation: str = "uniform", exponent: float = 1.0
) -> dict[str, float]:
    """Returns how the connections are spread over the subnet kernels of `network`.

    Args:
        network: A network with subnet kernels.
        connectivity: Fraction of the kernel entries that stays, in (0, 1].
        allocation: A rule of `layer_fractions`, or a single threshold over all kernels, where ties go to the last
            entries: `"global"` over their present scores, `"lamp"` over `s**2 / (sum of the squares of all scores of
            the kernel that are at least as large)`, so that the scale of a kernel does not count.
        exponent: Exponent of the adaptive allocation, in [0, 1].

    Returns:
        Layer name -> fraction, in forward order. Up to rounding, their mean over all entries is `connectivity`. Every
        kernel keeps at least one entry.

    Raises:
        ValueError: if an argument is out of its range or the network has no subnet kernel.

    Reference: [Evci et al., 2020](https://arxiv.org/abs/1911.11134), section 3 (Erdős-Rényi kernel);
        [Lee et al., 2021](https://arxiv.org/abs/2010.07611), section 2 (LAMP).
    """
    rules.check_connectivity(connectivity)
    if allocation not in ALLOCATIONS:
        raise ValueError(f"`allocation` must be one of {', '.join(ALLOCATIONS)}. Received: allocation={allocation!r}")
    found = subnet_layers(network)
    shapes = [tuple(layer.scores.shape) for layer in found]
    if allocation in ("global", "lamp"):
        sizes = [math.prod(shape) for shape in shapes]
        scores = [np.abs(keras.ops.convert_to_numpy(layer.scores)).reshape(-1) for layer in found]
        if allocation == "lamp":
            scores = [_lamp(each) for each in scores]
        counts = _largest_of_all(scores, rules.global_budget(sizes, connectivity))
        fractions = [_fraction(count, size) for count, size in zip(counts, sizes, strict=True)]
    else:
        fractions = rules.layer_fractions(allocation, shapes, connectivity, exponent)
    return {layer.name: fraction for layer, fraction in zip(found, fractions, strict=True)}


def set_keep_fractions(network: keras.Model, fractions: float | Mapping[str, float] | Sequence[float]) -> None:
    """Sets the fraction of entries that stays in every subnet kernel.

    Functions that are already traced keep the old fractions: build or compile the training model afterwards.

    Args:
        network: A network with subnet kernels.
        fractions: One for all layers, one per layer in forward order, or a mapping from layer names; in (0, 1].

    Raises:
        ValueError: if a fraction is out of range, or layers and fractions do not match.
    """
    found = subnet_layers(network)
    names = [layer.name for layer in found]
    if isinstance(fractions, (int, float)):
        fractions = [fractions] * len(found)
    if isinstance(fractions, Mapping):
        if set(fractions) != set(names):
            raise ValueError(
                f"`fractions` must name each subnet layer: {', '.join(names)}. Received: {', '.join(fractions)}"
            )
        fractions = [fractions[name] for name in names]
    if len(fractions) != len(found):
        raise ValueError(
            f"`fractions` must hold one fraction for each of the {len(found)} subnet layers {', '.join(names)}. "
            f"Received: {len(fractions)} fractions"
        )
    for layer, fraction in zip(found, fractions, strict=True):
        layer.keep_fraction = fraction


def _largest_of_all(scores: Sequence[np.ndarray], budget: int) -> list[int]:
    """Returns how many of the `budget` largest scores each kernel has, at least one; ties go to the last."""
    scores = [score.copy() for score in scores]
    for score in scores:
        score[score.argmax()] = np.inf  # the best entry of each kernel stays in any case
    mask = np.asarray(layers.largest_mask(np.concatenate(scores), budget, last_wins=True))
    parts = np.split(mask, np.cumsum([score.size for score in scores])[:-1])
    return [max(int(np.count_nonzero(part)), 1) for part in parts]


def _lamp(sizes: np.ndarray) -> np.ndarray:
    """Returns the LAMP scores of a kernel with these absolute scores."""
    order = np.argsort(sizes, kind="stable")
    squares = np.square(sizes[order], dtype="float64")
    found = np.empty_like(sizes)
    found[order] = squares / np.maximum(np.cumsum(squares[::-1])[::-1], np.finfo("float64").tiny)
    return found


def _fraction(count: int, size: int) -> float:
    """Returns a fraction by which a kernel of `size` entries keeps exactly `count`, despite rounding."""
    return count / size if kept_entries(size, count / size) == count else (count - 0.5) / size
