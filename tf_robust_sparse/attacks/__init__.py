"""Attacks: find a bad input in the ball around each image."""

from tf_robust_sparse.attacks.apgd import APGD
from tf_robust_sparse.attacks.fab import FAB
from tf_robust_sparse.attacks.fgsm import L2FGSM, LinfFGSM
from tf_robust_sparse.attacks.gradient_attack import GradientAttack
from tf_robust_sparse.attacks.losses import cross_entropy, dlr, log_odds, margin, targeted_dlr
from tf_robust_sparse.attacks.nfgsm import NFGSM
from tf_robust_sparse.attacks.pgd import L2PGD, L2BestPGD, LinfBestPGD, LinfPGD
from tf_robust_sparse.attacks.square import Square
from tf_robust_sparse.attacks.staged_attack import Run, StagedAttack
from tf_robust_sparse.layers.forward import inference_forward
from tf_robust_sparse.layers.noise import fold_in, normal_like, uniform_like

__all__ = [
    "APGD",
    "FAB",
    "L2FGSM",
    "L2PGD",
    "NFGSM",
    "GradientAttack",
    "L2BestPGD",
    "LinfBestPGD",
    "LinfFGSM",
    "LinfPGD",
    "Run",
    "Square",
    "StagedAttack",
    "cross_entropy",
    "dlr",
    "fold_in",
    "inference_forward",
    "log_odds",
    "margin",
    "normal_like",
    "targeted_dlr",
    "uniform_like",
]
