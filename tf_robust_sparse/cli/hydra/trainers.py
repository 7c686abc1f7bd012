"""What pruning by learned scores trains by and compares epochs by: attacks, noise or bounds."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import flags

import tf_robust_sparse as trs
from tf_robust_sparse.certify.smoothing import SmoothingMonitor
from tf_robust_sparse.cli import training_run
from tf_robust_sparse.cli.command_line import BadFlag, about
from tf_robust_sparse.cli.sections.attacks import ATTACKS, TradesStart, TrainingAttack
from tf_robust_sparse.cli.sections.data import Data, TrainingImages
from tf_robust_sparse.cli.sections.machines import Machines
from tf_robust_sparse.cli.sections.run import Run
from tf_robust_sparse.cli.settings import OnlyFor, Settings, like, only_with, setting
from tf_robust_sparse.evaluation.progress import Progress

FLAGS = flags.FLAGS

# Between attack and bounds -> the objective and its own arguments by settings.
EXPRESSIVE: dict[str, tuple[Callable[..., Any], dict[str, str]]] = {
    "mtl-ibp": (trs.objectives.MTLIBP, {"alpha": "ibp_alpha"}),
    "cc-ibp": (trs.objectives.CCIBP, {"alpha": "ibp_alpha"}),
    "exp-ibp": (trs.objectives.ExpIBP, {"alpha": "ibp_alpha"}),
    "sabr": (trs.objectives.SABR, {"ratio": "box_ratio", "relu_shrinkage": "relu_shrinkage"}),
}
BY_BOUNDS = ("mixtrain", "crown-ibp", "ibp", *EXPRESSIVE)
TRAINERS = ("base", "adv", "at", "smooth", "freeadv", *BY_BOUNDS)
# How held-out images are judged -> the bounds that do; smooth judges by an estimate.
BOUNDS = {"ibp": "ibp", "crown-ibp": "crown-ibp", "mixtrain": "zonotope"}
CHECKS = (*BOUNDS, "smooth")
_DEFAULT_CHECKS = {"base": "base", "mixtrain": "mixtrain", "crown-ibp": "ibp", "ibp": "ibp", "smooth": "smooth"}
_DEFAULT_CHECKS |= dict.fromkeys(EXPRESSIVE, "crown-ibp")


_of = functools.partial(only_with, "trainer")


def _grows(flags: Any) -> bool:
    """Returns whether the radius of bounds grows in some phase."""
    lengths = (flags.schedule_length, flags.prune_schedule_length or 0, flags.finetune_schedule_length or 0)
    return flags.trainer in BY_BOUNDS and max(lengths) >= (1 if flags.trainer == "mixtrain" else 2)


OF_BOUNDS = _of(*BY_BOUNDS, refuse=True)
_OF_EXPRESSIVE = _of(*EXPRESSIVE, refuse=True)
_OF_LINES = _of("crown-ibp", "ibp", refuse=True)
_WHERE_LINES_GROW = OnlyFor(
    f"--trainer={' or '.join(name for name in BY_BOUNDS if name != 'mixtrain')} with a --schedule_length of at least "
    "2, in which the radius grows",
    lambda flags: flags.trainer != "mixtrain" and _grows(flags),
)


@dataclasses.dataclass
class Attack(TrainingAttack):
    """PGD on the images of a step, and on those held out."""

    num_steps: int = like(
        TrainingAttack,
        "num_steps",
        only_for=OnlyFor(
            f"--trainer=adv, at, {', '.join(EXPRESSIVE)} or --val_method=adv",
            lambda flags: flags.trainer in ("adv", "at", *EXPRESSIVE) or Validation.read().attacks,
        ),
    )

    @classmethod
    def settle(cls) -> None:
        """Steps in l2 are by default as long as published."""
        if FLAGS.norm == "l2" and not FLAGS["step_size"].present:
            FLAGS["step_size"].value = 2 * FLAGS.epsilon / max(FLAGS.num_steps, 1)


@dataclasses.dataclass
class Trainer(Settings):
    """The objective."""

    title = "Training"

    trainer: str = setting(
        "adv",
        "Objective: natural, TRADES, PGD, stability under noise, free adversarial, by bounds, or between both "
        f"({', '.join(EXPRESSIVE)}).",
        choices=TRAINERS,
        identity=True,
    )
    beta: float = setting(6.0, "Weight of the robust term of adv and smooth.", only_for=_of("adv", "smooth"))
    clean_updates: int = setting(
        1,
        "With --trainer=adv: how often the clean images of a step move batch norm; HYDRA's 3.",
        lower=1,
        upper=3,
        only_for=_of("adv"),
    )
    trades_start: str = like(TradesStart, "trades_start", only_for=_of("adv", refuse=True))
    noise_std: float = setting(
        0.25,
        "Standard deviation of the noise of smooth, in pixels of [0, 1].",
        only_for=OnlyFor(
            "--trainer=smooth or --val_method=smooth", lambda flags: "smooth" in (flags.trainer, flags.val_method)
        ),
    )
    n_repeats: int = setting(
        4, "How often freeadv uses a batch; epochs are divided by it.", lower=1, identity=True, only_for=_of("freeadv")
    )

    def check(self) -> None:
        """Checks images, norm and batches."""
        amount, norm = TrainingImages.read(), TrainingAttack.read().norm
        if self.trainer == "freeadv" and amount.pseudo_labels:
            raise BadFlag(f"--trainer=freeadv takes no --pseudo_labels={amount.pseudo_labels}; drop it")
        if self.trainer == "freeadv" and norm != "linf":
            raise BadFlag(f"--trainer=freeadv does not train with --norm={norm}; pass --norm=linf")
        if not amount.drop_last and self.needs_full_batches:
            raise BadFlag(
                f"--nodrop_last does not go with --trainer={self.trainer} --strategy={Machines.read().strategy} "
                f"--pseudo_labels={amount.pseudo_labels}: freeadv, replicas and pseudo-labels need full batches"
            )
        if not amount.drop_last and training_run.odd_batches_may_crash():
            raise BadFlag(training_run.ODD_BATCHES)

    @property
    def needs_full_batches(self) -> bool:
        """Whether every batch must be full."""
        return (
            bool(TrainingImages.read().pseudo_labels) or self.trainer == "freeadv" or not Machines.read().is_one_device
        )

    def build(self, steps_per_epoch: int, schedule_length: int) -> trs.objectives.Objective:
        """Returns the objective of a phase, in so many epochs of which a radius of bounds grows."""
        attack = TrainingAttack.read()
        if self.trainer == "base":
            return trs.objectives.Natural()
        if self.trainer == "adv":
            return trs.objectives.TRADES(attack.build(), self.beta, self.trades_start, clean_updates=self.clean_updates)
        if self.trainer == "at":
            return trs.objectives.AT(attack.build())
        if self.trainer == "smooth":
            return trs.objectives.Stability(self.noise_std, self.beta)
        if self.trainer == "freeadv":
            return trs.training.FreeAT(Data.read().batch_size, attack.epsilon, self.n_repeats)
        return Bounds.read().build(self.trainer, attack.epsilon, steps_per_epoch, schedule_length)


@dataclasses.dataclass
class Bounds(Settings):
    """How radius and weights go while a network is trained by bounds."""

    title = "Training by bounds"

    schedule_length: int = setting(
        0, "Epochs in which the radius grows to --epsilon; 0 for at once.", identity=True, only_for=OF_BOUNDS
    )
    schedule_start: int = setting(
        0,
        "Epochs of crown-ibp and ibp before the radius grows.",
        identity=True,
        only_for=_WHERE_LINES_GROW._replace(refuse=True),
    )
    starting_epsilon: float = setting(
        0.0,
        "Radius that it grows from, at most --epsilon.",
        upper=1,
        identity=True,
        only_for=OnlyFor("training by bounds with a --schedule_length in which the radius grows", _grows),
    )
    epsilon_schedule: str = setting(
        "linear",
        "How it grows in crown-ibp and ibp, step by step.",
        choices=("linear", "smoothed"),
        identity=True,
        only_for=_WHERE_LINES_GROW,
    )
    final_beta: float = setting(
        0.0,
        "Weight of linear bounds against intervals at the last radius of crown-ibp.",
        upper=1,
        identity=True,
        only_for=_of("crown-ibp", refuse=True),
    )
    final_kappa: float | None = setting(
        None,
        "Weight of the clean loss of crown-ibp and ibp at the last radius, 1 at radius 0; by default there is none.",
        upper=1,
        identity=True,
        only_for=_OF_LINES,
    )
    ibp_alpha: float = setting(
        0.5,
        "Weight of the bounds of mtl-ibp, cc-ibp and exp-ibp; published for mtl-ibp: 0.004 at 2/255, 0.5 at 8/255, "
        "0.08 on MNIST at 0.3.",
        upper=1,
        identity=True,
        only_for=_of("mtl-ibp", "cc-ibp", "exp-ibp", refuse=True),
    )
    box_ratio: float = setting(
        0.4,
        "Radius of the box of sabr as a share of --epsilon; published: 0.1 at 2/255, 0.7 at 8/255, 0.6 on MNIST at "
        "0.3.",
        upper=1,
        identity=True,
        only_for=_of("sabr", refuse=True),
    )
    relu_shrinkage: float = setting(
        1.0,
        "Factor of the upper bounds of undecided ReLUs of sabr; published: 0.8 at 2/255, else 1.",
        excluded=0,
        upper=1,
        identity=True,
        only_for=_of("sabr", refuse=True),
    )
    attack_scale: float = setting(
        1.0,
        "Radius of the attack as a multiple of --epsilon; published for mtl-ibp at 2/255: 2.1.",
        excluded=0,
        identity=True,
        only_for=_OF_EXPRESSIVE,
    )
    ibp_regularizer: float = setting(
        0.0,
        "Weight of a penalty on wide and unbalanced intervals while the radius grows; published: 0.5.",
        identity=True,
        only_for=_OF_EXPRESSIVE,
    )
    mixtraink: int = setting(
        1,
        "Images per batch that mixtrain bounds: 1 for large networks, 5 for small ones.",
        lower=1,
        identity=True,
        only_for=_of("mixtrain", refuse=True),
    )
    interval_weight: float = setting(
        0.1, "Initial weight of the bounds of mixtrain.", identity=True, only_for=_of("mixtrain", refuse=True)
    )
    bound_chunk: int = setting(
        4096,
        "Rows of a backward pass of bounds; fewer take less memory.",
        lower=1,
        only_for=OnlyFor(
            "--trainer=mixtrain or --val_method=mixtrain",
            lambda flags: "mixtrain" in (flags.trainer, flags.val_method),
            refuse=True,
        ),
    )

    def check(self) -> None:
        """Checks what bounds need, in training or of held-out images."""
        trainer, by, data, epsilon = Trainer.read().trainer, Validation.read().by, Data.read(), Attack.read().epsilon
        if trainer not in BY_BOUNDS and by not in BOUNDS:
            return
        who = f"--trainer={trainer}" if trainer in BY_BOUNDS else f"--val_method={by}"
        if Attack.read().norm != "linf":
            raise BadFlag(f"{who} computes bounds in l-infinity; pass --norm=linf in place of {Attack.read().norm}")
        if TrainingImages.read().mixed_precision:
            raise BadFlag(f"{who} computes bounds in float32; drop --mixed_precision")
        if not 0 < epsilon < 1:
            raise BadFlag(f"--epsilon={epsilon:g}: expected a radius above 0 and below 1, such as 2/255")
        if self.starting_epsilon > epsilon:
            raise BadFlag(f"--starting_epsilon={self.starting_epsilon:g}: expected at most --epsilon={epsilon:g}")
        if data.is_in_files:
            raise BadFlag(f"{who} needs data in memory; --data={data.data} is read from files")

    def build(self, trainer: str, epsilon: float, steps_per_epoch: int, length: int) -> trs.objectives.Objective:
        """Returns the objective of a trainer by bounds whose radius grows to `epsilon` in `length` epochs."""
        if trainer == "mixtrain":
            growing = trs.objectives.EpochwiseEpsilon(epsilon, length, steps_per_epoch, self.starting_epsilon)
            return trs.objectives.MixTrain(growing, self.mixtraink, self.interval_weight, chunk=self.bound_chunk)
        schedule = trs.objectives.EpsilonSchedule(epsilon)
        if length >= 2:  # the last radius is reached when the epoch before the last one of the schedule is over
            kinds = {"linear": trs.objectives.LinearEpsilon, "smoothed": trs.objectives.SmoothedEpsilon}
            begin = self.schedule_start * steps_per_epoch
            end = begin + (length - 1) * steps_per_epoch
            schedule = kinds[self.epsilon_schedule](epsilon, begin, end, self.starting_epsilon)
        if trainer in EXPRESSIVE:
            attack = TrainingAttack.read().build()
            scaled = {"epsilon": epsilon * self.attack_scale, "step_size": attack.step_size * self.attack_scale}
            attack = type(attack).from_config({**attack.get_config(), **scaled})
            kind, names = EXPRESSIVE[trainer]
            own = {argument: getattr(self, name) for argument, name in names.items()}
            return kind(attack, schedule, **own, regularizer=self.ibp_regularizer)
        if trainer == "ibp":
            return trs.objectives.IBP(schedule, self.final_kappa)
        return trs.objectives.CrownIBP(schedule, self.final_beta, self.final_kappa)


@dataclasses.dataclass
class Validation(Settings):
    """How epochs are compared on the held-out images."""

    title = "Validation"

    val_method: str | None = setting(
        None,
        "How epochs are compared on the held-out images: base on clean ones alone, adv and freeadv under PGD too, "
        "mixtrain, crown-ibp and ibp by bounds, smooth by an estimate under noise. By default as --trainer trains.",
        choices=("base", "adv", "freeadv", *CHECKS),
    )
    const_init: bool = setting(
        False,
        "The attack on held-out images starts at the image, not at a random point near it.",
        only_for=OnlyFor("--val_method=adv", lambda _: Validation.read().attacks),
    )

    @classmethod
    def settle(cls) -> None:
        """Compares epochs as the trainer trains, and keeps the best of them."""
        FLAGS["val_method"].value = cls.read().by
        if not FLAGS["select"].present:
            FLAGS["select"].value = cls.read().best

    @property
    def by(self) -> str:
        """The method."""
        return self.val_method or _DEFAULT_CHECKS.get(Trainer.read().trainer, "adv")

    @property
    def best(self) -> str:
        """The value of --select that keeps the best epoch by this method."""
        return {"base": "best_clean"}.get(self.by, "best_certified" if self.by in CHECKS else "best_robust")

    @property
    def attacks(self) -> bool:
        """Whether the held-out images are attacked."""
        return self.by not in ("base", *CHECKS)

    def check(self) -> None:
        """Checks that the method can judge, and that --select goes by it."""
        select = Run.read().select
        if select.startswith("best") and select not in ("best_clean", self.best):
            raise BadFlag(
                f"--select={select} does not go with --val_method={self.by}; pass --select={self.best} or last"
            )
        if self.by == "smooth" and Trainer.read().noise_std == 0:
            raise BadFlag("--val_method=smooth needs noise; in place of --noise_std=0 pass one such as 0.25")

    def attack(self) -> trs.attacks.GradientAttack | None:
        """Returns the attack on the held-out images, if they are attacked."""
        if not self.attacks:
            return None
        found = TrainingAttack.read()
        kind = ATTACKS[found.norm]
        return kind(found.epsilon, found.step_size, found.num_steps, random_start=not self.const_init)

    def checks(self) -> dict[str, Callable[..., Any]]:
        """Returns what judges held-out images other than attacks."""
        if self.by == "smooth":
            return {"smoothed_accuracy": SmoothingMonitor(Trainer.read().noise_std)}
        if self.by not in BOUNDS:
            return {}
        epsilon, chunk = TrainingAttack.read().epsilon, Bounds.read().bound_chunk
        return {"verified_accuracy": trs.certify.Verifier(epsilon, BOUNDS[self.by], tight=False, chunk=chunk)}

    def check_network(self, network: keras.Model) -> None:
        """Bounds an image, where training or validation will bound many, so that a layer without bounds is named."""
        if Trainer.read().trainer in BY_BOUNDS or self.by in BOUNDS:
            image = tf.zeros((1, *network.input_shape[1:]))
            with about("model"):
                trs.certify.margins(network, image, tf.zeros(1, tf.int64), TrainingAttack.read().epsilon, "ibp")


def measure(network: keras.Model, images: trs.data.ImageDataset) -> dict[str, Any]:
    """Returns what is measured on the test images in addition to accuracies, as entries of `results.json`.

    Of networks that are trained by bounds, and of those that --load_model compares by bounds, that is the share of
    images verified by each kind of bounds.
    """
    names = (Trainer.read().trainer, Validation.read().by)
    if names[0] not in BY_BOUNDS and not (Run.read().load_model and names[1] in BOUNDS):
        return {}
    data, epsilon = Data.read(), TrainingAttack.read().epsilon
    x, y = (np.concatenate(parts) for parts in zip(*data.test_batches(images).as_numpy_iterator(), strict=True))
    methods = ("ibp", "crown-ibp", *(["zonotope"] if "mixtrain" in names else []))
    shares = {method: _verified_share(network, x, y, method, epsilon) for method in methods}
    return {"verified": {"epsilon": epsilon, "norm": "Linf", "images": len(y), "accuracy": shares}}


def _verified_share(network: keras.Model, x: np.ndarray, y: np.ndarray, method: str, epsilon: float) -> float:
    with about("model"), Progress(f"Verified by {method}", len(y), shown=True) as bar:
        rows = trs.certify.verify_images(
            *(network, x, y, epsilon, method),
            tight=False,
            chunk=Bounds.read().bound_chunk,
            batch_size=Data.read().batch_size,
            progress=lambda _: bar.advance(1),
        )
    return float(np.mean([row.verified for row in rows]))
