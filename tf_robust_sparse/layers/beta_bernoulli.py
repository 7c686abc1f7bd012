"""Gates on channels and units that learn how often each one is needed."""

import math
from typing import Any

import keras
import tensorflow as tf

from tf_robust_sparse.layers import kernel_seam, training_noise
from tf_robust_sparse.layers.noise import fold_in
from tf_robust_sparse.layers.protocols import IsVariational

_EULER = 0.5772156649015329
_SMALLEST_RAW, _LARGEST_RAW = -10.0, 50.0
_LOG_GUARD = math.log(1e-20)  # of both logarithms of a logit


@keras.saving.register_keras_serializable(package="tf_robust_sparse")
class BetaBernoulliDropout(keras.layers.Layer):
    """Multiplies each channel or unit by a gate whose probability of being open is learned.

    The probability `pi` of a unit has the prior Beta(prior, 1), which favors closed gates, and the posterior
    Kumaraswamy(a, b). In training, `pi` is drawn once per forward pass and unit, `pi = (1 - u**(1/b))**(1/a)`, and the
    gate of each example and unit is a relaxed Bernoulli variable, `sigmoid((logit(u') + logit(pi)) / temperature)`.
    In inference, the gate is the mean of `pi`, and exactly 0 where that mean is at most `threshold`.

    Seeds come from `training_noise`. All computations are in float32, whatever the dtype policy.

    Args:
        initial: Initial value of `a_raw`; -1 gives a mean gate of 0.24, 2 a mean of 0.68.
        threshold: Units whose mean gate is at most this are closed, in [0, 1).
        temperature: Of the relaxation, positive.
        prior: First parameter of the prior, positive.

    Input shape: `(batch, units)` or `(batch, height, width, channels)`. Output shape: the same.

    Weights:
        a_raw: `(units,)`, trainable; `a = softplus(max(a_raw, -10))`.
        b_raw: `(units,)`, trainable; `b = softplus(clip(b_raw, -10, 50))`.

    Raises:
        ValueError: if a number is out of its range.

    Reference: [Lee et al., 2018](https://arxiv.org/abs/1805.10896), section 3;
        [Madaan et al., 2020](https://arxiv.org/abs/1908.04355), section 4.
    """

    WEIGHTS = ("a_raw", "b_raw")
    folds_into_last_axis = True
    plain_class = keras.layers.Rescaling

    def __init__(
        self,
        initial: float = -1.0,
        threshold: float = 1e-3,
        temperature: float = 0.1,
        prior: float = 1e-4,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        for name, value in (("temperature", temperature), ("prior", prior)):
            if not 0 < value < float("inf"):
                raise ValueError(f"`{name}` must be a positive number. Received: {name}={value!r}")
        if not 0 <= threshold < 1:
            raise ValueError(f"`threshold` is a mean of gates, in [0, 1). Received: threshold={threshold!r}")
        self.initial = float(initial)
        self.threshold = float(threshold)
        self.temperature = float(temperature)
        self.prior = float(prior)

    def build(self, input_shape):
        """Creates the weights for inputs whose last axis are the units."""
        if len(input_shape) not in (2, 4) or input_shape[-1] is None:
            raise ValueError(
                "Gates act on units (batch, units) or channels (batch, height, width, channels). "
                f"Received: input_shape={input_shape}"
            )
        for name, value in zip(self.WEIGHTS, (self.initial, math.log(math.expm1(1.0))), strict=True):
            weight = self.add_weight(
                name=name,
                shape=(input_shape[-1],),
                initializer=keras.initializers.Constant(value),
                dtype="float32",
                autocast=False,
            )
            setattr(self, name, weight)
        self.input_spec = keras.layers.InputSpec(ndim=len(input_shape), axes={-1: input_shape[-1]})

    def call(self, inputs, training=None):
        """Returns `inputs` times the gates."""
        if kernel_seam.skips_folded(self, training):
            return inputs
        if not training:
            return inputs * tf.cast(kernel_seam.inference_scale(self), inputs.dtype)
        drawn = training_noise.draws(self)
        template = inputs if inputs.shape.rank == 2 else inputs[:, :1, :1]
        drawn_gates = [self._gates(rows, seed) for seed, rows in drawn.once(template)]
        return inputs * tf.cast(drawn.joined(drawn_gates), inputs.dtype)

    def posterior(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the float32 parameters `a` and `b` of the posterior, `(units,)` each, positive."""
        a = tf.math.softplus(tf.maximum(self.a_raw, _SMALLEST_RAW))
        return a, tf.math.softplus(tf.clip_by_value(self.b_raw, _SMALLEST_RAW, _LARGEST_RAW))

    def mean(self) -> tf.Tensor:
        """Returns the mean of `pi` under the posterior, `b * Beta(1 + 1/a, b)`: `(units,)`, float32 in (0, 1)."""
        # Where a is small, the log-gamma terms reach 1e5 and nearly cancel: float32 would leave an error of 1 %.
        a, b = (tf.cast(value, tf.float64) for value in self.posterior())
        logarithm = tf.math.lgamma(1 + 1 / a) + tf.math.lgamma(b) - tf.math.lgamma(1 + 1 / a + b)
        return tf.cast(b * tf.exp(logarithm), tf.float32)

    def inference_scale(self) -> tf.Tensor:
        """Returns the gates of inference: `(units,)`, float32, exactly 0 for closed units."""
        mean = self.mean()
        return tf.where(mean > self.threshold, mean, 0.0)

    def inference_scale_and_shift(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns float32 `(scale, shift)` of shape `(units,)`: inference computes `input * scale + shift`."""
        scale = self.inference_scale()
        return scale, tf.zeros_like(scale)

    def active_units(self) -> tf.Tensor:
        """Returns the number of units that are not closed: a scalar, int32."""
        return tf.math.count_nonzero(self.inference_scale(), dtype=tf.int32)

    def kl_divergence(self) -> tf.Tensor:
        """Returns the divergence of the posterior from the prior, summed over the units: a scalar, float32."""
        a, b = self.posterior()
        entropy = (1 - self.prior / a) * (-_EULER - tf.math.digamma(b) - 1 / b)
        return tf.reduce_sum(entropy + tf.math.log(a * b / self.prior) - (b - 1) / b)

    def draw_log_probability(self, seed: tf.Tensor) -> tf.Tensor:
        """Returns the logarithm of one draw of `pi` for each unit: `(units,)`, float32."""
        a, b = self.posterior()
        uniform = tf.random.stateless_uniform(tf.shape(a), seed, *training_noise.UNIT_INTERVAL)
        return _log_of_complement(tf.math.log(uniform) / b) / a

    def _gates(self, rows: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Returns the gates of the examples in `rows`, in the shape of `rows`."""
        log_pi = self.draw_log_probability(fold_in(seed, 0))
        logit = _guarded(log_pi) - tf.math.log(-tf.math.expm1(log_pi) + math.exp(_LOG_GUARD))
        uniform = training_noise.uniform(rows, fold_in(seed, 1))
        return tf.sigmoid((tf.math.log(uniform) - tf.math.log1p(-uniform) + logit) / self.temperature)

    def plain_config(self) -> dict[str, Any]:
        """Returns the configuration of the equivalent `keras.layers.Rescaling`."""
        return {"name": self.name, "scale": self.inference_scale().numpy().tolist(), "offset": 0.0}

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        own = {name: getattr(self, name) for name in ("initial", "threshold", "temperature", "prior")}
        return {**super().get_config(), **own}

    def compute_output_shape(self, input_shape):
        """Returns `input_shape`."""
        return input_shape


def gates(network: keras.Model) -> list[BetaBernoulliDropout]:
    """Returns the gate layers of `network`, in forward order."""
    return [layer for layer in kernel_seam.all_layers(network) if isinstance(layer, BetaBernoulliDropout)]


def prior_divergence(network: keras.Model) -> tf.Tensor:
    """Returns the divergence of all variational layers of `network` from their priors: a scalar, float32.

    Raises:
        ValueError: if it has no such layer.
    """
    found = [layer for layer in kernel_seam.all_layers(network) if isinstance(layer, IsVariational)]
    if not found:
        raise ValueError(
            'The network has neither gates nor Bayesian kernels; build it with gates=True or kernel="bayesian". '
            f"Received: {network.name}"
        )
    return tf.add_n([layer.kl_divergence() for layer in found])


def _log_of_complement(x: tf.Tensor) -> tf.Tensor:
    """Returns `log(1 - exp(x))` of negative numbers, with a finite gradient."""
    # Each branch gets a harmless value where the other one is taken: `tf.where` would pass on its infinite gradient.
    near = x > -math.log(2)
    close, far = tf.where(near, x, -1.0), tf.where(near, -1.0, x)
    return tf.where(near, tf.math.log(-tf.math.expm1(close)), tf.math.log1p(-tf.exp(far)))


def _guarded(log_pi: tf.Tensor) -> tf.Tensor:
    """Returns `log(pi + 1e-20)` from `log(pi)`."""
    return tf.reduce_logsumexp(tf.stack([log_pi, tf.fill(tf.shape(log_pi), _LOG_GUARD)]), axis=0)
