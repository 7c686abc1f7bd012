"""Kernels of DEEP R: a magnitude that may cross zero and a sign that never changes."""

import math
import random
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_robust_sparse.layers import kernel_seam
from tf_robust_sparse.layers.gradients import custom_gradient
from tf_robust_sparse.layers.kernel_layer import Conv2DOperation, DenseOperation
from tf_robust_sparse.layers.selection import fast_where


class RewiringKernel:
    """Parametrization: `sign * theta` where `theta > 0`, exactly 0 elsewhere."""

    prunable = True
    signs_are_fixed = True
    name: str
    trainable: bool

    def __init__(self, *args: Any, initial_connectivity: float = 1.0, seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not (isinstance(initial_connectivity, (int, float)) and 0 < initial_connectivity <= 1):
            raise ValueError(
                "`initial_connectivity` is the fraction of kernel entries connected at the start, in (0, 1]. "
                f"Received: initial_connectivity={initial_connectivity!r}"
            )
        self.initial_connectivity = float(initial_connectivity)
        self.seed = seed

    def add_kernel(self, shape):
        """Creates `theta` and `positive` and connects `int(initial_connectivity * entries)` uniform positions."""
        seed = random.randrange(2**31) if self.seed is None else self.seed
        generator = np.random.default_rng([seed, 0x5EED])
        size = math.prod(shape)
        # Dormant entries get a sign, too: an entry that is connected later uses it.
        positive = generator.integers(0, 2, shape, dtype=bool)
        connected = np.zeros(size, bool)
        count = int(self.initial_connectivity * size)
        connected[generator.choice(size, count, replace=False, shuffle=False)] = True
        initializer = _reseeded(self.kernel_initializer, int(generator.integers(2**31)))
        theta = np.where(connected.reshape(shape), np.abs(np.asarray(initializer(shape, dtype="float32"))), 0.0)
        # Without an aggregation, an assignment in a replica context makes the replicas drift apart.
        self.theta = self.add_weight(
            name="theta",
            shape=shape,
            initializer=lambda shape, dtype: tf.constant(theta, dtype),
            dtype="float32",  # a new connection starts at 1e-12, which is 0 in half precision
            autocast=False,
            aggregation="only_first_replica",
        )
        self.positive = self.add_weight(
            name="positive",
            shape=shape,
            initializer=lambda shape, dtype: tf.constant(positive, dtype),
            dtype="bool",  # int8 cannot be broadcast to the other workers of a cluster
            trainable=False,
            autocast=False,
            aggregation="only_first_replica",
        )

    @property
    def ranked(self) -> Any:
        """The magnitudes of the connections, `theta`."""
        return self.theta

    @property
    def frozen(self) -> bool:
        """Whether the user has frozen the layer, or `theta` alone."""
        return not (self.trainable and self.theta.trainable)

    @property
    def expected_connectivity(self) -> float:
        """The initial connectivity: rewiring keeps the number of connections of the whole network."""
        return self.initial_connectivity

    @property
    def sign(self) -> tf.Tensor:
        """The sign of each entry, int8 in {-1, 1}."""
        return tf.where(self.positive, tf.constant(1, tf.int8), tf.constant(-1, tf.int8))

    def compute_effective_kernel(self) -> tf.Tensor:
        """Returns `sign * theta` where `theta > 0`, exactly 0 elsewhere.

        The gradient with respect to `theta` is `sign * dL/dW` on connected entries and exactly 0 on dormant ones.
        """
        return _signed(tf.convert_to_tensor(self.theta), tf.convert_to_tensor(self.positive))

    @property
    def stored_kernel(self) -> tf.Tensor:
        """The effective kernel: dormant entries have no magnitude."""
        return kernel_seam.effective_kernel(self)

    def roles(self) -> dict[str, Any]:
        """Returns `theta` and `positive`."""
        return {"theta": self.theta, "positive": self.positive}

    def load_kernel(self, kernel: np.ndarray, scores: np.ndarray | None = None) -> None:
        """Sets signs and magnitudes; dormant entries get a positive sign."""
        self.positive.assign(kernel >= 0)
        self.theta.assign(np.abs(kernel))

    def hold_kernel(self, kernel: np.ndarray) -> None:
        """Sets the signs and, of connected entries, the magnitudes; where `kernel` is 0, the random sign stays."""
        self.positive.assign(np.where(kernel == 0, self.positive, kernel > 0))
        self.theta.assign(np.where(np.asarray(self.theta) > 0, np.abs(kernel), 0.0))

    def kernel_config(self) -> dict[str, Any]:
        """Returns `initial_connectivity` and `seed`."""
        return {"initial_connectivity": self.initial_connectivity, "seed": self.seed}


@custom_gradient
def _signed(theta: tf.Tensor, positive: tf.Tensor) -> Any:
    kernel = fast_where(theta > 0, fast_where(positive, theta, -theta), 0)

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, None]:
        # The kernel shows its signs and zeros, so no mask has to be kept for the backward pass.
        return fast_where(kernel > 0, upstream, fast_where(kernel < 0, -upstream, 0)), None

    return kernel, gradient


def _reseeded(initializer: Any, seed: int) -> Any:
    """Returns the initializer with its own seed, because stateless Keras initializers repeat their values."""
    config = initializer.get_config()
    if "seed" in config and config["seed"] is None:
        return type(initializer).from_config({**config, "seed": seed})
    return initializer


@keras.saving.register_keras_serializable(package="tf_robust_sparse")
class RewiringDense(RewiringKernel, DenseOperation):
    """Densely-connected layer whose connections can be rewired while it trains.

    `output = activation(input @ W + bias)` with `W = sign * theta` where `theta > 0` and 0 elsewhere. An entry with
    `theta > 0` is connected, every other one dormant. A sparsifier decides which dormant entries are connected next.

    Args:
        units: Positive integer, size of the output space.
        initial_connectivity: Fraction of the entries connected at first, in (0, 1]; `int(fraction * entries)`
            positions are drawn uniformly without replacement.
        seed: Integer that fixes magnitudes, signs and positions; `None` draws one from Python's generator.
        activation: Activation of the output; `None` for logits.
        use_bias: Whether a bias is added.
        kernel_initializer: Initializer whose absolute values become the magnitudes of connected entries; the fan is
            that of the dense kernel.

    Input shape: `(batch, input_dim)`. Output shape: `(batch, units)`.

    Weights:
        theta: `(input_dim, units)`, float32 under every dtype policy, trainable.
        positive: as `theta`, boolean, fixed at creation; `sign` is 1 where it is `True` and -1 elsewhere.
        bias: `(units,)`, trainable, never rewired.

    Raises:
        ValueError: if `units` is not a positive integer or `initial_connectivity` is outside (0, 1].

    Reference: [Bellec et al., 2018](https://arxiv.org/abs/1711.05136), section 2;
        Özdenizci and Legenstein, ICML 2021, section 3.
    """


@keras.saving.register_keras_serializable(package="tf_robust_sparse")
class RewiringConv2D(RewiringKernel, Conv2DOperation):
    """2-D convolution, channels last, whose connections can be rewired while it trains.

    `output = activation(convolution(input, W) + bias)` with `W = sign * theta` where `theta > 0` and 0 elsewhere.

    Args:
        filters: Positive integer, number of output channels.
        kernel_size: Integer or pair.
        strides: Integer or pair.
        padding: `"valid"` or `"same"`.
        initial_connectivity: Fraction of the entries connected at first, in (0, 1].
        seed: Integer that fixes magnitudes, signs and positions; `None` draws one from Python's generator.
        activation: Activation of the output.
        use_bias: Whether a bias is added.
        kernel_initializer: Initializer whose absolute values become the magnitudes of connected entries.

    Input shape: `(batch, height, width, channels)`. Output shape: `(batch, new_height, new_width, filters)`.

    Weights:
        theta: `(kernel_height, kernel_width, channels, filters)`, float32 under every dtype policy, trainable.
        positive: as `theta`, boolean, fixed at creation; `sign` is 1 where it is `True` and -1 elsewhere.
        bias: `(filters,)`, trainable, never rewired.

    Raises:
        ValueError: if a size is not positive, the padding is unknown or `initial_connectivity` is outside (0, 1].

    Reference: [Bellec et al., 2018](https://arxiv.org/abs/1711.05136), section 2;
        Özdenizci and Legenstein, ICML 2021, section 3.
    """
