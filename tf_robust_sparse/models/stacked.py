"""Several dense networks of one architecture side by side, as one network.

The stack is an ordinary network: code that trains, attacks or evaluates one network handles all members at once. Its
batches are divided: of `(members * batch, ...)` images, the first `batch` belong to the first member, and so on. No
member sees images, kernels or gradients of another one. Small matrix products of the members become one batched product
per layer, and all other work is done once.
"""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_robust_sparse import layers
from tf_robust_sparse.layers.kernel_layer import KernelLayer
from tf_robust_sparse.layers.kernel_seam import kernel_and_bias, multiply
from tf_robust_sparse.layers.masked import MaskedKernel

_ROW_BY_ROW = (keras.layers.InputLayer, keras.layers.Flatten, keras.layers.ReLU, keras.layers.Activation)


class StackedDense(MaskedKernel, KernelLayer):
    """Masked dense layers side by side: `output[m] = activation(input[m] @ (kernel[m] * kernel_mask[m]))`.

    It serves training alone: members are saved one by one, as ordinary networks.

    Args:
        members: Number of layers side by side.
        units: Size of the output space of each layer.
        activation: Activation of the output; `None` for logits.

    Input shape: `(members * batch, input_dim)`. Output shape: `(members * batch, units)`.

    Weights:
        kernel: `(members, input_dim, units)`, float32, trainable.
        kernel_mask: as `kernel`, boolean, not trainable.
    """

    def __init__(self, members: int, units: int, **kwargs: Any) -> None:
        super().__init__(use_bias=False, kernel_initializer="zeros", **kwargs)
        self.members = members
        self.units = units
        self.input_spec = keras.layers.InputSpec(ndim=2)

    def build(self, input_shape):
        """Creates the weights for inputs of shape `(members * batch, input_dim)`."""
        self._add_weights((self.members, input_shape[-1], self.units))

    def call(self, inputs):
        """Returns outputs of shape `(members * batch, units)`."""
        kernel, _ = kernel_and_bias(self)
        dealt = tf.reshape(inputs, (self.members, -1, inputs.shape[-1]))
        return self.activation(tf.reshape(multiply(dealt, kernel), (-1, self.units)))

    def compute_output_shape(self, input_shape):
        """Returns `(members * batch, units)`."""
        return (input_shape[0], self.units)


def can_be_stacked(network: keras.Model) -> bool:
    """Returns whether `network` has only masked dense layers, unfrozen and without biases, besides activations."""
    others = [layer for layer in network.layers if not isinstance(layer, _ROW_BY_ROW)]
    return all(isinstance(layer, layers.MaskedDense) and not (layer.use_bias or layer.frozen) for layer in others)


def stack(networks: Sequence[keras.Model]) -> keras.Model:
    """Joins several networks to one, with their present kernels and masks.

    Args:
        networks: Networks of one architecture that satisfy `can_be_stacked`; a single one is returned unchanged.

    Returns:
        A model from `(members * batch, ...)` images to logits `(members * batch, classes)`, divided as the module says.

    Raises:
        ValueError: if there is no network, or several that cannot be stacked.
    """
    if not networks:
        raise ValueError("`networks` must hold at least one network. Received: an empty list")
    if len(networks) == 1:
        return networks[0]
    for network in networks:
        if not can_be_stacked(network):
            raise ValueError(
                "`networks` must consist of masked dense layers without biases; train others one at a time. "
                f"Received: layers {sorted({type(layer).__name__ for layer in network.layers})}"
            )
    members = len(networks)

    def stacked(layer):
        if not isinstance(layer, layers.MaskedDense):
            return layer.__class__.from_config(layer.get_config())
        return StackedDense(
            members, layer.units, activation=layer.activation, dtype=layer.dtype_policy, name=layer.name
        )

    together = keras.models.clone_model(networks[0], clone_function=stacked)
    for own in zip(layers.kernel_layers(together), *map(layers.kernel_layers, networks), strict=True):
        whole, *parts = own
        whole.kernel.assign(tf.stack([part.kernel.value for part in parts]))
        whole.kernel_mask.assign(tf.stack([part.kernel_mask.value for part in parts]))
    return together


def members_of(network: keras.Model) -> int:
    """Returns the number of members of a stack; 1 for any other network."""
    return max((getattr(layer, "members", 1) for layer in layers.kernel_layers(network)), default=1)
