"""One-step attacks of fast adversarial training."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tf_robust_sparse.attacks.pgd import LinfPGD
from tf_robust_sparse.attacks.projections import pixel_range
from tf_robust_sparse.layers.noise import uniform_like


class NFGSM(LinfPGD):
    """Noise and one step of the gradient sign, for training (N-FGSM).

    `x_adv = clip(z + step_size * sign(gradient at z), 0, 1)` with `z = clip(x + U(-noise * epsilon, noise * epsilon),
    0, 1)`. The result is not projected to the ball, so that it may be up to `noise * epsilon + step_size` away from
    `x`: that is what keeps training by one step from collapsing. It costs two passes where PGD with 10 steps costs
    eleven. `clip=True` projects; with `noise=1` and `step_size=1.25 * epsilon` this is RS-FGSM.

        objective = trs.objectives.AT(trs.attacks.NFGSM(8 / 255))

    Objectives that say where their attack starts (TRADES, MART) leave the noise out; train with AT.

    Args:
        epsilon: Radius in pixels of `[0, 1]`, at most 1.
        noise: Radius of the noise, in units of `epsilon`, at least 0; published: 2, and 3 for SVHN.
        step_size: Length of the step; `None` for `epsilon`.
        clip: Whether noise and result stay in the ball.
        seed: Integer, the seed of the noise when a call passes none.

    Raises:
        ValueError: if an argument is out of its range.

    Reference: [de Jorge et al., 2022](https://arxiv.org/abs/2202.01181), section 4; RS-FGSM:
    [Wong et al., 2020](https://arxiv.org/abs/2001.03994).
    """

    def __init__(
        self, epsilon: float, noise: float = 2.0, step_size: float | None = None, clip: bool = False, seed: int = 0
    ) -> None:
        super().__init__(epsilon, epsilon if step_size is None else step_size, 1, True, seed=seed)
        if not 0 <= noise < float("inf"):
            raise ValueError(
                f"`noise` is a radius in units of epsilon, at least 0, such as 2. Received: noise={noise!r}"
            )
        self.noise = float(noise)
        self.clip = bool(clip)

    def uniform_start(self, x: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Each pixel uniform within `noise * epsilon`, then clipped to `[0, 1]`."""
        radius = self.noise * self.epsilon
        return self.project(x + uniform_like(x, seed, -radius, radius), x)

    def project(self, x_adv: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        """Clips to `[0, 1]`, and to the ball with `clip`."""
        return super().project(x_adv, x) if self.clip else pixel_range(x_adv)

    def projection(self, x: tf.Tensor) -> Callable[[tf.Tensor], tf.Tensor]:
        """`project` for many points around the same images."""
        return super().projection(x) if self.clip else pixel_range

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor, as plain values."""
        names = ("epsilon", "noise", "step_size", "clip", "seed")
        return {name: getattr(self, name) for name in names}

    def describe(self) -> dict[str, Any]:
        """Everything that defines the attack, as plain values for a results file."""
        return {**super().describe(), "noise": self.noise, "clip": self.clip}
