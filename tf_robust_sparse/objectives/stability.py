"""Stability training: predictions that do not change under Gaussian noise, for randomized smoothing."""

from typing import Any

import keras
import tensorflow as tf

from tf_robust_sparse.attacks import cross_entropy
from tf_robust_sparse.layers.noise import normal_like
from tf_robust_sparse.objectives.divergences import kl_divergence
from tf_robust_sparse.objectives.objective import Losses, Objective, Seed, training_logits
from tf_robust_sparse.objectives.trades import checked_beta


class Stability(Objective):
    """`CE(f(x), y) + beta * KL(p(x) || p(x + n))` with new Gaussian noise `n` in each step.

    Noisy images are not clipped to [0, 1], because the certificate of randomized smoothing is for unclipped noise. The
    gradient flows through both predictions. With `beta=None` the loss is the cross entropy of the noisy images alone.

    Args:
        noise_std: Standard deviation of the noise in pixels of [0, 1], at least 0.
        beta: Weight of the divergence, at least 0, or `None`.

    Raises:
        ValueError: if `noise_std` or `beta` is negative.

    Reference: [Li et al., 2019](https://arxiv.org/abs/1809.03113), section 4.3;
        [Cohen et al., 2019](https://arxiv.org/abs/1902.02918), section 3.3, for noisy images alone.
    """

    def __init__(self, noise_std: float = 0.25, beta: float | None = 6.0) -> None:
        if not 0 <= noise_std < float("inf"):
            raise ValueError(
                "`noise_std` is a standard deviation in pixels of [0, 1], at least 0; pass, for example, 0.25. "
                f"Received: noise_std={noise_std}"
            )
        self.noise_std = float(noise_std)
        self.beta = None if beta is None else checked_beta(beta)

    def perturb(self, network: keras.Model, x: tf.Tensor, y: tf.Tensor, seed: Seed = None) -> tf.Tensor:
        """Returns the images with noise: `(batch, ...)`, float32, not clipped."""
        del network, y
        x = tf.cast(x, tf.float32)
        return x + normal_like(x, 0 if seed is None else seed, self.noise_std)

    def loss(self, network: keras.Model, x: tf.Tensor, y: tf.Tensor, x_adv: tf.Tensor) -> Losses:
        """Returns losses `(batch,)` and logits `(batch, classes)`: clean ones, or noisy ones if `beta` is `None`."""
        if self.beta is None:
            logits = training_logits(network, x_adv)
            return Losses(cross_entropy(y, logits), logits)
        logits = training_logits(network, x)
        divergence = kl_divergence(logits, training_logits(network, x_adv))
        return Losses(cross_entropy(y, logits) + self.beta * divergence, logits)

    def describe(self) -> dict[str, Any]:
        """Returns everything that defines the objective, as plain values for a results file."""
        return {**super().describe(), "noise_std": self.noise_std, "beta": self.beta}
