"""Certificates: what no perturbation within a ball can change."""

from tf_robust_sparse.certify.bounds import margins
from tf_robust_sparse.certify.branching import branch_and_bound
from tf_robust_sparse.certify.certification import certified_accuracy, certify_images
from tf_robust_sparse.certify.smoothing import SmoothedClassifier
from tf_robust_sparse.certify.verification import Verifier, verify_images
from tf_robust_sparse.certify.vnnlib import vnnlib_property

__all__ = [
    "SmoothedClassifier",
    "Verifier",
    "branch_and_bound",
    "certified_accuracy",
    "certify_images",
    "margins",
    "verify_images",
    "vnnlib_property",
]
