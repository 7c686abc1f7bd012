"""ResNet-18 to 152, for small images (3x3 stem, no pool before the stages) and in the ImageNet version."""

from collections.abc import Callable, Sequence

import keras

from tf_robust_sparse.models.network_builder import NetworkBuilder, Variant

_WIDTHS = (64, 128, 256, 512)
# Widths of small networks that have about as many weights as a sub-network with 1 % of the connections and adaptive
# allocation of an exponent: "p01" means 0.1.
BUDGET_WIDTHS = {
    "p0": (26, 26, 26, 26),
    "p01": (23, 25, 27, 29),
    "p05": (14, 20, 29, 40),
    "p1": (6, 13, 26, 51),
}


def resnet18(
    num_classes: int = 10,
    input_shape: Sequence[int] = (32, 32, 3),
    kernel: str = "plain",
    connectivity: float | None = None,
    padding_mode: str = "tf_same",
    seed: int | None = None,
    synchronized_batch_norm: bool = False,
    variant: Variant | None = None,
    name: str = "resnet18",
) -> keras.Model:
    """Builds ResNet-18: four stages of two basic blocks, widths 64 to 512, an average-pool 4x4, the classifier.

    For images of other sizes than 32x32, the pool makes one feature of each 4x4 window, or of the whole map if it is
    smaller.

    Args: see `tf_robust_sparse.models.network_builder`. Images have at least 8x8 pixels.

    Returns:
        A model from `(batch, *input_shape)` in [0, 1] to logits `(batch, num_classes)`.

    Raises:
        ValueError: if an argument is out of its range.

    Reference: [He et al., 2016](https://arxiv.org/abs/1512.03385); the initial connectivity is that of Özdenizci and
        Legenstein, ICML 2021.
    """
    build = NetworkBuilder(
        "resnet18",
        8,
        num_classes,
        input_shape,
        kernel,
        connectivity,
        padding_mode,
        seed,
        synchronized_batch_norm,
        variant,
    )
    return _resnet(build, _basic, (2, 2, 2, 2), name)


def resnet34(
    num_classes: int = 10,
    input_shape: Sequence[int] = (32, 32, 3),
    kernel: str = "plain",
    connectivity: float | None = None,
    padding_mode: str = "tf_same",
    seed: int | None = None,
    synchronized_batch_norm: bool = False,
    variant: Variant | None = None,
    name: str = "resnet34",
) -> keras.Model:
    """Builds ResNet-34: as `resnet18`, with 3, 4, 6 and 3 basic blocks."""
    build = NetworkBuilder(
        "resnet34",
        8,
        num_classes,
        input_shape,
        kernel,
        connectivity,
        padding_mode,
        seed,
        synchronized_batch_norm,
        variant,
    )
    return _resnet(build, _basic, (3, 4, 6, 3), name)


def resnet50(
    num_classes: int = 10,
    input_shape: Sequence[int] = (32, 32, 3),
    kernel: str = "plain",
    connectivity: float | None = None,
    padding_mode: str = "tf_same",
    seed: int | None = None,
    synchronized_batch_norm: bool = False,
    variant: Variant | None = None,
    name: str = "resnet50",
) -> keras.Model:
    """Builds ResNet-50: as `resnet18`, with 3, 4, 6 and 3 bottleneck blocks, four times as wide at their ends."""
    build = NetworkBuilder(
        "resnet50",
        8,
        num_classes,
        input_shape,
        kernel,
        connectivity,
        padding_mode,
        seed,
        synchronized_batch_norm,
        variant,
    )
    return _resnet(build, _bottleneck, (3, 4, 6, 3), name)


def resnet18_imagenet(
    num_classes: int = 1000,
    input_shape: Sequence[int] = (224, 224, 3),
    kernel: str = "plain",
    connectivity: float | None = None,
    padding_mode: str = "tf_same",
    seed: int | None = None,
    synchronized_batch_norm: bool = False,
    variant: Variant | None = None,
    name: str = "resnet18_imagenet",
) -> keras.Model:
    """Builds ResNet-18 for ImageNet: normalized pixels, a 7x7 stem of stride 2, a max-pool, the stages, a global pool.

    In bottlenecks, the 3x3 convolution has the stride. With `padding_mode="symmetric"`, torchvision's weights fit.

    Args: see `tf_robust_sparse.models.network_builder`. Images have at least 32x32 pixels in [0, 1]; ones with three
        channels are normalized by the mean and deviation of ImageNet inside the network.

    Returns:
        A model from `(batch, *input_shape)` in [0, 1] to logits `(batch, num_classes)`.

    Raises:
        ValueError: if an argument is out of its range.

    Reference: [He et al., 2016](https://arxiv.org/abs/1512.03385), section 3.3.
    """
    build = NetworkBuilder(
        "resnet18_imagenet",
        32,
        num_classes,
        input_shape,
        kernel,
        connectivity,
        padding_mode,
        seed,
        synchronized_batch_norm,
        variant,
    )
    return _imagenet_resnet(build, _basic, (2, 2, 2, 2), name)


def resnet34_imagenet(
    num_classes: int = 1000,
    input_shape: Sequence[int] = (224, 224, 3),
    kernel: str = "plain",
    connectivity: float | None = None,
    padding_mode: str = "tf_same",
    seed: int | None = None,
    synchronized_batch_norm: bool = False,
    variant: Variant | None = None,
    name: str = "resnet34_imagenet",
) -> keras.Model:
    """Builds ResNet-34 for ImageNet: as `resnet18_imagenet`, with 3, 4, 6 and 3 basic blocks."""
    build = NetworkBuilder(
        "resnet34_imagenet",
        32,
        num_classes,
        input_shape,
        kernel,
        connectivity,
        padding_mode,
        seed,
        synchronized_batch_norm,
        variant,
    )
    return _imagenet_resnet(build, _basic, (3, 4, 6, 3), name)


def resnet50_imagenet(
    num_classes: int = 1000,
    input_shape: Sequence[int] = (224, 224, 3),
    kernel: str = "plain",
    connectivity: float | None = None,
    padding_mode: str = "tf_same",
    seed: int | None = None,
    synchronized_batch_norm: bool = False,
    variant: Variant | None = None,
    name: str = "resnet50_imagenet",
) -> keras.Model:
    """Builds ResNet-50 for ImageNet: as `resnet18_imagenet`, with 3, 4, 6 and 3 bottleneck blocks."""
    build = NetworkBuilder(
        "resnet50_imagenet",
        32,
        num_classes,
        input_shape,
        kernel,
        connectivity,
        padding_mode,
        seed,
        synchronized_batch_norm,
        variant,
    )
    return _imagenet_resnet(build, _bottleneck, (3, 4, 6, 3), name)


def deep_resnet(
    depth: int,
    num_classes: int = 10,
    input_shape: Sequence[int] = (32, 32, 3),
    kernel: str = "plain",
    connectivity: float | None = None,
    padding_mode: str = "tf_same",
    seed: int | None = None,
    synchronized_batch_norm: bool = False,
    variant: Variant | None = None,
    imagenet: bool = False,
    name: str | None = None,
) -> keras.Model:
    """Builds ResNet-101 or 152: as `resnet50`, with 3, 4, 23 and 3, or 3, 8, 36 and 3 bottleneck blocks.

    Args: see `tf_robust_sparse.models.network_builder`, and
        depth: 101 or 152.
        imagenet: Whether to build the ImageNet version, see `resnet18_imagenet`, or one with a 3x3 stem.

    Returns:
        A model from `(batch, *input_shape)` in [0, 1] to logits `(batch, num_classes)`.

    Raises:
        ValueError: if an argument is out of its range.

    Reference: [He et al., 2016](https://arxiv.org/abs/1512.03385), table 1.
    """
    if depth not in _DEEP:
        raise ValueError(f"`depth` must be one of {', '.join(map(str, _DEEP))}. Received: depth={depth!r}")
    name = name or f"resnet{depth}" + "_imagenet" * imagenet
    build = NetworkBuilder(
        name,
        32 if imagenet else 8,
        num_classes,
        input_shape,
        kernel,
        connectivity,
        padding_mode,
        seed,
        synchronized_batch_norm,
        variant,
    )
    return (_imagenet_resnet if imagenet else _resnet)(build, _bottleneck, _DEEP[depth], name)


def small_resnet(
    depth: int,
    widths: str,
    num_classes: int = 10,
    input_shape: Sequence[int] = (32, 32, 3),
    kernel: str = "plain",
    connectivity: float | None = None,
    padding_mode: str = "tf_same",
    seed: int | None = None,
    synchronized_batch_norm: bool = False,
    variant: Variant | None = None,
    imagenet: bool = False,
    name: str | None = None,
) -> keras.Model:
    """Builds a narrow ResNet: a dense network with about as many weights as a sub-network of the usual one.

    Args: see `tf_robust_sparse.models.network_builder`, and
        depth: 18, 34 or 50.
        widths: A key of `BUDGET_WIDTHS`. ResNet-50 has one or two channels more where 4 times as many follow.
        imagenet: Whether to build the ImageNet version or one with a 3x3 stem.

    Returns:
        A model from `(batch, *input_shape)` in [0, 1] to logits `(batch, num_classes)`.

    Raises:
        ValueError: if an argument is out of its range.

    Reference: [Liu et al., 2022](https://arxiv.org/abs/2202.01341), section 5.
    """
    if depth not in _BLOCKS or widths not in BUDGET_WIDTHS:
        raise ValueError(
            f"`depth` must be one of {', '.join(map(str, _BLOCKS))}, `widths` one of {', '.join(BUDGET_WIDTHS)}. "
            f"Received: depth={depth!r}, widths={widths!r}"
        )
    block, blocks = _BLOCKS[depth]
    name = name or f"resnet{depth}_{widths}" + "_imagenet" * imagenet
    build = NetworkBuilder(
        name,
        32 if imagenet else 8,
        num_classes,
        input_shape,
        kernel,
        connectivity,
        padding_mode,
        seed,
        synchronized_batch_norm,
        variant,
    )
    channels = BUDGET_WIDTHS[widths] if depth != 50 else _BOTTLENECK_WIDTHS.get(widths, BUDGET_WIDTHS[widths])
    return (_imagenet_resnet if imagenet else _resnet)(build, block, blocks, name, channels)


def _resnet(
    build: NetworkBuilder, block: Callable, blocks: Sequence[int], name: str, widths: Sequence[int] = _WIDTHS
) -> keras.Model:
    x = build.conv(build.normalized(), widths[0], 3, "stem", 0.6, kernel=build.variant.first_kernel)
    x = build.relu(build.batch_norm(x, "stem_bn"), "stem_relu", leaky=True)
    x = _stages(build, x, block, blocks, widths)
    return build.model(build.classifier(build.average_pool(x, 4), 0.6), name)


def _imagenet_resnet(
    build: NetworkBuilder, block: Callable, blocks: Sequence[int], name: str, widths: Sequence[int] = _WIDTHS
) -> keras.Model:
    x = build.normalized(usual="imagenet")
    x = build.conv(x, widths[0], 7, "stem", 0.6, strides=2, kernel=build.variant.first_kernel)
    x = build.relu(build.batch_norm(x, "stem_bn"), "stem_relu", leaky=True)
    x = build.max_pool(x, 3, 2, "stem_pool")
    x = _stages(build, x, block, blocks, widths)
    return build.model(build.classifier(build.average_pool(x, max(x.shape[1:3])), 0.6), name)


def _stages(
    build: NetworkBuilder, x: keras.KerasTensor, block: Callable, blocks: Sequence[int], widths: Sequence[int]
) -> keras.KerasTensor:
    for stage, (width, count) in enumerate(zip(widths, blocks, strict=True), start=1):
        initial = 0.2 if stage == 1 else build.half
        for i in range(count):
            strides = 2 if stage > 1 and i == 0 else 1
            x = block(build, x, width, strides, f"stage{stage}_block{i + 1}", initial)
    return x


def _basic(build, x, width, strides, name, initial):
    h = build.conv(x, width, 3, f"{name}_conv1", initial, strides=strides)
    h = build.batch_norm(build.gate(h, f"{name}_gate1"), f"{name}_bn1")
    h = build.relu(h, f"{name}_relu1", leaky=True)
    h = build.conv(h, width, 3, f"{name}_conv2", initial)
    h = build.batch_norm(h, f"{name}_bn2")
    return _joined(build, h, _shortcut(build, x, width, strides, name, initial), name, leaky=True)


def _bottleneck(build, x, width, strides, name, initial):
    h = build.conv(x, width, 1, f"{name}_conv1", initial, padding="valid")
    h = build.relu(build.batch_norm(build.gate(h, f"{name}_gate1"), f"{name}_bn1"), f"{name}_relu1")
    h = build.conv(h, width, 3, f"{name}_conv2", initial, strides=strides)
    h = build.relu(build.batch_norm(build.gate(h, f"{name}_gate2"), f"{name}_bn2"), f"{name}_relu2")
    h = build.conv(h, 4 * width, 1, f"{name}_conv3", initial, padding="valid")
    h = build.batch_norm(h, f"{name}_bn3")
    return _joined(build, h, _shortcut(build, x, 4 * width, strides, name, initial), name)


def _shortcut(build, x, width, strides, name, initial):
    if strides == 1 and x.shape[-1] == width:
        return x
    x = build.conv(x, width, 1, f"{name}_shortcut", initial, strides=strides, padding="valid")
    return build.batch_norm(x, f"{name}_shortcut_bn")


def _joined(build, h, shortcut, name, leaky=False):
    # The main branch comes first: Keras orders layers of equal depth by creation, and `kernel_layers` uses that order.
    return build.relu(keras.layers.Add(name=f"{name}_add")([h, shortcut]), f"{name}_relu", leaky)


_BLOCKS = {18: (_basic, (2, 2, 2, 2)), 34: (_basic, (3, 4, 6, 3)), 50: (_bottleneck, (3, 4, 6, 3))}
_DEEP = {101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
_BOTTLENECK_WIDTHS = {"p01": (23, 25, 27, 31), "p1": (7, 13, 26, 51)}
