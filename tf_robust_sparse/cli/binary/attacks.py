"""How binary sub-networks are attacked, in training and afterwards, and how their training images are varied."""

import dataclasses
from pathlib import Path

import keras
from absl import flags

import tf_robust_sparse as trs
from tf_robust_sparse.cli import training_run
from tf_robust_sparse.cli.binary.network import FAST, LOTTERY, Trainer, trained_by
from tf_robust_sparse.cli.command_line import BadFlag
from tf_robust_sparse.cli.sections import attacks, data
from tf_robust_sparse.cli.sections.attacks import TestAttack, TrainingAttack
from tf_robust_sparse.cli.sections.data import Data
from tf_robust_sparse.cli.sections.machines import Machines
from tf_robust_sparse.cli.settings import Settings, setting
from tf_robust_sparse.evaluation.attack_versions import ATTACKS, VERSIONS
from tf_robust_sparse.training.by_epoch import radius_course
from tf_robust_sparse.training.stored_model import MIXES

FLAGS = flags.FLAGS

# Settings of --eps_schedule, and names of its courses, as the published code calls them.
_SCHEDULE = {
    **{"start_v": "start", "slope": "slope", "power": "power", "interval": "interval", "alpha": "alpha"},
    **{"circle": "circle", "min_jump_pt": "min_jump", "jump_freq": "jump_interval", "min": "lowest", "max": "highest"},
    "warmup": "warmup",
}
_COURSES = {"const": "constant", "const_int": "constant_int", "exp": "exponential", "cos": "cosine"}
_ON_PGD = trained_by("adv_step", *LOTTERY)
_ONE_STEP = trained_by(FAST, refuse=True)


@dataclasses.dataclass
class Attack(attacks.TradesStart):
    """What each trainer adds to the training attack."""

    title = "Training attack"

    attack_select: str = setting(
        "best_visited",
        "Point of PGD that is trained on.",
        choices=("best_visited", "last"),
        identity=True,
        only_for=_ON_PGD,
    )
    attack_bn: str | None = setting(
        None,
        "Batch norm in the attacks: by the batch, as published and by default on one replica, or by its statistics, as "
        "on several replicas.",
        choices=("train", "eval"),
        identity=True,
        only_for=trained_by("adv_step", FAST, *LOTTERY),
    )
    eps_schedule: str | None = setting(
        None,
        "Radius of the training attack by epoch: name=linear,start_v=2,slope=0.5,max=8; see the documentation.",
        identity=True,
    )
    mix: str | None = setting(
        None,
        "adv_step_fast: boxes of other images, one per image or per batch.",
        choices=MIXES,
        identity=True,
        only_for=_ONE_STEP,
    )
    soft_targets: bool = setting(
        False,
        "adv_step_fast: aim at means of what the network said before.",
        identity=True,
        only_for=_ONE_STEP,
    )
    carry: bool = setting(
        True,
        "adv_step_fast: keep perturbations for every image; otherwise begin at random.",
        identity=True,
        only_for=_ONE_STEP,
    )

    def check(self) -> None:
        """Checks that the trainer can attack like this."""
        norm, strategy, is_fast = TrainingAttack.read().norm, Machines.read().strategy, Trainer.read().trainer == FAST
        if is_fast and norm != "linf":
            raise BadFlag(f"--trainer=adv_step_fast needs --norm=linf instead of --norm={norm}")
        if self.attack_bn == "train" and strategy != "none" and not is_fast:
            raise BadFlag(
                f"--attack_bn=train needs one device; pass --attack_bn=eval, or leave it out, with "
                f"--strategy={strategy}"
            )
        if self.mix and self.soft_targets:
            raise BadFlag(f"--soft_targets needs whole images and --mix={self.mix} mixes them; drop one of them")
        if self.eps_schedule is not None:
            self.radii(data.TrainingImages.read().epochs)

    def radii(self, epochs: int) -> list[float]:
        """Returns the radius in each epoch that --eps_schedule stands for, in pixels of [0, 1].

        Raises:
            BadFlag: if it is none.
        """
        what, text = f"--eps_schedule={self.eps_schedule}", self.eps_schedule or ""
        try:
            settings = dict(part.split("=", 1) for part in text.split(","))
            course = settings.pop("name").lower().replace(" ", "_")
            segments, ratios = (
                [float(each) for each in settings.pop(name, "").split(":") if each] for name in ("segs", "seg_ratio")
            )
            numbers = {_SCHEDULE[name]: float(value) for name, value in settings.items()}
            found = radius_course(
                _COURSES.get(course, course), epochs=epochs, segments=segments, segment_ratios=ratios, **numbers
            )
        except KeyError as error:
            raise BadFlag(
                f"{what}: {error.args[0]!r} is missing or unknown; pass name=linear,start_v=2 and more of "
                f"{', '.join(_SCHEDULE)}, segs, seg_ratio"
            ) from None
        except (ValueError, TypeError) as error:
            raise BadFlag(f"{what}: expected name=linear,start_v=2,slope=0.5,max=8. Reason: {error}") from None
        # Of the whole schedule, because within one that passes 1 the unit would change from pixels to 255ths of them.
        unit = 255 if max(found) >= 1 else 1
        if not 0 < max(found) / unit <= 1:
            raise BadFlag(f"{what}: expected radii up to 255, and some above 0; they go up to {max(found):g}")
        return [radius / unit for radius in found]

    def objective(self, run: training_run.TrainingRun, beta: float, label_smoothing: float) -> trs.objectives.Objective:
        """Returns the objective of the trainer, at the radii of --eps_schedule.

        Args:
            run: What is trained on.
            beta: Weight of the robust term of TRADES.
            label_smoothing: Share of the loss that is that of all classes.
        """
        found = self._of_trainer(run, beta, label_smoothing)
        if self.eps_schedule is None:
            return found
        schedule = trs.objectives.TabledEpsilon(tuple(self.radii(run.epochs)), run.steps_per_epoch)
        return trs.objectives.ScheduledRadius(found, schedule)

    def _of_trainer(
        self, run: training_run.TrainingRun, beta: float, label_smoothing: float
    ) -> trs.objectives.Objective:
        trainer, attack = Trainer.read().trainer, TrainingAttack.read()
        if trainer == "adv_trades":
            return trs.objectives.TRADES(attack.build(), beta, self.trades_start, label_smoothing, clean_updates=2)
        several = run.strategy.num_replicas_in_sync > 1 and trainer != FAST
        batch_norm = {"train": "training", "eval": "inference", None: "inference" if several else "training"}
        if trainer == FAST:
            return trs.training.ATTA(
                len(run.images.train_labels),
                attack.epsilon,
                attack.step_size,
                flip=Augmentation.read().flips(run.images),
                carry=self.carry,
                batch_norm=batch_norm[self.attack_bn],
                mix=self.mix,
                soft_targets=self.soft_targets,
            )
        keep_best = self.attack_select == "best_visited"
        pgd = attacks.ATTACKS[attack.norm](attack.epsilon, attack.step_size, attack.num_steps, keep_best=keep_best)
        return trs.objectives.AT(pgd, label_smoothing, batch_norm[self.attack_bn])


@dataclasses.dataclass
class ValidationAttack(Settings):
    """The attack on held-out images."""

    title = "Training attack"

    val_epsilon: float | None = setting(None, "Radius of the attack on held-out images; by default --epsilon.")
    val_step_size: float | None = setting(None, "Length of its step; by default a quarter of the radius.")
    val_num_steps: int = setting(10, "Number of its steps.", lower=1)

    def build(self) -> trs.attacks.GradientAttack:
        """Returns the attack."""
        attack = TrainingAttack.read()
        epsilon = attack.epsilon if self.val_epsilon is None else self.val_epsilon
        step_size = epsilon / 4 if self.val_step_size is None else self.val_step_size
        return attacks.ATTACKS[attack.norm](epsilon, step_size, self.val_num_steps, keep_best=True)


@dataclasses.dataclass
class Augmentation(data.Augmentation):
    """How training images are varied; adv_step_fast crops and mirrors them together with their perturbations."""

    @classmethod
    def settle(cls) -> None:
        """Images in memory are cropped by default, by adv_step_fast itself."""
        super().settle()
        flag = FLAGS["augmentation"]
        if not flag.present and not Data.read().is_in_files:
            flag.value = "crop"
        if Trainer.read().trainer == FAST and flag.value == "crop":
            flag.value = "none"

    def check(self) -> None:
        """Checks that the trainer can vary images like this."""
        super().check()
        allowed = ("none", "crop", *(["resized_crop"] if Data.read().is_in_files else []))
        if Trainer.read().trainer == FAST and self.augmentation not in allowed:
            raise BadFlag(
                f"--augmentation={self.augmentation} does not go with --trainer=adv_step_fast, which crops images "
                f"together with their perturbations; pass --augmentation={' or '.join(allowed)}"
            )

    @property
    def can_flip(self) -> bool:
        """Whether training mirrors images where it is asked to."""
        return super().can_flip or Trainer.read().trainer == FAST


@dataclasses.dataclass
class Ensemble(Settings):
    """AutoAttack on the finished network."""

    title = "Evaluation"

    autoattack: str = setting(
        "standard",
        f"--evaluate: version of AutoAttack, {', '.join(VERSIONS)}, or names of its attacks, or none to leave it out.",
    )

    def check(self) -> None:
        """Checks the names of its attacks."""
        unknown = [name for name in self.attacks if name not in ATTACKS]
        if unknown:
            raise BadFlag(
                f"--autoattack={self.autoattack}: {unknown[0]} is not an attack; pass {', '.join(VERSIONS)}, none, or "
                f"some of {', '.join(ATTACKS)}"
            )

    @property
    def version(self) -> str | None:
        """The version, `"custom"` for attacks by name; `None` to leave it out."""
        if self.autoattack == "none":
            return None
        return self.autoattack if self.autoattack in VERSIONS else "custom"

    @property
    def attacks(self) -> list[str]:
        """The attacks of a custom version."""
        return self.autoattack.split(",") if self.version == "custom" else []

    def build(self, network: keras.Model, log: Path) -> trs.evaluation.AutoAttack:
        """Returns AutoAttack of a network, which writes a log."""
        data = Data.read()
        return trs.evaluation.AutoAttack(
            network,
            {"linf": "Linf", "l2": "L2"}[TrainingAttack.read().norm],
            TestAttack.read().epsilon,
            self.version or "standard",
            self.attacks,
            seed=data.seed,
            batch_size=data.batch_size,
            log_path=log,
        )
