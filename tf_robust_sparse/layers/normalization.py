"""Batch norm that attacks can fold into the preceding kernel, and the normalization of pixels."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from tf_robust_sparse.layers import kernel_seam
from tf_robust_sparse.layers.batch_norm import normalize, normalize_over_replicas
from tf_robust_sparse.layers.kernel_seam import all_layers


@keras.saving.register_keras_serializable(package="tf_robust_sparse")
class BatchNormalization(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization` that does nothing while `folded_kernels` holds it in the preceding kernel.

    Weights are those of the Keras layer, results too, in training up to rounding. On several replicas, the moving
    statistics are averaged over the replicas even if the layer is not synchronized; those of the Keras layer drift
    apart. A synchronized layer needs one exchange between replicas in a forward pass and one in its gradient; the Keras
    layer needs several.

    Args:
        unbiased: Whether the moving variance averages the unbiased variance of batches, which is `n / (n - 1)` times
            the biased one for `n` entries per channel, as in PyTorch and in TensorFlow's fused operation. Batches
            themselves are always normalized by the biased variance.
        **kwargs: Arguments of the Keras layer.

    Reference: [Ioffe and Szegedy, 2015](https://arxiv.org/abs/1502.03167).
    """

    plain_class = keras.layers.BatchNormalization

    def __init__(self, *args: Any, unbiased: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.unbiased = bool(unbiased)

    def get_config(self) -> dict[str, Any]:
        """Returns the configuration of the Keras layer, and `unbiased`."""
        return {**super().get_config(), "unbiased": self.unbiased}

    def add_weight(self, *args, **kwargs):
        """Creates a weight; moving statistics get an aggregation, because without one the replicas drift apart."""
        if not kwargs.get("trainable", True):  # a synchronized layer has equal ones everywhere, so none need to travel
            kwargs["aggregation"] = "only_first_replica" if self.synchronized else "mean"
        return super().add_weight(*args, **kwargs)

    def plain_config(self) -> dict[str, Any]:
        """Returns the configuration of the equivalent layer of Keras."""
        return super().get_config()

    @property
    def folds_into_last_axis(self) -> bool:
        """Whether the layer normalizes the last axis, the one that kernels produce."""
        return self.axis in (-1, self.input_spec.ndim - 1)

    def inference_scale_and_shift(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns float32 `(scale, shift)` of shape `(channels,)`: inference computes `input * scale + shift`."""
        scale = tf.math.rsqrt(tf.convert_to_tensor(self.moving_variance) + self.epsilon)
        if self.scale:
            scale *= self.gamma
        shift = -self.moving_mean * scale
        if self.center:
            shift += self.beta
        return scale, shift

    def call(self, inputs, training=None, mask=None):
        """Normalizes `inputs`, or returns them unchanged if the preceding kernel has normalized them."""
        if kernel_seam.skips_folded(self, training):
            return inputs
        if not (training and self.trainable):
            return super().call(inputs, training=training, mask=mask)
        dtype = keras.backend.result_type(inputs.dtype, "float32")
        over_replicas = self.synchronized and self._several_replicas
        if self.folds_into_last_axis and not self.renorm and mask is None and dtype == "float32":
            return self._call_in_few_passes(tf.cast(inputs, dtype), over_replicas)
        if not self.unbiased:
            return super().call(inputs, training=training, mask=mask)
        before = tf.convert_to_tensor(self.moving_variance)
        outputs = super().call(inputs, training=training, mask=mask)
        entries = tf.cast(tf.size(inputs) // before.shape[0], before.dtype)
        if over_replicas:
            entries = tf.distribute.get_replica_context().all_reduce("SUM", entries)
        # The update above added (1 - momentum) times the biased variance; 1 / (n - 1) of it is missing. A single entry
        # has no variance, hence the maximum.
        after = tf.convert_to_tensor(self.moving_variance)
        self.moving_variance.assign(after + (after - self.momentum * before) / tf.maximum(entries - 1, 1))
        return outputs

    @property
    def _several_replicas(self) -> bool:
        context = tf.distribute.get_replica_context()
        return context is not None and context.num_replicas_in_sync > 1

    def _call_in_few_passes(self, x, over_replicas):
        mean, variance = (tf.convert_to_tensor(each) for each in (self.moving_mean, self.moving_variance))
        scale = tf.convert_to_tensor(self.gamma) if self.scale else tf.ones_like(mean)
        offset = tf.convert_to_tensor(self.beta) if self.center else tf.zeros_like(mean)
        if over_replicas:
            found = normalize_over_replicas(x, scale, offset, mean, self.epsilon)
        else:
            found = normalize(x, scale, offset, self.epsilon)
        seen = found.variance
        if self.unbiased:  # a single entry has no variance, hence the maximum
            seen *= found.entries / tf.maximum(found.entries - 1, 1)
        self.moving_mean.assign(mean * self.momentum + found.mean * (1 - self.momentum))
        self.moving_variance.assign(variance * self.momentum + seen * (1 - self.momentum))
        return tf.ensure_shape(tf.cast(found.y, self.compute_dtype), x.shape)


@contextlib.contextmanager
def kept_statistics(network: keras.Model) -> Iterator[None]:
    """Gives the moving statistics of batch norm, which forward passes inside the block move, their values back."""
    norms = [layer for layer in all_layers(network) if isinstance(layer, keras.layers.BatchNormalization)]
    moving = [value for layer in norms for value in (layer.moving_mean, layer.moving_variance)]
    before = [tf.identity(tf.convert_to_tensor(value)) for value in moving]
    try:
        yield
    finally:
        for value, old in zip(moving, before, strict=True):
            value.assign(old)


def use_unbiased_variance(network: keras.Model) -> None:
    """Makes every `BatchNormalization` of this package average the unbiased variance, as PyTorch does.

    Args:
        network: Changed in place, before its training step is traced.
    """
    for layer in all_layers(network):
        if isinstance(layer, BatchNormalization):
            layer.unbiased = True


@keras.saving.register_keras_serializable(package="tf_robust_sparse")
class Normalization(keras.layers.Normalization):
    """`keras.layers.Normalization`, computed on whole images at once.

    Arguments, weights and results are those of the Keras layer. With one value per channel, the Keras layer broadcasts
    along an axis of three entries, which takes ten times as long on CPUs as values repeated for every pixel.
    """

    plain_class = keras.layers.Normalization

    def plain_config(self) -> dict[str, Any]:
        """Returns the configuration of the equivalent layer of Keras."""
        return self.get_config()

    def call(self, inputs):
        """Normalizes `inputs`, one value per channel of images or whatever `axis` says."""
        shape = self.mean.shape
        per_channel = len(shape) > 2 and set(shape[:-1]) == {1}
        if self.invert or not per_channel or not tf.is_tensor(inputs) or None in inputs.shape[1:]:
            return super().call(inputs)
        x = tf.cast(inputs, self.compute_dtype)
        pixels = math.prod(x.shape[1:-1])
        mean, variance = (
            tf.tile(tf.reshape(tf.cast(each, x.dtype), (-1,)), [pixels]) for each in (self.mean, self.variance)
        )
        deviation = tf.maximum(tf.sqrt(variance), keras.config.epsilon())
        flat = tf.reshape(x, (-1, mean.shape[0]))
        return tf.reshape((flat - mean) / deviation, (-1, *x.shape[1:]))
