"""Objectives: what training minimizes."""

from tf_robust_sparse.objectives.at import AT
from tf_robust_sparse.objectives.awp import AWP
from tf_robust_sparse.objectives.clean_and_adversarial import CleanAndAdversarial
from tf_robust_sparse.objectives.consistency import Consistency
from tf_robust_sparse.objectives.crown_ibp import IBP, CrownIBP
from tf_robust_sparse.objectives.cutmix import CutMix
from tf_robust_sparse.objectives.divergences import kl_divergence
from tf_robust_sparse.objectives.dkl import DKL
from tf_robust_sparse.objectives.epsilon_schedules import (
    EpochwiseEpsilon,
    EpsilonSchedule,
    LinearEpsilon,
    SmoothedEpsilon,
    TabledEpsilon,
)
from tf_robust_sparse.objectives.expressive import CCIBP, MTLIBP, SABR, ExpIBP
from tf_robust_sparse.objectives.grad_align import GradAlign
from tf_robust_sparse.objectives.kl_penalty import KLPenalty
from tf_robust_sparse.objectives.l1_penalty import L1Penalty
from tf_robust_sparse.objectives.mart import MART
from tf_robust_sparse.objectives.mat import MAT
from tf_robust_sparse.objectives.mixtrain import MixTrain
from tf_robust_sparse.objectives.natural import Natural
from tf_robust_sparse.objectives.objective import AttackObjective, Losses, Objective
from tf_robust_sparse.objectives.reweighted import Reweighted
from tf_robust_sparse.objectives.s2ap import S2AP
from tf_robust_sparse.objectives.scheduled_radius import ScheduledRadius
from tf_robust_sparse.objectives.stability import Stability
from tf_robust_sparse.objectives.trades import TRADES
from tf_robust_sparse.objectives.vulnerability_suppression import VulnerabilitySuppression

__all__ = [
    "AT",
    "AWP",
    "CCIBP",
    "DKL",
    "IBP",
    "MART",
    "MAT",
    "MTLIBP",
    "S2AP",
    "SABR",
    "TRADES",
    "AttackObjective",
    "CleanAndAdversarial",
    "Consistency",
    "CrownIBP",
    "CutMix",
    "EpochwiseEpsilon",
    "EpsilonSchedule",
    "ExpIBP",
    "GradAlign",
    "KLPenalty",
    "L1Penalty",
    "LinearEpsilon",
    "Losses",
    "MixTrain",
    "Natural",
    "Objective",
    "Reweighted",
    "ScheduledRadius",
    "SmoothedEpsilon",
    "Stability",
    "TabledEpsilon",
    "VulnerabilitySuppression",
    "kl_divergence",
]
