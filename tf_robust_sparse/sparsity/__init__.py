"""Which connections of a network exist, and when that changes."""

from tf_robust_sparse.sparsity import masked_kernels, schedules, statistics
from tf_robust_sparse.sparsity.allocation import layer_counts, layer_fractions
from tf_robust_sparse.sparsity.any_model import sparsify
from tf_robust_sparse.sparsity.binarization import StochasticBinarization
from tf_robust_sparse.sparsity.blocks import POOLINGS, BlockPruning
from tf_robust_sparse.sparsity.channel_magnitude import CRITERIA, ChannelMagnitudePruning
from tf_robust_sparse.sparsity.connectivity_sampling import ConnectivitySampling
from tf_robust_sparse.sparsity.dynamic_sparsity import DynamicSparsity
from tf_robust_sparse.sparsity.flying_bird import GROWTHS, FlyingBird
from tf_robust_sparse.sparsity.flying_bird_plus import FlyingBirdPlus
from tf_robust_sparse.sparsity.iterative_magnitude import CUTOFFS, PruningRule, iterative_magnitude
from tf_robust_sparse.sparsity.keep_fractions import ALLOCATIONS, keep_fractions, set_keep_fractions
from tf_robust_sparse.sparsity.magnitude import MagnitudePruning
from tf_robust_sparse.sparsity.mask_sparsifier import MaskSparsifier
from tf_robust_sparse.sparsity.mask_statistics import kept_weights, mask_statistics
from tf_robust_sparse.sparsity.mask_structure import channels_between, mask_structure, relative_cost
from tf_robust_sparse.sparsity.n_m import LARGEST_GROUP, NM
from tf_robust_sparse.sparsity.obs import OBS
from tf_robust_sparse.sparsity.optimizer_slots import slots
from tf_robust_sparse.sparsity.prunable import Prunable
from tf_robust_sparse.sparsity.rigl import RigL
from tf_robust_sparse.sparsity.scores import (
    FAN_SCALED,
    FANS,
    RANDOM_SCORES,
    random_scores,
    rescale_kernels,
    scaled_scores,
    scored_layers,
    snip_scores,
    subnet_layers,
    uniform_scores,
)
from tf_robust_sparse.sparsity.sparse_evolution import SET
from tf_robust_sparse.sparsity.sparsifier import Sparsifier

__all__ = [
    "ALLOCATIONS",
    "CRITERIA",
    "CUTOFFS",
    "FANS",
    "FAN_SCALED",
    "GROWTHS",
    "LARGEST_GROUP",
    "NM",
    "OBS",
    "POOLINGS",
    "RANDOM_SCORES",
    "SET",
    "BlockPruning",
    "ChannelMagnitudePruning",
    "ConnectivitySampling",
    "DynamicSparsity",
    "FlyingBird",
    "FlyingBirdPlus",
    "MagnitudePruning",
    "MaskSparsifier",
    "Prunable",
    "PruningRule",
    "RigL",
    "Sparsifier",
    "StochasticBinarization",
    "channels_between",
    "iterative_magnitude",
    "keep_fractions",
    "kept_weights",
    "layer_counts",
    "layer_fractions",
    "mask_statistics",
    "mask_structure",
    "masked_kernels",
    "random_scores",
    "relative_cost",
    "rescale_kernels",
    "scaled_scores",
    "schedules",
    "scored_layers",
    "set_keep_fractions",
    "slots",
    "snip_scores",
    "sparsify",
    "statistics",
    "subnet_layers",
    "uniform_scores",
]
