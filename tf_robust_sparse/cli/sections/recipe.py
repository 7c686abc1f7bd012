"""Pieces of the modern recipe: averaged weights, perturbed weights, attacks of one step."""

import dataclasses

from absl import flags

import tf_robust_sparse as trs
from tf_robust_sparse.cli.command_line import BadFlag
from tf_robust_sparse.cli.sections.attacks import TrainingAttack
from tf_robust_sparse.cli.settings import OnlyFor, Settings, setting

FLAGS = flags.FLAGS


@dataclasses.dataclass
class Averages(Settings):
    """An average of the weights."""

    title = "Averages of weights"
    _only = OnlyFor("--average=ema or swa", lambda flags: flags.average != "none", refuse=True)

    average: str = setting(
        "none",
        "Average weights over steps (ema) or over the last epochs (swa); the average is what validation measures.",
        choices=("none", "ema", "swa"),
        identity=True,
    )
    average_decay: float | None = setting(
        None,
        "Decay of the average: per step of ema, by default 0.995; per epoch of swa, by default a plain mean.",
        upper=1,
        excluded=1,
        identity=True,
        only_for=_only,
    )
    average_from: float | None = setting(
        None,
        "When averaging begins, as a fraction of all steps or epochs; by default 0.025 for ema and 2/3 for swa.",
        upper=1,
        excluded=1,
        identity=True,
        only_for=_only,
    )
    export_weights: str = setting(
        "averaged", "Which weights the saved network has.", choices=("averaged", "raw"), only_for=_only
    )

    def build(self, total_steps: int, epochs: int) -> trs.training.Average | None:
        """Returns the average for a run of so many steps and epochs, `None` without one."""
        if self.average == "ema":
            start = 0.025 if self.average_from is None else self.average_from
            decay = 0.995 if self.average_decay is None else self.average_decay
            return trs.training.EMA(decay, int(start * total_steps))
        if self.average == "swa":
            start = 2 / 3 if self.average_from is None else self.average_from
            return trs.training.SWA(int(start * epochs), self.average_decay)
        return None


@dataclasses.dataclass
class WeightPerturbation(Settings):
    """Adversarial weight perturbation."""

    title = "Adversarial weight perturbation"
    _only = OnlyFor("--awp_gamma above 0", lambda flags: flags.awp_gamma > 0, refuse=True)

    awp_gamma: float = setting(
        0.0,
        "Length of the move, as a share of the length of each kernel; published: 0.01 with at, 0.005 with trades.",
        identity=True,
    )
    awp_start_epoch: int = setting(
        0, "Epochs before the first move; published: 0 with at, 10 with trades.", identity=True, only_for=_only
    )

    def around(self, objective: trs.objectives.Objective, steps_per_epoch: int) -> trs.objectives.Objective:
        """Returns the objective at perturbed weights, or as it is."""
        if not self.awp_gamma:
            return objective
        return trs.objectives.AWP(objective, self.awp_gamma, self.awp_start_epoch * steps_per_epoch)


@dataclasses.dataclass
class OneStep(Settings):
    """Attacks of one step in training."""

    title = "Training attack"

    train_attack: str = setting(
        "pgd",
        "Attack of training: PGD, or one step after noise (n_fgsm), kept in the ball (rs_fgsm). Validation uses PGD.",
        choices=("pgd", "n_fgsm", "rs_fgsm"),
        identity=True,
    )
    noise: float = setting(
        2.0,
        "Radius of the noise in units of --epsilon; published: 2, for SVHN 3.",
        identity=True,
        only_for=OnlyFor("--train_attack=n_fgsm", lambda flags: flags.train_attack == "n_fgsm", refuse=True),
    )
    grad_align: float = setting(0.0, "Strength of gradient alignment; published with one step: 0.2.", identity=True)

    def check(self) -> None:
        """Checks the norm, and that the objective starts the attack where the attack says."""
        norm, objective = TrainingAttack.read().norm, FLAGS.objective
        if self.train_attack != "pgd" and objective not in ("at", "mat"):
            raise BadFlag(
                f"--train_attack={self.train_attack} begins with its own noise, which --objective=at and mat use; the "
                f"others do not. Received: --objective={objective}"
            )
        if norm != "linf" and (self.train_attack != "pgd" or self.grad_align):
            name = f"grad_align={self.grad_align:g}" if self.grad_align else f"train_attack={self.train_attack}"
            raise BadFlag(f"--{name} needs --norm=linf. Received: --norm={norm}")

    def build(self) -> trs.attacks.GradientAttack:
        """Returns the attack of training."""
        attack = TrainingAttack.read()
        if self.train_attack == "n_fgsm":
            return trs.attacks.NFGSM(attack.epsilon, self.noise)
        if self.train_attack == "rs_fgsm":
            return trs.attacks.NFGSM(attack.epsilon, 1.0, 1.25 * attack.epsilon, clip=True)
        return attack.build()
