"""How many connections each kernel gets: budgets, rules of allocation, and the random draw over layers."""

import math
import numbers
import re
from collections.abc import Mapping, Sequence

import tensorflow as tf

ALLOCATIONS = ("uniform", "erk", "igq", "adaptive")

_NEVER = -1e30  # log-weight of a full layer; finite, because tf.debugging.enable_check_numerics stops at infinities


def check_connectivity(connectivity: float) -> float:
    """Returns `connectivity` as a float.

    Raises:
        ValueError: if it is not a number in (0, 1].
    """
    if isinstance(connectivity, bool) or not isinstance(connectivity, numbers.Real) or not 0 < connectivity <= 1:
        raise ValueError(
            "`connectivity` is the fraction of kernel entries kept, in (0, 1]; for 99% sparsity pass "
            f"connectivity=0.01. Received: connectivity={connectivity!r}"
        )
    return float(connectivity)


def global_budget(sizes: Sequence[int], connectivity: float) -> int:
    """Returns `int(sum(sizes) * connectivity)`, the number of connections of the whole network.

    Raises:
        ValueError: if not a single connection would be left.
    """
    budget = int(sum(sizes) * check_connectivity(connectivity))
    if budget < 1:
        raise ValueError(
            f"`connectivity` leaves none of the {sum(sizes)} kernel entries; pass at least {1 / sum(sizes):.2g}. "
            f"Received: connectivity={connectivity}"
        )
    return budget


def layer_fractions(
    allocation: str | Mapping[str, float],
    sides: Sequence[Sequence[int]],
    connectivity: float,
    exponent: float = 1.0,
    names: Sequence[str] = (),
) -> list[float]:
    """Returns the fraction of each layer's entries that stays.

    Args:
        allocation: `"uniform"`: the same fraction of each kernel. `"erk"` (Erdős-Rényi kernel): proportional to the sum
            of a kernel's sides divided by its number of entries, so that small kernels stay denser. `"igq"`: a kernel
            of `n` entries keeps `n / (F n + 1)` of them, where `F` follows from the connectivity. `"adaptive"`: a
            kernel keeps a number proportional to `n ** exponent`, see `adaptive_fractions`. Or a mapping from regular
            expressions to fractions: a kernel takes the fraction of the first expression found in its name, and the
            other kernels share the rest.
        sides: The shape of each kernel, or the sides by which the Erdős-Rényi kernel rule counts.
        connectivity: Fraction of all entries that stays, in (0, 1].
        exponent: Exponent of the adaptive allocation, in [0, 1].
        names: Names of the kernels, for a mapping.

    Returns:
        The fraction of each kernel, in (0, 1]; their mean over all entries is `connectivity`.

    Raises:
        ValueError: if an argument is out of its range, an expression matches no name, or a mapping sets
            more than `connectivity`.

    Reference: [Evci et al., 2020](https://arxiv.org/abs/1911.11134), section 3 (Erdős-Rényi kernel);
        [Chen et al., 2022](https://arxiv.org/abs/2202.09844) for `"igq"`.
    """
    check_connectivity(connectivity)
    sizes = [math.prod(shape) for shape in sides]
    if isinstance(allocation, Mapping):
        return _by_name(allocation, sizes, connectivity, names)
    if allocation == "uniform":
        return [float(connectivity)] * len(sizes)
    if allocation == "erk":
        return _capped([sum(shape) / size for shape, size in zip(sides, sizes, strict=True)], sizes, connectivity)
    if allocation == "igq":
        return _information_quantity(sizes, connectivity)
    if allocation == "adaptive":
        return adaptive_fractions(sizes, connectivity, exponent)
    raise ValueError(
        f"`allocation` must be one of {', '.join(ALLOCATIONS)}, or a mapping from regular expressions to fractions. "
        f"Received: allocation={allocation!r}"
    )


def layer_counts(fractions: Sequence[float], sizes: Sequence[int], budget: int) -> list[int]:
    """Rounds fractions to counts that sum to `budget`: down at first, then up where most was lost; at least 1 each.

    Raises:
        ValueError: if there are more kernels than connections.
    """
    if budget < len(sizes):
        raise ValueError(
            f"Every kernel keeps at least one entry; pass a connectivity of at least {len(sizes) / sum(sizes):.2g} for "
            f"{len(sizes)} kernels of {sum(sizes)} entries. Received: {budget} connections"
        )
    wanted = [fraction * size for fraction, size in zip(fractions, sizes, strict=True)]
    # 1e-9 absorbs rounding errors of products that should be whole numbers.
    counts = [min(max(math.floor(each + 1e-9), 1), size) for each, size in zip(wanted, sizes, strict=True)]
    while sum(counts) != budget:
        step = 1 if sum(counts) < budget else -1
        # Kernels that can take one step, sorted by how far rounding has moved them the other way.
        free = [i for i, (count, size) in enumerate(zip(counts, sizes, strict=True)) if 1 <= count + step <= size]
        free.sort(key=lambda i: step * (counts[i] - wanted[i]))
        for i in free[: abs(budget - sum(counts))]:
            counts[i] += step
    return counts


def adaptive_fractions(sizes: Sequence[int], connectivity: float, exponent: float) -> list[float]:
    """Returns fractions by which a layer of `n` entries keeps a number proportional to `n ** exponent`.

    Layers are served from the smallest to the largest. A layer that would keep more entries than it has keeps all, and
    the rest of the budget is spread over the larger layers.

    Args:
        sizes: Number of entries of each layer.
        connectivity: Fraction of all entries that stays, in (0, 1].
        exponent: In [0, 1]: 1 keeps the same fraction of every layer, 0 the same number.

    Returns:
        The fraction of each layer, in (0, 1].

    Raises:
        ValueError: if an argument is out of its range.

    Reference: [Liu et al., 2022](https://arxiv.org/abs/2202.01341), section 3.2.
    """
    if isinstance(exponent, bool) or not isinstance(exponent, (int, float)) or not 0 <= exponent <= 1:
        raise ValueError(
            "`exponent` must be in [0, 1]: 0 keeps the same number of connections in every layer, 1 the same fraction. "
            f"Received: exponent={exponent!r}"
        )
    left = global_budget(sizes, connectivity)
    scale = connectivity * sum(sizes) / sum(float(size) ** exponent for size in sizes)
    fractions = [0.0] * len(sizes)
    order = sorted(range(len(sizes)), key=lambda layer: sizes[layer])
    for place, layer in enumerate(order):
        size = sizes[layer]
        # At least one entry stays, even if the smaller layers have used up the budget.
        fractions[layer] = min(1.0, max(scale * float(size) ** (exponent - 1), 1 / size))
        left -= int(fractions[layer] * size)
        larger = sum(float(sizes[other]) ** exponent for other in order[place + 1 :])
        scale = max(left, 0) / larger if larger else 0.0
    return fractions


def draw_layers(total: tf.Tensor, weights: Sequence[float], room: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Spreads `total` new connections over layers by independent draws proportional to `weights`.

    A layer that is drawn more often than it has room is filled. The excess is drawn again among the layers with room,
    until all connections are placed or no layer has room.

    Args:
        total: Scalar int64.
        weights: Positive weight per layer, `(layers,)`.
        room: int64 `(layers,)`, how many more connections each layer can hold.
        seed: Stateless seed, `(2,)`.

    Returns:
        int64 `(layers,)`, each at most `room`, with sum `min(total, sum(room))`.

    Reference: [Bellec et al., 2018](https://arxiv.org/abs/1711.05136), section 3 (global constraint).
    """
    log_weights = tf.math.log(tf.constant(weights, tf.float64))
    layers = len(weights)

    def some_left(placed, draw):
        return tf.reduce_sum(placed) < tf.minimum(total, tf.reduce_sum(room))

    def place(placed, draw):
        logits = tf.where(placed < room, log_weights, _NEVER)
        drawn = tf.random.stateless_categorical(
            logits[tf.newaxis],
            tf.cast(total - tf.reduce_sum(placed), tf.int32),
            tf.random.experimental.stateless_fold_in(seed, draw),
            dtype=tf.int64,
        )[0]
        counts = tf.math.bincount(tf.cast(drawn, tf.int32), minlength=layers, maxlength=layers)
        placed += tf.ensure_shape(tf.cast(counts, tf.int64), (layers,))
        return tf.minimum(placed, room), draw + 1

    placed, _ = tf.while_loop(some_left, place, (tf.zeros(layers, tf.int64), tf.constant(0)))
    return placed


def _capped(weights: Sequence[float], sizes: Sequence[int], connectivity: float) -> list[float]:
    """Returns fractions proportional to `weights`, capped at 1, that keep `connectivity` of all entries."""
    full: set[int] = set()  # kernels that keep every entry; the others share the rest of the budget
    while True:
        left = connectivity * sum(sizes) - sum(sizes[i] for i in full)
        scale = left / sum(w * n for i, (w, n) in enumerate(zip(weights, sizes, strict=True)) if i not in full)
        fractions = [1.0 if i in full else scale * weight for i, weight in enumerate(weights)]
        over = {i for i, fraction in enumerate(fractions) if fraction > 1}
        if not over or len(full | over) == len(sizes):
            return [min(fraction, 1.0) for fraction in fractions]
        full |= over


def _information_quantity(sizes: Sequence[int], connectivity: float) -> list[float]:
    """Returns fractions `1 / (F n + 1)`, where bisection finds `F`."""
    # The number of entries that the fractions keep falls as F grows: double F until it is an upper bound, then bisect.
    total, low, high = connectivity * sum(sizes), 0.0, 1.0
    while sum(size / (high * size + 1) for size in sizes) > total:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(size / (middle * size + 1) for size in sizes) > total else (low, middle)
    return [1 / (high * size + 1) for size in sizes]


def _by_name(
    allocation: Mapping[str, float], sizes: Sequence[int], connectivity: float, names: Sequence[str]
) -> list[float]:
    """Returns the fraction of the first expression that each name matches; the other kernels share the rest."""
    checked = {pattern: check_connectivity(value) for pattern, value in allocation.items()}
    found = [next((value for pattern, value in checked.items() if re.search(pattern, name)), None) for name in names]
    for pattern in allocation:
        if not any(re.search(pattern, name) for name in names):
            raise ValueError(f"`allocation`: no kernel matches {pattern!r}; the kernels are {', '.join(names)}")
    left = connectivity * sum(sizes) - sum(f * n for f, n in zip(found, sizes, strict=True) if f is not None)
    others = sum(n for f, n in zip(found, sizes, strict=True) if f is None)
    rest = left / others if others else 0.0
    # If the expressions name every kernel, they must make the connectivity themselves, up to rounding.
    if (others and not 0 < rest <= 1) or (not others and abs(left) > 0.5 + 1e-9 * sum(sizes)):
        set_ = sum(f * n for f, n in zip(found, sizes, strict=True) if f is not None) / sum(sizes)
        raise ValueError(
            f"`allocation` sets {set_:.4g} of all entries, which leaves no fraction in (0, 1] for the other kernels to "
            f"make connectivity={connectivity}. Received: allocation={dict(allocation)}"
        )
    return [rest if fraction is None else fraction for fraction in found]
