"""Dense and Conv2D base layers with a pluggable kernel parametrization (masked, rewiring, ...)."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_robust_sparse.layers import kernel_seam


class KernelLayer(keras.layers.Layer):
    """A layer whose output is linear in an effective kernel, plus bias and activation.

    A parametrization is a mixin placed before one of the operations below. It provides `add_kernel(shape)`, which
    creates its variables, `compute_effective_kernel()`, which returns the float32 kernel, and optionally
    `kernel_config()`.

    The base is `keras.layers.Layer`: a subclass of `keras.layers.Dense` would save only the variables that Dense knows.
    """

    kernel: Any
    signs_are_fixed = False  # whether an entry that crosses zero stays at 0
    prunable = False  # whether a sparsifier may change which entries of the kernel are non-zero

    def __init__(
        self,
        activation: Any = None,
        use_bias: bool = True,
        kernel_initializer: Any = "he_normal",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.activation = keras.activations.get(activation)
        self.use_bias = bool(use_bias)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias = None

    @property
    def effective_kernel(self) -> tf.Tensor:
        """The float32 kernel that the layer multiplies by, 0 where nothing is connected."""
        return kernel_seam.effective_kernel(self)

    @property
    def ranked(self) -> Any:
        """The variable whose entries rank those of the kernel; magnitude pruning removes the smallest."""
        return self.kernel

    @property
    def frozen(self) -> bool:
        """Whether the user has frozen the kernel by `layer.trainable = False`, so that its connections stay."""
        return not self.trainable

    @property
    def expected_connectivity(self) -> float:
        """Expected fraction of nonzero kernel entries, known before training; it affects speed alone."""
        return 1.0

    def add_kernel(self, shape: tuple[int, ...]) -> None:
        """Creates the variables behind the effective kernel of the given shape."""
        raise NotImplementedError(f"{type(self).__name__} must mix in a parametrization before the operation.")

    def compute_effective_kernel(self) -> tf.Tensor:
        """Computes the float32 effective kernel from the variables, differentiably."""
        raise NotImplementedError(f"{type(self).__name__} must mix in a parametrization before the operation.")

    def hold_kernel(self, kernel: np.ndarray) -> None:
        """Sets the variables so that the effective kernel is `kernel`, as far as the parametrization can hold it."""
        self.kernel.assign(kernel)

    @property
    def stored_kernel(self) -> Any:
        """The kernel with its masked-out entries, if the parametrization keeps them, else the effective kernel."""
        return self.kernel

    def roles(self) -> dict[str, Any]:
        """Returns the variables behind the effective kernel by what they mean, without masks."""
        return {"kernel": self.kernel}

    def load_kernel(self, kernel: np.ndarray, scores: np.ndarray | None = None) -> None:
        """Sets the variables to a kernel from elsewhere whose zeros are not connected, or to a kernel and its scores.

        Raises:
            ValueError: if the parametrization cannot hold the kernel.
        """
        self.kernel.assign(kernel)

    def kernel_config(self) -> dict[str, Any]:
        """Returns the constructor arguments that the parametrization adds."""
        return {}

    def _add_weights(self, kernel_shape: tuple[int, ...]) -> None:
        self.add_kernel(kernel_shape)
        if self.use_bias:
            self.bias = self.add_weight(name="bias", shape=kernel_shape[-1:], initializer="zeros", autocast=False)

    def plain_config(self) -> dict[str, Any]:
        """Returns the configuration of the Keras layer that computes the same with a plain kernel."""
        return {
            "name": self.name,
            "dtype": keras.saving.serialize_keras_object(self.dtype_policy),
            "activation": keras.activations.serialize(self.activation),
            "use_bias": self.use_bias,
        }

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        config = super().get_config()
        config.update(self.plain_config())
        config["kernel_initializer"] = keras.initializers.serialize(self.kernel_initializer)
        config.update(self.kernel_config())
        return config


class DenseOperation(KernelLayer):
    """`activation(input @ effective_kernel + bias)`."""

    plain_class = keras.layers.Dense

    def __init__(self, units: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units = _positive_integer("units", units)
        self.input_spec = keras.layers.InputSpec(ndim=2)

    def build(self, input_shape):
        """Creates the weights for inputs of shape `(batch, input_dim)`."""
        if input_shape[-1] is None:
            raise ValueError(
                f"The last dimension of the inputs to {type(self).__name__} must be known. "
                f"Received: input_shape={input_shape}"
            )
        self._add_weights((input_shape[-1], self.units))

    def call(self, inputs):
        """Returns outputs of shape `(batch, units)`."""
        kernel, bias = kernel_seam.kernel_and_bias(self)
        outputs = kernel_seam.multiply(inputs, kernel)
        return self.activation(outputs if bias is None else tf.nn.bias_add(outputs, bias))

    def compute_output_shape(self, input_shape):
        """Returns `(batch, units)`."""
        return (*input_shape[:-1], self.units)

    def plain_config(self) -> dict[str, Any]:
        """Returns the configuration of the equivalent `keras.layers.Dense`."""
        return {**super().plain_config(), "units": self.units}


class Conv2DOperation(KernelLayer):
    """`activation(convolution(input, effective_kernel) + bias)`, channels last."""

    plain_class = keras.layers.Conv2D

    def __init__(
        self,
        filters: int,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int] = 1,
        padding: str = "valid",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.filters = _positive_integer("filters", filters)
        self.kernel_size = _pair("kernel_size", kernel_size)
        self.strides = _pair("strides", strides)
        if padding not in ("valid", "same"):
            raise ValueError(
                '`padding` must be "valid" or "same"; for symmetric padding put a keras.layers.ZeroPadding2D '
                f"before the layer. Received: padding={padding!r}"
            )
        self.padding = padding
        self.input_spec = keras.layers.InputSpec(ndim=4)

    def build(self, input_shape):
        """Creates the weights for inputs of shape `(batch, height, width, channels)`."""
        if input_shape[-1] is None:
            raise ValueError(
                f"The number of channels of the inputs to {type(self).__name__} must be known. "
                f"Received: input_shape={input_shape}"
            )
        self._add_weights((*self.kernel_size, input_shape[-1], self.filters))
        self.input_spec = keras.layers.InputSpec(ndim=4, axes={-1: input_shape[-1]})

    def call(self, inputs):
        """Returns outputs of shape `(batch, new_height, new_width, filters)`."""
        kernel, bias = kernel_seam.kernel_and_bias(self)
        outputs = kernel_seam.convolve(inputs, kernel, self.strides, self.padding)
        return self.activation(outputs if bias is None else tf.nn.bias_add(outputs, bias))

    def compute_output_shape(self, input_shape):
        """Returns `(batch, new_height, new_width, filters)`."""
        batch, *image, _ = input_shape
        sizes = [
            _convolved(size, k, s, self.padding)
            for size, k, s in zip(image, self.kernel_size, self.strides, strict=True)
        ]
        if any(size is not None and size < 1 for size in sizes):
            raise ValueError(
                f"The images that reach {self.name} are smaller than its kernel of size {self.kernel_size}. "
                f"Received: input_shape={tuple(input_shape)}"
            )
        return (batch, *sizes, self.filters)

    def plain_config(self) -> dict[str, Any]:
        """Returns the configuration of the equivalent `keras.layers.Conv2D`."""
        return {
            **super().plain_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            "padding": self.padding,
            "data_format": "channels_last",  # whatever keras.json says
        }

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments, without `data_format`, which is always channels last."""
        config = super().get_config()
        del config["data_format"]
        return config


def _convolved(size: int | None, kernel: int, stride: int, padding: str) -> int | None:
    if size is None:
        return None
    return -(-size // stride) if padding == "same" else (size - kernel) // stride + 1


def _positive_integer(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"`{name}` must be a positive integer. Received: {name}={value!r}")
    return value


def _pair(name: str, value: Any) -> tuple[int, int]:
    values = (value, value) if isinstance(value, int) else tuple(value)
    if len(values) != 2:
        raise ValueError(f"`{name}` must be an integer or a pair of integers. Received: {name}={value!r}")
    return _positive_integer(name, values[0]), _positive_integer(name, values[1])
