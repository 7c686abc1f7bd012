"""Dropout whose random draws are seeded by the training step."""

from typing import Any

import keras
import tensorflow as tf

from tf_robust_sparse.layers import training_noise


@keras.saving.register_keras_serializable(package="tf_robust_sparse")
class Dropout(keras.layers.Layer):
    """Sets a fraction of the entries to 0 in training and scales up the others, so that the expected sum stays.

    Like `keras.layers.Dropout`, but seeds come from `training_noise`: clean and attacked images can lose the same
    entries.

    Args:
        rate: Fraction of the entries set to 0, in [0, 1).

    Input shape: any, the first axis is the batch. Output shape: the same.

    Raises:
        ValueError: if `rate` is out of its range.

    Reference: [Srivastava et al., 2014](https://jmlr.org/papers/v15/srivastava14a.html).
    """

    plain_class = keras.layers.Dropout

    def __init__(self, rate: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 <= rate < 1:
            raise ValueError(f"`rate` must be the fraction of entries set to 0, in [0, 1). Received: rate={rate!r}")
        self.rate = float(rate)
        self.built = True

    def call(self, inputs, training=False):
        """Returns `inputs`; in training, with a fraction of the entries set to 0."""
        if not training or self.rate == 0:
            return inputs
        drawn = training_noise.draws(self)
        kept = [training_noise.uniform(rows, seed) >= self.rate for seed, rows in drawn.once(inputs)]
        return tf.where(drawn.joined(kept), inputs * tf.cast(1 / (1 - self.rate), inputs.dtype), 0)

    def compute_output_shape(self, input_shape):
        """Returns `input_shape`."""
        return input_shape

    def plain_config(self) -> dict[str, Any]:
        """Returns the configuration of the equivalent `keras.layers.Dropout`."""
        return self.get_config()

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {**super().get_config(), "rate": self.rate}
