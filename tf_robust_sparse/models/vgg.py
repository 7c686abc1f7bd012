"""VGG networks for small images, with and without batch norm."""

import math
from collections.abc import Sequence
from typing import Any

import keras

from tf_robust_sparse import layers
from tf_robust_sparse.layers.bayesian import BayesianScale
from tf_robust_sparse.models.network_builder import NetworkBuilder

VGG_WIDTHS = {  # depth -> widths of the convolutions of each block
    2: ((64,), (64,)),
    4: ((64, 64), (128, 128)),
    6: ((64, 64), (128, 128), (256, 256)),
    8: ((64, 64), (128, 128), (256, 256), (512, 512)),
    11: ((64,), (128,), (256, 256), (512, 512), (512, 512)),
    13: ((64, 64), (128, 128), (256, 256), (512, 512), (512, 512)),
    16: ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)),
}
# Initial connectivity by block; every other layer starts at half of the global connectivity.
_INITIAL_CONNECTIVITY = {1: 0.6, 2: 0.2}
# Layer number in `vgg16_dropout` -> rate of the dropout after it.
_DROPOUT = {1: 0.3, **dict.fromkeys((3, 5, 6, 8, 9, 11, 12), 0.4)}
_BAYESIAN = {"prior_stddev": 0.1, "initial_rho": -5.0}
INPUT_NORMS = ("image", "channel", "none")


def vgg16(
    num_classes: int = 10,
    input_shape: Sequence[int] = (32, 32, 3),
    kernel: str = "plain",
    connectivity: float | None = None,
    padding_mode: str = "tf_same",
    seed: int | None = None,
    synchronized_batch_norm: bool = False,
    name: str = "vgg16",
) -> keras.Model:
    """Builds VGG16: 13 convolutions 3x3 with batch norm, four max-pools, two dense layers of 256, the classifier.

    There is no pool after the last block. The remaining map is flattened: 2x2x512 from 32x32, 1x1x512 from 28x28. All
    strides are 1, so the padding modes agree.

    Args: see `tf_robust_sparse.models.network_builder`. Images have at least 16x16 pixels.

    Returns:
        A model from `(batch, *input_shape)` in [0, 1] to logits `(batch, num_classes)`.

    Raises:
        ValueError: if an argument is out of its range.

    Reference: [Simonyan and Zisserman, 2015](https://arxiv.org/abs/1409.1556); the initial connectivity is that of
        Özdenizci and Legenstein, ICML 2021.
    """
    build = NetworkBuilder(
        "vgg16", 16, num_classes, input_shape, kernel, connectivity, padding_mode, seed, synchronized_batch_norm
    )
    return build.model(vgg_logits(build, 16, batch_norm=True), name)


def vgg_logits(build: NetworkBuilder, depth: int, batch_norm: bool) -> keras.KerasTensor:
    """Returns the logits of a VGG network with `depth` convolutions, a key of `VGG_WIDTHS`, and a ReLU after each.

    A max-pool separates the blocks; networks of fewer than five blocks have one after the last block, too. An
    average-pool reduces larger maps to 2x2 positions. Convolutions have no biases.
    """
    blocks = VGG_WIDTHS[depth]
    x, layer = build.inputs, 0
    for block, widths in enumerate(blocks, start=1):
        for width in widths:
            layer += 1
            initial = _INITIAL_CONNECTIVITY.get(block, build.half)
            x = build.conv(x, width, 3, f"conv{layer}", initial)
            x = build.relu(build.batch_norm(x, f"bn{layer}") if batch_norm else x, f"relu{layer}")
        if block < 5:
            x = layers.MaxPooling2D(2, name=f"pool{block}")(x)
    window = tuple(max(1, size // 2) for size in x.shape[1:3])
    if window != (1, 1):
        x = keras.layers.AveragePooling2D(window, data_format="channels_last", name="average_pool")(x)
    x = keras.layers.Flatten("channels_last", name="flatten")(x)
    for number in (1, 2):
        x = build.dense(x, 256, f"dense{layer + number}", build.half, activation="relu")
    return build.classifier(x, 0.6)


def vgg16_dropout(
    num_classes: int = 10,
    input_shape: Sequence[int] = (32, 32, 3),
    kernel: str = "plain",
    connectivity: float | None = None,
    padding_mode: str = "tf_same",
    seed: int | None = None,
    synchronized_batch_norm: bool = False,
    gates: bool = False,
    threshold: float = 1e-3,
    input_norm: str = "image",
    name: str = "vgg16_dropout",
) -> keras.Model:
    """Builds VGG16 for neural pruning: with dropout, five max-pools, one dense layer of 512, and gates.

    Gates are `BetaBernoulliDropout` layers: `gate1` to `gate13` on the channels between a convolution and its batch
    norm, `gate14` on the 512 flattened features and `gate15` on the units of the dense layer. With gates, the
    dense layers have no dropout. The features whose distortion is measured are `relu1` to `relu13`, `dense14` and
    `relu14`. With `kernel="bayesian"`, all weights, including scale and shift of batch norm, have a prior of standard
    deviation 0.1.

    The padding modes agree, because all strides are 1.

    Args: see `tf_robust_sparse.models.network_builder`. Images have at least 32x32 pixels.
        gates: Whether the network has gates.
        threshold: Threshold of the gates.
        input_norm: Normalization of pixels. `"image"` standardizes each image as TensorFlow's
            `per_image_standardization` does for values in 0..255: it divides by at least one level over the root of
            the number of values, so that a flat image stays flat. `"channel"` uses the mean and deviation of CIFAR-10,
            `"none"` nothing.

    Returns:
        A model from `(batch, *input_shape)` in [0, 1] to logits `(batch, num_classes)`.

    Raises:
        ValueError: if an argument is out of its range.

    Reference: [Madaan et al., 2020](https://arxiv.org/abs/1908.04355), section 5.
    """
    if input_norm not in INPUT_NORMS:
        raise ValueError(f"`input_norm` must be one of {', '.join(INPUT_NORMS)}. Received: input_norm={input_norm!r}")
    build = NetworkBuilder(
        "vgg16_dropout", 32, num_classes, input_shape, kernel, connectivity, padding_mode, seed, synchronized_batch_norm
    )
    bayesian: dict[str, Any] = _BAYESIAN if kernel == "bayesian" else {}

    def gate(x: keras.KerasTensor, number: int) -> keras.KerasTensor:
        initial = 2.0 if number <= 13 else -1.0
        return layers.BetaBernoulliDropout(initial, threshold, name=f"gate{number}")(x) if gates else x

    def normalized(x: keras.KerasTensor, number: int) -> keras.KerasTensor:
        # After convolutions, the published code uses TensorFlow's fused operation, whose moving variance is unbiased.
        affine = {"scale": not bayesian, "center": not bayesian, "unbiased": number <= 13}
        x = build.batch_norm(x, f"bn{number}", momentum=0.99, epsilon=1e-3, **affine)
        x = BayesianScale(**bayesian, name=f"scale{number}")(x) if bayesian else x
        return build.relu(x, f"relu{number}")

    x, layer = build.inputs, 0
    if input_norm == "image":
        x = keras.layers.LayerNormalization(
            (1, 2, 3), epsilon=1 / (255**2 * math.prod(x.shape[1:])), center=False, scale=False, name="standardization"
        )(x)
    elif input_norm == "channel":
        x = build.normalized("cifar10")
    for block, widths in enumerate(VGG_WIDTHS[16], start=1):
        for width in widths:
            layer += 1
            initial = _INITIAL_CONNECTIVITY.get(block, build.half)
            x = build.conv(x, width, 3, f"conv{layer}", initial, use_bias=True, **bayesian)
            x = normalized(gate(x, layer), layer)
            if layer in _DROPOUT:
                x = layers.Dropout(_DROPOUT[layer], name=f"dropout{layer}")(x)
        x = layers.MaxPooling2D(2, name=f"pool{block}")(x)
    x = keras.layers.Flatten("channels_last", name="flatten")(x)
    x = gate(x, 14) if gates else layers.Dropout(0.5, name="dropout14")(x)
    x = normalized(build.dense(x, 512, "dense14", build.half, **bayesian), 14)
    x = gate(x, 15) if gates else layers.Dropout(0.5, name="dropout15")(x)
    return build.model(build.classifier(x, 0.6, **bayesian), name)
