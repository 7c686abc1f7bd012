"""Dense kernels: the twins of the sparse layers, with every connection present."""

import keras
import tensorflow as tf

from tf_robust_sparse.layers.kernel_layer import Conv2DOperation, DenseOperation


class PlainKernel:
    """Parametrization: one trainable float32 kernel, used as it is."""

    def add_kernel(self, shape):
        """Creates `kernel`."""
        self.kernel = self.add_weight(
            name="kernel", shape=shape, initializer=self.kernel_initializer, dtype="float32", autocast=False
        )

    def compute_effective_kernel(self) -> tf.Tensor:
        """Returns `kernel`."""
        return tf.convert_to_tensor(self.kernel)


@keras.saving.register_keras_serializable(package="tf_robust_sparse")
class PlainDense(PlainKernel, DenseOperation):
    """Densely-connected layer: `output = activation(input @ kernel + bias)`.

    It computes what `keras.layers.Dense` computes, through the seam that all kernels of the toolkit share. The dense
    twin of a sparse network thus uses the same cached kernels and folded batch norm.

    Args:
        units: Positive integer, size of the output space.
        activation: Activation of the output; `None` for logits.
        use_bias: Whether a bias is added.
        kernel_initializer: Initializer of the kernel.

    Input shape: `(batch, input_dim)`. Output shape: `(batch, units)`.

    Weights:
        kernel: `(input_dim, units)`, float32, trainable.
        bias: `(units,)`, trainable.

    Raises:
        ValueError: if `units` is not a positive integer.
    """


@keras.saving.register_keras_serializable(package="tf_robust_sparse")
class PlainConv2D(PlainKernel, Conv2DOperation):
    """2-D convolution, channels last: `output = activation(convolution(input, kernel) + bias)`.

    It computes what `keras.layers.Conv2D` computes, through the seam that all kernels of the toolkit share.

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
        bias: `(filters,)`, trainable.

    Raises:
        ValueError: if a size is not positive or the padding is unknown.
    """
