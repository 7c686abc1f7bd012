"""Certificates: what no perturbation within a ball can change."""

from tf_robust_sparse.certify.bounds import check_choices, margins, mixed_margins, specification
from tf_robust_sparse.certify.certification import CertifiedImage, certified_accuracy, certify_images
from tf_robust_sparse.certify.smoothing import (
    ABSTAIN,
    Certificate,
    SmoothedClassifier,
    SmoothingMonitor,
    certified_radius,
    high_probability_accuracy,
    lower_confidence_bound,
    prediction_p_value,
)
from tf_robust_sparse.certify.verification import VerifiedImage, Verifier, verify_images
from tf_robust_sparse.certify.vnnlib import vnnlib_property

__all__ = [
    "ABSTAIN",
    "Certificate",
    "CertifiedImage",
    "SmoothedClassifier",
    "SmoothingMonitor",
    "VerifiedImage",
    "Verifier",
    "certified_accuracy",
    "certified_radius",
    "certify_images",
    "check_choices",
    "high_probability_accuracy",
    "lower_confidence_bound",
    "margins",
    "mixed_margins",
    "prediction_p_value",
    "specification",
    "verify_images",
    "vnnlib_property",
]
