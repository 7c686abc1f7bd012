"""Evaluation: numbers for a finished network."""

from tf_robust_sparse.evaluation.corruption_accuracy import evaluate_corruptions
from tf_robust_sparse.evaluation.foolbox_eval import foolbox_linf_pgd
from tf_robust_sparse.evaluation.robust_accuracy import evaluate_robustness, robust_accuracy
from tf_robust_sparse.evaluation.saved_model import SavedModelClassifier, load_saved_model

__all__ = [
    "SavedModelClassifier",
    "evaluate_corruptions",
    "evaluate_robustness",
    "foolbox_linf_pgd",
    "load_saved_model",
    "robust_accuracy",
]
