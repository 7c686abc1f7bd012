"""Objectives: what training minimises."""

from tf_robust_sparse.objectives.at import AT
from tf_robust_sparse.objectives.divergences import kl_divergence
from tf_robust_sparse.objectives.mart import MART
from tf_robust_sparse.objectives.mat import MAT
from tf_robust_sparse.objectives.natural import Natural
from tf_robust_sparse.objectives.objective import AttackObjective, Objective
from tf_robust_sparse.objectives.reweighted import REWEIGHTINGS, Reweighted
from tf_robust_sparse.objectives.stability import Stability
from tf_robust_sparse.objectives.trades import TRADES

__all__ = [
    "AT",
    "MART",
    "MAT",
    "REWEIGHTINGS",
    "TRADES",
    "AttackObjective",
    "Natural",
    "Objective",
    "Reweighted",
    "Stability",
    "kl_divergence",
]
