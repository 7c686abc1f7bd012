"""Attacks: find a bad input in the ball around each image."""

from tf_robust_sparse.attacks.fgsm import L2FGSM, LinfFGSM
from tf_robust_sparse.attacks.forward import inference_forward
from tf_robust_sparse.attacks.gradient_attack import GradientAttack
from tf_robust_sparse.attacks.losses import cross_entropy
from tf_robust_sparse.attacks.noise import fold_in, normal_like, uniform_like
from tf_robust_sparse.attacks.pgd import L2PGD, LinfPGD

__all__ = [
    "L2FGSM",
    "L2PGD",
    "GradientAttack",
    "LinfFGSM",
    "LinfPGD",
    "cross_entropy",
    "fold_in",
    "inference_forward",
    "normal_like",
    "uniform_like",
]
