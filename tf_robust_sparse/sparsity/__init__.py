"""Which connections exist, and when that changes."""

from tf_robust_sparse.sparsity import schedules, statistics
from tf_robust_sparse.sparsity.allocation import draw_layers, global_budget
from tf_robust_sparse.sparsity.connectivity_sampling import ConnectivitySampling
from tf_robust_sparse.sparsity.magnitude import MagnitudePruning
from tf_robust_sparse.sparsity.masks import draw_dormant, top_k_mask
from tf_robust_sparse.sparsity.optimizer_slots import slots
from tf_robust_sparse.sparsity.sparsifier import Sparsifier

__all__ = [
    "ConnectivitySampling",
    "MagnitudePruning",
    "Sparsifier",
    "draw_dormant",
    "draw_layers",
    "global_budget",
    "schedules",
    "slots",
    "statistics",
    "top_k_mask",
]
