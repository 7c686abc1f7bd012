"""The flags of pruning by learned scores, their checks, and what they say of each phase."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
from absl import flags

import tf_robust_sparse as trs
from tf_robust_sparse.cli import certified_flags, run_directory, training_run
from tf_robust_sparse.cli.command_line import BadFlag, define_aliases, define_bare, define_number, section
from tf_robust_sparse.cli.sections.attacks import TradesStart, TrainingAttack
from tf_robust_sparse.cli.sections.data import Augmentation, TrainingImages
from tf_robust_sparse.cli.sections.machines import Machines

FLAGS = flags.FLAGS

MODES = ("pretrain", "prune", "finetune", "all")
TRAINERS = ("base", "adv", "smooth", "freeadv", *certified_flags.TRAINERS)
# What --resume cannot change, beside the flags of every run.
IDENTITY = (
    *("trainer", "k", "layer_type", "scaled_score_init", "scores_init_type", "snip_init", "scale_rand_init"),
    *("freeze_bn", "optimizer", "n_repeats", "allocation", "data_fraction", "semisup_fraction", "drop_last"),
    *certified_flags.IDENTITY,
)
# Flags of one phase: in a run of that phase alone they count only if they are given.
OF_A_PHASE = (
    *("prune_epochs", "prune_lr", "prune_schedule_length"),
    *("finetune_epochs", "finetune_lr", "finetune_schedule_length"),
)
# Flags that mean nothing to some runs -> those they mean something to; --step_size is in all published recipes.
MEANINGFUL: dict[str, tuple[str, Callable[[], bool]]] = {
    "k": (
        "--exp_mode=prune, finetune or all, or --layer_type=subnet",
        lambda: _prunes() or starts_sparse() or FLAGS.k == 1,
    ),
    "allocation": (
        "--exp_mode=prune or all, --scaled_score_init or --layer_type=subnet",
        lambda: FLAGS.exp_mode in ("prune", "all") or (_prunes() and FLAGS.scaled_score_init) or starts_sparse(),
    ),
    "layer_type": ("--exp_mode=pretrain", lambda: FLAGS.exp_mode == "pretrain"),
    "scaled_score_init": (
        "--exp_mode=prune or finetune, or --layer_type=subnet",
        lambda: _prunes() or starts_sparse(),
    ),
    "init_type": ("a pretrain phase", lambda: "pretrain" in phases()),
    "undivided_schedule": ("--trainer=freeadv", lambda: FLAGS.trainer == "freeadv"),
    "scores_init_type": (
        "--exp_mode=prune or all, or --layer_type=subnet without --snip_init",
        lambda: FLAGS.exp_mode in ("prune", "all") or (starts_sparse() and not FLAGS.snip_init),
    ),
    "scale_rand_init": ("--layer_type=subnet or --snip_init", lambda: starts_sparse()),
    "momentum": ("--optimizer=sgd or rmsprop", lambda: FLAGS.optimizer != "adam"),
    "warmup_lr": ("--warmup_epochs above 0", lambda: FLAGS.warmup_epochs > 0),
    "beta": ("--trainer=adv or smooth", lambda: FLAGS.trainer in ("adv", "smooth")),
    "clean_updates": ("--trainer=adv", lambda: FLAGS.trainer == "adv"),
    "noise_std": ("--trainer=smooth or --val_method=smooth", lambda: "smooth" in (FLAGS.trainer, FLAGS.val_method)),
    "n_repeats": ("--trainer=freeadv", lambda: FLAGS.trainer == "freeadv"),
    "num_steps": ("--trainer=adv or --val_method=adv", lambda: FLAGS.trainer == "adv" or attacks_held_out()),
    "const_init": ("--val_method=adv", lambda: attacks_held_out()),
    "starting_epsilon": ("a --schedule_length in which the radius grows", lambda: _radius_grows()),
    "epsilon_schedule": ("a --schedule_length in which the radius grows", lambda: _radius_grows()),
}


def define() -> None:
    """Defines the phases and how each of them trains."""
    _define_network()
    TrainingImages.define_shared(epochs=100)
    _define_optimisation()
    _define_phases()
    TrainingAttack.define()
    TradesStart.define()
    certified_flags.define()
    Augmentation.define()
    Machines.define()


@section("Network")
def _define_network() -> None:
    flags.DEFINE_enum("model", "vgg16", list(trs.models.NETWORKS), "Architecture.")
    flags.DEFINE_enum(
        "padding_mode",
        "symmetric",
        ["tf_same", "symmetric"],
        "How strided convolutions pad: as TensorFlow does, or symmetric as PyTorch and HYDRA do.",
    )
    flags.DEFINE_enum(
        "layer_type",
        "dense",
        ["dense", "subnet"],
        "Kernels of the pretrain phase; subnet ones, of which k stay, with --k below 1 in it.",
    )
    flags.DEFINE_enum(
        "init_type",
        None,
        list(trs.models.KERNEL_INITIALIZATIONS),
        "In pretrain: how kernels are drawn; by default He-normal, truncated.",
    )


@section("Phases")
def _define_phases() -> None:
    flags.DEFINE_enum(
        "exp_mode",
        "all",
        MODES,
        "Phase to run; all runs them one after the other, from the second on with --source_net.",
    )
    define_number("k", 0.1, "Fraction of each kernel that stays; 0.01 is 99 % sparse.", 0, 1, excluded=0)
    flags.DEFINE_enum(
        "allocation",
        "uniform",
        list(trs.sparsity.ALLOCATIONS),
        "How connections are spread: the same fraction of each kernel, Erdos-Renyi, or by one threshold on the scores.",
    )
    flags.DEFINE_string(
        "source_net",
        None,
        "Directory of the run, network.keras or PyTorch checkpoint that prune and finetune begin with; with "
        "--exp_mode=all in place of the pretrain phase.",
    )
    flags.DEFINE_bool(
        "scaled_score_init",
        False,
        "Begin with scores that rank as magnitudes do: in prune the proposed way, in finetune least weight magnitude.",
    )
    flags.DEFINE_enum(
        "scores_init_type", None, list(trs.sparsity.RANDOM_SCORES), "Begin with random scores of this distribution."
    )
    flags.DEFINE_bool("snip_init", False, "In pretrain: scores by the sensitivity of one batch, then trained sparse.")
    flags.DEFINE_bool("scale_rand_init", False, "In pretrain with --k below 1: divide kernels by the root of k, once.")
    flags.DEFINE_enum(
        "freeze_bn",
        "no",
        ["no", "yes", "affine"],
        "In prune: train batch norm, freeze it, or, as --freeze_bn alone, all but its statistics.",
    )
    define_bare("freeze_bn", "affine")
    flags.DEFINE_integer(
        "prune_epochs", 20, "Epochs of the prune phase; of that phase alone --epochs if it is not given.", 1
    )
    flags.DEFINE_integer("finetune_epochs", None, "Epochs of the finetune phase; by default --epochs.", 1)
    define_number(
        "prune_lr",
        0.1,
        "Learning rate of the prune phase; of that phase alone --learning_rate if it is not given.",
        excluded=0,
    )
    define_number("finetune_lr", 0.01, "Learning rate of the finetune phase, likewise.", excluded=0)
    define_aliases({"connectivity": "k", "pc": "k"})


@section("Training")
def _define_optimisation() -> None:
    flags.DEFINE_enum(
        "trainer",
        "adv",
        TRAINERS,
        "Objective: natural, TRADES, stability under noise, free adversarial, or by bounds.",
    )
    flags.DEFINE_enum("optimizer", "sgd", ["sgd", "adam", "rmsprop"], "Optimizer; weight decay is in its gradient.")
    define_number("learning_rate", 0.1, "Highest learning rate.", excluded=0)
    flags.DEFINE_enum(
        "lr_schedule", "cosine", list(trs.training.SCHEDULES), "Course of the learning rate over the epochs."
    )
    flags.DEFINE_integer("warmup_epochs", 0, "Epochs before these, at --warmup_lr.", 0)
    define_number("warmup_lr", 0.1, "Learning rate of the warm-up.", excluded=0)
    define_number("weight_decay", 1e-4, "Strength of the weight decay.", 0, 1)
    define_number("momentum", 0.9, "Momentum of sgd and rmsprop.", 0, 1, excluded=1)
    define_number("beta", 6.0, "Weight of the robust term of adv and smooth.")
    flags.DEFINE_integer(
        "clean_updates", 1, "With --trainer=adv: how often the clean images of a step move batch norm; HYDRA's 3.", 1, 3
    )
    flags.DEFINE_bool(
        "drop_last",
        True,
        "Leave out the last, smaller batch of an epoch, as pseudo-labels, --trainer=freeadv and replicas need.",
    )
    define_number("noise_std", 0.25, "Standard deviation of the noise of smooth, in pixels of [0, 1].")
    flags.DEFINE_integer("n_repeats", 4, "How often freeadv uses a batch; epochs are divided by it.", 1)
    flags.DEFINE_bool(
        "undivided_schedule",
        False,
        "Let --lr_schedule run over the epochs before --n_repeats divides them, as HYDRA does.",
    )
    define_aliases({"lr": "learning_rate", "wd": "weight_decay"})


def check(lenient: bool = False) -> None:
    """Checks how the flags go together, before any work.

    Args:
        lenient: Whether a radius that does not reach --epsilon is noted and not refused, as HYDRA's code takes it.

    Raises:
        BadFlag: naming the flags.
    """
    mode = FLAGS.exp_mode
    if FLAGS.norm == "l2" and not FLAGS["step_size"].present:
        FLAGS["step_size"].value = 2 * FLAGS.epsilon / max(FLAGS.num_steps, 1)
    if FLAGS.resume and FLAGS.source_net and mode != "all":
        raise BadFlag("--resume goes on with a run and --source_net begins one; pass one of them. Received: both")
    if mode in ("prune", "finetune") and not (FLAGS.source_net or FLAGS.resume or FLAGS.load_model):
        raise BadFlag(f"--exp_mode={mode}: expected --source_net=DIR, the run before. Received: none")
    if mode == "pretrain" and FLAGS.source_net and not FLAGS.load_model:
        raise BadFlag(f"--source_net: expected --exp_mode=prune, finetune or all. Received: --exp_mode={mode}")
    for name, modes in (("snip_init", ("pretrain",)), ("scale_rand_init", ("pretrain",))):
        if FLAGS[name].value and mode not in modes:
            raise BadFlag(f"--{name}: expected --exp_mode=pretrain. Received: --exp_mode={mode}")
    if FLAGS.freeze_bn != "no" and mode not in ("prune", "all"):
        raise BadFlag(f"--freeze_bn={FLAGS.freeze_bn}: expected --exp_mode=prune or all. Received: --exp_mode={mode}")
    if FLAGS.scaled_score_init and FLAGS.scores_init_type:
        raise BadFlag("--scaled_score_init and --scores_init_type both set the scores; pass one. Received: both")
    if FLAGS.trades_start != "gaussian" and FLAGS.trainer != "adv":
        raise BadFlag(
            f"--trades_start={FLAGS.trades_start}: expected --trainer=adv. Received: --trainer={FLAGS.trainer}"
        )
    if FLAGS.pseudo_labels and FLAGS.trainer == "freeadv":
        raise BadFlag("--pseudo_labels: expected a --trainer other than freeadv. Received: --trainer=freeadv")
    if not FLAGS.drop_last and needs_full_batches():
        raise BadFlag(
            "--nodrop_last: expected no --pseudo_labels, a --trainer other than freeadv and --strategy=none. "
            f"Received: --trainer={FLAGS.trainer} --strategy={FLAGS.strategy} --pseudo_labels={FLAGS.pseudo_labels}"
        )
    if not FLAGS.drop_last and training_run.odd_batches_may_crash():
        raise BadFlag(training_run.ODD_BATCHES)
    if FLAGS.trainer == "freeadv" and FLAGS.norm != "linf":
        raise BadFlag(f"--trainer=freeadv: expected --norm=linf. Received: --norm={FLAGS.norm}")
    certified_flags.check()
    for each in () if FLAGS.load_model else phases():
        if not any(rates(each)):
            raise BadFlag(
                f"--epochs={own_epochs(each)}: expected at least 2 in the phase {each}, because HYDRA's cosine "
                "(--lr_schedule=cosine_ref) begins at the rate before its peak, of one epoch 0; or pass "
                "--lr_schedule=step. Received: a learning rate of 0"
            )
    if FLAGS.trainer in certified_flags.TRAINERS and not FLAGS.load_model:
        try:
            _check_schedules()
        except BadFlag as error:
            if not lenient:
                raise
            print(f"Note: {error}")
    not_given = {name for name in OF_A_PHASE if not FLAGS[name].present}
    run_directory.leave_out(*certified_flags.unused(), *not_given)


def _check_schedules() -> None:
    for phase in phases():
        certified_flags.check_length(_schedule_flag(phase), schedule_length(phase), epochs(phase), phase)
    if FLAGS.schedule_start and not _radius_grows():
        raise BadFlag(
            f"--schedule_start={FLAGS.schedule_start}: expected a --schedule_length of at least 2, because without one "
            f"the radius is --epsilon at once. Received: --schedule_length={FLAGS.schedule_length}"
        )


def phases() -> tuple[str, ...]:
    """Returns the phases that are run."""
    if FLAGS.exp_mode != "all":
        return (FLAGS.exp_mode,)
    return ("prune", "finetune") if FLAGS.source_net else ("pretrain", "prune", "finetune")


def _prunes() -> bool:
    return FLAGS.exp_mode != "pretrain"


def starts_sparse() -> bool:
    """Whether the pretrain phase prunes."""
    return FLAGS.exp_mode == "pretrain" and (FLAGS.layer_type == "subnet" or FLAGS.snip_init)


def needs_full_batches() -> bool:
    """Whether every batch must be full."""
    return bool(FLAGS.pseudo_labels) or FLAGS.trainer == "freeadv" or FLAGS.strategy != "none"


def attacks_held_out() -> bool:
    """Whether the held-out images are attacked."""
    return FLAGS.val_method != "base" and FLAGS.val_method not in certified_flags.CHECKS


def _radius_grows() -> bool:
    shortest = 1 if FLAGS.trainer == "mixtrain" else 2
    return any(schedule_length(phase) >= shortest for phase in phases())


def run_name() -> str:
    """Returns the directory name of a run with these flags."""
    return f"{Path(FLAGS.data).expanduser().resolve().stem}_{FLAGS.model}_hydra_{FLAGS.trainer}{FLAGS.k!r}"


def own_epochs(phase: str) -> int:
    """Returns the epochs of a phase as they are given: before --n_repeats divides them, and without a warm-up."""
    number = FLAGS.prune_epochs if phase == "prune" and _applies("prune_epochs") else FLAGS.epochs
    return FLAGS.finetune_epochs if phase == "finetune" and FLAGS.finetune_epochs is not None else number


def epochs(phase: str) -> int:
    """Returns the epochs of a phase, those of its warm-up included."""
    number = own_epochs(phase)
    if FLAGS.trainer == "freeadv":
        number = -(-number // FLAGS.n_repeats)
    return number + FLAGS.warmup_epochs


def rates(phase: str) -> list[float]:
    """Returns the learning rate of each epoch of a phase."""
    warmup, number = FLAGS.warmup_epochs, epochs(phase)
    course = own_epochs(phase) if FLAGS.undivided_schedule else number - warmup
    found = trs.training.epoch_rates(FLAGS.lr_schedule, rate(phase), course, warmup, FLAGS.warmup_lr)
    return found[:number]


def rate(phase: str) -> float:
    """Returns the highest learning rate of a phase."""
    name = f"{phase}_lr"
    return FLAGS[name].value if phase != "pretrain" and _applies(name) else FLAGS.learning_rate


def _applies(name: str) -> bool:
    """Tells whether a flag of one phase counts: in a run of all phases, or where it is given."""
    return FLAGS.exp_mode == "all" or FLAGS[name].present


def phase(name: str) -> trs.training.Phase:
    """Returns the phase of a name."""
    freeze: dict[str, bool | str] = {"no": False, "yes": True, "affine": "affine"}
    return trs.training.Phase(name, freeze[FLAGS.freeze_bn] if name == "prune" else False)


def config(built: keras.Model) -> dict[str, Any]:
    """Returns what --resume cannot change, the fraction of each kernel among it."""
    fractions = {layer.name: layer.keep_fraction for layer in trs.sparsity.scored_layers(built)}
    return {**{name: FLAGS[name].value for name in IDENTITY}, "keep_fractions": fractions}


def schedule_length(phase: str) -> int:
    """Returns for how many epochs of a phase the radius of bounds grows."""
    return FLAGS[_schedule_flag(phase)].value


def _schedule_flag(phase: str) -> str:
    name = f"{phase}_schedule_length"
    return name if phase != "pretrain" and _applies(name) else "schedule_length"


def first_looked_at(phase: str) -> int:
    """Returns the first epoch, counted from 0, whose network held-out images judge: symbolic intervals take long."""
    return schedule_length(phase) + 1 if FLAGS.val_method == "mixtrain" and schedule_length(phase) else 0
