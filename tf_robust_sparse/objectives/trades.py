"""TRADES: trades clean accuracy against stability of the prediction."""

from typing import Any

import keras
import tensorflow as tf

from tf_robust_sparse.attacks import GradientAttack
from tf_robust_sparse.layers.forward import inference_forward
from tf_robust_sparse.layers.kernel_seam import all_layers
from tf_robust_sparse.objectives.divergences import kl_divergence
from tf_robust_sparse.objectives.label_smoothing import aimed, checked_smoothing, is_mixed, smoothed_cross_entropy
from tf_robust_sparse.objectives.objective import AttackObjective, Losses, Seed, attacked_logits, training_logits

TRADES_STARTS = ("gaussian", "uniform")


class TRADES(AttackObjective):
    """`CE(f(x), y) + beta * KL(p(x) || p(x_adv))`, where the attack raises the divergence.

    ```python
    attack = trs.attacks.LinfPGD(epsilon=8 / 255, step_size=2 / 255, num_steps=10)
    model = trs.RobustModel(network, trs.objectives.TRADES(attack, beta=6.0))
    ```

    The gradient flows through both predictions. Clean and attacked images pass through the network as two batches,
    clean first, so batch norm gets two updates in each step. RST
    ([Carmon et al., 2019](https://arxiv.org/abs/1905.13736)) is this objective on data with pseudo-labels mixed in.

    Args:
        attack: Untargeted attack. Its own `random_start` is not used.
        beta: Weight of the divergence, at least 0.
        start: Where the attack starts: `"gaussian"`, at `x + 0.001 * N(0, 1)` as published, because the divergence has
            no gradient at `x`; or `"uniform"`, anywhere in the ball. If many pixels are exactly 0 and few weights are
            left, pixels may have no gradient near `x`. Training then learns to hide from an attack that starts there.
        label_smoothing: Share `s` of the cross entropy that is the mean over all classes, in [0, 1).
        clean_updates: How often the clean images of a step update the statistics of batch norm, at least 1. Published
            code passes them through the network for each of the two terms (2), HYDRA's code once more before (3). The
            last of 2 or 3 updates comes after the update by the attacked images. The losses are the same.

    Raises:
        ValueError: if `attack` is not an untargeted attack, `beta` is negative, or another argument is out of range.

    Reference: [Zhang et al., 2019](https://arxiv.org/abs/1901.08573), section 3.3 and algorithm 1.
    """

    takes_mixed_labels = True

    def __init__(
        self,
        attack: GradientAttack,
        beta: float = 6.0,
        start: str = "gaussian",
        label_smoothing: float = 0.0,
        clean_updates: int = 1,
    ) -> None:
        super().__init__(attack)
        self.beta = checked_beta(beta)
        if start not in TRADES_STARTS:
            raise ValueError(f"`start` must be one of {', '.join(TRADES_STARTS)}. Received: start={start!r}")
        self.start = start
        self.label_smoothing = checked_smoothing(label_smoothing)
        if clean_updates < 1:
            raise ValueError(
                f"`clean_updates` is a number of updates, at least 1. Received: clean_updates={clean_updates}"
            )
        self.clean_updates = int(clean_updates)

    def perturb(self, network: keras.Model, x: tf.Tensor, y: tf.Tensor, seed: Seed = None) -> tf.Tensor:
        """Returns images whose prediction differs most from the clean one, or from the label of mixed images."""
        return differing(self.attack, network, x, y, seed, self.start)

    def loss(self, network: keras.Model, x: tf.Tensor, y: tf.Tensor, x_adv: tf.Tensor) -> Losses:
        """Returns losses `(batch,)`, clean logits and logits of the attacked images, `(batch, classes)` each."""
        statistics = _statistics(network) if self.clean_updates > 1 else []
        before = [tf.convert_to_tensor(variable) for variable, _ in statistics]
        logits = training_logits(network, x)
        clean = [variable - momentum * old for (variable, momentum), old in zip(statistics, before, strict=True)]
        # Repeat the update by the clean batch, which costs no forward pass: new = momentum * old + part.
        for _ in range(self.clean_updates - 2):
            _add_again(statistics, clean)
        logits_adv = attacked_logits(network, x_adv)
        _add_again(statistics, clean)
        natural = smoothed_cross_entropy(y, logits, self.label_smoothing)
        return Losses(natural + self.beta * kl_divergence(logits, logits_adv), logits, logits_adv)

    def describe(self) -> dict[str, Any]:
        """Returns everything that defines the objective, as plain values for a results file."""
        more = {"label_smoothing": self.label_smoothing} if self.label_smoothing else {}
        more |= {"clean_updates": self.clean_updates} if self.clean_updates > 1 else {}
        return {**super().describe(), "beta": self.beta, "start": self.start, **more}


def differing(
    attack: GradientAttack, network: keras.Model, x: tf.Tensor, y: tf.Tensor, seed: Seed, start: str
) -> tf.Tensor:
    """Returns images whose prediction differs most from the clean one: `(batch, ...)`, float32.

    With labels `(batch, classes)` of mixed images it differs most from these, as published.
    """
    if is_mixed(y):
        y, loss_fn = aimed(y, lambda label, logits: smoothed_cross_entropy(label, logits, 0.0))
    else:
        clean = tf.stop_gradient(inference_forward(network)(x))
        loss_fn = lambda _, logits: kl_divergence(clean, logits)  # noqa: E731
    return attack(network, x, y, loss_fn=loss_fn, seed=seed, start=start)


def _statistics(network: keras.Model) -> list[tuple[Any, float]]:
    """Returns the moving statistics of batch norm that training updates, each with its momentum."""
    norms = [each for each in all_layers(network) if isinstance(each, keras.layers.BatchNormalization)]
    trained = {id(each): each for each in norms if each.trainable}.values()
    return [(value, each.momentum) for each in trained for value in (each.moving_mean, each.moving_variance)]


def _add_again(statistics: list[tuple[Any, float]], parts: list[tf.Tensor]) -> None:
    """Updates statistics in the same way as the batch that added these parts."""
    for (variable, momentum), part in zip(statistics, parts, strict=True):
        variable.assign(momentum * variable + part)


def checked_beta(beta: float) -> float:
    """Returns `beta` as a float; raises a `ValueError` unless it is finite and at least 0."""
    if not 0 <= beta < float("inf"):
        raise ValueError(
            "`beta` is the weight of the robust term, at least 0; pass beta=6.0 for the published setting. "
            f"Received: beta={beta}"
        )
    return float(beta)
