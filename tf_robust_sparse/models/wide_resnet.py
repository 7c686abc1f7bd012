"""Wide residual networks for small images, with pre-activation blocks and no dropout."""

from collections.abc import Sequence

import keras

from tf_robust_sparse.models.network_builder import NetworkBuilder


def wrn28_2(
    num_classes: int = 10,
    input_shape: Sequence[int] = (32, 32, 3),
    kernel: str = "plain",
    connectivity: float | None = None,
    padding_mode: str = "tf_same",
    seed: int | None = None,
    synchronized_batch_norm: bool = False,
    name: str = "wrn28_2",
) -> keras.Model:
    """Builds WRN-28-2: a stem of 16, three groups of four blocks (widths 32, 64, 128), an average-pool, the classifier.

    The shortcut of a block that changes the width starts from the activated tensor and has no batch norm. For images of
    other sizes than 32x32, the pool makes one feature of each 8x8 window, or of the whole map if it is smaller.

    Args: see `tf_robust_sparse.models.network_builder`. Images have at least 4x4 pixels.

    Returns:
        A model from `(batch, *input_shape)` in [0, 1] to logits `(batch, num_classes)`.

    Raises:
        ValueError: if an argument is out of its range.

    Reference: [Zagoruyko and Komodakis, 2016](https://arxiv.org/abs/1605.07146); the initial connectivity is that of
        Özdenizci and Legenstein, ICML 2021.
    """
    build = NetworkBuilder(
        "wrn28_2", 4, num_classes, input_shape, kernel, connectivity, padding_mode, seed, synchronized_batch_norm
    )
    return build.model(wide_resnet_logits(build, 28, 2), name)


def wrn28_4(
    num_classes: int = 10,
    input_shape: Sequence[int] = (32, 32, 3),
    kernel: str = "plain",
    connectivity: float | None = None,
    padding_mode: str = "tf_same",
    seed: int | None = None,
    synchronized_batch_norm: bool = False,
    name: str = "wrn28_4",
) -> keras.Model:
    """Builds WRN-28-4: `wrn28_2`, but twice as wide."""
    build = NetworkBuilder(
        "wrn28_4", 4, num_classes, input_shape, kernel, connectivity, padding_mode, seed, synchronized_batch_norm
    )
    return build.model(wide_resnet_logits(build, 28, 4), name)


def wrn28_10(
    num_classes: int = 10,
    input_shape: Sequence[int] = (32, 32, 3),
    kernel: str = "plain",
    connectivity: float | None = None,
    padding_mode: str = "tf_same",
    seed: int | None = None,
    synchronized_batch_norm: bool = False,
    name: str = "wrn28_10",
) -> keras.Model:
    """Builds WRN-28-10: `wrn28_2`, but five times as wide."""
    build = NetworkBuilder(
        "wrn28_10", 4, num_classes, input_shape, kernel, connectivity, padding_mode, seed, synchronized_batch_norm
    )
    return build.model(wide_resnet_logits(build, 28, 10), name)


def wrn34_10(
    num_classes: int = 10,
    input_shape: Sequence[int] = (32, 32, 3),
    kernel: str = "plain",
    connectivity: float | None = None,
    padding_mode: str = "tf_same",
    seed: int | None = None,
    synchronized_batch_norm: bool = False,
    name: str = "wrn34_10",
) -> keras.Model:
    """Builds WRN-34-10: `wrn28_10`, but with five blocks per group."""
    build = NetworkBuilder(
        "wrn34_10", 4, num_classes, input_shape, kernel, connectivity, padding_mode, seed, synchronized_batch_norm
    )
    return build.model(wide_resnet_logits(build, 34, 10), name)


def wide_resnet_logits(build: NetworkBuilder, depth: int, widening: int) -> keras.KerasTensor:
    """Returns the logits of a wide residual network; with depth 40, 34 or 28, a group has 6, 5 or 4 blocks."""
    x = build.conv(build.inputs, 16, 3, "stem", 0.6)
    for group, width in enumerate((16 * widening, 32 * widening, 64 * widening), start=1):
        initial = 0.1 if group == 1 else build.half
        for i in range((depth - 4) // 6):
            strides = 2 if group > 1 and i == 0 else 1
            x = _block(build, x, width, strides, f"group{group}_block{i + 1}", initial)
    x = build.relu(build.batch_norm(x, "final_bn"), "final_relu")
    return build.classifier(build.average_pool(x, 8), 0.6)


def _block(build, x, width, strides, name, initial):
    activated = build.relu(build.batch_norm(x, f"{name}_bn1"), f"{name}_relu1")
    h = build.conv(activated, width, 3, f"{name}_conv1", initial, strides=strides)
    h = build.relu(build.batch_norm(h, f"{name}_bn2"), f"{name}_relu2")
    h = build.conv(h, width, 3, f"{name}_conv2", initial)
    if x.shape[-1] != width:
        x = build.conv(activated, width, 1, f"{name}_shortcut", initial, strides=strides, padding="valid")
    # The main branch comes first: Keras orders layers of equal depth by creation, and `kernel_layers` uses that order.
    return keras.layers.Add(name=f"{name}_add")([h, x])
