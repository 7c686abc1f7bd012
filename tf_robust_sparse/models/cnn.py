"""Plain convolutional networks without batch norm or pooling, the usual networks of certified training."""

from collections.abc import Sequence

import keras

from tf_robust_sparse.models.initial_connectivity import at_the_ends, in_the_middle
from tf_robust_sparse.models.network_builder import NetworkBuilder


def small_cnn(
    num_classes: int = 10,
    input_shape: Sequence[int] = (32, 32, 3),
    kernel: str = "plain",
    connectivity: float | None = None,
    padding_mode: str = "tf_same",
    seed: int | None = None,
    synchronized_batch_norm: bool = False,
    name: str = "small_cnn",
) -> keras.Model:
    """Builds a CNN of about a million multiply-adds: conv 4x4 stride 2 16 and 32, dense 100, the classifier.

    It is small enough for adversarial training on two CPU cores. A ReLU follows every layer but the last; all layers
    have biases, and there is no batch norm. For even image sizes the padding modes agree. It is HYDRA's `cifar_model`,
    with 214,918 parameters.

    Args: see `tf_robust_sparse.models.network_builder`. Images have at least 4x4 pixels; `synchronized_batch_norm` has
        no effect.

    Returns:
        A model from `(batch, *input_shape)` in [0, 1] to logits `(batch, num_classes)`.

    Raises:
        ValueError: if an argument is out of its range.

    Reference: [Wong and Kolter, 2018](https://arxiv.org/abs/1711.00851), section 5.
    """
    build = NetworkBuilder(
        "small_cnn", 4, num_classes, input_shape, kernel, connectivity, padding_mode, seed, synchronized_batch_norm
    )
    return _cnn(build, [(16, 4, 2), (32, 4, 2)], [100], name)


def large_cnn(
    num_classes: int = 10,
    input_shape: Sequence[int] = (32, 32, 3),
    kernel: str = "plain",
    connectivity: float | None = None,
    padding_mode: str = "tf_same",
    seed: int | None = None,
    synchronized_batch_norm: bool = False,
    name: str = "large_cnn",
) -> keras.Model:
    """Builds a CNN of conv 3x3 32, 4x4 stride 2 32, 3x3 64, 4x4 stride 2 64, dense 512 and 512, the classifier.

    Otherwise like `small_cnn`. HYDRA's `cifar_model_large`: 2,466,858 parameters.

    Args: see `tf_robust_sparse.models.network_builder`. Images have at least 4x4 pixels.

    Returns:
        A model from `(batch, *input_shape)` in [0, 1] to logits `(batch, num_classes)`.

    Raises:
        ValueError: if an argument is out of its range.

    Reference: [Wong et al., 2018](https://arxiv.org/abs/1805.12514), section 4.
    """
    build = NetworkBuilder(
        "large_cnn", 4, num_classes, input_shape, kernel, connectivity, padding_mode, seed, synchronized_batch_norm
    )
    return _cnn(build, [(32, 3, 1), (32, 4, 2), (64, 3, 1), (64, 4, 2)], [512, 512], name)


def vgg4(
    num_classes: int = 10,
    input_shape: Sequence[int] = (32, 32, 3),
    kernel: str = "plain",
    connectivity: float | None = None,
    padding_mode: str = "tf_same",
    seed: int | None = None,
    synchronized_batch_norm: bool = False,
    name: str = "vgg4",
) -> keras.Model:
    """Builds a CNN of conv 3x3 64, 64 stride 2, 128, 128 stride 2, dense 256 and 256, the classifier.

    Otherwise like `small_cnn`. HYDRA's `vgg4_without_maxpool`: 2,425,930 parameters.

    Args: see `tf_robust_sparse.models.network_builder`. Images have at least 4x4 pixels.

    Returns:
        A model from `(batch, *input_shape)` in [0, 1] to logits `(batch, num_classes)`.

    Raises:
        ValueError: if an argument is out of its range.

    Reference: [Sehwag et al., 2020](https://arxiv.org/abs/2002.10509), the published code.
    """
    build = NetworkBuilder(
        "vgg4", 4, num_classes, input_shape, kernel, connectivity, padding_mode, seed, synchronized_batch_norm
    )
    return _cnn(build, [(64, 3, 1), (64, 3, 2), (128, 3, 1), (128, 3, 2)], [256, 256], name)


def _cnn(build: NetworkBuilder, convs: Sequence[tuple[int, int, int]], units: Sequence[int], name: str) -> keras.Model:
    """Builds convolutions of (filters, size, stride), dense layers, all with biases and ReLU, and the classifier."""
    p, x = build.connectivity, build.inputs
    for layer, (filters, size, strides) in enumerate(convs, start=1):
        initial = at_the_ends(p) if layer == 1 else in_the_middle(p, size * size * x.shape[-1])
        x = build.conv(x, filters, size, f"conv{layer}", initial, strides=strides, use_bias=True, activation="relu")
    x = keras.layers.Flatten("channels_last", name="flatten")(x)
    for number, width in enumerate(units, start=len(convs) + 1):
        x = build.dense(x, width, f"dense{number}", in_the_middle(p, x.shape[-1]), activation="relu")
    return build.model(build.classifier(x, at_the_ends(p)), name)


def linear_logits(build: NetworkBuilder, depth: int, units: int = 100) -> keras.KerasTensor:
    """Returns the logits of `depth` dense layers without activations: a linear function."""
    p = build.connectivity
    x = keras.layers.Flatten("channels_last", name="flatten")(build.inputs)
    for number in range(1, depth):
        x = build.dense(x, units, f"dense{number}", in_the_middle(p, x.shape[-1]))
    return build.classifier(x, at_the_ends(p))


def plain_resnet_logits(build: NetworkBuilder, blocks: int, widening: int = 1) -> keras.KerasTensor:
    """Returns the logits of a residual network without batch norm, for certified training.

    The layers are a convolution of 16, three groups of `blocks + 1`, `blocks` and `blocks` blocks (widths 16, 32 and 64
    times `widening`), a dense layer of 1000 and the classifier. All have biases, and a ReLU follows every layer but the
    last. A block adds a 1x1 convolution of its input to two 3x3 convolutions. Where it halves the image, the 1x1
    convolution is 2x2 and the first 3x3 convolution is 4x4.

    Reference: [Wong et al., 2018](https://arxiv.org/abs/1805.12514), section 4.
    """
    p = build.connectivity
    x = build.conv(build.inputs, 16, 3, "conv1", at_the_ends(p), use_bias=True, activation="relu")
    for group, width in enumerate((16 * widening, 32 * widening, 64 * widening), start=1):
        for number in range(1, blocks + (2 if group == 1 else 1)):
            name, halves = f"group{group}_block{number}", group > 1 and number == 1
            first, shortcut, strides = (4, 2, 2) if halves else (3, 1, 1)

            def conv(x, size, part, strides=1, activation=None, width=width, name=name):
                initial = in_the_middle(p, size * size * x.shape[-1])
                options = {"strides": strides, "use_bias": True, "activation": activation}
                return build.conv(x, width, size, f"{name}_{part}", initial, **options)

            h = conv(x, first, "conv1", strides, "relu")
            # The published checkpoints number the shortcut before the second convolution.
            x = keras.layers.Add(name=f"{name}_add")([conv(x, shortcut, "shortcut", strides), conv(h, 3, "conv2")])
            x = build.relu(x, f"{name}_relu")
    x = keras.layers.Flatten("channels_last", name="flatten")(x)
    x = build.dense(x, 1000, "dense", in_the_middle(p, x.shape[-1]), activation="relu")
    return build.classifier(x, at_the_ends(p))
