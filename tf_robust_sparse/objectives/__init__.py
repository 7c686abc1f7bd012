"""Objectives: what training minimises."""

from tf_robust_sparse.objectives.at import AT
from tf_robust_sparse.objectives.clean_and_adversarial import CleanAndAdversarial
from tf_robust_sparse.objectives.divergences import kl_divergence
from tf_robust_sparse.objectives.l1_penalty import L1Penalty
from tf_robust_sparse.objectives.label_smoothing import smoothed_cross_entropy, smoothed_labels
from tf_robust_sparse.objectives.mart import MART
from tf_robust_sparse.objectives.mat import MAT
from tf_robust_sparse.objectives.natural import Natural
from tf_robust_sparse.objectives.objective import AttackObjective, Objective
from tf_robust_sparse.objectives.stability import Stability
from tf_robust_sparse.objectives.trades import TRADES

__all__ = [
    "AT",
    "MART",
    "MAT",
    "TRADES",
    "AttackObjective",
    "CleanAndAdversarial",
    "L1Penalty",
    "Natural",
    "Objective",
    "Stability",
    "kl_divergence",
    "smoothed_cross_entropy",
    "smoothed_labels",
]
