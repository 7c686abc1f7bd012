"""Frozen kernels of one magnitude and random signs; only the entries with the largest scores are used."""

import random
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_robust_sparse.layers.gradients import custom_gradient
from tf_robust_sparse.layers.kernel_layer import Conv2DOperation, DenseOperation
from tf_robust_sparse.layers.selection import fast_where
from tf_robust_sparse.layers.subnet import SubnetKernel


class SignedKernel(SubnetKernel):
    """Parametrization: fixed `+magnitude` or `-magnitude`, scores, and the fraction of entries that stays.

    A `SubnetKernel` whose kernel cannot be trained: only its signs are stored, one byte each.
    """

    def __init__(self, *args: Any, magnitude: float = 1.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if isinstance(magnitude, bool) or not isinstance(magnitude, (int, float)) or not 0 < magnitude < float("inf"):
            raise ValueError(
                "`magnitude` must be the absolute value of every entry of the kernel, a positive number. "
                f"Received: magnitude={magnitude!r}"
            )
        self.magnitude = float(magnitude)

    def add_kernel(self, shape):
        """Creates `positive` and `scores`."""
        drawn = np.asarray(self.kernel_initializer(shape, dtype="float32"))
        signs = drawn >= 0
        if not drawn.any():  # all zeros, as while a network is rebuilt from a file
            signs = np.random.default_rng(random.randrange(2**31)).integers(0, 2, shape, dtype=bool)
        self.positive = self.add_weight(
            name="positive",
            shape=shape,
            initializer=lambda shape, dtype: tf.constant(signs, dtype),
            dtype="bool",
            trainable=False,
            autocast=False,
            aggregation="only_first_replica",
        )
        self.scores = self.add_weight(
            name="scores",
            shape=shape,
            initializer=self.scores_initializer,
            dtype="float32",
            autocast=False,
            aggregation="only_first_replica",
        )

    @property
    def stored_kernel(self) -> tf.Tensor:
        """`+magnitude` or `-magnitude` for every entry, whatever the scores."""
        return tf.cast(self.sign, tf.float32) * self.magnitude

    def roles(self) -> dict[str, Any]:
        """Returns `positive` and `scores`."""
        return {"positive": self.positive, "scores": self.scores}

    def check_magnitude(self, kernel: np.ndarray) -> float:
        """Returns the magnitude that all nonzero entries of `kernel` share, that of the layer if there are none.

        Raises:
            ValueError: if they differ.
        """
        magnitudes = np.unique(np.abs(kernel[kernel != 0]))
        if len(magnitudes) > 1:
            raise ValueError(
                f"The kernel of {self.name} has a single magnitude, the kernel to assign has {len(magnitudes)}; build "
                'the network with kernel="subnet"'
            )
        return float(magnitudes[0]) if len(magnitudes) else self.magnitude

    def load_kernel(self, kernel: np.ndarray, scores: np.ndarray | None = None) -> None:
        """Sets magnitude, signs and scores; without scores, all entries stay that are not 0."""
        self.magnitude = self.check_magnitude(kernel)
        self.positive.assign(kernel > 0)
        self._load_scores(kernel, scores)

    @property
    def sign(self) -> tf.Tensor:
        """The sign of each entry, int8 in {-1, 1}."""
        return tf.where(self.positive, tf.constant(1, tf.int8), tf.constant(-1, tf.int8))

    def kernel_at(self, scores: tf.Tensor) -> tf.Tensor:
        """Returns `+magnitude` or `-magnitude` where the mask of these scores is on, exactly 0 elsewhere.

        Straight-through: in the backward pass, the selection counts as `abs(scores)` on all entries, kept or not. The
        gradient with respect to the scores is `sign(scores) * kernel * dL/dW`.
        """
        positive, magnitude = tf.convert_to_tensor(self.positive), tf.constant(self.magnitude)
        return _gated_signs(positive, scores, self.mask_at(scores), magnitude)

    def kernel_config(self) -> dict[str, Any]:
        """Returns `keep_fraction`, `scores_initializer` and `magnitude`."""
        return {**super().kernel_config(), "magnitude": self.magnitude}


@custom_gradient
def _gated_signs(positive: tf.Tensor, scores: tf.Tensor, mask: tf.Tensor, magnitude: tf.Tensor) -> Any:
    signed = tf.where(positive, magnitude, -magnitude)

    def gradient(upstream: tf.Tensor) -> tuple[None, tf.Tensor, None, None]:
        return None, tf.sign(scores) * signed * upstream, None, None

    return fast_where(mask, signed, 0), gradient


@keras.saving.register_keras_serializable(package="tf_robust_sparse")
class SignedDense(SignedKernel, DenseOperation):
    """Densely-connected layer of random signs; only the entries with the largest scores are used.

    `output = activation(input @ W + bias)` with `W = +-magnitude` where `abs(scores)` is among the largest, 0
    elsewhere.

    Args:
        units: Positive integer, size of the output space.
        keep_fraction: Fraction of the entries that stays, in (0, 1].
        scores_initializer: Initializer of the scores; `None` for uniform ones in +-1/sqrt(fan_in).
        magnitude: Absolute value of the kernel's entries, positive.
        activation: Activation of the output; `None` for logits.
        use_bias: Whether a bias is added.
        kernel_initializer: Initializer whose signs the kernel takes.

    Input shape: `(batch, input_dim)`. Output shape: `(batch, units)`.

    Weights:
        positive: `(input_dim, units)`, boolean, fixed at creation.
        scores: `(input_dim, units)`, float32, trainable.
        bias: `(units,)`, trainable, never pruned.

    Raises:
        ValueError: if `units` is not a positive integer, `keep_fraction` is outside (0, 1] or `magnitude` not positive.

    Reference: [Liu et al., 2022](https://arxiv.org/abs/2202.01341), section 3.
    """


@keras.saving.register_keras_serializable(package="tf_robust_sparse")
class SignedConv2D(SignedKernel, Conv2DOperation):
    """2-D convolution, channels last, with a kernel of random signs; only entries with the largest scores are used.

    `output = activation(convolution(input, W) + bias)` with `W = +-magnitude` where `abs(scores)` is among the largest,
    0 elsewhere.

    Args:
        filters: Positive integer, number of output channels.
        kernel_size: Integer or pair.
        strides: Integer or pair.
        padding: `"valid"` or `"same"`.
        keep_fraction: Fraction of the entries that stays, in (0, 1].
        scores_initializer: Initializer of the scores; `None` for uniform ones in +-1/sqrt(fan_in).
        magnitude: Absolute value of the kernel's entries, positive.
        activation: Activation of the output.
        use_bias: Whether a bias is added.
        kernel_initializer: Initializer whose signs the kernel takes.

    Input shape: `(batch, height, width, channels)`. Output shape: `(batch, new_height, new_width, filters)`.

    Weights:
        positive: `(kernel_height, kernel_width, channels, filters)`, boolean, fixed at creation.
        scores: as `positive`, float32, trainable.
        bias: `(filters,)`, trainable, never pruned.

    Raises:
        ValueError: if a size is not positive, the padding is unknown, `keep_fraction` is outside (0, 1] or `magnitude`
            not positive.

    Reference: [Liu et al., 2022](https://arxiv.org/abs/2202.01341), section 3.
    """
