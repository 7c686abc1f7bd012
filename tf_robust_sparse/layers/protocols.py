"""What the rest of the toolkit asks of a layer, beyond what Keras layers have."""

from typing import Any, Protocol, runtime_checkable

import tensorflow as tf


@runtime_checkable
class HasEffectiveKernel(Protocol):
    """A layer whose kernel is computed from its variables, see `KernelLayer`."""

    def compute_effective_kernel(self) -> tf.Tensor:
        """Computes the float32 effective kernel from the variables, differentiably."""


@runtime_checkable
class HasPlainTwin(Protocol):
    """A layer that `strip` replaces by one of Keras."""

    plain_class: Any

    def plain_config(self) -> dict[str, Any]:
        """Returns the configuration of the equivalent Keras layer."""


def plain_class_of(layer: Any) -> type:
    """Returns the class of Keras that computes what `layer` computes, its own class if it has no plain twin."""
    return layer.plain_class if isinstance(layer, HasPlainTwin) else type(layer)


@runtime_checkable
class IsAffine(Protocol):
    """A layer that only scales and shifts channels in inference, such as batch norm."""

    def inference_scale_and_shift(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns scale and shift, float32 `(units,)` each."""


@runtime_checkable
class IsGate(Protocol):
    """A layer that only scales channels in inference."""

    def inference_scale(self) -> tf.Tensor:
        """Returns the scale, float32 `(units,)`."""


@runtime_checkable
class IsVariational(Protocol):
    """A layer whose weights or gates have a prior."""

    def kl_divergence(self) -> tf.Tensor:
        """Returns the divergence of the posterior from the prior, a float32 scalar."""


@runtime_checkable
class RecordsGraph(Protocol):
    """A functional model; Keras records the calls of its layers."""

    operations: list[Any]

    def get_config(self) -> dict[str, Any]:
        """Returns the configuration, with the layers and their calls."""
