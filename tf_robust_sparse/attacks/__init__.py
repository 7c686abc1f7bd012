"""Attacks: find a bad input in the ball around each image."""

from tf_robust_sparse.attacks.apgd import APGD
from tf_robust_sparse.attacks.fab import FAB
from tf_robust_sparse.attacks.fgsm import L2FGSM, LinfFGSM
from tf_robust_sparse.attacks.gradient_attack import GradientAttack
from tf_robust_sparse.attacks.losses import cross_entropy
from tf_robust_sparse.attacks.nfgsm import NFGSM
from tf_robust_sparse.attacks.pgd import L2PGD, LinfPGD
from tf_robust_sparse.attacks.square import Square
from tf_robust_sparse.attacks.staged_attack import StagedAttack

__all__ = [
    "APGD",
    "FAB",
    "L2FGSM",
    "L2PGD",
    "NFGSM",
    "GradientAttack",
    "LinfFGSM",
    "LinfPGD",
    "Square",
    "StagedAttack",
    "cross_entropy",
]
