"""Pieces of the modern recipe: averaged and perturbed weights, mixed images, attacks of one step and their guard."""

import dataclasses

from absl import flags

import tf_robust_sparse as trs
from tf_robust_sparse.cli.command_line import BadFlag, about
from tf_robust_sparse.cli.sections.attacks import TrainingAttack
from tf_robust_sparse.cli.sections.data import Augmentation
from tf_robust_sparse.cli.settings import OnlyFor, Settings, only_with, setting
from tf_robust_sparse.training.averages import Average
from tf_robust_sparse.training.collapse_guard import GUARD_ACTIONS

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

    def build(self, total_steps: int, epochs: int) -> Average | None:
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
class Views(Settings):
    """What a step makes of its images: mixtures, or two augmentations of each."""

    title = "Augmentation"

    cutmix: bool = setting(False, "Give images boxes of others and mixed labels; not with mat, mart.", identity=True)
    consistency: float = setting(
        0.0,
        "Attack two augmentations of each image, and weigh by this how far their predictions differ; published: 1.",
        identity=True,
    )

    def check(self) -> None:
        """Checks that the objective takes them."""
        objective, augmentation = FLAGS.objective, Augmentation.read().augmentation
        if self.cutmix and objective in ("mat", "mart"):
            raise BadFlag(
                f"--cutmix needs --objective=natural, at, trades, rst or dkl. Received: --objective={objective}"
            )
        if self.consistency and objective in ("natural", "mat"):
            raise BadFlag(
                "--consistency compares attacked images; pass --objective=at, trades, rst, mart or dkl. Received: "
                f"--objective={objective}"
            )
        if self.consistency and (self.cutmix or augmentation not in ("shift", "crop")):
            said = "--cutmix" if self.cutmix else f"--augmentation={augmentation}"
            raise BadFlag(f"--consistency needs --augmentation=shift or crop, and no --cutmix. Received: {said}")

    def around(self, objective: trs.objectives.Objective, flip: bool) -> trs.objectives.Objective:
        """Returns the objective on such images, or as it is; `flip` says whether augmentations mirror them."""
        if self.cutmix:
            with about("cutmix", "objective"):
                return trs.objectives.CutMix(objective)
        if self.consistency:
            augmentation = Augmentation.read().augmentation
            with about("consistency", "objective"):
                return trs.objectives.Consistency(objective, self.consistency, augmentation=augmentation, flip=flip)
        return objective


@dataclasses.dataclass
class Guard(Settings):
    """A guard against catastrophic overfitting."""

    title = "Training attack"
    _only = OnlyFor("--guard=step_size, noise or report", lambda flags: flags.guard != "none", refuse=True)

    guard: str = setting(
        "none",
        "Where training by one step collapses, go back and shorten the step or widen the noise; or only report it.",
        choices=("none", *GUARD_ACTIONS),
        identity=True,
    )
    guard_every: int = setting(200, "Steps between two probes with PGD.", lower=1, identity=True, only_for=_only)
    guard_images: int = setting(256, "Training images that are probed.", lower=1, identity=True, only_for=_only)

    def check(self) -> None:
        """Checks that there is an attack of the kind that can be softened."""
        if self.guard != "none" and FLAGS.objective == "natural":
            raise BadFlag(f"--guard={self.guard} watches an attack of training. Received: --objective=natural")
        attack = OneStep.read().train_attack
        if self.guard == "noise" and attack != "n_fgsm":
            raise BadFlag(f"--guard=noise needs --train_attack=n_fgsm. Received: --train_attack={attack}")
        if self.guard != "none" and TrainingAttack.read().norm != "linf":
            raise BadFlag(f"--guard={self.guard} needs --norm=linf. Received: --norm={TrainingAttack.read().norm}")

    def build(self, images: trs.data.ImageDataset, seed: int) -> trs.training.CollapseGuard | None:
        """Returns the guard, which watches the first training images; `None` without one."""
        if self.guard == "none":
            return None
        number = self.guard_images
        batches = trs.data.test_dataset(images.train_images[:number], images.train_labels[:number], number)
        x, y = next(iter(batches.as_numpy_iterator()))
        return trs.training.CollapseGuard(x, y, self.guard, self.guard_every, seed=seed)


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
        only_for=only_with("train_attack", "n_fgsm", refuse=True),
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
