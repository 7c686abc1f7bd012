"""Attacks: find a bad input in the ball around each image."""

from tf_robust_sparse.attacks.apgd import APGD
from tf_robust_sparse.attacks.ddn import DDN
from tf_robust_sparse.attacks.deepfool import DeepFool
from tf_robust_sparse.attacks.fab import FAB
from tf_robust_sparse.attacks.fgsm import L2FGSM, LinfFGSM
from tf_robust_sparse.attacks.fmn import FMN
from tf_robust_sparse.attacks.gradient_attack import GradientAttack
from tf_robust_sparse.attacks.ho_fmn import HOFMN
from tf_robust_sparse.attacks.losses import cross_entropy
from tf_robust_sparse.attacks.minimum_norm import MinimumNormAttack
from tf_robust_sparse.attacks.nfgsm import NFGSM
from tf_robust_sparse.attacks.pgd import L2PGD, LinfPGD
from tf_robust_sparse.attacks.sigma_zero import SigmaZero
from tf_robust_sparse.attacks.square import Square

__all__ = [
    "APGD",
    "DDN",
    "FAB",
    "FMN",
    "HOFMN",
    "L2FGSM",
    "L2PGD",
    "NFGSM",
    "DeepFool",
    "GradientAttack",
    "LinfFGSM",
    "LinfPGD",
    "MinimumNormAttack",
    "SigmaZero",
    "Square",
    "cross_entropy",
]
