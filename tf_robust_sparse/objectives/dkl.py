"""DKL: the divergence of TRADES taken apart into two losses that are weighted on their own."""

from typing import Any, Self

import keras
import tensorflow as tf

from tf_robust_sparse.attacks import GradientAttack
from tf_robust_sparse.objectives.label_smoothing import is_mixed, smoothed_cross_entropy
from tf_robust_sparse.objectives.objective import AttackObjective, Losses, Seed, attacked_logits, training_logits
from tf_robust_sparse.objectives.trades import TRADES_STARTS, differing


class DKL(AttackObjective):
    """`CE(z, y) + beta * wMSE(z, z_adv) + alpha * sCE(z, z_adv)` with clean logits `z` (decoupled KL, improved).

    `sCE = -sum_i softmax(z)_i log softmax(z_adv)_i`, where the softmax of the clean logits counts as a constant.
    `wMSE = 1/4 * sum_ij p_i p_j ((z_i - z_j) - (z_adv_i - z_adv_j))^2 / sum_ij p_i p_j`, with gradients through both
    logits, and with constant weights `p = prior^gamma`; the numerator and the denominator are means over the batch. The
    prior of an image is the mean of `softmax(z / temperature)` over the images of its class in the last epoch; in the
    first epoch it is uniform.

        objective = objectives.DKL(attack, alpha=4, beta=20)

    The epochs are those of `fit`. The prior is part of checkpoints and the same on all replicas. The attack climbs the
    divergence of clean and attacked predictions, as that of `TRADES`.

    Args:
        attack: Untargeted attack. Its own `random_start` is not used.
        alpha: Weight of sCE, at least 0; published for CIFAR: 4.
        beta: Weight of wMSE, at least 0; published for CIFAR: 20.
        gamma: Exponent of the prior, at least 0; 0 leaves it out.
        temperature: Temperature of the prior, positive.
        start: Where the attack starts, see `TRADES`.

    Raises:
        ValueError: if `attack` is not an untargeted attack, or another argument is out of its range.

    Reference: [Cui et al., 2024](https://arxiv.org/abs/2305.13948), sections 3 and 4, and its published code.
    """

    takes_mixed_labels = True
    state: Any = None

    def __init__(
        self,
        attack: GradientAttack,
        alpha: float = 4.0,
        beta: float = 20.0,
        gamma: float = 1.0,
        temperature: float = 4.0,
        start: str = "gaussian",
    ) -> None:
        super().__init__(attack)
        numbers = {"alpha": alpha, "beta": beta, "gamma": gamma, "temperature": temperature}
        for name, value in numbers.items():
            if not 0 <= value < float("inf") or (name == "temperature" and value == 0):
                least = "positive" if name == "temperature" else "at least 0"
                raise ValueError(f"`{name}` is {least}. Received: {name}={value!r}")
        if start not in TRADES_STARTS:
            raise ValueError(f"`start` must be one of {', '.join(TRADES_STARTS)}. Received: start={start!r}")
        self.alpha, self.beta, self.gamma = float(alpha), float(beta), float(gamma)
        self.temperature = float(temperature)
        self.start = start
        self._before: tf.Tensor | None = None

    def attach(self, network: keras.Model) -> None:
        """Creates the prior of the classes of a network, uniform."""
        classes = network.output_shape[-1]
        self.state = keras.layers.Layer(name="class_prior", dtype="float32")
        self.state.built = True
        replicas = network.distribute_strategy.num_replicas_in_sync
        with network.distribute_strategy.scope():
            self.state.prior = keras.Variable(
                tf.fill((classes, classes), 1 / classes),
                trainable=False,
                autocast=False,
                aggregation="only_first_replica",
                name="prior",
            )
            self.state.sums = keras.Variable(
                tf.zeros((classes, classes)),
                trainable=False,
                autocast=False,
                aggregation="sum",
                synchronization="on_read" if replicas > 1 else "auto",  # each replica sums over its own images
                name="sums",
            )

    def at_step(self, step: tf.Tensor, seed: Seed = None) -> Self:
        """Returns the objective with its schedules evaluated at `step`."""
        now = super().at_step(step, seed)
        if self.state is not None:
            now = now.with_attack(now.attack)  # a copy
            # Sums begin here, so that a step counts its images once, however often its loss is taken.
            now._before = tf.identity(tf.convert_to_tensor(self.state.sums))
        return now

    def end_epoch(self, epoch: int) -> None:
        """Sets the prior to the means of the epoch; a class without images keeps its row."""
        sums = tf.convert_to_tensor(self.state.sums)
        totals = tf.reduce_sum(sums, axis=1, keepdims=True)
        self.state.prior.assign(tf.where(totals > 0, sums / tf.maximum(totals, 1e-12), self.state.prior))
        self.state.sums.assign(tf.zeros_like(sums))

    def perturb(self, network: keras.Model, x: tf.Tensor, y: tf.Tensor, seed: Seed = None) -> tf.Tensor:
        """Returns images whose prediction differs most from the clean one, or from the label of mixed images."""
        return differing(self.attack, network, x, y, seed, self.start)

    def loss(self, network: keras.Model, x: tf.Tensor, y: tf.Tensor, x_adv: tf.Tensor) -> Losses:
        """Returns losses `(batch,)`, clean logits and logits of the attacked images, `(batch, classes)` each."""
        logits = training_logits(network, x)
        logits_adv = attacked_logits(network, x_adv)
        labels = y if is_mixed(y) else tf.one_hot(y, logits.shape[-1])
        self._count(labels, logits)
        natural = smoothed_cross_entropy(y, logits, 0.0)
        soft = -tf.reduce_sum(tf.stop_gradient(tf.nn.softmax(logits)) * tf.nn.log_softmax(logits_adv), axis=-1)
        squares = self._weighted_squares(labels, logits - logits_adv)
        return Losses(natural + self.beta * squares + self.alpha * soft, logits, logits_adv)

    def _weighted_squares(self, labels: tf.Tensor, difference: tf.Tensor) -> tf.Tensor:
        """Returns wMSE of each image, by `sum_ij p_i p_j (d_i - d_j)^2 = 2 P sum_i p_i (d_i - mean)^2`, `P = sum p`."""
        classes = difference.shape[-1]
        prior = tf.fill((classes, classes), 1 / classes) if self.state is None else self.state.prior
        weights = (labels @ tf.convert_to_tensor(prior)) ** self.gamma
        total = tf.reduce_sum(weights, axis=-1, keepdims=True)
        mean = tf.reduce_sum(weights * difference, axis=-1, keepdims=True) / total
        squares = 0.5 * tf.reduce_sum(total * weights * tf.square(difference - mean), axis=-1)
        return squares / _mean_over_replicas(tf.square(total)) if self.gamma != 1 else squares  # 1: all sums are 1

    def _count(self, labels: tf.Tensor, logits: tf.Tensor) -> None:
        """Adds the predictions of a step to those of its epoch."""
        if self._before is not None and self.state is not None:
            predicted = tf.nn.softmax(tf.stop_gradient(logits) / self.temperature)
            self.state.sums.assign(self._before + tf.matmul(labels, predicted, transpose_a=True))

    def describe(self) -> dict[str, Any]:
        """Returns everything that defines the objective, as plain values for a results file."""
        names = ("alpha", "beta", "gamma", "temperature", "start")
        return {**super().describe(), **{name: getattr(self, name) for name in names}}


def _mean_over_replicas(values: tf.Tensor) -> tf.Tensor:
    """Returns the mean of values `(batch, 1)` of all replicas."""
    total, number = tf.reduce_sum(values), tf.cast(tf.shape(values)[0], tf.float32)
    context = tf.distribute.get_replica_context()
    if context is not None and context.num_replicas_in_sync > 1:
        total, number = context.all_reduce("SUM", [total, number])
    return total / number
