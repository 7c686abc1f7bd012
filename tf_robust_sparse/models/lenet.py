"""The networks of the LeNet family, for MNIST-sized images."""

from collections.abc import Sequence

import keras

from tf_robust_sparse.layers import BetaBernoulliDropout, MaxPooling2D
from tf_robust_sparse.models.initial_connectivity import at_the_ends, in_the_middle
from tf_robust_sparse.models.network_builder import NetworkBuilder


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

    As in Caffe, the convolutions are not padded and have no activation: the only ReLU follows the dense layer of 500.
    All layers have biases, and there is no batch norm.

    Args: see `tf_robust_sparse.models.network_builder`. Images have at least 16x16 pixels. `padding_mode` and
        `synchronized_batch_norm` have no effect.

    Returns:
        A model from `(batch, *input_shape)` in [0, 1] to logits `(batch, num_classes)`.

    Raises:
        ValueError: if an argument is out of its range.

    Reference: Caffe's `examples/mnist/lenet_train_test.prototxt`.
    """
    build = NetworkBuilder(
        "lenet5_caffe", 16, num_classes, input_shape, kernel, connectivity, padding_mode, seed, synchronized_batch_norm
    )
    p = build.connectivity
    x = build.conv(build.inputs, 20, 5, "conv1", at_the_ends(p), padding="valid", use_bias=True)
    x = MaxPooling2D(2, name="pool1")(x)
    x = build.conv(x, 50, 5, "conv2", in_the_middle(p, 25 * x.shape[-1]), padding="valid", use_bias=True)
    x = MaxPooling2D(2, name="pool2")(x)
    x = keras.layers.Flatten("channels_last", name="flatten")(x)
    x = build.dense(x, 500, "dense3", in_the_middle(p, x.shape[-1]), activation="relu")
    return build.model(build.classifier(x, at_the_ends(p)), name)


def lenet_conv(
    num_classes: int = 10,
    input_shape: Sequence[int] = (28, 28, 1),
    kernel: str = "plain",
    connectivity: float | None = None,
    padding_mode: str = "tf_same",
    seed: int | None = None,
    synchronized_batch_norm: bool = False,
    gates: bool = False,
    threshold: float = 1e-3,
    name: str = "lenet_conv",
) -> keras.Model:
    """Builds LeNet-5 for neural pruning: `lenet5_caffe` with a ReLU after every layer, and optional gates.

    Gates are `BetaBernoulliDropout` layers: `gate1` and `gate2` on the 20 and 50 channels of the convolutions, before
    the ReLU, `gate3` on the flattened features and `gate4` on the 500 units of the dense layer. The
    features whose distortion is measured are `relu1`, `relu2` and `relu3`. With `kernel="bayesian"`, weights have a
    prior of standard deviation 1.

    Args: see `tf_robust_sparse.models.network_builder`. Images have at least 16x16 pixels. `padding_mode` and
        `synchronized_batch_norm` have no effect.
        gates: Whether the network has gates.
        threshold: Threshold of the gates.

    Returns:
        A model from `(batch, *input_shape)` in [0, 1] to logits `(batch, num_classes)`.

    Raises:
        ValueError: if an argument is out of its range.

    Reference: [Madaan et al., 2020](https://arxiv.org/abs/1908.04355), section 5.
    """
    build = NetworkBuilder(
        "lenet_conv", 16, num_classes, input_shape, kernel, connectivity, padding_mode, seed, synchronized_batch_norm
    )
    p = build.connectivity

    def gate(x: keras.KerasTensor, number: int) -> keras.KerasTensor:
        return BetaBernoulliDropout(threshold=threshold, name=f"gate{number}")(x) if gates else x

    x = build.conv(build.inputs, 20, 5, "conv1", at_the_ends(p), padding="valid", use_bias=True)
    x = MaxPooling2D(2, name="pool1")(build.relu(gate(x, 1), "relu1"))
    x = build.conv(x, 50, 5, "conv2", in_the_middle(p, 25 * x.shape[-1]), padding="valid", use_bias=True)
    x = MaxPooling2D(2, name="pool2")(build.relu(gate(x, 2), "relu2"))
    x = gate(keras.layers.Flatten("channels_last", name="flatten")(x), 3)
    x = build.relu(build.dense(x, 500, "dense3", in_the_middle(p, x.shape[-1])), "relu3")
    return build.model(build.classifier(gate(x, 4), at_the_ends(p)), name)


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
    """Builds LeNet-300-100: dense layers of 300 and 100 with ReLU, and the classifier; all with biases.

    Args: see `tf_robust_sparse.models.network_builder`. Images may have any size. `padding_mode` and
        `synchronized_batch_norm` have no effect.

    Returns:
        A model from `(batch, *input_shape)` in [0, 1] to logits `(batch, num_classes)`.

    Raises:
        ValueError: if an argument is out of its range.

    Reference: LeCun et al., "Gradient-based learning applied to document recognition", 1998.
    """
    build = NetworkBuilder(
        "dense_300_100", 1, num_classes, input_shape, kernel, connectivity, padding_mode, seed, synchronized_batch_norm
    )
    p = build.connectivity
    x = keras.layers.Flatten("channels_last", name="flatten")(build.inputs)
    x = build.dense(x, 300, "dense1", in_the_middle(p, x.shape[-1]), activation="relu")  # four fifths of all weights
    x = build.dense(x, 100, "dense2", in_the_middle(p, 300), activation="relu")
    return build.model(build.classifier(x, at_the_ends(p)), name)
