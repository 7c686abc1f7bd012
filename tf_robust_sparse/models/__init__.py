"""Networks that return logits: plain functional Keras models, dense or sparse from the same builder."""

from tf_robust_sparse.deprecation import renamed
from tf_robust_sparse.models.catalog import NETWORKS, build
from tf_robust_sparse.models.cnn import large_cnn, small_cnn
from tf_robust_sparse.models.from_keras import from_keras
from tf_robust_sparse.models.lenet import dense_300_100, lenet5_caffe, lenet_conv
from tf_robust_sparse.models.network_builder import Variant
from tf_robust_sparse.models.resnet import resnet18, resnet34, resnet50
from tf_robust_sparse.models.stacked import stack
from tf_robust_sparse.models.vgg import vgg16
from tf_robust_sparse.models.wide_resnet import wrn28_2, wrn28_10, wrn34_10

__all__ = [
    "NETWORKS",
    "Variant",
    "build",
    "dense_300_100",
    "from_keras",
    "large_cnn",
    "lenet5_caffe",
    "lenet_conv",
    "resnet18",
    "resnet34",
    "resnet50",
    "small_cnn",
    "stack",
    "vgg16",
    "wrn28_2",
    "wrn28_10",
    "wrn34_10",
]

# Builders that are reached by `build(name)`.
__getattr__ = renamed(
    __name__,
    {
        "resnet18_imagenet": "resnet.resnet18_imagenet",
        "resnet34_imagenet": "resnet.resnet34_imagenet",
        "resnet50_imagenet": "resnet.resnet50_imagenet",
        "unbiased_dense_300_100": "unbiased_dense.unbiased_dense_300_100",
        "vgg16_dropout": "vgg.vgg16_dropout",
        "vgg4": "cnn.vgg4",
        "wrn28_4": "wide_resnet.wrn28_4",
    },
)
