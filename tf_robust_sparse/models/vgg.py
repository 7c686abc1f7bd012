"""VGG16 for small images, with batch norm."""

from collections.abc import Sequence

import keras

from tf_robust_sparse.models.construction import Construction

_WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
# Connected at the start, by layer; every other layer starts at half of the global connectivity.
_INITIAL_CONNECTIVITY = {1: 0.6, 2: 0.6, 3: 0.2, 4: 0.2}


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

    There is no pool after the last block. Whatever is left of the image is flattened: 2x2x512 from 32x32, 1x1x512
    from 28x28. All strides are 1, so the padding modes agree.

    Args: see `tf_robust_sparse.models.construction`. Images have at least 16x16 pixels.

    Returns:
        A model from `(batch, *input_shape)` in [0, 1] to logits `(batch, num_classes)`.

    Raises:
        ValueError: if an argument is out of its range.

    Reference: [Simonyan and Zisserman, 2015](https://arxiv.org/abs/1409.1556); the initial connectivity is that of
        Özdenizci and Legenstein, ICML 2021.
    """
    build = Construction(
        "vgg16", 16, num_classes, input_shape, kernel, connectivity, padding_mode, seed, synchronized_batch_norm
    )
    x, layer = build.inputs, 0
    for block, widths in enumerate(_WIDTHS, start=1):
        if block > 1:
            x = keras.layers.MaxPooling2D(2, name=f"pool{block - 1}")(x)
        for width in widths:
            layer += 1
            x = build.conv(x, width, 3, f"conv{layer}", _INITIAL_CONNECTIVITY.get(layer, build.half))
            x = build.relu(build.batch_norm(x, f"bn{layer}"), f"relu{layer}")
    x = keras.layers.Flatten(name="flatten")(x)
    x = build.dense(x, 256, "dense14", build.half, activation="relu")
    x = build.dense(x, 256, "dense15", build.half, activation="relu")
    return build.model(build.classifier(x, 0.6), name)
