"""Which connections of a network exist, and when that changes."""

from tf_robust_sparse.sparsity import schedules, statistics
from tf_robust_sparse.sparsity.any_model import sparsify
from tf_robust_sparse.sparsity.blocks import BlockPruning
from tf_robust_sparse.sparsity.channel_magnitude import ChannelMagnitudePruning
from tf_robust_sparse.sparsity.connectivity_sampling import ConnectivitySampling
from tf_robust_sparse.sparsity.dynamic_sparsity import DynamicSparsity
from tf_robust_sparse.sparsity.flying_bird import FlyingBird
from tf_robust_sparse.sparsity.flying_bird_plus import FlyingBirdPlus
from tf_robust_sparse.sparsity.keep_fractions import keep_fractions, set_keep_fractions
from tf_robust_sparse.sparsity.learned_rates import LearnedRates, begin_rates
from tf_robust_sparse.sparsity.magnitude import MagnitudePruning
from tf_robust_sparse.sparsity.mask_sparsifier import MaskSparsifier
from tf_robust_sparse.sparsity.mask_structure import relative_cost
from tf_robust_sparse.sparsity.n_m import NM
from tf_robust_sparse.sparsity.obs import OBS
from tf_robust_sparse.sparsity.prunable import Prunable
from tf_robust_sparse.sparsity.rigl import RigL
from tf_robust_sparse.sparsity.scores import scaled_scores, snip_scores, uniform_scores
from tf_robust_sparse.sparsity.sparse_evolution import SET
from tf_robust_sparse.sparsity.sparsifier import Sparsifier

__all__ = [
    "NM",
    "OBS",
    "SET",
    "BlockPruning",
    "ChannelMagnitudePruning",
    "ConnectivitySampling",
    "DynamicSparsity",
    "FlyingBird",
    "FlyingBirdPlus",
    "LearnedRates",
    "MagnitudePruning",
    "MaskSparsifier",
    "Prunable",
    "RigL",
    "Sparsifier",
    "begin_rates",
    "keep_fractions",
    "relative_cost",
    "scaled_scores",
    "schedules",
    "set_keep_fractions",
    "snip_scores",
    "sparsify",
    "statistics",
    "uniform_scores",
]
