"""Kernels that use only the entries with the largest scores; the scores can be learned."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_robust_sparse.layers.gradients import custom_gradient
from tf_robust_sparse.layers.kernel_layer import Conv2DOperation, DenseOperation
from tf_robust_sparse.layers.selection import fast_where, largest_mask


def kept_entries(entries: int, keep_fraction: float) -> int:
    """Returns how many entries stay: `entries - int((1 - keep_fraction) * entries)`, in double precision."""
    return entries - int((1 - keep_fraction) * entries)


def default_scores(seed: int | None = None) -> keras.initializers.Initializer:
    """Returns a uniform initializer in +-1/sqrt(fan_in), PyTorch's for kernels and HYDRA's code for scores."""
    return keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform", seed=seed)


def check_fraction(name: str, value: Any) -> float:
    """Returns a fraction of the entries of a kernel as a float.

    Raises:
        ValueError: if it is outside (0, 1].
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
        raise ValueError(
            f"`{name}` must be the fraction of kernel entries kept, in (0, 1]; for 99% sparsity pass 0.01. "
            f"Received: {name}={value!r}"
        )
    return float(value)


class SubnetKernel:
    """Parametrization: a kernel, scores, and the fraction of the entries that stays, those with the largest scores."""

    prunable = True
    name: str
    kernel: Any
    scores: Any

    def __init__(self, *args: Any, keep_fraction: float = 1.0, scores_initializer: Any = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.keep_fraction = keep_fraction
        self.scores_initializer = keras.initializers.get(scores_initializer or default_scores())

    @property
    def keep_fraction(self) -> float:
        """Fraction of the entries that stays, in (0, 1]; a change affects functions that are traced after it."""
        return self._keep_fraction

    @keep_fraction.setter
    def keep_fraction(self, value: float) -> None:
        self._keep_fraction = check_fraction("keep_fraction", value)

    @property
    def selection(self) -> list[Any]:
        """The variables that say which entries stay."""
        return [self.scores]

    @property
    def ranked(self) -> Any:
        """The scores."""
        return self.scores

    @property
    def expected_connectivity(self) -> float:
        """The fraction that is kept."""
        return self.keep_fraction

    def add_kernel(self, shape):
        """Creates `kernel` and `scores`."""
        for name, initializer in (("kernel", self.kernel_initializer), ("scores", self.scores_initializer)):
            weight = self.add_weight(
                name=name,
                shape=shape,
                initializer=initializer,
                dtype="float32",
                autocast=False,
                aggregation="only_first_replica",
            )
            setattr(self, name, weight)

    def roles(self) -> dict[str, Any]:
        """Returns `kernel` and `scores`."""
        return {"kernel": self.kernel, "scores": self.scores}

    def load_kernel(self, kernel: np.ndarray, scores: np.ndarray | None = None) -> None:
        """Sets the kernel and its scores; without scores, all entries stay that are not 0."""
        self.kernel.assign(kernel)
        self._load_scores(kernel, scores)

    def _load_scores(self, kernel: np.ndarray, scores: np.ndarray | None) -> None:
        self.scores.assign(np.abs(kernel) if scores is None else scores)
        if scores is None:
            connected = kernel != 0
            self.keep_fraction = float(max(connected.mean(), 1 / connected.size))

    @property
    def kept(self) -> int:
        """Number of entries that stay."""
        return kept_entries(int(np.prod(self.scores.shape)), self.keep_fraction)

    def compute_kernel_mask(self) -> tf.Tensor:
        """Returns a boolean mask of the entries with the largest absolute scores; ties go to the last entries."""
        return self.mask_at(tf.convert_to_tensor(self.scores))

    def compute_effective_kernel(self) -> tf.Tensor:
        """Returns the kernel under the mask of the scores, see `kernel_at`."""
        return self.kernel_at(tf.convert_to_tensor(self.scores))

    def mask_at(self, scores: tf.Tensor) -> tf.Tensor:
        """Returns the mask that other `scores` would give."""
        if self.kept == scores.shape.num_elements():
            return tf.ones_like(scores, tf.bool)
        return largest_mask(tf.abs(scores), self.kept, last_wins=True)

    def kernel_at(self, scores: tf.Tensor) -> tf.Tensor:
        """Returns `kernel` where the mask of these scores is on, exactly 0 elsewhere.

        The gradient with respect to the kernel is masked, too. Straight-through: in the backward pass, the selection
        counts as `abs(scores)` on all entries, kept or not, so the scores get `sign(scores) * kernel * dL/dW`.
        """
        return _gated(tf.convert_to_tensor(self.kernel), scores, self.mask_at(scores))

    def kernel_config(self) -> dict[str, Any]:
        """Returns `keep_fraction` and `scores_initializer`."""
        return {
            "keep_fraction": self.keep_fraction,
            "scores_initializer": keras.initializers.serialize(self.scores_initializer),
        }


@custom_gradient
def _gated(kernel: tf.Tensor, scores: tf.Tensor, mask: tf.Tensor) -> Any:
    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, None]:
        return fast_where(mask, upstream, 0), tf.sign(scores) * kernel * upstream, None

    return fast_where(mask, kernel, 0), gradient


@keras.saving.register_keras_serializable(package="tf_robust_sparse")
class SubnetDense(SubnetKernel, DenseOperation):
    """Densely-connected layer that uses only the kernel entries with the largest scores.

    `output = activation(input @ W + bias)` with `W = kernel` where `abs(scores)` is among the largest, 0 elsewhere.

    Args:
        units: Positive integer, size of the output space.
        keep_fraction: Fraction of the entries that stays, in (0, 1]; exactly `n - int((1 - keep_fraction) * n)` of
            `n` entries.
        scores_initializer: Initializer of the scores; `None` for uniform ones in +-1/sqrt(fan_in).
        activation: Activation of the output; `None` for logits.
        use_bias: Whether a bias is added.
        kernel_initializer: Initializer of the kernel.

    Input shape: `(batch, input_dim)`. Output shape: `(batch, units)`.

    Weights:
        kernel: `(input_dim, units)`, float32, trainable.
        scores: as `kernel`.
        bias: `(units,)`, trainable, never pruned.

    Raises:
        ValueError: if `units` is not a positive integer or `keep_fraction` is outside (0, 1].

    Reference: [Ramanujan et al., 2020](https://arxiv.org/abs/1911.13299), section 3;
        [Sehwag et al., 2020](https://arxiv.org/abs/2002.10509), section 3.
    """


@keras.saving.register_keras_serializable(package="tf_robust_sparse")
class SubnetConv2D(SubnetKernel, Conv2DOperation):
    """2-D convolution, channels last, that uses only the kernel entries with the largest scores.

    `output = activation(convolution(input, W) + bias)` with `W = kernel` where `abs(scores)` is among the largest, 0
    elsewhere.

    Args:
        filters: Positive integer, number of output channels.
        kernel_size: Integer or pair.
        strides: Integer or pair.
        padding: `"valid"` or `"same"`.
        keep_fraction: Fraction of the entries that stays, in (0, 1].
        scores_initializer: Initializer of the scores; `None` for uniform ones in +-1/sqrt(fan_in).
        activation: Activation of the output.
        use_bias: Whether a bias is added.
        kernel_initializer: Initializer of the kernel.

    Input shape: `(batch, height, width, channels)`. Output shape: `(batch, new_height, new_width, filters)`.

    Weights:
        kernel: `(kernel_height, kernel_width, channels, filters)`, float32, trainable.
        scores: as `kernel`.
        bias: `(filters,)`, trainable, never pruned.

    Raises:
        ValueError: if a size is not positive, the padding is unknown or `keep_fraction` is outside (0, 1].

    Reference: [Ramanujan et al., 2020](https://arxiv.org/abs/1911.13299), section 3;
        [Sehwag et al., 2020](https://arxiv.org/abs/2002.10509), section 3.
    """
