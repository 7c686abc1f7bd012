"""What the prune phase learns in addition to scores: the fraction of each kernel (HARP), and flat scores (S2AP)."""

import dataclasses

import keras

import tf_robust_sparse as trs
from tf_robust_sparse.cli.command_line import BadFlag, about
from tf_robust_sparse.cli.hydra.settings import Phases, Scores
from tf_robust_sparse.cli.sections import scores
from tf_robust_sparse.cli.settings import OnlyFor, Settings, is_given, like, only_with, setting
from tf_robust_sparse.layers.learned_rates import LEAST_SHARE

_PRUNES = only_with("exp_mode", "prune", "all", refuse=True)
_LEARNS = only_with("rates", "learned", refuse=True)


@dataclasses.dataclass
class Rates(Settings):
    """Whether the fraction of each kernel is learned, and how."""

    title = "Phases"

    rates: str = setting(
        "fixed",
        "In prune: spread k over the kernels once, by --allocation, or learn the fraction of each (HARP).",
        choices=("fixed", "learned"),
        identity=True,
        only_for=_PRUNES,
    )
    harp_gamma: float = setting(
        0.01,
        "Weight, in the first epoch, of what learned fractions keep beyond k; published: 0.01, on ImageNet 0.1.",
        identity=True,
        only_for=_LEARNS,
    )
    rate_start: float = setting(
        0.1,
        "Fraction of all entries that learned fractions keep at first, whatever k.",
        upper=1,
        excluded=0,
        identity=True,
        only_for=_LEARNS,
    )
    rate_init: str = setting(
        "uniform",
        "How they are spread at first: the same fraction of each kernel, Erdos-Renyi, or by LAMP.",
        choices=("uniform", "erk", "lamp"),
        identity=True,
        only_for=_LEARNS,
    )

    def check(self) -> None:
        """Checks that the fractions are not also given, and can reach k."""
        if self.rates != "learned":
            return
        if is_given("allocation"):
            allocation = Scores.read().allocation
            raise BadFlag(
                f"--allocation={allocation} spreads fixed fractions; with --rates=learned pass --rate_init={allocation}"
            )
        if self.rate_start <= LEAST_SHARE * Scores.read().k:
            raise BadFlag(f"--rate_start={self.rate_start:g}: expected more than a tenth of --k={Scores.read().k:g}")

    def learned(self, phase: str) -> bool:
        """Returns whether a phase learns them."""
        return self.rates == "learned" and phase == "prune"

    def begin(self, network: keras.Model) -> None:
        """Sets the fractions at first."""
        with about("rate_start", "rate_init"):
            trs.sparsity.begin_rates(network, self.rate_start, self.rate_init)

    def sparsifier(self, phase: str) -> trs.sparsity.LearnedRates | None:
        """Returns what holds them to the budget in a phase that learns them."""
        return trs.sparsity.LearnedRates(Scores.read().k, self.harp_gamma) if self.learned(phase) else None


@dataclasses.dataclass
class Sharpness(scores.Sharpness):
    """Scores that the prune phase moves to where the loss is larger."""

    s2ap_gamma: float = like(
        scores.Sharpness,
        "s2ap_gamma",
        only_for=OnlyFor(
            "--exp_mode=prune or all, without --trainer=freeadv",
            lambda flags: "prune" in Phases.read().names and flags.trainer != "freeadv",
            refuse=True,
        ),
    )
