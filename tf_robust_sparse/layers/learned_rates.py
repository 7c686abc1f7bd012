"""Kernels that learn how many of their entries stay, in addition to which ones."""

import math
from typing import Any

import keras
import tensorflow as tf

from tf_robust_sparse.layers.gradients import custom_gradient
from tf_robust_sparse.layers.kernel_layer import Conv2DOperation, DenseOperation
from tf_robust_sparse.layers.selection import fast_where, largest_mask
from tf_robust_sparse.layers.subnet import SubnetKernel, check_fraction

FIRST_FRACTION = 0.1  # with which rates begin, whatever the budget
LEAST_SHARE = 0.1  # of the budget; no layer keeps a smaller fraction
_EDGE = 1e-6  # keeps rates finite


def first_fractions(connectivity: float) -> dict[str, float]:
    """Returns the published `keep_fraction` and `least_fraction` of each layer for a budget."""
    return {"keep_fraction": max(FIRST_FRACTION, connectivity), "least_fraction": LEAST_SHARE * connectivity}


class LearnedRateKernel(SubnetKernel):
    """Parametrization: a kernel, scores, and a trainable rate, which says what fraction of the entries stays.

    With the rate `r` and `least = least_fraction`, the fraction `k = least + (1 - least) * sigmoid(r)` stays.
    """

    rate: Any = None

    def __init__(self, *args: Any, keep_fraction: float = 0.1, least_fraction: float = 0.001, **kwargs: Any) -> None:
        super().__init__(*args, keep_fraction=keep_fraction, **kwargs)
        self.least_fraction = check_fraction("least_fraction", least_fraction)

    @property
    def keep_fraction(self) -> float:
        """Fraction of the entries that stays at present; a new value sets the rate, as far as it lies in its range."""
        if self.rate is None:
            return self._keep_fraction
        with tf.init_scope():  # the number, also where a graph is traced
            return float(self.compute_keep_fraction())

    @keep_fraction.setter
    def keep_fraction(self, value: float) -> None:
        self._keep_fraction = check_fraction("keep_fraction", value)
        if self.rate is not None:
            self.rate.assign(self._rate_of(self._keep_fraction))

    @property
    def expected_connectivity(self) -> float:
        """The fraction that was set last."""
        return self._keep_fraction

    @property
    def selection(self) -> list[Any]:
        """The scores and the rate."""
        return [self.scores, self.rate]

    def add_kernel(self, shape):
        """Creates `kernel`, `scores` and `rate`."""
        super().add_kernel(shape)
        self.rate = self.add_weight(
            name="rate",
            shape=(),
            initializer=keras.initializers.Constant(self._rate_of(self._keep_fraction)),
            dtype="float32",
            autocast=False,
            aggregation="only_first_replica",
        )

    def roles(self) -> dict[str, Any]:
        """Returns `kernel`, `scores` and `rate`."""
        return {**super().roles(), "rate": self.rate}

    def compute_keep_fraction(self) -> tf.Tensor:
        """Returns the fraction that the rate stands for, a float64 scalar, differentiably."""
        share = tf.sigmoid(tf.cast(tf.convert_to_tensor(self.rate), tf.float64))
        return self.least_fraction + (1 - self.least_fraction) * share

    def mask_at(self, scores: tf.Tensor) -> tf.Tensor:
        """Returns the mask of the entries with the largest absolute `scores`, as many as the rate says."""
        entries = scores.shape.num_elements()
        dropped = tf.cast((1 - self.compute_keep_fraction()) * entries, tf.int32)
        return largest_mask(tf.abs(scores), entries - dropped, last_wins=True)

    def kernel_at(self, scores: tf.Tensor) -> tf.Tensor:
        """Returns `kernel` where the mask of these scores is on, exactly 0 elsewhere.

        Straight-through, with the mask `m`: the scores get `sign(scores) * dL/dm` and the fraction the sum of `dL/dm`,
        over all entries, kept or not; `dL/dm = kernel * dL/dW`.
        """
        fraction = tf.cast(self.compute_keep_fraction(), tf.float32)
        return _gated(tf.convert_to_tensor(self.kernel), scores, fraction, self.mask_at(scores))

    def keep_at_most(self, count: int) -> None:
        """Sets the rate so that exactly `count` entries stay, or the next number below that a float32 rate stands for.

        No fewer stay than `least_fraction` asks for.
        """
        self.keep_fraction = (count - 0.5) / self.scores.shape.num_elements()
        for _ in range(8):  # more where float32 is too coarse
            if self.kept > count:
                self.rate.assign(tf.math.nextafter(tf.convert_to_tensor(self.rate), -math.inf))

    def kernel_config(self) -> dict[str, Any]:
        """Returns `keep_fraction`, `scores_initializer` and `least_fraction`."""
        return {**super().kernel_config(), "least_fraction": self.least_fraction}

    def _rate_of(self, fraction: float) -> float:
        share = (fraction - self.least_fraction) / (1 - self.least_fraction)
        share = min(max(share, _EDGE), 1 - _EDGE)
        return math.log(share / (1 - share))


@custom_gradient
def _gated(kernel: tf.Tensor, scores: tf.Tensor, fraction: tf.Tensor, mask: tf.Tensor) -> Any:
    del fraction  # stands in the backward pass for the number of entries that stay

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, None]:
        to_mask = kernel * upstream
        return fast_where(mask, upstream, 0), tf.sign(scores) * to_mask, tf.reduce_sum(to_mask), None

    return fast_where(mask, kernel, 0), gradient


@keras.saving.register_keras_serializable(package="tf_robust_sparse")
class LearnedRateDense(LearnedRateKernel, DenseOperation):
    """Densely-connected layer that learns how many of its kernel entries stay, in addition to their scores.

    `output = activation(input @ W + bias)` with `W = kernel` where `abs(scores)` is among the largest, 0 elsewhere; of
    `n` entries `n - int((1 - k) * n)` stay, `k = least_fraction + (1 - least_fraction) * sigmoid(rate)`.

    Args:
        units: Positive integer, size of the output space.
        keep_fraction: Fraction of the entries that stays at first, in (0, 1].
        least_fraction: Fraction that stays whatever the rate, in (0, 1].
        scores_initializer: Initializer of the scores; `None` for uniform ones in +-1/sqrt(fan_in).
        activation: Activation of the output; `None` for logits.
        use_bias: Whether a bias is added.
        kernel_initializer: Initializer of the kernel.

    Input shape: `(batch, input_dim)`. Output shape: `(batch, units)`.

    Weights:
        kernel: `(input_dim, units)`, float32, trainable.
        scores: as `kernel`.
        rate: scalar, float32, trainable.
        bias: `(units,)`, trainable, never pruned.

    Raises:
        ValueError: if `units` is not a positive integer or a fraction is outside (0, 1].

    Reference: [Zhao and Wressnegger, 2023](https://arxiv.org/abs/2412.14714), section 3.
    """


@keras.saving.register_keras_serializable(package="tf_robust_sparse")
class LearnedRateConv2D(LearnedRateKernel, Conv2DOperation):
    """2-D convolution, channels last, that learns how many of its kernel entries stay, in addition to their scores.

    `output = activation(convolution(input, W) + bias)` with `W` as in `LearnedRateDense`.

    Args:
        filters: Positive integer, number of output channels.
        kernel_size: Integer or pair.
        strides: Integer or pair.
        padding: `"valid"` or `"same"`.
        keep_fraction: Fraction of the entries that stays at first, in (0, 1].
        least_fraction: Fraction that stays whatever the rate, in (0, 1].
        scores_initializer: Initializer of the scores; `None` for uniform ones in +-1/sqrt(fan_in).
        activation: Activation of the output.
        use_bias: Whether a bias is added.
        kernel_initializer: Initializer of the kernel.

    Input shape: `(batch, height, width, channels)`. Output shape: `(batch, new_height, new_width, filters)`.

    Weights:
        kernel: `(kernel_height, kernel_width, channels, filters)`, float32, trainable.
        scores: as `kernel`.
        rate: scalar, float32, trainable.
        bias: `(filters,)`, trainable, never pruned.

    Raises:
        ValueError: if a size is not positive, the padding is unknown or a fraction is outside (0, 1].

    Reference: [Zhao and Wressnegger, 2023](https://arxiv.org/abs/2412.14714), section 3.
    """
