"""The networks by name, for command lines and configurations."""

import functools
from collections.abc import Callable
from typing import Any

import keras

from tf_robust_sparse.models.cnn import large_cnn, small_cnn, vgg4
from tf_robust_sparse.models.lenet import dense_300_100, lenet5_caffe, lenet_conv
from tf_robust_sparse.models.network_builder import activated_by
from tf_robust_sparse.models.resnet import (
    deep_resnet,
    resnet18,
    resnet18_imagenet,
    resnet34,
    resnet34_imagenet,
    resnet50,
    resnet50_imagenet,
    small_resnet,
)
from tf_robust_sparse.models.specifications import SPECIFICATIONS, build_specified
from tf_robust_sparse.models.vgg import vgg16, vgg16_dropout
from tf_robust_sparse.models.wide_resnet import wrn28_2, wrn28_4, wrn28_10, wrn34_10

# Name -> builder; all builders take the same keyword arguments.
NETWORKS: dict[str, Callable[..., keras.Model]] = {
    "vgg16": vgg16,
    "vgg16_dropout": vgg16_dropout,
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet50": resnet50,
    **{f"resnet{depth}": functools.partial(deep_resnet, depth) for depth in (101, 152)},
    "resnet18_imagenet": resnet18_imagenet,
    "resnet34_imagenet": resnet34_imagenet,
    "resnet50_imagenet": resnet50_imagenet,
    **{
        f"resnet{depth}_imagenet": functools.partial(
            deep_resnet, depth, num_classes=1000, input_shape=(224, 224, 3), imagenet=True
        )
        for depth in (101, 152)
    },
    **{
        f"resnet{depth}_{widths}": functools.partial(small_resnet, depth, widths)
        for depth, all_widths in ((18, ("p01", "p1")), (34, ("p0", "p01", "p05", "p1")), (50, ("p01", "p1")))
        for widths in all_widths
    },
    **{
        f"resnet{depth}_p01_imagenet": functools.partial(small_resnet, depth, "p01", imagenet=True)
        for depth in (18, 34)
    },
    "wrn28_2": wrn28_2,
    "wrn28_4": wrn28_4,
    "wrn28_10": wrn28_10,
    "wrn34_10": wrn34_10,
    "lenet5_caffe": lenet5_caffe,
    "lenet_conv": lenet_conv,
    "dense_300_100": dense_300_100,
    "small_cnn": small_cnn,
    "large_cnn": large_cnn,
    "vgg4": vgg4,
    **{name: functools.partial(build_specified, name) for name in SPECIFICATIONS},
}


def build(name: str, activation: str = "relu", **kwargs: Any) -> keras.Model:
    """Builds the network called `name`.

    Args:
        name: A key of `NETWORKS`.
        activation: `"relu"`, or `"silu"`, `x * sigmoid(x)`, which is smooth and makes robust training better.
        **kwargs: Arguments of the builder, such as `num_classes=100` or `kernel="rewiring"`.

    Returns:
        A functional model from images to logits.

    Raises:
        ValueError: if there is no such network, or an argument is out of its range.
    """
    if name not in NETWORKS:
        raise ValueError(f"`name` must be one of {', '.join(NETWORKS)}. Received: name={name!r}")
    with activated_by(activation):
        return NETWORKS[name](**kwargs)
