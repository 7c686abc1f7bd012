"""Settings and data of rounds of train, prune and rewind."""

import dataclasses
import math
from typing import NamedTuple

import numpy as np

STRATEGIES = ("no_pruning", "reinit_rand", "reinit_orig", "reinit_none")
TRAINED = "trained"


class LabeledImages(NamedTuple):
    """Images `x` `(n, height, width, channels)` with labels `y` `(n,)`, and the label smoothing of their losses."""

    x: np.ndarray
    y: np.ndarray
    label_smoothing: float = 0.0


@dataclasses.dataclass(frozen=True)
class RoundPlan:
    """Settings of the rounds of train, prune and rewind.

    Args:
        train_iters: Number of optimization steps of a round, at least 1.
        prune_iters: Number of prunings; there is one more round than prunings, and one round with `"no_pruning"`.
        eval_every: Number of steps between two measurements; the first is before any step, the last after all steps.
        batch_size: Number of images per step and trial.
        strategy: Where round k >= 1 begins: `"reinit_orig"` at the initial weights of round 0, `"reinit_rand"` at new
            weights, `"reinit_none"` at the final weights of round k - 1.
        rewind_step: With `"reinit_orig"`: begin at the weights of round 0 after this number of steps, or `"trained"`
            for its final weights.
        seed: Seed of all random draws, together with the trial, the round and the purpose.

    Raises:
        ValueError: if a setting is out of its range.
    """

    train_iters: int = 50_000
    prune_iters: int = 20
    eval_every: int = 500
    batch_size: int = 60
    strategy: str = "reinit_orig"
    rewind_step: int | str = 0
    seed: int = 1234

    def __post_init__(self):
        for name, least in (("train_iters", 1), ("prune_iters", 0), ("eval_every", 1), ("batch_size", 1), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"`{name}` is an integer, at least {least}. Received: {name}={value!r}")
        if self.strategy not in STRATEGIES:
            raise ValueError(f"`strategy` must be one of {', '.join(STRATEGIES)}. Received: strategy={self.strategy!r}")
        rewind = self.rewind_step
        if rewind != TRAINED and not (isinstance(rewind, int) and 0 <= rewind < self.train_iters):
            raise ValueError(
                f"`rewind_step` is a step before the last of round 0, {self.train_iters}, or {TRAINED!r} for its end. "
                f"Received: rewind_step={rewind!r}"
            )
        if rewind != 0 and self.strategy != "reinit_orig":
            raise ValueError(
                '`rewind_step` requires strategy="reinit_orig". '
                f"Received: rewind_step={rewind!r}, strategy={self.strategy!r}"
            )

    @property
    def rounds(self) -> int:
        """Number of networks that a trial trains."""
        return 1 if self.strategy == "no_pruning" else self.prune_iters + 1

    @property
    def steps_per_call(self) -> int:
        """Number of steps per call: the largest that divides all steps where something is measured or kept."""
        rewind = self.rewind_step if isinstance(self.rewind_step, int) else 0
        return math.gcd(self.train_iters, min(self.eval_every, self.train_iters), rewind)

    def stream(self, trial: int, number: int, purpose: int) -> int:
        """Returns the seed of a trial, a round and a purpose, in [0, 2**31)."""
        words = np.random.SeedSequence([self.seed, trial, number, purpose]).generate_state(1)
        return int(words[0]) >> 1

    def is_measured(self, step: int) -> bool:
        """Returns whether networks are measured after this number of steps."""
        return step % self.eval_every == 0 or step == self.train_iters
