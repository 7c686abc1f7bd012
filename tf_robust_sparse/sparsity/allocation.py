"""How many connections each kernel gets: budgets and the draw that spreads them over layers."""

import numbers
from collections.abc import Sequence

import tensorflow as tf

_NEVER = -1e30  # the logarithm of no chance, finite: tf.debugging.enable_check_numerics stops at infinities


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


def adaptive_fractions(sizes: Sequence[int], connectivity: float, exponent: float) -> list[float]:
    """Spreads the connections so that a layer of `n` entries keeps in proportion to `n ** exponent`.

    Layers are served from the smallest to the largest; one that would keep more than it has keeps all, and what is left
    of the budget is spread over the larger ones.

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
            "`exponent` is between 0, the same number of connections in every layer, and 1, the same fraction. "
            f"Received: exponent={exponent!r}"
        )
    left = global_budget(sizes, connectivity)
    scale = connectivity * sum(sizes) / sum(float(size) ** exponent for size in sizes)
    fractions = [0.0] * len(sizes)
    order = sorted(range(len(sizes)), key=lambda layer: sizes[layer])
    for place, layer in enumerate(order):
        size = sizes[layer]
        # Smaller layers, rounded down, may have left nothing at all.
        fractions[layer] = min(1.0, max(scale * float(size) ** (exponent - 1), 1 / size))
        left -= int(fractions[layer] * size)
        larger = sum(float(sizes[other]) ** exponent for other in order[place + 1 :])
        scale = max(left, 0) / larger if larger else 0.0
    return fractions


def draw_layers(total: tf.Tensor, weights: Sequence[float], room: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Spreads `total` new connections over layers by independent draws proportional to `weights`.

    A layer that is drawn more often than it has room is filled; what is left over is drawn again among the layers
    with room, until all is placed or no layer has room.

    Args:
        total: Scalar int64.
        weights: Positive weight per layer, `(layers,)`.
        room: int64 `(layers,)`, how many connections each layer can still take.
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
