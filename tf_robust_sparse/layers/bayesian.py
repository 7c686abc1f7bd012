"""Kernels, biases and scales whose entries are drawn from independent normal distributions."""

import math
from typing import Any

import keras
import tensorflow as tf

from tf_robust_sparse.layers import kernel_seam, training_noise
from tf_robust_sparse.layers.kernel_layer import Conv2DOperation, DenseOperation
from tf_robust_sparse.layers.noise import fold_in


class Posterior:
    """A mixin: weights with a mean and a spread, their draws, and their divergence from the prior."""

    prior_stddev: float
    initial_rho: float

    def check_posterior(self, prior_stddev: float, initial_rho: float) -> None:
        """Checks and stores the arguments of the posterior.

        Raises:
            ValueError: if one is out of its range.
        """
        if not 0 < prior_stddev < float("inf"):
            raise ValueError(f"`prior_stddev` must be a positive number. Received: prior_stddev={prior_stddev!r}")
        if not math.isfinite(initial_rho):
            raise ValueError(f"`initial_rho` must be a finite number. Received: initial_rho={initial_rho!r}")
        self.prior_stddev, self.initial_rho = float(prior_stddev), float(initial_rho)

    def add_rho(self, name: str, shape: tuple[int, ...]) -> Any:
        """Creates the variable `rho` of a weight, whose standard deviation is `softplus(rho)`."""
        return self.add_weight(  # type: ignore[attr-defined]
            name=f"{name}_rho",
            shape=shape,
            initializer=keras.initializers.Constant(self.initial_rho),
            dtype="float32",
            autocast=False,
        )

    def posteriors(self) -> list[tuple[Any, Any]]:
        """Returns the pairs (mean, rho) of the weights that are drawn."""
        raise NotImplementedError(f"{type(self).__name__} must define `posteriors`, the weights that are drawn.")

    def sample(self) -> list[tf.Tensor]:
        """Returns a draw of each weight, one for the whole batch, float32, differentiable in mean and rho."""
        seed = training_noise.draws(self).seeds[0]
        return [
            mean + tf.math.softplus(rho) * tf.random.stateless_normal(rho.shape, fold_in(seed, number))
            for number, (mean, rho) in enumerate(self.posteriors())
        ]

    def kl_divergence(self) -> tf.Tensor:
        """Returns the divergence of the posterior from the prior, summed over all weights: a scalar, float32."""
        return tf.add_n([self._divergence(mean, rho) for mean, rho in self.posteriors()])

    def _divergence(self, mean: Any, rho: Any) -> tf.Tensor:
        variance, prior = tf.square(tf.math.softplus(rho)), self.prior_stddev**2
        return tf.reduce_sum(0.5 * tf.math.log(prior / variance) + (variance + tf.square(mean)) / (2 * prior) - 0.5)


class BayesianKernel(Posterior):
    """Parametrization: a mean and a spread for each entry; the mean is the effective kernel.

    In training, kernel and bias are drawn once per step; in inference, they are their means.
    """

    bias: Any

    def __init__(self, *args: Any, prior_stddev: float = 1.0, initial_rho: float = -3.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.check_posterior(prior_stddev, initial_rho)

    def add_kernel(self, shape):
        """Creates `kernel` and `kernel_rho`, and `bias_rho` if there is a bias."""
        self.kernel = self.add_weight(
            name="kernel", shape=shape, initializer=self.kernel_initializer, dtype="float32", autocast=False
        )
        self.kernel_rho = self.add_rho("kernel", shape)
        self.bias_rho = self.add_rho("bias", shape[-1:]) if self.use_bias else None

    def compute_effective_kernel(self) -> tf.Tensor:
        """Returns `kernel`, the mean."""
        return tf.convert_to_tensor(self.kernel)

    def roles(self) -> dict[str, Any]:
        """Returns `kernel`, `kernel_rho` and, if there is a bias, `bias_rho`."""
        bias = {} if self.bias_rho is None else {"bias_rho": self.bias_rho}
        return {"kernel": self.kernel, "kernel_rho": self.kernel_rho, **bias}

    def posteriors(self) -> list[tuple[Any, Any]]:
        """Returns mean and rho of the kernel and of the bias, if there is one."""
        bias = [] if self.bias is None else [(self.bias, self.bias_rho)]
        return [(self.kernel, self.kernel_rho), *bias]

    def call(self, inputs, training=None):
        """Returns the outputs of the operation; in training with a drawn kernel and bias."""
        if not training:
            return super().call(inputs)
        with kernel_seam.override_kernel(self, *self.sample()):
            return super().call(inputs)

    def kernel_config(self) -> dict[str, Any]:
        """Returns `prior_stddev` and `initial_rho`."""
        return {"prior_stddev": self.prior_stddev, "initial_rho": self.initial_rho}


@keras.saving.register_keras_serializable(package="tf_robust_sparse")
class BayesianDense(BayesianKernel, DenseOperation):
    """Densely-connected layer of normally distributed weights: `output = activation(input @ W + c)`.

    In training, `W = kernel + softplus(kernel_rho) * e` and `c = bias + softplus(bias_rho) * e'` with standard normal
    `e`, `e'`. One draw serves the whole batch; its seed comes from `training_noise`. In inference, `W = kernel` and
    `c = bias`.

    Args:
        units: Positive integer, size of the output space.
        prior_stddev: Standard deviation of the prior of every weight, whose mean is 0; positive.
        initial_rho: Where every `rho` starts.
        activation: Activation of the output; `None` for logits.
        use_bias: Whether a bias is added.
        kernel_initializer: Initializer of the means of the kernel.

    Input shape: `(batch, input_dim)`. Output shape: `(batch, units)`.

    Weights:
        kernel, kernel_rho: `(input_dim, units)`, float32, trainable.
        bias, bias_rho: `(units,)`, trainable.

    Raises:
        ValueError: if `units` or `prior_stddev` is not positive.

    Reference: [Blundell et al., 2015](https://arxiv.org/abs/1505.05424), section 3.2.
    """


@keras.saving.register_keras_serializable(package="tf_robust_sparse")
class BayesianConv2D(BayesianKernel, Conv2DOperation):
    """2-D convolution, channels last, of normally distributed weights; see `BayesianDense`.

    Args:
        filters: Positive integer, number of output channels.
        kernel_size: Integer or pair.
        strides: Integer or pair.
        padding: `"valid"` or `"same"`.
        prior_stddev: Standard deviation of the prior of every weight, whose mean is 0; positive.
        initial_rho: Where every `rho` starts.
        activation: Activation of the output.
        use_bias: Whether a bias is added.
        kernel_initializer: Initializer of the means of the kernel.

    Input shape: `(batch, height, width, channels)`. Output shape: `(batch, new_height, new_width, filters)`.

    Weights:
        kernel, kernel_rho: `(kernel_height, kernel_width, channels, filters)`, float32, trainable.
        bias, bias_rho: `(filters,)`, trainable.

    Raises:
        ValueError: if a size or `prior_stddev` is not positive or the padding is unknown.

    Reference: [Blundell et al., 2015](https://arxiv.org/abs/1505.05424), section 3.2.
    """


@keras.saving.register_keras_serializable(package="tf_robust_sparse")
class BayesianScale(Posterior, keras.layers.Layer):
    """Normally distributed scale and shift of each channel: `output = input * g + s`; see `BayesianDense`.

    Placed after a batch norm without scale and shift, it makes a Bayesian batch norm.

    Args:
        prior_stddev: Standard deviation of the prior of every scale and shift, whose mean is 0; positive.
        initial_rho: Where every `rho` starts.

    Input shape: `(batch, units)` or `(batch, height, width, channels)`. Output shape: the same.

    Weights:
        gamma, gamma_rho, beta, beta_rho: `(units,)`, float32, trainable; the means start in [0, 1) and at 0.

    Raises:
        ValueError: if `prior_stddev` is not positive.
    """

    folds_into_last_axis = True
    plain_class = keras.layers.Rescaling

    def __init__(self, prior_stddev: float = 1.0, initial_rho: float = -3.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.check_posterior(prior_stddev, initial_rho)

    def build(self, input_shape):
        """Creates the weights for inputs whose last axis are the channels."""
        shape = (input_shape[-1],)
        for name, initializer in (("gamma", keras.initializers.RandomUniform(0, 1)), ("beta", "zeros")):
            mean = self.add_weight(name=name, shape=shape, initializer=initializer, dtype="float32", autocast=False)
            setattr(self, name, mean)
            setattr(self, f"{name}_rho", self.add_rho(name, shape))

    def posteriors(self) -> list[tuple[Any, Any]]:
        """Returns mean and rho of scale and shift."""
        return [(self.gamma, self.gamma_rho), (self.beta, self.beta_rho)]

    def inference_scale_and_shift(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the means, float32 `(units,)` each: inference computes `input * scale + shift`."""
        return tf.convert_to_tensor(self.gamma), tf.convert_to_tensor(self.beta)

    def call(self, inputs, training=None):
        """Returns `inputs`, scaled and shifted."""
        if kernel_seam.skips_folded(self, training):
            return inputs
        scale, shift = self.sample() if training else self.inference_scale_and_shift()
        return inputs * tf.cast(scale, inputs.dtype) + tf.cast(shift, inputs.dtype)

    def compute_output_shape(self, input_shape):
        """Returns `input_shape`."""
        return input_shape

    def plain_config(self) -> dict[str, Any]:
        """Returns the configuration of the equivalent `keras.layers.Rescaling`."""
        scale, shift = (keras.ops.convert_to_numpy(value).tolist() for value in (self.gamma, self.beta))
        return {"name": self.name, "scale": scale, "offset": shift}

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {**super().get_config(), "prior_stddev": self.prior_stddev, "initial_rho": self.initial_rho}
