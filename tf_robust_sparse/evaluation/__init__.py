"""Evaluation: numbers for a finished network."""

from tf_robust_sparse.evaluation.auto_attack import AutoAttack
from tf_robust_sparse.evaluation.corruption_accuracy import evaluate_corruptions
from tf_robust_sparse.evaluation.efficiency import efficiency, gated_units
from tf_robust_sparse.evaluation.feature_figures import (
    draw_channels,
    draw_distortion_maps,
    draw_distortions,
    draw_features,
    draw_gates,
    draw_layer_distortions,
    draw_loss_surfaces,
    draw_strength,
)
from tf_robust_sparse.evaluation.figure_style import attack_name, check_matplotlib
from tf_robust_sparse.evaluation.figures import draw_certified, draw_sweep
from tf_robust_sparse.evaluation.foolbox_eval import foolbox_linf_pgd
from tf_robust_sparse.evaluation.latency import median_durations, median_latency, onnx_runtime
from tf_robust_sparse.evaluation.leaderboard import pruning_benchmark_row, radius, robustbench_row
from tf_robust_sparse.evaluation.learning_curve import draw_learning_curve
from tf_robust_sparse.evaluation.loss_surface import LossSurface, loss_surface
from tf_robust_sparse.evaluation.mask_figures import (
    draw_channels_between,
    draw_kept_per_layer,
    draw_kept_weights,
    draw_layout,
    draw_structure,
)
from tf_robust_sparse.evaluation.minimum_norms import minimum_norms
from tf_robust_sparse.evaluation.pixel_range import with_pixel_range
from tf_robust_sparse.evaluation.report_page import write_report
from tf_robust_sparse.evaluation.robust_accuracy import evaluate_robustness, robust_accuracy
from tf_robust_sparse.evaluation.robustness_suite import RobustnessSuite
from tf_robust_sparse.evaluation.saved_model import load_saved_model
from tf_robust_sparse.evaluation.security_curve import security_curve
from tf_robust_sparse.evaluation.softmax_head import without_softmax
from tf_robust_sparse.evaluation.vulnerability import VulnerabilityMonitor, vulnerability

__all__ = [
    "AutoAttack",
    "LossSurface",
    "RobustnessSuite",
    "VulnerabilityMonitor",
    "attack_name",
    "check_matplotlib",
    "draw_certified",
    "draw_channels",
    "draw_channels_between",
    "draw_distortion_maps",
    "draw_distortions",
    "draw_features",
    "draw_gates",
    "draw_kept_per_layer",
    "draw_kept_weights",
    "draw_layer_distortions",
    "draw_layout",
    "draw_learning_curve",
    "draw_loss_surfaces",
    "draw_strength",
    "draw_structure",
    "draw_sweep",
    "efficiency",
    "evaluate_corruptions",
    "evaluate_robustness",
    "foolbox_linf_pgd",
    "gated_units",
    "load_saved_model",
    "loss_surface",
    "median_durations",
    "median_latency",
    "minimum_norms",
    "onnx_runtime",
    "pruning_benchmark_row",
    "radius",
    "robust_accuracy",
    "robustbench_row",
    "security_curve",
    "vulnerability",
    "with_pixel_range",
    "without_softmax",
    "write_report",
]
