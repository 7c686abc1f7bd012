"""Kernels as Keras layers: they hold which entries are connected; `tf_robust_sparse.sparsity` decides it."""

from tf_robust_sparse.deprecation import renamed
from tf_robust_sparse.layers.bayesian import BayesianConv2D, BayesianDense, BayesianScale
from tf_robust_sparse.layers.beta_bernoulli import BetaBernoulliDropout, gates, prior_divergence
from tf_robust_sparse.layers.binary import BinaryConv2D, BinaryDense
from tf_robust_sparse.layers.classifier import check_classifier
from tf_robust_sparse.layers.dropout import Dropout
from tf_robust_sparse.layers.features import FeatureRecorder, distortions, feature_names, with_features
from tf_robust_sparse.layers.forward import inference_forward
from tf_robust_sparse.layers.fusion import compile_elementwise
from tf_robust_sparse.layers.kernel_layer import Conv2DOperation, DenseOperation, KernelLayer
from tf_robust_sparse.layers.kernel_seam import (
    all_layers,
    cached_for_inference,
    cached_kernels,
    convolve,
    folded_kernels,
    inference_logits,
    kernel_l1,
    kernel_layers,
    multiply,
    unfolded_kernels,
)
from tf_robust_sparse.layers.masked import MaskedConv2D, MaskedDense
from tf_robust_sparse.layers.noise import fold_in
from tf_robust_sparse.layers.normalization import BatchNormalization, Normalization, use_unbiased_variance
from tf_robust_sparse.layers.plain import PlainConv2D, PlainDense
from tf_robust_sparse.layers.pooling import MaxPooling2D
from tf_robust_sparse.layers.rewiring import RewiringConv2D, RewiringDense
from tf_robust_sparse.layers.selection import fast_where, largest_mask
from tf_robust_sparse.layers.signed import SignedConv2D, SignedDense
from tf_robust_sparse.layers.subnet import SubnetConv2D, SubnetDense
from tf_robust_sparse.layers.topology import layer_graph
from tf_robust_sparse.layers.training_noise import joined_parts, pass_number, training_noise

# Parametrization -> its dense and convolutional layer; a network builder takes the name as `kernel=`.
KERNELS = {
    "plain": (PlainDense, PlainConv2D),
    "masked": (MaskedDense, MaskedConv2D),
    "rewiring": (RewiringDense, RewiringConv2D),
    "subnet": (SubnetDense, SubnetConv2D),
    "signed": (SignedDense, SignedConv2D),
    "binary": (BinaryDense, BinaryConv2D),
    "bayesian": (BayesianDense, BayesianConv2D),
}

__all__ = [
    "KERNELS",
    "BatchNormalization",
    "BayesianConv2D",
    "BayesianDense",
    "BayesianScale",
    "BetaBernoulliDropout",
    "BinaryConv2D",
    "BinaryDense",
    "Conv2DOperation",
    "DenseOperation",
    "Dropout",
    "FeatureRecorder",
    "KernelLayer",
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
    "all_layers",
    "cached_for_inference",
    "cached_kernels",
    "check_classifier",
    "compile_elementwise",
    "convolve",
    "distortions",
    "fast_where",
    "feature_names",
    "fold_in",
    "folded_kernels",
    "gates",
    "inference_forward",
    "inference_logits",
    "joined_parts",
    "kernel_l1",
    "kernel_layers",
    "largest_mask",
    "layer_graph",
    "multiply",
    "pass_number",
    "prior_divergence",
    "training_noise",
    "unfolded_kernels",
    "use_unbiased_variance",
    "with_features",
]

__getattr__ = renamed(
    __name__,
    {
        "fused": "compile_elementwise",
        "graph": "layer_graph",
        "inference_kernels": "folded_kernels",
        "select": "fast_where",
        "settled_for_inference": "cached_for_inference",
        "settled_kernels": "cached_kernels",
    },
)
