"""Networks that return logits: plain functional Keras models, dense or sparse from the same builder."""

from tf_robust_sparse.models.catalog import NETWORKS, build
from tf_robust_sparse.models.cnn import large_cnn, small_cnn, vgg4
from tf_robust_sparse.models.from_keras import from_keras
from tf_robust_sparse.models.kernel_initialization import KERNEL_INITIALIZATIONS, initialize_kernels
from tf_robust_sparse.models.lenet import dense_300_100, lenet5_caffe, lenet_conv
from tf_robust_sparse.models.network_builder import ACTIVATIONS, NORMALIZATIONS, Variant
from tf_robust_sparse.models.resnet import (
    resnet18,
    resnet18_imagenet,
    resnet34,
    resnet34_imagenet,
    resnet50,
    resnet50_imagenet,
)
from tf_robust_sparse.models.stacked import can_be_stacked, members_of, stack
from tf_robust_sparse.models.unbiased_dense import unbiased_dense_300_100
from tf_robust_sparse.models.vgg import INPUT_NORMS, vgg16, vgg16_dropout
from tf_robust_sparse.models.wide_resnet import wrn28_2, wrn28_4, wrn28_10, wrn34_10

__all__ = [
    "ACTIVATIONS",
    "INPUT_NORMS",
    "KERNEL_INITIALIZATIONS",
    "NETWORKS",
    "NORMALIZATIONS",
    "Variant",
    "build",
    "can_be_stacked",
    "dense_300_100",
    "from_keras",
    "initialize_kernels",
    "large_cnn",
    "lenet5_caffe",
    "lenet_conv",
    "members_of",
    "resnet18",
    "resnet18_imagenet",
    "resnet34",
    "resnet34_imagenet",
    "resnet50",
    "resnet50_imagenet",
    "small_cnn",
    "stack",
    "unbiased_dense_300_100",
    "vgg4",
    "vgg16",
    "vgg16_dropout",
    "wrn28_2",
    "wrn28_4",
    "wrn28_10",
    "wrn34_10",
]
