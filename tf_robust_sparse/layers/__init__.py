"""Kernels as Keras layers: they hold which entries are connected; `tf_robust_sparse.sparsity` decides it."""

from tf_robust_sparse.deprecation import renamed
from tf_robust_sparse.layers.bayesian import BayesianConv2D, BayesianDense
from tf_robust_sparse.layers.beta_bernoulli import BetaBernoulliDropout, gates
from tf_robust_sparse.layers.binary import BinaryConv2D, BinaryDense
from tf_robust_sparse.layers.dropout import Dropout
from tf_robust_sparse.layers.kernel_layer import KernelLayer
from tf_robust_sparse.layers.kernel_seam import cached_kernels, convolve, folded_kernels, kernel_layers, multiply
from tf_robust_sparse.layers.learned_rates import LearnedRateConv2D, LearnedRateDense
from tf_robust_sparse.layers.masked import MaskedConv2D, MaskedDense
from tf_robust_sparse.layers.normalization import BatchNormalization, Normalization
from tf_robust_sparse.layers.plain import PlainConv2D, PlainDense
from tf_robust_sparse.layers.pooling import MaxPooling2D
from tf_robust_sparse.layers.rewiring import RewiringConv2D, RewiringDense
from tf_robust_sparse.layers.selection import largest_mask
from tf_robust_sparse.layers.signed import SignedConv2D, SignedDense
from tf_robust_sparse.layers.subnet import SubnetConv2D, SubnetDense

# Parametrization -> its dense and convolutional layer; a network builder takes the name as `kernel=`.
KERNELS = {
    "plain": (PlainDense, PlainConv2D),
    "masked": (MaskedDense, MaskedConv2D),
    "rewiring": (RewiringDense, RewiringConv2D),
    "subnet": (SubnetDense, SubnetConv2D),
    "learned_rate": (LearnedRateDense, LearnedRateConv2D),
    "signed": (SignedDense, SignedConv2D),
    "binary": (BinaryDense, BinaryConv2D),
    "bayesian": (BayesianDense, BayesianConv2D),
}

__all__ = [
    "KERNELS",
    "BatchNormalization",
    "BayesianConv2D",
    "BayesianDense",
    "BetaBernoulliDropout",
    "BinaryConv2D",
    "BinaryDense",
    "Dropout",
    "KernelLayer",
    "LearnedRateConv2D",
    "LearnedRateDense",
    "MaskedConv2D",
    "MaskedDense",
    "MaxPooling2D",
    "Normalization",
    "PlainConv2D",
    "PlainDense",
    "RewiringConv2D",
    "RewiringDense",
    "SignedConv2D",
    "SignedDense",
    "SubnetConv2D",
    "SubnetDense",
    "cached_kernels",
    "convolve",
    "folded_kernels",
    "gates",
    "kernel_layers",
    "largest_mask",
    "multiply",
]

__getattr__ = renamed(
    __name__,
    {
        "fused": "fusion.compile_elementwise",
        "graph": "topology.layer_graph",
        "inference_kernels": "folded_kernels",
        "select": "selection.fast_where",
        "settled_for_inference": "kernel_seam.cached_for_inference",
        "settled_kernels": "cached_kernels",
    },
)
