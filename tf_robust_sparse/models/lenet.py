"""The two networks of the LeNet family, for MNIST-sized images."""

from collections.abc import Sequence

import keras

from tf_robust_sparse.models.construction import Construction
from tf_robust_sparse.models.initial_connectivity import at_the_ends, in_the_middle


def lenet5_caffe(
    num_classes: int = 10,
    input_shape: Sequence[int] = (28, 28, 1),
    kernel: str = "plain",
    connectivity: float | None = None,
    padding_mode: str = "tf_same",
    seed: int | None = None,
    synchronized_batch_norm: bool = False,
    name: str = "lenet5_caffe",
) -> keras.Model:
    """Builds LeNet-5 as Caffe defines it: conv 5x5 20, max-pool, conv 5x5 50, max-pool, dense 500, the classifier.

    As in Caffe the convolutions are not padded and have no activation: the one ReLU follows the dense layer of 500.
    All layers have biases; there is no batch norm.

    Args: see `tf_robust_sparse.models.construction`. Images have at least 16x16 pixels. `padding_mode` and
        `synchronized_batch_norm` have nothing to act on here.

    Returns:
        A model from `(batch, *input_shape)` in [0, 1] to logits `(batch, num_classes)`.

    Raises:
        ValueError: if an argument is out of its range.

    Reference: Caffe's `examples/mnist/lenet_train_test.prototxt`.
    """
    build = Construction(
        "lenet5_caffe", 16, num_classes, input_shape, kernel, connectivity, padding_mode, seed, synchronized_batch_norm
    )
    p = build.connectivity
    x = build.conv(build.inputs, 20, 5, "conv1", at_the_ends(p), padding="valid", use_bias=True)
    x = keras.layers.MaxPooling2D(2, name="pool1")(x)
    x = build.conv(x, 50, 5, "conv2", in_the_middle(p, 25 * x.shape[-1]), padding="valid", use_bias=True)
    x = keras.layers.MaxPooling2D(2, name="pool2")(x)
    x = keras.layers.Flatten(name="flatten")(x)
    x = build.dense(x, 500, "dense3", in_the_middle(p, x.shape[-1]), activation="relu")
    return build.model(build.classifier(x, at_the_ends(p)), name)


def dense_300_100(
    num_classes: int = 10,
    input_shape: Sequence[int] = (28, 28, 1),
    kernel: str = "plain",
    connectivity: float | None = None,
    padding_mode: str = "tf_same",
    seed: int | None = None,
    synchronized_batch_norm: bool = False,
    name: str = "dense_300_100",
) -> keras.Model:
    """Builds LeNet-300-100: dense layers of 300 and 100 with ReLU, the classifier; all with biases.

    Args: see `tf_robust_sparse.models.construction`. Images may have any size. `padding_mode` and
        `synchronized_batch_norm` have nothing to act on here.

    Returns:
        A model from `(batch, *input_shape)` in [0, 1] to logits `(batch, num_classes)`.

    Raises:
        ValueError: if an argument is out of its range.

    Reference: LeCun et al., "Gradient-based learning applied to document recognition", 1998.
    """
    build = Construction(
        "dense_300_100", 1, num_classes, input_shape, kernel, connectivity, padding_mode, seed, synchronized_batch_norm
    )
    p = build.connectivity
    x = keras.layers.Flatten(name="flatten")(build.inputs)
    x = build.dense(x, 300, "dense1", in_the_middle(p, x.shape[-1]), activation="relu")  # four fifths of all weights
    x = build.dense(x, 100, "dense2", in_the_middle(p, 300), activation="relu")
    return build.model(build.classifier(x, at_the_ends(p)), name)
