"""Evaluation: numbers for a finished network."""

from tf_robust_sparse.evaluation.auto_attack import AutoAttack
from tf_robust_sparse.evaluation.efficiency import efficiency
from tf_robust_sparse.evaluation.foolbox_eval import foolbox_linf_pgd
from tf_robust_sparse.evaluation.minimum_norms import minimum_norms
from tf_robust_sparse.evaluation.pixel_range import with_pixel_range
from tf_robust_sparse.evaluation.robust_accuracy import evaluate_robustness, robust_accuracy
from tf_robust_sparse.evaluation.robustness_suite import RobustnessSuite
from tf_robust_sparse.evaluation.saved_model import load_saved_model
from tf_robust_sparse.evaluation.softmax_head import without_softmax
from tf_robust_sparse.evaluation.vulnerability import VulnerabilityMonitor, vulnerability

__all__ = [
    "AutoAttack",
    "RobustnessSuite",
    "VulnerabilityMonitor",
    "efficiency",
    "evaluate_robustness",
    "foolbox_linf_pgd",
    "load_saved_model",
    "minimum_norms",
    "robust_accuracy",
    "vulnerability",
    "with_pixel_range",
    "without_softmax",
]
