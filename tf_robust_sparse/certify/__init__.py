"""Certificates: what no perturbation within a ball can change."""

from tf_robust_sparse.certify.bounds import margins
from tf_robust_sparse.certify.certification import CertifiedImage, certified_accuracy, certify_images
from tf_robust_sparse.certify.smoothing import (
    ABSTAIN,
    SmoothedClassifier,
    SmoothingMonitor,
    high_probability_accuracy,
)
from tf_robust_sparse.certify.verification import Verifier, verify_images
from tf_robust_sparse.certify.vnnlib import vnnlib_property

__all__ = [
    "ABSTAIN",
    "CertifiedImage",
    "SmoothedClassifier",
    "SmoothingMonitor",
    "Verifier",
    "certified_accuracy",
    "certify_images",
    "high_probability_accuracy",
    "margins",
    "verify_images",
    "vnnlib_property",
]
