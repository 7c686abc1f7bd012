"""The attacks of training and of the reported robust accuracy."""

import dataclasses
from typing import ClassVar

import tf_robust_sparse as trs
from tf_robust_sparse.cli.command_line import BadFlag
from tf_robust_sparse.cli.settings import Settings, setting

ATTACKS = {"linf": trs.attacks.LinfPGD, "l2": trs.attacks.L2PGD}


@dataclasses.dataclass
class TrainingAttack(Settings):
    """PGD on the images of a step."""

    title = "Training attack"

    norm: str = setting("linf", "Norm of the training attack and of the test attack.", choices=ATTACKS)
    epsilon: float = setting(8 / 255, "Radius in pixels of [0, 1]; at most 1 with --norm=linf.")
    step_size: float = setting(2 / 255, "Length of a step in pixels of [0, 1].", aliases=("eps_iter",))
    num_steps: int = setting(10, "Number of steps; 0 trains on the random starts.", aliases=("num_iter",))

    def check(self) -> None:
        """Checks the radius."""
        check_radius("epsilon", self.epsilon, self.norm)

    def build(self) -> trs.attacks.GradientAttack:
        """Returns the attack."""
        return ATTACKS[self.norm](self.epsilon, self.step_size, self.num_steps)


@dataclasses.dataclass
class TradesStart(Settings):
    """Where the attack of TRADES starts."""

    title = "Training attack"

    trades_start: str = setting(
        "gaussian",
        "Where the attack of TRADES starts: a thousandth away from the image as published, or anywhere in the ball.",
        choices=("gaussian", "uniform"),
    )


@dataclasses.dataclass
class TestAttack(Settings):
    """PGD on the test images."""

    __test__: ClassVar[bool] = False  # of pytest, which takes the name for a test's
    title = "Test attack"

    pgd_epsilon: float | None = setting(None, "Radius in pixels of [0, 1]; by default that of training, or else 8/255.")
    pgd_iters: int = setting(50, "Steps, each 2.5 * epsilon / steps long.", lower=1)
    pgd_restarts: int = setting(10, "Random starts; an image is robust if it withstands all.", lower=1)

    def check(self) -> None:
        """Checks the radius."""
        check_radius("pgd_epsilon", self.pgd_epsilon, TrainingAttack.read().norm)

    @property
    def epsilon(self) -> float:
        """The radius in pixels of [0, 1]."""
        return TrainingAttack.read().epsilon if self.pgd_epsilon is None else self.pgd_epsilon

    def build(self, norm: str = "linf", seed: int = 0) -> trs.attacks.GradientAttack:
        """Returns the attack in the ball of a norm."""
        step_size = 2.5 * self.epsilon / self.pgd_iters
        return ATTACKS[norm](self.epsilon, step_size, self.pgd_iters, restarts=self.pgd_restarts, seed=seed)


def check_radius(flag: str, epsilon: float | None, norm: str) -> None:
    """Checks that the radius of a flag is in pixels of [0, 1].

    Raises:
        BadFlag: if it is not.
    """
    if norm == "linf" and (epsilon or 0) > 1:
        raise BadFlag(f"--{flag}={epsilon:g}: expected pixels of [0, 1], such as 8/255")
