"""Square Attack: random search with squares, which needs only the logits of the network."""

import bisect
import math
import numbers
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tf_robust_sparse.attacks.gradient_attack import check_integer
from tf_robust_sparse.attacks.losses import margin
from tf_robust_sparse.attacks.projections import between, l1_ball, l2_norm, linf_bounds, pixel_range
from tf_robust_sparse.attacks.staged_attack import AttackRun, StagedAttack, State, while_state
from tf_robust_sparse.layers.forward import Forward
from tf_robust_sparse.layers.noise import uniform_like
from tf_robust_sparse.layers.selection import fast_where

# Queries, of 10,000, after which the share of the image that a window covers is halved.
HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
KEY_BITS = 32
FAR = 4.0  # further than any pixel can be from the border of the ball
TINY = 1e-12  # added to a length before dividing by it
ROW, COLUMN = 1, 2  # axes of a batch of images


class _Schedule(NamedTuple):
    """Tables of what is fixed for each query before the attack starts.

    Attributes:
        sides: `(queries,)`, int32, sides of the windows.
        patterns_of: `(queries,)`, int32, rows of `patterns`.
        patterns: `(sides, 2, height, width)`, pairs of pyramids in the upper left corner, upright and turned.
    """

    sides: tf.Tensor
    patterns_of: tf.Tensor
    patterns: tf.Tensor


class Square(StagedAttack):
    """Changes the image inside a random square, and keeps the change if the margin gets smaller.

    The squares shrink as queries go by. In the Linf norm the pixels of a square move to the border of the ball, each
    channel to one side; in the other norms a square receives a pyramid of each sign, and the perturbation of another
    square. The attack uses no gradients, so masked gradients do not hinder it. An image that is broken once is left
    alone.

    The places of the squares depend on the `seed` of the constructor and are the same for all images and restarts. The
    starting point and the signs differ from image to image.

    Args:
        epsilon: Radius of the ball in the norm, in pixels of [0, 1], above 0.
        norm: `"Linf"`, `"L2"` or `"L1"`.
        num_queries: Number of proposals after the starting point, at least 1.
        p_init: Share of the image that the first windows cover, in (0, 1].
        restarts: Number of runs from different starting points, at least 1.
        rescale_schedule: Whether the schedule of the windows, made for 10,000 queries, is scaled to `num_queries`; else
            its first `num_queries` entries are used.
        seed: Integer, the seed of all random draws. The `seed` of a call replaces it for starting points and signs.

    Raises:
        ValueError: if an argument is out of its range.

    Reference: [Andriushchenko et al., 2020](https://arxiv.org/abs/1912.00049); the L1 norm is from
    [Croce and Hein, 2021](https://arxiv.org/abs/2103.01208).
    """

    name = "square"
    uses_gradients = False

    def __init__(
        self,
        epsilon: float,
        norm: str = "Linf",
        num_queries: int = 5000,
        p_init: float = 0.8,
        restarts: int = 1,
        rescale_schedule: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(epsilon, norm, seed)
        check_integer("num_queries", num_queries, 1, "AutoAttack uses num_queries=5000")
        check_integer("restarts", restarts, 1, "pass restarts=1 for a single run")
        is_number = isinstance(p_init, numbers.Real) and not isinstance(p_init, bool)
        if not is_number or not 0 < p_init <= 1:
            raise ValueError(
                "`p_init` is the share of the image that the first windows cover, in (0, 1]; AutoAttack uses "
                f"p_init=0.8. Received: p_init={p_init!r}"
            )
        if not isinstance(rescale_schedule, bool):
            raise ValueError(
                "`rescale_schedule` is True to shrink the schedule of 10,000 queries to `num_queries`, or False. "
                f"Received: rescale_schedule={rescale_schedule!r}"
            )
        self.num_queries = int(num_queries)
        self.p_init = float(p_init)
        self.restarts = int(restarts)
        self.rescale_schedule = rescale_schedule

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor, as plain values."""
        return {
            **super().get_config(),
            "num_queries": self.num_queries,
            "p_init": self.p_init,
            "restarts": self.restarts,
            "rescale_schedule": self.rescale_schedule,
        }

    def runs(self, num_classes: int) -> list[AttackRun]:
        """Returns one run per restart."""
        return [AttackRun(restart, 0, (self.epsilon,), (self.num_queries,)) for restart in range(self.restarts)]

    def stages(self, iterations: int) -> list[int]:
        """Returns every hundredth query, and the last one."""
        return [*range(100, iterations, 100), iterations]

    def gradient_passes(self) -> int:
        """Returns 0."""
        return 0

    def share(self, query: int) -> float:
        """Returns the share of the image that the window of a query, counted from 0, should cover."""
        if self.rescale_schedule:
            query = int(query / self.num_queries * 10000)
        return self.p_init / 2 ** bisect.bisect_left(HALVED_AFTER, query)

    def side(self, query: int, height: int, width: int) -> int:
        """Returns the side of the window of a query in images of this size."""
        side = round((self.share(query) * height * width) ** 0.5)
        if self.norm == "Linf":
            side = max(side, 1)
        else:
            side = max(side, 3)  # a pair of pyramids needs an odd side of at least 3
            side += side % 2 == 0
        return min(side, height, width)

    def start(
        self, forward: Forward, x: tf.Tensor, y: tf.Tensor, seeds: tf.Tensor, target: tf.Tensor, epsilon: tf.Tensor
    ) -> State:
        """Starts at vertical stripes at the border of the Linf ball, or at tiles of random sign in the other balls."""
        _, height, width, channels = x.shape
        if self.norm == "Linf":
            key, bits = _draw_bits(seeds, (KEY_BITS,), (1, width, channels))
            x_best = pixel_range(x + epsilon * _sign(bits))
        else:
            edge = max(min(height, width) // 5, 1)
            rows, columns = height // edge, width // edge
            key, bits, turns = _draw_bits(seeds, (KEY_BITS,), (rows, columns, channels), (rows, columns, 1))
            pattern = pair_of_pyramids(edge, self.norm)
            upright, turned = (
                tf.constant(np.tile(tile, (rows, columns))[..., np.newaxis]) for tile in (pattern, pattern.T)
            )
            tiles = _sign(_enlarge(bits, edge)) * tf.where(_enlarge(turns, edge) > 0, turned, upright)
            # Five tiles on an axis are centered. If more fit, the last one sticks out and is cut.
            first = max(min(height, width) - 5 * edge, 0) // 2
            tiles = tf.pad(tiles, [[0, 0], [first, edge], [first, edge], [0, 0]])[:, :height, :width]
            x_best = self._to_border(tiles, x, epsilon)
        now = margin(y, forward(x_best))
        return _with_found({"iteration": tf.constant(0), "x_best": x_best, "margin": now, "key": key})

    def advance(
        self, forward: Forward, x: tf.Tensor, y: tf.Tensor, state: State, until: tf.Tensor, epsilon: tf.Tensor
    ) -> State:
        """See `StagedAttack`; one proposal and one forward pass per iteration, until every image is broken."""
        schedule = self._schedule(x.shape[ROW], x.shape[COLUMN])
        key = state["key"]
        bounds = linf_bounds(x, epsilon)

        def propose(query: tf.Tensor, x_best: tf.Tensor) -> tf.Tensor:
            if self.norm == "Linf":
                return self._linf_proposal(query, schedule, key, x_best, bounds)
            return self._pyramid_proposal(query, schedule, key, x, x_best, epsilon)

        def step(now: State) -> State:
            x_new = propose(now["iteration"], now["x_best"])
            after = margin(y, forward(x_new))
            better = (now["margin"] > 0) & (after < now["margin"])
            return {
                "iteration": now["iteration"] + 1,
                "x_best": fast_where(better, x_new, now["x_best"]),
                "margin": tf.where(better, after, now["margin"]),
            }

        moving = {name: state[name] for name in ("iteration", "x_best", "margin")}
        moving = while_state(until, step, moving, go_on=lambda now: tf.reduce_any(now["margin"] > 0))
        return _with_found({**moving, "key": key})

    def _linf_proposal(
        self,
        query: tf.Tensor,
        schedule: _Schedule,
        key: tf.Tensor,
        x_best: tf.Tensor,
        bounds: tuple[tf.Tensor, tf.Tensor],
    ) -> tf.Tensor:
        """Moves each channel of a window up or down, to the border of the ball."""
        side = tf.gather(schedule.sides, query)
        _, inside = _window(self._uniform(query, 0, (2,)), side, x_best)
        channels = x_best.shape[-1]
        # A matrix product spreads the signs, one per image and channel, over the pixels of the window. On CPUs this is
        # many times as fast as broadcasting along an axis of three. Pixels inside the window move far beyond the ball
        # and are clipped to its border; pixels outside of it move by 0.
        spread = FAR * tf.reshape(tf.cast(inside, tf.float32), (1, -1, 1)) * tf.eye(channels)[:, tf.newaxis]
        signs = tf.reshape(self._signs(query, key, x_best), (-1, channels))
        moved = tf.matmul(signs, tf.reshape(spread, (channels, -1)))
        return between(x_best + tf.reshape(moved, tf.shape(x_best)), *bounds)

    def _pyramid_proposal(
        self, query: tf.Tensor, schedule: _Schedule, key: tf.Tensor, x: tf.Tensor, x_best: tf.Tensor, epsilon: tf.Tensor
    ) -> tf.Tensor:
        """Adds a pair of pyramids to the perturbation in one window, and clears another window for the budget."""
        channels = x.shape[-1]
        draw = self._uniform(query, 0, (5,))
        side = tf.gather(schedule.sides, query)
        first, inside = _window(draw[:2], side, x)
        _, elsewhere = _window(draw[2:4], side, x)
        pattern = tf.gather_nd(
            schedule.patterns, [tf.gather(schedule.patterns_of, query), tf.cast(2 * draw[4], tf.int32)]
        )
        pattern = tf.roll(pattern, first, (0, 1))[..., tf.newaxis]

        delta = x_best - x
        rest = delta * tf.cast(~(inside | elsewhere), tf.float32)
        here = delta * tf.cast(inside, tf.float32)
        new = pattern * self._signs(query, key, x) + here / (TINY + self._root(self._powers(here, (1, 2))))
        # The channels share the unused budget of the image; each also spends the budget that both windows held.
        unused = tf.maximum((epsilon**2 if self.norm == "L2" else epsilon) - self._powers(delta, (1, 2, 3)), 0.0)
        both = self._powers(delta - rest, (1, 2))
        size = self._root(unused / channels + both)
        if self.norm == "L1":
            size *= channels
        return self._to_border(rest + new * (size / (TINY + self._root(self._powers(new, (1, 2))))), x, epsilon)

    def _schedule(self, height: int, width: int) -> _Schedule:
        sides = [self.side(query, height, width) for query in range(self.num_queries)]
        distinct, patterns_of = np.unique(sides, return_inverse=True)
        patterns = np.zeros((len(distinct), 2, height, width), "float32")
        if self.norm != "Linf":
            for upright_and_turned, side in zip(patterns, distinct, strict=True):
                pattern = pair_of_pyramids(side, self.norm)
                upright_and_turned[:, :side, :side] = pattern, pattern.T
        return _Schedule(tf.constant(sides), tf.constant(patterns_of, tf.int32), tf.constant(patterns))

    def _to_border(self, delta: tf.Tensor, x: tf.Tensor, epsilon: tf.Tensor) -> tf.Tensor:
        """Returns the images at the border of the L2 or L1 ball in the direction `delta`, within the pixel range."""
        if self.norm == "L2":
            return pixel_range(x + delta * (epsilon / (TINY + l2_norm(delta))))
        return l1_ball(x + delta, x, epsilon * (1 - 1e-6))

    def _powers(self, delta: tf.Tensor, axes: tuple[int, ...]) -> tf.Tensor:
        """Returns the norm over some axes, broadcastable; for L2 its square."""
        return tf.reduce_sum(tf.square(delta) if self.norm == "L2" else tf.abs(delta), axis=axes, keepdims=True)

    def _root(self, powers: tf.Tensor) -> tf.Tensor:
        return tf.sqrt(powers) if self.norm == "L2" else powers

    def _uniform(self, query: tf.Tensor, purpose: int, shape: tuple[int, ...]) -> tf.Tensor:
        """Returns numbers in [0, 1) for one query that do not depend on the batch."""
        seed = tf.stack([tf.constant(self.seed, tf.int64), 2 * tf.cast(query, tf.int64) + purpose])
        return tf.random.stateless_uniform(shape, seed)

    def _signs(self, query: tf.Tensor, key: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        """Returns one random sign per image and channel: `(batch, 1, 1, channels)`.

        A sign is the parity of a random subset of the bits of the image's key. This is cheaper than a generator per
        image, and the signs of two images are independent.
        """
        subsets = tf.round(self._uniform(query, 1, (KEY_BITS + 1, x.shape[-1])))
        parity = tf.math.floormod(tf.matmul(key, subsets[1:]) + subsets[0], 2.0)
        return _sign(parity)[:, tf.newaxis, tf.newaxis]


def pair_of_pyramids(side: int, norm: str) -> np.ndarray:
    """Returns a pyramid above one of the opposite sign, of length 1 in the norm: `(side, side)`, float32.

    Each pyramid is a sum of concentric squares; larger squares are lower.
    """
    power = 2 if norm == "L2" else 4

    def unit(values: np.ndarray) -> np.ndarray:
        length = np.linalg.norm(values.ravel(), ord=2 if norm == "L2" else 1)
        return values / max(length, TINY)

    def pyramid(height: int) -> np.ndarray:
        distance = np.maximum.outer(abs(np.arange(height) - height // 2), abs(np.arange(side) - side // 2))
        squares = 1.0 / np.arange(1, max(height, side) // 2 + 2) ** power
        return unit(np.cumsum(squares[::-1])[::-1][distance])

    return unit(np.concatenate([pyramid(side // 2), -pyramid(side - side // 2)])).astype("float32")


def _window(place: tf.Tensor, side: tf.Tensor, x: tf.Tensor) -> tuple[list[tf.Tensor], tf.Tensor]:
    """Returns the first row and column of a window, and which pixels `(height, width, 1)` are in it.

    `place` is two numbers in [0, 1). The last place on each axis is never drawn, as in the authors' code.
    """
    height, width = x.shape[ROW], x.shape[COLUMN]
    places = tf.maximum(tf.constant((height, width)) - side, 1)
    first = tf.cast(place * tf.cast(places, tf.float32), tf.int32)
    rows = tf.range(height)[:, tf.newaxis] - first[0]
    columns = tf.range(width) - first[1]
    inside = (rows >= 0) & (rows < side) & (columns >= 0) & (columns < side)
    return tf.unstack(first), inside[..., tf.newaxis]


def _draw_bits(seeds: tf.Tensor, *shapes: tuple[int, ...]) -> list[tf.Tensor]:
    """Draws zeros and ones, float32, of several shapes `(batch, ...)`, from one seed per image."""
    sizes = [math.prod(shape) for shape in shapes]
    batch = tf.shape(seeds)[0]
    bits = tf.round(uniform_like(tf.zeros((batch, sum(sizes))), seeds, 0.0, 1.0))
    parts = tf.split(bits, sizes, axis=1)
    return [tf.reshape(part, (-1, *shape)) for part, shape in zip(parts, shapes, strict=True)]


def _sign(bits: tf.Tensor) -> tf.Tensor:
    return 1.0 - 2.0 * bits


def _enlarge(tiles: tf.Tensor, edge: int) -> tf.Tensor:
    return tf.repeat(tf.repeat(tiles, edge, axis=ROW), edge, axis=COLUMN)


def _with_found(state: State) -> State:
    return {**state, "found": state["margin"] <= 0, "x_found": state["x_best"]}
