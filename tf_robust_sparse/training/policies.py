"""Learning rates by epoch, in stages that each prune further: the schedules of binary sub-networks."""

from collections.abc import Sequence

from tf_robust_sparse.schedules import bounded, cosine, exponential, jumps, linear, steps

POLICIES = ("constant_lr", "cosine_lr", "multistep_lr", "manual_multistep_lr", "linear_lr", "exponential_lr", "jump_lr")


def policy_rates(
    policy: str,
    initial: float,
    epochs: int,
    warmup: int = 0,
    stages: int = 1,
    alpha: float = 0.0,
    interval: int = 30,
    gamma: float = 0.1,
    milestones: Sequence[int] = (),
    slope: float = 0.0,
    power: float = 1.0,
    min_jump: int = 0,
    jump_interval: int = 1,
    lowest: float | None = None,
    highest: float | None = None,
) -> list[float]:
    """Returns the learning rate of each epoch.

    In the warm-up, epoch e has `initial * (e + 1) / warmup`. After it, with e counted from the beginning of the stage
    and E the length of a stage, `(epochs - warmup) / stages`:

    - `"constant_lr"`: `initial`.
    - `"cosine_lr"`: `initial * (alpha + (1 - alpha) / 2 * (1 + cos(pi * e / E)))`.
    - `"multistep_lr"`: `initial * gamma ** (e // interval)`.
    - `"manual_multistep_lr"`: `initial * gamma ** (number of milestones at or before e)`.
    - `"linear_lr"`: `initial + slope * e`.
    - `"exponential_lr"`: `initial * power ** (e / interval)`.
    - `"jump_lr"`: `initial * power ** (max(e - min_jump + jump_interval, 0) // jump_interval)`.

    Args:
        policy: One of `POLICIES`.
        initial: Learning rate at the beginning, positive.
        epochs: Number of epochs, those of the warm-up included.
        warmup: Epochs of the warm-up, below `epochs`.
        stages: How often the schedule is gone through.
        alpha, interval, gamma, milestones, slope, power, min_jump, jump_interval: See above.
        lowest, highest: Bounds of the rates after the warm-up; `None` for none.

    Raises:
        ValueError: if an argument is out of its range, or a rate is not positive.

    Reference: [Liu et al., 2022](https://arxiv.org/abs/2202.01341), the published code.
    """
    if policy not in POLICIES:
        raise ValueError(f"`policy` must be one of {', '.join(POLICIES)}. Received: policy={policy!r}")
    if not initial > 0 or not 0 <= warmup < epochs or stages < 1 or interval <= 0 or jump_interval <= 0:
        raise ValueError(
            "A schedule needs a positive learning rate, more epochs than those of the warm-up, and positive intervals. "
            f"Received: initial={initial}, epochs={epochs}, warmup={warmup}, stages={stages}, interval={interval}, "
            f"jump_interval={jump_interval}"
        )
    length = (epochs - warmup) / stages

    rate = {
        "constant_lr": lambda epoch: initial,
        "cosine_lr": lambda epoch: initial * cosine(epoch, length, alpha),
        "multistep_lr": lambda epoch: initial * jumps(epoch, gamma, interval, interval),
        "manual_multistep_lr": lambda epoch: initial * steps(epoch, gamma, milestones),
        "linear_lr": lambda epoch: linear(epoch, initial, slope),
        "exponential_lr": lambda epoch: initial * exponential(epoch, power, interval),
        "jump_lr": lambda epoch: initial * jumps(epoch, power, min_jump, jump_interval),
    }[policy]
    rates = [initial * (epoch + 1) / warmup for epoch in range(warmup)]
    rates += [bounded(rate((epoch - warmup) % length), lowest, highest) for epoch in range(warmup, epochs)]
    if min(rates) <= 0:
        raise ValueError(f"The learning rate falls to {min(rates):g} in epoch {rates.index(min(rates)) + 1}")
    return rates


def gradual_rates(final: float, epochs: int, stages: int = 1, warmup: int = 0) -> list[float]:
    """Returns the fraction that is kept in each epoch: `final ** ((i + 1) / stages)` in stage i, from 0.

    The warm-up belongs to the first stage.

    Args:
        final: Fraction kept at the end, in (0, 1].
        epochs: Number of epochs, those of the warm-up included.
        stages: Number of stages, at least 1.
        warmup: Epochs before the stages begin to count.

    Raises:
        ValueError: if an argument is out of its range.

    Reference: [Liu et al., 2022](https://arxiv.org/abs/2202.01341), the published code.
    """
    if not 0 < final <= 1 or stages < 1 or not 0 <= warmup < epochs or stages > epochs - warmup:
        raise ValueError(
            "`final` is in (0, 1], and there are at least as many epochs after the warm-up as stages. "
            f"Received: final={final}, epochs={epochs}, stages={stages}, warmup={warmup}"
        )
    length = (epochs - warmup) / stages
    stage_of = [min(max(int((epoch - warmup) // length), 0), stages - 1) for epoch in range(epochs)]
    return [exponential(stage + 1, final, stages) for stage in stage_of]
