"""Learning rates, kept fractions and attack radii for each epoch, as published configurations describe them."""

import itertools
from collections.abc import Sequence
from typing import Any

from tf_robust_sparse import schedules

SCHEDULES = ("cosine", "cosine_ref", "step", "constant")
POLICIES = ("constant_lr", "cosine_lr", "multistep_lr", "manual_multistep_lr", "linear_lr", "exponential_lr", "jump_lr")
RADIUS_COURSES = ("constant", "constant_int", "linear", "exponential", "jump", "cosine")


def epoch_rates(
    schedule: str, initial: float, epochs: int, warmup_epochs: int = 0, warmup_rate: float | None = None
) -> list[float]:
    """Returns the learning rate of each epoch.

    - `"cosine"`: `initial * (1 + cos(pi * e / epochs)) / 2` in epoch `e` from 0.
    - `"cosine_ref"`: the same with `e - 1`, as in HYDRA's code; the peak is in the second epoch.
    - `"step"`: a tenth from 3/4 of the epochs, a hundredth from 9/10.
    - `"constant"`.

    Args:
        schedule: One of the above.
        initial: Highest learning rate, positive.
        epochs: Number of epochs, at least 1.
        warmup_epochs: Number of additional epochs before them, at least 0.
        warmup_rate: Learning rate of the warm-up; `None` for `initial`.

    Raises:
        ValueError: if an argument is out of its range.

    Reference: [Sehwag et al., 2020](https://arxiv.org/abs/2002.10509), the published code of binary sub-networks.
    """
    _check_name("schedule", schedule, SCHEDULES)
    if not initial > 0 or epochs < 1 or warmup_epochs < 0 or (warmup_rate is not None and not warmup_rate > 0):
        raise ValueError(
            "A schedule needs positive learning rates, at least one epoch and no negative number of warm-up epochs. "
            f"Received: initial={initial}, epochs={epochs}, warmup_epochs={warmup_epochs}, warmup_rate={warmup_rate}"
        )
    shape = {"step": "manual_multistep", "cosine_ref": "cosine"}.get(schedule, schedule)
    rate = schedules.course(shape, initial, circle=epochs, milestones=(0.75 * epochs, 0.9 * epochs))
    warmup = [float(initial if warmup_rate is None else warmup_rate)] * warmup_epochs
    return warmup + [rate(epoch - (schedule == "cosine_ref")) for epoch in range(epochs)]


def policy_rates(
    policy: str, initial: float, epochs: int, warmup: int = 0, stages: int = 1, **settings: Any
) -> list[float]:
    """Returns the learning rate of each epoch.

    In the warm-up, epoch e has `initial * (e + 1) / warmup`. After it, the rate follows the shape in the name of the
    policy, as a function of the epochs since the beginning of the stage. `"cosine_lr"` falls within a stage.

    Args:
        policy: One of `POLICIES`.
        initial: Learning rate at the beginning, positive.
        epochs: Number of epochs, including the warm-up.
        warmup: Number of epochs of the warm-up, below `epochs`.
        stages: Number of repetitions of the schedule.
        settings: `alpha`, `interval` (30), `gamma` (0.1), `milestones`, `slope`, `power`, `min_jump`, `jump_interval`,
            and `lowest` and `highest` after the warm-up; see `tf_robust_sparse.schedules.course`.

    Raises:
        ValueError: if an argument is out of its range, or a rate is not positive.

    Reference: [Liu et al., 2022](https://arxiv.org/abs/2202.01341), the published code of binary sub-networks.
    """
    _check_name("policy", policy, POLICIES)
    if not 0 <= warmup < epochs or stages < 1:
        raise ValueError(
            "`epochs` must be larger than `warmup`, and `stages` at least 1. "
            f"Received: epochs={epochs}, warmup={warmup}, stages={stages}"
        )
    length = (epochs - warmup) / stages
    rate = schedules.course(policy.removesuffix("_lr"), initial, circle=length, **{"interval": 30, **settings})
    rates = [initial * (epoch + 1) / warmup for epoch in range(warmup)]
    rates += [rate((epoch - warmup) % length) for epoch in range(warmup, epochs)]
    if min(rates) <= 0:
        raise ValueError(
            f"Learning rates must be positive; change the settings of {policy}. "
            f"Received: {min(rates):g} in epoch {rates.index(min(rates)) + 1}"
        )
    return rates


def gradual_rates(final: float, epochs: int, stages: int = 1, warmup: int = 0) -> list[float]:
    """Returns the fraction kept in each epoch: `final ** ((i + 1) / stages)` in stage i, from 0.

    The warm-up belongs to the first stage.

    Args:
        final: Fraction kept at the end, in (0, 1].
        epochs: Number of epochs, including the warm-up.
        stages: Number of stages, at least 1.
        warmup: Number of epochs before the first stage begins.

    Raises:
        ValueError: if an argument is out of its range.

    Reference: [Liu et al., 2022](https://arxiv.org/abs/2202.01341), the published code of binary sub-networks.
    """
    if not 0 < final <= 1 or stages < 1 or not 0 <= warmup < epochs or stages > epochs - warmup:
        raise ValueError(
            "`final` is in (0, 1], and there are at least as many epochs after the warm-up as stages. "
            f"Received: final={final}, epochs={epochs}, stages={stages}, warmup={warmup}"
        )
    length = (epochs - warmup) / stages
    kept = schedules.course("exponential", 1, power=final, interval=stages)
    return [kept(min(max(int((epoch - warmup) // length), 0), stages - 1) + 1) for epoch in range(epochs)]


def radius_course(
    course: str,
    start: float,
    epochs: int,
    *,
    warmup: float = 0.0,
    segments: Sequence[float] = (),
    segment_ratios: Sequence[float] = (),
    **settings: Any,
) -> list[float]:
    """Returns the radius of each epoch x = 0, 1, ..., in the unit of `start`.

    Before `warmup` the radius is `start * x / warmup`. Then it follows the shape in the name of the course, also as a
    function of x. `"constant_int"` is `"constant"` rounded to integers, in the warm-up too.

    With `segments` s_0 < s_1 < ... the course from s_0 to s_1 repeats in each segment [s_i, s_(i+1)), stretched to its
    length and multiplied by its ratio. Before s_0 the radius is the one at s_0. After the last segment it is the one
    just before s_1, times the last ratio.

    Args:
        course: One of `RADIUS_COURSES`.
        start: Radius at the beginning, positive.
        epochs: Number of epochs, at least 1.
        warmup: Number of epochs of the warm-up, at least 0.
        segments: Epochs at which segments begin and end: two or more, or none.
        segment_ratios: Factor of each segment and one for the epochs after them; 1 by default.
        settings: `slope`, `power`, `interval` (1), `min_jump`, `jump_interval`, `alpha`, `circle`, and `lowest` and
            `highest` after the warm-up; see `tf_robust_sparse.schedules.course`.

    Raises:
        ValueError: if an argument is out of its range, or a radius is negative.

    Reference: [Liu et al., 2022](https://arxiv.org/abs/2202.01341), the published code of binary sub-networks.
    """
    _check_name("course", course, RADIUS_COURSES)
    if epochs < 1 or warmup < 0:
        raise ValueError(f"`epochs` is at least 1 and `warmup` at least 0. Received: epochs={epochs}, warmup={warmup}")
    points = sorted(segments)
    ratios = list(segment_ratios) or [1.0] * len(points)
    if len(set(points)) != len(segments) or len(points) == 1 or len(ratios) < len(points):
        raise ValueError(
            "`segments` are two or more different epochs, with as many `segment_ratios`. "
            f"Received: segments={list(segments)}, segment_ratios={list(segment_ratios)}"
        )
    after_warmup = schedules.course(course.removesuffix("_int"), start, **settings)

    def plain(x: float) -> float:
        radius = after_warmup(x) if x >= warmup else start * x / warmup
        return float(round(radius)) if course == "constant_int" else radius

    def radius_at(x: float) -> float:
        if not points:
            return plain(x)
        first, second = points[:2]
        if x < first:
            return plain(first)
        for (begin, end), ratio in zip(itertools.pairwise(points), ratios, strict=False):
            if x < end:
                return plain(first + (second - first) * (x - begin) / (end - begin)) * ratio
        return plain(second - 1e-6) * ratios[len(points) - 1]

    radii = [radius_at(epoch) for epoch in range(epochs)]
    if min(radii) < 0:
        raise ValueError(
            f"Radii must be at least 0; change the settings of {course}. "
            f"Received: {min(radii):g} in epoch {radii.index(min(radii)) + 1}"
        )
    return radii


def _check_name(argument: str, name: str, names: Sequence[str]) -> None:
    if name not in names:
        raise ValueError(f"`{argument}` must be one of {', '.join(names)}. Received: {argument}={name!r}")
