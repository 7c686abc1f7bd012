"""Pruning by learned scores: phases, network, scores and optimizer, and what they say of each phase."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import keras
from absl import flags

import tf_robust_sparse as trs
from tf_robust_sparse.cli.command_line import BadFlag
from tf_robust_sparse.cli.hydra.trainers import BY_BOUNDS, OF_BOUNDS, Attack, Bounds, Trainer, Validation
from tf_robust_sparse.cli.sections import method, run
from tf_robust_sparse.cli.sections.attacks import TestAttack
from tf_robust_sparse.cli.sections.data import Augmentation, Data, TrainingImages
from tf_robust_sparse.cli.sections.machines import Machines
from tf_robust_sparse.cli.sections.run import CertifiedRun, Run
from tf_robust_sparse.cli.settings import OnlyFor, Settings, only_with, setting
from tf_robust_sparse.models.kernel_initialization import KERNEL_INITIALIZATIONS
from tf_robust_sparse.sparsity.keep_fractions import ALLOCATIONS
from tf_robust_sparse.sparsity.scores import RANDOM_SCORES, scored_layers
from tf_robust_sparse.training.by_epoch import SCHEDULES, epoch_rates

FLAGS = flags.FLAGS
T = TypeVar("T")

PHASES = ("pretrain", "prune", "finetune")
MODES = (*PHASES, "all")
# What a phase has of its own in a run of all phases, where nothing is given.
_IN_ALL: dict[tuple[str, str], Any] = {
    **{("prune", "epochs"): 20, ("prune", "lr"): 0.1, ("finetune", "lr"): 0.01},
    **{("prune", "schedule_length"): 0, ("finetune", "schedule_length"): 0},
}


@dataclasses.dataclass
class Phases(Settings):
    """Which phases run, and what each has of its own: `None` in a run of one phase is the value of all."""

    title = "Phases"

    exp_mode: str = setting(
        "all", "Phase to run; all runs them one after the other, from the second on with --source_net.", choices=MODES
    )
    source_net: str | None = setting(
        None,
        "Directory of the run, network.keras or PyTorch checkpoint that prune and finetune begin with; with "
        "--exp_mode=all in place of the pretrain phase.",
    )
    prune_epochs: int | None = setting(
        None, "Epochs of the prune phase; by default 20, or --epochs if the phase runs alone.", lower=1
    )
    finetune_epochs: int | None = setting(None, "Epochs of the finetune phase; by default --epochs.", lower=1)
    prune_lr: float | None = setting(
        None,
        "Learning rate of the prune phase; by default 0.1, or --learning_rate if the phase runs alone.",
        excluded=0,
    )
    finetune_lr: float | None = setting(
        None,
        "Learning rate of the finetune phase; by default 0.01, or --learning_rate if the phase runs alone.",
        excluded=0,
    )
    prune_schedule_length: int | None = setting(
        None,
        "--schedule_length of the prune phase; by default 0, or --schedule_length if the phase runs alone.",
        only_for=OF_BOUNDS,
    )
    finetune_schedule_length: int | None = setting(
        None, "--schedule_length of the finetune phase, likewise.", only_for=OF_BOUNDS
    )

    @property
    def names(self) -> Sequence[str]:
        """The phases that run."""
        if self.exp_mode != "all":
            return (self.exp_mode,)
        return PHASES[1:] if self.source_net else PHASES

    def own(self, phase: str, name: str, shared: T) -> T:
        """Returns what a phase has of its own: epochs, lr or schedule_length, or else the `shared` value."""
        given = getattr(self, f"{phase}_{name}", None)
        if given is not None:
            return given
        return _IN_ALL.get((phase, name), shared) if self.exp_mode == "all" else shared

    def check(self) -> None:
        """Checks what the phases begin with, and their lengths."""
        how, mode = Run.read(), self.exp_mode
        if how.resume and self.source_net and mode != "all":
            raise BadFlag(
                f"--resume goes on with a run and --source_net={self.source_net} begins one; pass one of them, not both"
            )
        if mode in ("prune", "finetune") and not (self.source_net or how.resume or how.load_model):
            raise BadFlag(f"--exp_mode={mode} begins with a trained network; pass --source_net=DIR, the run before")
        if how.load_model:
            return
        if mode == "pretrain" and self.source_net:
            raise BadFlag(
                f"--source_net={self.source_net} does not go with --exp_mode=pretrain; pass --exp_mode=prune, "
                "finetune or all"
            )
        for each in plans():
            if not any(each.rates):
                raise BadFlag(
                    f"--epochs={each.own_epochs}: expected at least 2 in the phase {each.name}, because HYDRA's cosine "
                    "(--lr_schedule=cosine_ref) begins at the rate before its peak, of one epoch 0; or pass "
                    "--lr_schedule=step"
                )


@dataclasses.dataclass
class Network(method.Network):
    """The architecture, and how its kernels begin."""

    init_type: str | None = setting(
        None,
        "In pretrain: how kernels are drawn; by default He-normal, truncated.",
        choices=KERNEL_INITIALIZATIONS,
        only_for=OnlyFor("a pretrain phase", lambda _: "pretrain" in Phases.read().names),
    )


def _prunes(flags: Any) -> bool:
    return flags.exp_mode != "pretrain" or Scores.read().from_the_start


@dataclasses.dataclass
class Scores(Settings):
    """How many connections stay, where, and which scores they begin with."""

    title = "Phases"
    _sparse = "--layer_type=subnet or --snip_init"

    k: float = setting(
        0.1,
        "Fraction of each kernel that stays; 0.01 is 99 % sparse.",
        upper=1,
        excluded=0,
        aliases=("connectivity", "pc"),
        identity=True,
        only_for=OnlyFor(
            f"--exp_mode=prune, finetune or all, or {_sparse}", lambda flags: _prunes(flags) or flags.k == 1
        ),
    )
    allocation: str = setting(
        "uniform",
        "How connections are spread: the same fraction of each kernel, Erdos-Renyi, or by one threshold on the scores.",
        choices=ALLOCATIONS,
        identity=True,
        only_for=OnlyFor(
            f"--exp_mode=prune or all, --scaled_score_init or {_sparse}",
            lambda flags: _prunes(flags) and (flags.exp_mode != "finetune" or flags.scaled_score_init),
        ),
    )
    layer_type: str = setting(
        "dense",
        "Kernels of the pretrain phase: dense, or subnet, which keep the fraction --k from the start.",
        choices=("dense", "subnet"),
        identity=True,
        only_for=only_with("exp_mode", "pretrain"),
    )
    scaled_score_init: bool = setting(
        False,
        "Begin with scores proportional to the weights: HYDRA in the prune phase, magnitude pruning in finetune.",
        identity=True,
        only_for=OnlyFor(f"--exp_mode=prune or finetune, or {_sparse}", _prunes),
    )
    scores_init_type: str | None = setting(
        None,
        "Begin with random scores of this distribution.",
        choices=RANDOM_SCORES,
        identity=True,
        only_for=OnlyFor(
            "--exp_mode=prune or all, or --layer_type=subnet without --snip_init",
            lambda flags: _prunes(flags) and flags.exp_mode != "finetune" and not flags.snip_init,
        ),
    )
    snip_init: bool = setting(
        False, "In pretrain: scores by the sensitivity of one batch, then trained sparse.", identity=True
    )
    scale_rand_init: bool = setting(
        False,
        "In pretrain with --k below 1: divide kernels by the root of k, once.",
        identity=True,
        only_for=OnlyFor(f"--exp_mode=pretrain with {_sparse}", lambda _: Scores.read().from_the_start),
    )
    freeze_bn: str = setting(
        "no",
        "In prune: train batch norm (no), freeze it (yes), or freeze all but its statistics (affine, or no value).",
        choices=("no", "yes", "affine"),
        bare="affine",
        identity=True,
        only_for=only_with("exp_mode", "prune", "all", refuse=True),
    )

    def check(self) -> None:
        """Checks that the settings agree."""
        mode = Phases.read().exp_mode
        if self.snip_init and mode != "pretrain":
            raise BadFlag(f"--snip_init does not go with --exp_mode={mode}; pass --exp_mode=pretrain")
        if self.scaled_score_init and self.scores_init_type:
            raise BadFlag(
                f"--scaled_score_init and --scores_init_type={self.scores_init_type} both set the scores; pass one, "
                "not both"
            )

    @property
    def from_the_start(self) -> bool:
        """Whether the pretrain phase prunes."""
        return Phases.read().exp_mode == "pretrain" and (self.layer_type == "subnet" or self.snip_init)

    def phase(self, name: str) -> trs.training.Phase:
        """Returns the phase of a name."""
        freeze: dict[str, bool | str] = {"no": False, "yes": True, "affine": "affine"}
        return trs.training.Phase(name, freeze[self.freeze_bn] if name == "prune" else False)


@dataclasses.dataclass
class Optimizer(Settings):
    """The rule of a step, and the course of its rate."""

    title = "Training"

    optimizer: str = setting(
        "sgd", "Optimizer; weight decay is in its gradient.", choices=("sgd", "adam", "rmsprop"), identity=True
    )
    learning_rate: float = setting(0.1, "Highest learning rate.", excluded=0, aliases=("lr",))
    lr_schedule: str = setting("cosine", "Course of the learning rate over the epochs.", choices=SCHEDULES)
    warmup_epochs: int = setting(0, "Extra epochs at --warmup_lr, before --epochs begin.")
    warmup_lr: float = setting(
        0.1,
        "Learning rate of the warm-up.",
        excluded=0,
        only_for=OnlyFor("--warmup_epochs above 0", lambda flags: flags.warmup_epochs > 0),
    )
    weight_decay: float = setting(1e-4, "Strength of the weight decay.", upper=1, aliases=("wd",))
    momentum: float = setting(
        0.9,
        "Momentum of sgd and rmsprop.",
        upper=1,
        excluded=1,
        only_for=OnlyFor("--optimizer=sgd or rmsprop", lambda flags: flags.optimizer != "adam"),
    )
    undivided_schedule: bool = setting(
        False,
        "Let --lr_schedule run over the epochs before --n_repeats divides them, as HYDRA does.",
        only_for=only_with("trainer", "freeadv"),
    )

    def rates(self, highest: float, own_epochs: int, epochs: int) -> list[float]:
        """Returns the rate of each of so many epochs, which were `own_epochs` before they were divided."""
        course = own_epochs if self.undivided_schedule else epochs - self.warmup_epochs
        return epoch_rates(self.lr_schedule, highest, course, self.warmup_epochs, self.warmup_lr)[:epochs]

    def build(self, rates: Sequence[float], steps_per_epoch: int) -> keras.optimizers.Optimizer:
        """Returns the optimizer with these rates of the epochs."""
        schedule = trs.training.PerEpoch(rates, steps_per_epoch)
        return method.scaled(trs.training.coupled(self.optimizer, schedule, self.weight_decay, self.momentum))


@dataclasses.dataclass
class Output(run.Output):
    """Where a run is written, and what."""

    save_dense: bool = setting(False, "Also write dense/network.keras, of plain kernels.")


class Plan(NamedTuple):
    """How a phase trains.

    Attributes:
        name: Its name.
        own_epochs: Its epochs as they are given: before --n_repeats divides them, and without a warm-up.
        epochs: Its epochs, those of the warm-up included.
        rate: Its highest learning rate.
        rates: The learning rate of each epoch.
        schedule_length: Epochs in which the radius of bounds grows.
    """

    name: str
    own_epochs: int
    epochs: int
    rate: float
    rates: list[float]
    schedule_length: int

    @property
    def first_looked_at(self) -> int:
        """The first epoch, counted from 0, whose network held-out images judge: symbolic intervals take long."""
        return self.schedule_length + 1 if Validation.read().by == "mixtrain" and self.schedule_length else 0

    def check_radius(self) -> None:
        """Checks that the radius of bounds reaches --epsilon within the phase, and that an epoch is compared then.

        Raises:
            BadFlag: if the phase is too short.
        """
        start, length = Bounds.read().schedule_start, self.schedule_length
        if Trainer.read().trainer != "mixtrain":
            needed = start + length if length > 1 else 0
        else:
            # From the epoch after the last increment on; --val_method=mixtrain looks at the ones after that.
            looked_at = Validation.read().by == "mixtrain" and Run.read().select.startswith("best")
            needed = length + 1 + looked_at if length else 0
        if needed > self.epochs:
            own = Phases.read().own(self.name, "schedule_length", None) is not None
            name = f"{self.name}_schedule_length" if own else "schedule_length"
            begin = f" --schedule_start={start}" if start else ""
            raise BadFlag(
                f"--{name}={length}{begin}: expected a {self.name} phase of at least {needed} epochs, so that the "
                f"radius reaches --epsilon and stays there for one; it has {self.epochs}"
            )


def plan(phase: str) -> Plan:
    """Returns how the settings train a phase."""
    phases, trainer, optimizer = Phases.read(), Trainer.read(), Optimizer.read()
    own_epochs = phases.own(phase, "epochs", TrainingImages.read().epochs)
    repeats = trainer.n_repeats if trainer.trainer == "freeadv" else 1
    epochs = -(-own_epochs // repeats) + optimizer.warmup_epochs
    rate = phases.own(phase, "lr", optimizer.learning_rate)
    length = phases.own(phase, "schedule_length", Bounds.read().schedule_length)
    return Plan(phase, own_epochs, epochs, rate, optimizer.rates(rate, own_epochs, epochs), length)


def plans() -> list[Plan]:
    """Returns the plans of all phases that run."""
    return [plan(name) for name in Phases.read().names]


def check_radii() -> None:
    """Checks that the radius of bounds reaches --epsilon in each phase.

    Raises:
        BadFlag: naming the flag that says for how long it grows.
    """
    if Trainer.read().trainer in BY_BOUNDS and not Run.read().load_model:
        for each in plans():
            each.check_radius()


def config(network: keras.Model) -> dict[str, Any]:
    """Returns what else --resume cannot change: the fraction of each kernel, the schedules of phases."""
    phases = Phases.read()
    return {
        "keep_fractions": {layer.name: layer.keep_fraction for layer in scored_layers(network)},
        "prune_schedule_length": phases.prune_schedule_length or 0,
        "finetune_schedule_length": phases.finetune_schedule_length or 0,
    }


def run_name() -> str:
    """Returns the directory name of a run with these flags."""
    method = "harp" if FLAGS.rates == "learned" else "hydra"
    return f"{Data.read().short_name}_{Network.read().model}_{method}_{Trainer.read().trainer}{Scores.read().k!r}"


def define() -> None:
    """Defines the phases and how each of them trains."""
    Data.define()
    Network.define(padding_mode="symmetric")
    TrainingImages.define(without=("valid_ratio",), epochs=100)
    Trainer.define()
    Optimizer.define()
    Phases.define()
    Scores.define()
    Attack.define()
    Bounds.define()
    Validation.define()
    Augmentation.define()
    Machines.define()
    TestAttack.define()
    Output.define()
    CertifiedRun.define()
