"""The small dense network of the lottery ticket experiments."""

from collections.abc import Sequence

import keras
import numpy as np

from tf_robust_sparse import layers


def unbiased_dense_300_100(
    num_classes: int = 10,
    input_shape: Sequence[int] = (28, 28, 1),
    kernel: str = "masked",
    seed: int | None = None,
    name: str = "unbiased_dense_300_100",
) -> keras.Model:
    """Builds dense layers of 300 and 100 with ReLU and the classifier, without biases.

    Kernels are drawn from the Glorot uniform distribution of the dense layer, however sparse it becomes. For images of
    28x28 they have 235,200 + 30,000 + 1,000 = 266,200 entries.

    Args:
        num_classes: Number of logits, at least 1.
        input_shape: `(height, width, channels)` of the images, values in [0, 1].
        kernel: `"masked"` or `"plain"`.
        seed: Integer from which the seed of each layer is derived; `None` uses Keras' generators.
        name: Name of the network; the layers are called `hidden_1`, `hidden_2` and `output`.

    Returns:
        A model from `(batch, *input_shape)` to logits `(batch, num_classes)`.

    Raises:
        ValueError: if `kernel` is another parametrization.

    Reference: [Frankle and Carbin, 2019](https://arxiv.org/abs/1803.03635), section 2, without biases as in
        [Cosentino et al., 2019](https://arxiv.org/abs/1912.02386).
    """
    if kernel not in ("masked", "plain"):
        raise ValueError(f'`kernel` must be "masked" or "plain". Received: kernel={kernel!r}')
    dense, _ = layers.KERNELS[kernel]
    x = inputs = keras.Input(tuple(input_shape), name="pixels")
    x = keras.layers.Flatten("channels_last", name="flatten")(x)
    for number, (units, layer) in enumerate(((300, "hidden_1"), (100, "hidden_2"), (num_classes, "output"))):
        own = None if seed is None else int(np.random.SeedSequence([seed, number]).generate_state(1)[0]) >> 1
        x = dense(
            units,
            activation=None if layer == "output" else "relu",
            use_bias=False,
            kernel_initializer=keras.initializers.GlorotUniform(seed=own),
            dtype="float32" if layer == "output" else None,
            name=layer,
        )(x)
    return keras.Model(inputs, x, name=name)
