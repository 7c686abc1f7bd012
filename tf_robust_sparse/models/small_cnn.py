"""A network small enough to train adversarially on two CPU cores while one waits."""

from collections.abc import Sequence

import keras

from tf_robust_sparse.models.construction import Construction
from tf_robust_sparse.models.initial_connectivity import at_the_ends, in_the_middle


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

    ReLU after every layer but the last, biases everywhere, no batch norm. For even image sizes the padding modes
    agree.

    Args: see `tf_robust_sparse.models.construction`. Images have at least 4x4 pixels; `synchronized_batch_norm` has
        nothing to act on here.

    Returns:
        A model from `(batch, *input_shape)` in [0, 1] to logits `(batch, num_classes)`.

    Raises:
        ValueError: if an argument is out of its range.

    Reference: the size of the MNIST networks of [Wong and Kolter, 2018](https://arxiv.org/abs/1711.00851).
    """
    build = Construction(
        "small_cnn", 4, num_classes, input_shape, kernel, connectivity, padding_mode, seed, synchronized_batch_norm
    )
    p = build.connectivity
    x = build.inputs
    for i, width in enumerate((16, 32), start=1):
        initial = at_the_ends(p) if i == 1 else in_the_middle(p, 16 * x.shape[-1])
        x = build.conv(x, width, 4, f"conv{i}", initial, strides=2, use_bias=True, activation="relu")
    x = keras.layers.Flatten(name="flatten")(x)
    x = build.dense(x, 100, "dense3", in_the_middle(p, x.shape[-1]), activation="relu")
    return build.model(build.classifier(x, at_the_ends(p)), name)
