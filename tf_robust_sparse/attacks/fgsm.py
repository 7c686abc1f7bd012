"""One-step attacks."""

from typing import Any

from tf_robust_sparse.attacks.pgd import L2PGD, LinfPGD


class LinfFGSM(LinfPGD):
    """Fast gradient sign method: `x + epsilon * sign(gradient)`, clipped to `[0, 1]`.

    Args:
        epsilon: Radius in pixels of `[0, 1]`.
        random_start: Whether to step from a random point of the ball, projecting the result.
        step_size: Length of the step; `None` for `epsilon`. Fast adversarial training
            ([Wong et al., 2020](https://arxiv.org/abs/2001.03994), section 4) uses a random start and `1.25 * epsilon`.
        restarts: Number of random starts, at least 1.
        targeted: Whether `y` is the class to reach.
        seed: Integer, the seed of the starting points when a call passes none.
        label: `"true"`, or `"predicted"` to lead away from what the network predicts.

    Raises:
        ValueError: if an argument is out of its range.

    Reference: [Goodfellow et al., 2015](https://arxiv.org/abs/1412.6572), section 4.
    """

    def __init__(
        self,
        epsilon: float,
        random_start: bool = False,
        step_size: float | None = None,
        restarts: int = 1,
        targeted: bool = False,
        seed: int = 0,
        label: str = "true",
    ) -> None:
        super().__init__(epsilon, _one_step(epsilon, step_size), 1, random_start, restarts, targeted, seed, label)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor, as plain values."""
        config = super().get_config()
        del config["num_steps"]
        return config


class L2FGSM(L2PGD):
    """Fast gradient method: one step of l2 length `epsilon` along the gradient, clipped to `[0, 1]`.

    The arguments are those of `LinfFGSM`, with `epsilon` in the l2 norm.

    Reference: [Miyato et al., 2017](https://arxiv.org/abs/1605.07725), section 3.
    """

    def __init__(
        self,
        epsilon: float,
        random_start: bool = False,
        step_size: float | None = None,
        restarts: int = 1,
        targeted: bool = False,
        seed: int = 0,
        label: str = "true",
    ) -> None:
        super().__init__(epsilon, _one_step(epsilon, step_size), 1, random_start, restarts, targeted, seed, label)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor, as plain values."""
        config = super().get_config()
        del config["num_steps"]
        return config


def _one_step(epsilon: float, step_size: float | None) -> float:
    """Returns the length of the only step; the base class checks it after `epsilon`."""
    return epsilon if step_size is None else step_size
