"""Optimizers that compute as PyTorch's do: weight decay in the gradient (L2), and epsilon at the same places.

Keras decouples weight decay from the gradient, adds Adam's epsilon to the uncorrected denominator, adds RMSprop's below
the root, and keeps learning rates in RMSprop's momentum. If gradients are small, for example with weak weight decay
alone, epsilon decides how far a weight moves.
"""

import math
import types
from typing import Any

import keras
import tensorflow as tf

from tf_robust_sparse import layers
from tf_robust_sparse.sparsity.optimizer_slots import slots


def _weight_name(variable: Any) -> str:
    """Returns the last part of the name of a Keras variable, or of the TensorFlow variable inside it."""
    path = getattr(variable, "path", None) or variable.name.partition(":")[0]
    return path.rpartition("/")[2]


class _DecayInGradient:
    """Adds `l2 * weight` to each gradient before the optimizer sees it."""

    def __init__(self, *args: Any, l2: float = 0.0, decay_batch_norm: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not 0 <= l2 < float("inf"):
            raise ValueError(f"`l2` is the strength of weight decay, at least 0. Received: l2={l2!r}")
        self.l2 = float(l2)
        self.decay_batch_norm = bool(decay_batch_norm)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Updates one variable, with weight decay in its gradient."""
        if self.l2 and (self.decay_batch_norm or _weight_name(variable) not in ("gamma", "beta")):
            gradient = gradient + keras.ops.cast(self.l2, gradient.dtype) * keras.ops.convert_to_tensor(variable)
        super().update_step(gradient, variable, learning_rate)  # type: ignore[misc]

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        own = {"l2": self.l2, "decay_batch_norm": self.decay_batch_norm}
        return {**super().get_config(), **own}  # type: ignore[misc]


@keras.saving.register_keras_serializable(package="tf_robust_sparse")
class CoupledSGD(_DecayInGradient, keras.optimizers.SGD):
    """`keras.optimizers.SGD` on `gradient + l2 * weight`; all trainable weights decay, biases too.

    Args:
        l2: Strength of the decay, at least 0.
        decay_batch_norm: Whether scale and shift of batch norm decay too.
        *args, **kwargs: As in Keras.
    """


class _Adam(keras.optimizers.Adam):
    """Adam that adds epsilon to the bias-corrected root of the second moment, if `corrected_epsilon`."""

    corrected_epsilon: bool

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Updates one variable."""
        number = self._get_variable_index(variable)
        gradient = keras.ops.cast(gradient, variable.dtype)
        momentum, velocity = self._momentums[number], self._velocities[number]
        self.assign_add(momentum, (gradient - momentum) * (1 - self.beta_1))
        self.assign_add(velocity, (keras.ops.square(gradient) - velocity) * (1 - self.beta_2))
        if self.amsgrad:
            highest = self._velocity_hats[number]
            self.assign(highest, keras.ops.maximum(highest, velocity))
            velocity = highest
        correction = keras.ops.sqrt(self._correction(self.beta_2, variable.dtype))
        epsilon = self.epsilon * correction if self.corrected_epsilon else self.epsilon
        rate = keras.ops.cast(learning_rate, variable.dtype) / self._correction(self.beta_1, variable.dtype)
        self.assign_sub(variable, rate * correction * momentum / (keras.ops.sqrt(velocity) + epsilon))

    def _correction(self, beta: float, dtype: str) -> Any:
        """Returns `1 - beta**step`, by expm1, because the difference loses digits in float32 in the first steps."""
        step = keras.ops.cast(self.iterations + 1, dtype)
        return -keras.ops.expm1(step * math.log(beta)) if beta else keras.ops.ones_like(step)


class _PyTorchRMSprop(keras.optimizers.RMSprop):
    """RMSprop that adds epsilon to the root, and whose momentum contains no learning rates."""

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Updates one variable."""
        number = self._get_variable_index(variable)
        gradient = keras.ops.cast(gradient, variable.dtype)
        velocity = self._velocities[number]
        self.assign(velocity, self.rho * velocity + (1 - self.rho) * keras.ops.square(gradient))
        variance = keras.ops.convert_to_tensor(velocity)
        if self.centered:
            average = self._average_gradients[number]
            self.assign_add(average, (gradient - average) * (1 - self.rho))
            variance = variance - keras.ops.square(average)
        step = gradient / (keras.ops.sqrt(variance) + self.epsilon)
        if self.momentum > 0:
            momentum = self._momentums[number]
            self.assign(momentum, self.momentum * momentum + step)
            step = keras.ops.convert_to_tensor(momentum)
        self.assign_sub(variable, keras.ops.cast(learning_rate, variable.dtype) * step)


@keras.saving.register_keras_serializable(package="tf_robust_sparse")
class CoupledAdam(_DecayInGradient, _Adam):
    """Adam of PyTorch on `gradient + l2 * weight`: `weight -= rate * m_hat / (sqrt(v_hat) + epsilon)`.

    Args:
        learning_rate: Number or schedule.
        beta_1: Decay of the first moment, in [0, 1).
        beta_2: Decay of the second moment, in [0, 1).
        epsilon: Added to the root of the second moment.
        corrected_epsilon: Whether the root is bias-corrected first, as in PyTorch, or not, as in TensorFlow.
        **kwargs: `l2` and `decay_batch_norm`, see `CoupledSGD`, and the arguments of `keras.optimizers.Adam`.

    Reference: [Kingma and Ba, 2015](https://arxiv.org/abs/1412.6980), algorithm 1.
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        corrected_epsilon: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(learning_rate, beta_1=beta_1, beta_2=beta_2, epsilon=epsilon, **kwargs)
        self.corrected_epsilon = bool(corrected_epsilon)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {**super().get_config(), "corrected_epsilon": self.corrected_epsilon}


@keras.saving.register_keras_serializable(package="tf_robust_sparse")
class CoupledRMSprop(_DecayInGradient, _PyTorchRMSprop):
    """RMSprop of PyTorch on `gradient + l2 * weight`: `weight -= rate * gradient / (sqrt(v) + epsilon)`.

    Momentum sums the steps without the learning rate; the rate multiplies the sum.

    Args:
        learning_rate: Number or schedule.
        rho: Decay of the second moment, in [0, 1); PyTorch's alpha.
        momentum: In [0, 1).
        epsilon: Added to the root of the second moment; Keras adds it to the moment.
        **kwargs: `l2` and `decay_batch_norm`, see `CoupledSGD`, and the arguments of `keras.optimizers.RMSprop`.
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        rho: float = 0.99,
        momentum: float = 0.0,
        epsilon: float = 1e-8,
        **kwargs: Any,
    ) -> None:
        super().__init__(learning_rate, rho=rho, momentum=momentum, epsilon=epsilon, **kwargs)


@keras.saving.register_keras_serializable(package="tf_robust_sparse")
class GatedAdam(CoupledAdam):
    """Two Adams in one: gates learn at one rate, all other weights at another and with decay.

    Each follows the learning rate of the optimizer times a factor of its own. Both have the same decay of moments and
    count the same steps, so the numbers are those of two optimizers.

    Args:
        learning_rate: Number or schedule.
        gate_rate: Factor of the learning rate for gates, at least 0.
        weight_rate: Factor of the learning rate for all other weights, at least 0.
        l2: Strength of the decay of the weights, at least 0.
        *args, **kwargs: See `CoupledAdam`; `corrected_epsilon` is `False` by default, as in the published code.

    Raises:
        ValueError: if a factor or the decay is negative.

    Reference: [Madaan et al., 2020](https://arxiv.org/abs/1908.04355), section 4.
    """

    def __init__(self, *args: Any, gate_rate: float = 1.0, weight_rate: float = 0.1, **kwargs: Any) -> None:
        super().__init__(*args, **{"corrected_epsilon": False, **kwargs})
        for name, value in (("gate_rate", gate_rate), ("weight_rate", weight_rate)):
            if not 0 <= value < float("inf"):
                raise ValueError(f"`{name}` is a factor of the learning rate, at least 0. Received: {name}={value!r}")
        self.gate_rate, self.weight_rate = float(gate_rate), float(weight_rate)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Updates one variable at its own rate; gates do not decay."""
        if _weight_name(variable) in layers.BetaBernoulliDropout.WEIGHTS:
            _Adam.update_step(self, gradient, variable, self.gate_rate * learning_rate)
        else:
            super().update_step(gradient, variable, self.weight_rate * learning_rate)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {**super().get_config(), "gate_rate": self.gate_rate, "weight_rate": self.weight_rate}


COUPLED = {"sgd": CoupledSGD, "adam": CoupledAdam, "rmsprop": CoupledRMSprop}


def coupled(
    name: str, learning_rate: Any, weight_decay: float = 1e-4, momentum: float = 0.9
) -> keras.optimizers.Optimizer:
    """Returns the optimizer of a name with weight decay in the gradient.

    Args:
        name: `"sgd"`, `"adam"` or `"rmsprop"`.
        learning_rate: Number or schedule.
        weight_decay: Strength of the decay, at least 0.
        momentum: Momentum of SGD and RMSprop, in [0, 1).

    Raises:
        ValueError: if the name is unknown or a value out of range.
    """
    if name not in COUPLED:
        raise ValueError(f"`name` must be one of {', '.join(COUPLED)}. Received: name={name!r}")
    settings: dict[str, Any] = {} if name == "adam" else {"momentum": momentum}
    return COUPLED[name](learning_rate, l2=weight_decay, **settings)


@keras.saving.register_keras_serializable(package="tf_robust_sparse")
class FusedAdam(keras.optimizers.Adam):
    """`keras.optimizers.Adam` whose update of a variable is one operation instead of a dozen.

    It computes the same as Keras up to rounding, and saves time on small networks, whose steps are short. Only for one
    device; with replicas use `keras.optimizers.Adam`.

    Args:
        *args, **kwargs: As in Keras, except `amsgrad`.

    Raises:
        ValueError: with `amsgrad=True`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.amsgrad:
            raise ValueError("`amsgrad` is not supported; use keras.optimizers.Adam. Received: amsgrad=True")

    def build(self, variables: Any) -> None:
        """Creates the moments of every variable."""
        super().build(variables)
        memory = {}
        for variable in variables:
            found = {slot.path.rpartition("_")[2]: slot.value for slot in slots(self, variable)}
            memory[variable.value.ref()] = (found["momentum"], found["velocity"])
        self._memory = types.MappingProxyType(memory)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Updates one variable."""
        momentum, velocity = self._memory[variable.ref()]
        step = tf.cast(self.iterations + 1, tf.float32)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=momentum.handle,
            v=velocity.handle,
            beta1_power=tf.pow(tf.cast(self.beta_1, tf.float32), step),
            beta2_power=tf.pow(tf.cast(self.beta_2, tf.float32), step),
            lr=tf.cast(learning_rate, tf.float32),
            beta1=tf.cast(self.beta_1, tf.float32),
            beta2=tf.cast(self.beta_2, tf.float32),
            epsilon=tf.cast(self.epsilon, tf.float32),
            grad=tf.cast(gradient, tf.float32),
        )
