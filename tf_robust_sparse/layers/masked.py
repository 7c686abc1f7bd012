"""Kernels gated by a binary mask, which a sparsifier writes."""

import keras
import numpy as np
import tensorflow as tf

from tf_robust_sparse.layers.gradients import custom_gradient
from tf_robust_sparse.layers.kernel_layer import Conv2DOperation, DenseOperation
from tf_robust_sparse.layers.selection import fast_where


@custom_gradient
def _straight_through(mask, kernel):
    return fast_where(mask, kernel, 0), lambda upstream: (None, upstream)


class MaskedKernel:
    """Parametrization: a trainable kernel and a mask that is not trainable."""

    prunable = True
    trainable: bool
    straight_through = False  # set by a sparsifier that trains masked-out entries too

    def add_kernel(self, shape):
        """Creates `kernel` and `kernel_mask`."""
        self.kernel = self.add_weight(
            name="kernel",
            shape=shape,
            initializer=self.kernel_initializer,
            dtype="float32",
            autocast=False,
            aggregation="only_first_replica",
        )
        # Without an aggregation, an assignment in a replica context makes the replicas drift apart.
        self.kernel_mask = self.add_weight(
            name="kernel_mask",
            shape=shape,
            initializer="ones",
            dtype="bool",
            trainable=False,
            autocast=False,
            aggregation="only_first_replica",
        )

    @property
    def frozen(self) -> bool:
        """Whether the user has frozen the layer, or its kernel alone."""
        return not (self.trainable and self.kernel.trainable)

    def load_kernel(self, kernel: np.ndarray, scores: np.ndarray | None = None) -> None:
        """Sets the kernel and masks its zeros."""
        self.kernel.assign(kernel)
        self.kernel_mask.assign(kernel != 0)

    def compute_effective_kernel(self) -> tf.Tensor:
        """Returns `kernel` where the mask is on, exactly 0 elsewhere.

        The gradient is masked, too, or reaches every entry of the kernel if the layer is `straight_through`.
        """
        mask, kernel = tf.convert_to_tensor(self.kernel_mask), tf.convert_to_tensor(self.kernel)
        return _straight_through(mask, kernel) if self.straight_through else fast_where(mask, kernel, 0)


@keras.saving.register_keras_serializable(package="tf_robust_sparse")
class MaskedDense(MaskedKernel, DenseOperation):
    """Densely-connected layer whose kernel is gated by a binary mask.

    `output = activation(input @ (kernel * kernel_mask) + bias)`. A masked-out entry has zero gradient, but momentum
    and weight decay still move it unless a sparsifier holds it at zero.

    Args:
        units: Positive integer, size of the output space.
        activation: Activation of the output; `None` for logits.
        use_bias: Whether a bias is added.
        kernel_initializer: Initializer of the kernel.

    Input shape: `(batch, input_dim)`. Output shape: `(batch, units)`.

    Weights:
        kernel: `(input_dim, units)`, float32, trainable.
        kernel_mask: as `kernel`, boolean, not trainable; a sparsifier writes it. All `True` at first.
        bias: `(units,)`, trainable, never masked.

    Raises:
        ValueError: if `units` is not a positive integer.

    Reference: [Han et al., 2015](https://arxiv.org/abs/1506.02626), section 3.
    """


@keras.saving.register_keras_serializable(package="tf_robust_sparse")
class MaskedConv2D(MaskedKernel, Conv2DOperation):
    """2-D convolution, channels last, whose kernel is gated by a binary mask.

    `output = activation(convolution(input, kernel * kernel_mask) + bias)`.

    Args:
        filters: Positive integer, number of output channels.
        kernel_size: Integer or pair.
        strides: Integer or pair.
        padding: `"valid"` or `"same"`.
        activation: Activation of the output.
        use_bias: Whether a bias is added.
        kernel_initializer: Initializer of the kernel.

    Input shape: `(batch, height, width, channels)`. Output shape: `(batch, new_height, new_width, filters)`.

    Weights:
        kernel: `(kernel_height, kernel_width, channels, filters)`, float32, trainable.
        kernel_mask: as `kernel`, boolean, not trainable; a sparsifier writes it. All `True` at first.
        bias: `(filters,)`, trainable, never masked.

    Raises:
        ValueError: if a size is not positive or the padding is unknown.

    Reference: [Han et al., 2015](https://arxiv.org/abs/1506.02626), section 3.
    """
