"""Kernels trained to be signs: each entry has a real weight, which every forward pass rounds to 1 or -1."""

import random
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_robust_sparse.layers.gradients import custom_gradient
from tf_robust_sparse.layers.kernel_layer import Conv2DOperation, DenseOperation
from tf_robust_sparse.layers.selection import fast_where


@keras.saving.register_keras_serializable(package="tf_robust_sparse")
class WithinOne(keras.constraints.Constraint):
    """Keeps weights in [-1, 1]."""

    def __call__(self, w):
        """Returns the clipped weights."""
        return keras.ops.clip(w, -1.0, 1.0)


class BinaryKernel:
    """Parametrization: the signs of a real kernel in [-1, 1], or signs drawn with the probabilities it encodes."""

    def __init__(self, *args: Any, stochastic: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.stochastic = bool(stochastic)

    def add_kernel(self, shape):
        """Creates `kernel` and, if it is stochastic, `positive`."""
        drawn = np.clip(np.asarray(self.kernel_initializer(shape, dtype="float32")), -1, 1)
        self.kernel = self.add_weight(
            name="kernel",
            shape=shape,
            initializer=lambda shape, dtype: tf.constant(drawn, dtype),
            dtype="float32",
            autocast=False,
            constraint=WithinOne(),
            aggregation="only_first_replica",
        )
        if self.stochastic:
            uniform = np.random.default_rng(random.randrange(2**31)).random(shape)
            self.positive = self.add_weight(
                name="positive",
                shape=shape,
                initializer=lambda shape, dtype: tf.constant(uniform < (drawn + 1) / 2, dtype),
                dtype="bool",
                trainable=False,
                autocast=False,
                aggregation="only_first_replica",
            )

    def roles(self) -> dict[str, Any]:
        """Returns `kernel` and, if the layer is stochastic, `positive`."""
        return {"kernel": self.kernel, **({"positive": self.positive} if self.stochastic else {})}

    def load_kernel(self, kernel: np.ndarray, scores: np.ndarray | None = None) -> None:
        """Sets the real kernel, clipped to [-1, 1], and its signs."""
        self.kernel.assign(np.clip(kernel, -1, 1))
        if self.stochastic:
            self.positive.assign(kernel >= 0)

    def compute_effective_kernel(self) -> tf.Tensor:
        """Returns 1 and -1: the sign of `kernel`, 1 for 0, or what was drawn last.

        Straight-through: the backward pass ignores the rounding. With drawn signs the gradient is that of the
        probability `clip((kernel + 1) / 2, 0, 1)`: half of the upstream gradient inside (-1, 1), 0 outside.
        """
        kernel = tf.convert_to_tensor(self.kernel)
        return _drawn(kernel, tf.convert_to_tensor(self.positive)) if self.stochastic else _rounded(kernel)

    def kernel_config(self) -> dict[str, Any]:
        """Returns `stochastic`."""
        return {"stochastic": self.stochastic}


def _signs(positive: tf.Tensor) -> tf.Tensor:
    return fast_where(positive, tf.ones(tf.shape(positive)), -1.0)


@custom_gradient
def _rounded(kernel: tf.Tensor) -> Any:
    return _signs(kernel >= 0), lambda upstream: upstream


@custom_gradient
def _drawn(kernel: tf.Tensor, positive: tf.Tensor) -> Any:
    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, None]:
        return fast_where(tf.abs(kernel) < 1, 0.5 * upstream, 0), None

    return _signs(positive), gradient


@keras.saving.register_keras_serializable(package="tf_robust_sparse")
class BinaryDense(BinaryKernel, DenseOperation):
    """Densely-connected layer whose kernel is trained to be signs.

    `output = activation(input @ W + bias)` with `W` in {-1, 1}, the signs of `kernel` or drawn from it.

    Args:
        units: Positive integer, size of the output space.
        stochastic: Whether signs are drawn, 1 with probability `(kernel + 1) / 2`;
            `StochasticBinarization` draws new ones in each training step. Otherwise they are those of
            `kernel`.
        activation: Activation of the output; `None` for logits.
        use_bias: Whether a bias is added.
        kernel_initializer: Initializer of the real kernel, clipped to [-1, 1].

    Input shape: `(batch, input_dim)`. Output shape: `(batch, units)`.

    Weights:
        kernel: `(input_dim, units)`, float32 in [-1, 1], trainable.
        positive: as `kernel`, boolean, only if `stochastic`: what was drawn last.
        bias: `(units,)`, trainable.

    Raises:
        ValueError: if `units` is not a positive integer.

    Reference: [Courbariaux et al., 2015](https://arxiv.org/abs/1511.00363), section 2.
    """


@keras.saving.register_keras_serializable(package="tf_robust_sparse")
class BinaryConv2D(BinaryKernel, Conv2DOperation):
    """2-D convolution, channels last, whose kernel is trained to be signs.

    `output = activation(convolution(input, W) + bias)` with `W` in {-1, 1}, the signs of `kernel` or drawn from it.

    Args:
        filters: Positive integer, number of output channels.
        kernel_size: Integer or pair.
        strides: Integer or pair.
        padding: `"valid"` or `"same"`.
        stochastic: Whether signs are drawn; see `BinaryDense`.
        activation: Activation of the output.
        use_bias: Whether a bias is added.
        kernel_initializer: Initializer of the real kernel, clipped to [-1, 1].

    Input shape: `(batch, height, width, channels)`. Output shape: `(batch, new_height, new_width, filters)`.

    Weights:
        kernel: `(kernel_height, kernel_width, channels, filters)`, float32 in [-1, 1], trainable.
        positive: as `kernel`, boolean, only if `stochastic`: what was drawn last.
        bias: `(filters,)`, trainable.

    Raises:
        ValueError: if a size is not positive or the padding is unknown.

    Reference: [Courbariaux et al., 2015](https://arxiv.org/abs/1511.00363), section 2.
    """
