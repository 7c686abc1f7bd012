"""Batch normalisation that can be folded into the kernel before it while an attack runs."""

from typing import Any

import keras
import tensorflow as tf

from tf_robust_sparse.layers import kernel_seam


@keras.saving.register_keras_serializable(package="tf_robust_sparse")
class BatchNormalization(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization`, skipped where `inference_kernels` made it part of the preceding kernel.

    Arguments, weights and results are those of the Keras layer. On several replicas the moving statistics are the mean
    over the replicas, also if the layer is not synchronized; those of the Keras layer drift apart.

    Reference: [Ioffe and Szegedy, 2015](https://arxiv.org/abs/1502.03167).
    """

    plain_class = keras.layers.BatchNormalization

    def add_weight(self, *args, **kwargs):
        """Creates a weight; the moving statistics with an aggregation, without which the replicas drift apart."""
        if not kwargs.get("trainable", True):
            kwargs["aggregation"] = "mean"
        return super().add_weight(*args, **kwargs)

    def plain_config(self) -> dict[str, Any]:
        """Returns the configuration of the equivalent layer of Keras."""
        return self.get_config()

    @property
    def folds_into_last_axis(self) -> bool:
        """Whether the layer normalises the last axis, the one that kernels produce."""
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
        """Normalises `inputs`, or returns them unchanged where the preceding kernel has done so."""
        if kernel_seam.skips_folded(self, training):
            return inputs
        return super().call(inputs, training=training, mask=mask)
