"""The radius of the training attack by epoch, as the configurations of binary sub-networks describe it."""

import itertools
from collections.abc import Callable, Sequence

from tf_robust_sparse.schedules import bounded, cosine, exponential, jumps, linear

RADIUS_COURSES = ("constant", "constant_int", "linear", "exponential", "jump", "cosine")


def radius_course(
    course: str,
    start: float,
    epochs: int,
    slope: float = 0.0,
    power: float = 1.0,
    interval: int = 1,
    min_jump: int = 0,
    jump_interval: int = 1,
    alpha: float = 0.0,
    circle: float = 1.0,
    lowest: float | None = None,
    highest: float | None = None,
    warmup: float = 0.0,
    segments: Sequence[float] = (),
    segment_ratios: Sequence[float] = (),
) -> list[float]:
    """Returns the radius of each epoch x = 0, 1, ..., in the unit of `start`.

    Before `warmup` the radius is `start * x / warmup`. From then on, within `lowest` and `highest`:

    - `"constant"`: `start`; `"constant_int"`: the same, rounded, in the warm-up too.
    - `"linear"`: `start + slope * x`.
    - `"exponential"`: `start * power ** (x / interval)`.
    - `"jump"`: `start * power ** (max(x - min_jump + jump_interval, 0) // jump_interval)`.
    - `"cosine"`: `start * (alpha + (1 - alpha) / 2 * (1 + cos(pi * x / circle)))`.

    With `segments` s_0 < s_1 < ... what the course does from s_0 to s_1 is gone through in each of [s_i, s_(i+1)),
    stretched to its length, times the ratio of the segment. Before s_0 the radius is that at s_0; after the last one
    it is that just before s_1, times the last ratio.

    Args:
        course: One of `RADIUS_COURSES`.
        start: Radius at the beginning, positive.
        epochs: Number of epochs, at least 1.
        slope, power, interval, min_jump, jump_interval, alpha, circle, warmup: See above.
        lowest, highest: Bounds after the warm-up; `None` for none.
        segments: Epochs at which segments begin and end, two or more, or none.
        segment_ratios: Factor of each segment, and one for what follows; by default 1.

    Raises:
        ValueError: if an argument is out of its range, or a radius is negative.

    Reference: [Liu et al., 2022](https://arxiv.org/abs/2202.01341), the published code.
    """
    if course not in RADIUS_COURSES:
        raise ValueError(f"`course` must be one of {', '.join(RADIUS_COURSES)}. Received: course={course!r}")
    if not start > 0 or epochs < 1 or interval <= 0 or jump_interval <= 0 or circle <= 0 or warmup < 0:
        raise ValueError(
            "A course begins at a positive radius, with positive intervals and no negative warm-up. Received: "
            f"start={start}, epochs={epochs}, interval={interval}, jump_interval={jump_interval}, circle={circle}, "
            f"warmup={warmup}"
        )
    points = sorted(segments)
    ratios = list(segment_ratios) or [1.0] * len(points)
    if len(set(points)) != len(segments) or len(points) == 1 or len(ratios) < len(points):
        raise ValueError(
            "`segments` are two or more different epochs, with as many `segment_ratios`. "
            f"Received: segments={list(segments)}, segment_ratios={list(segment_ratios)}"
        )

    unbounded = {
        "linear": lambda x: linear(x, start, slope),
        "exponential": lambda x: start * exponential(x, power, interval),
        "jump": lambda x: start * jumps(x, power, min_jump, jump_interval),
        "cosine": lambda x: start * cosine(x, circle, alpha),
    }.get(course, lambda x: start)

    def plain(x: float) -> float:
        radius = bounded(unbounded(x), lowest, highest) if x >= warmup else start * x / warmup
        return float(round(radius)) if course == "constant_int" else radius

    radius_at = _in_segments(plain, points, ratios) if points else plain
    radii = [radius_at(epoch) for epoch in range(epochs)]
    if min(radii) < 0:
        raise ValueError(f"The radius falls to {min(radii):g} in epoch {radii.index(min(radii)) + 1}")
    return radii


def _in_segments(
    plain: Callable[[float], float], points: Sequence[float], ratios: Sequence[float]
) -> Callable[[float], float]:
    first, length = points[0], points[1] - points[0]

    def radius(x: float) -> float:
        if x < first:
            return plain(first)
        for number, (begin, end) in enumerate(itertools.pairwise(points)):
            if x < end:
                return plain(first + length * (x - begin) / (end - begin)) * ratios[number]
        return plain(points[1] - 1e-6) * ratios[len(points) - 1]

    return radius
