"""The flags of binary sub-networks and their checks."""

import math
from pathlib import Path
from typing import Any

from absl import flags

import tf_robust_sparse as trs
from tf_robust_sparse.cli import training_run
from tf_robust_sparse.cli.command_line import BadFlag, define_aliases, define_number, section
from tf_robust_sparse.cli.sections.attacks import TradesStart, TrainingAttack
from tf_robust_sparse.cli.sections.data import Augmentation, TrainingImages
from tf_robust_sparse.cli.sections.machines import Machines
from tf_robust_sparse.evaluation.attack_versions import ATTACKS, VERSIONS

FLAGS = flags.FLAGS

KERNELS = {"SubnetConv": "subnet", "FixedSubnetConv": "subnet", "DenseConv": "plain", "BinConv": "binary"}
BATCH_NORMS = ("NonAffineBatchNorm", "LearnedBatchNorm")
LOTTERY = ("adv_step_lottery_finetune", "adv_step_lottery_retrain")
TRAINERS = ("adv_step", "adv_trades", "adv_step_fast", *LOTTERY)
RESIDUAL = tuple(name for name in trs.models.NETWORKS if name.startswith("resnet"))
_SIGNS = ("binary", "lottery_binary")
# What says which network it is.
OF_NETWORK = (
    *("model", "conv_type", "bn_type", "first_layer_type", "last_layer_type", "normalize", "nonlinearity", "init"),
    *("end_with_bn", "prune_rate", "pr_scale", "padding_mode"),
)
# What --resume cannot change, beside the flags of every run.
IDENTITY = (
    *("trainer", "prune_rate", "pr_scale", "pr_steps", "conv_type", "bn_type", "init", "end_with_bn", "mode"),
    *("score_init_scale", "fan_scaled_score_mode", "scale_fan", "lr_policy", "learning_rate", "reweight", "optimizer"),
    *("first_layer_type", "last_layer_type", "binconv_stochastic", "binconv_freeze_rand", "normalize", "warmup_length"),
    *("carry", "attack_bn", "attack_select", "eps_schedule", "mix", "soft_targets"),
    *("label_smoothing", "leaky_relu_slope", "freeze_weights", "valid_ratio", "drop_last"),
)
# Settings of --eps_schedule, and names of its courses, as the original calls them.
_SCHEDULE = {
    **{"start_v": "start", "slope": "slope", "power": "power", "interval": "interval", "alpha": "alpha"},
    **{"circle": "circle", "min_jump_pt": "min_jump", "jump_freq": "jump_interval", "min": "lowest", "max": "highest"},
    "warmup": "warmup",
}
_COURSES = {"const": "constant", "const_int": "constant_int", "exp": "exponential", "cos": "cosine"}


def define() -> None:
    """Defines the network, how it is pruned and how it is trained."""
    _define_network()
    FLAGS.set_default("batch_size", 256)
    _define_pruning()
    TrainingImages.define_shared(aliases=False, epochs=200)  # -e is --evaluate here
    _define_trainer()
    _define_optimisation()
    TrainingAttack.define()
    TradesStart.define()
    _define_attacks()
    Augmentation.define()
    _define_autoattack()
    Machines.define()


@section("Network")
def _define_network() -> None:
    flags.DEFINE_enum("model", "resnet34", list(RESIDUAL), "Architecture; those called p... are the small dense ones.")
    flags.DEFINE_enum("padding_mode", "symmetric", ["tf_same", "symmetric"], "How strided convolutions pad.")
    flags.DEFINE_enum(
        "normalize", None, [*trs.models.NORMALIZATIONS, "none"], "Mean and deviation that pixels are normalised by."
    )
    flags.DEFINE_enum("conv_type", "SubnetConv", list(KERNELS), "Kernels: chosen by scores, dense, or trained signs.")
    flags.DEFINE_enum("bn_type", None, BATCH_NORMS, "Batch norm; by default without scale and shift for SubnetConv.")
    flags.DEFINE_enum("first_layer_type", None, list(KERNELS), "Kernel of the stem, if another.")
    flags.DEFINE_enum("last_layer_type", None, list(KERNELS), "Kernel of the classifier, if another.")
    flags.DEFINE_bool("first_layer_dense", False, "Short for --first_layer_type=DenseConv.")
    flags.DEFINE_bool("last_layer_dense", False, "Short for --last_layer_type=DenseConv.")
    flags.DEFINE_bool("end_with_bn", False, "Batch norm after the classifier; networks of signs need it.")
    flags.DEFINE_enum("nonlinearity", "relu", ["relu", "leaky_relu"], "Activation of basic blocks.")
    define_number("leaky_relu_slope", 0.0, "Slope of leaky_relu below 0.", 0, 1, excluded=1)
    flags.DEFINE_enum(
        "init", "kaiming_normal", list(trs.models.KERNEL_INITIALIZATIONS), "How kernels are drawn; binary is 1 and -1."
    )
    flags.DEFINE_enum("mode", "fan_in", list(trs.sparsity.FANS), "Which fan scales kernels and scores.")
    flags.DEFINE_bool("scale_fan", False, "Multiply the fan of kernels by --prune_rate; see the documentation.")
    flags.DEFINE_bool("binconv_stochastic", False, "BinConv: draw the signs anew in each step.")
    flags.DEFINE_bool("binconv_freeze_rand", False, "BinConv: keep the signs drawn first.")


@section("Pruning")
def _define_pruning() -> None:
    define_number("prune_rate", 0.01, "Fraction of all weights that stays.", 0, 1, excluded=0)
    define_number("pr_scale", 1.0, "Exponent p: a layer of n weights keeps in proportion to n**p; 1 is uniform.", 0, 1)
    flags.DEFINE_integer("pr_steps", 1, "Stages, each keeping prune_rate**(1/pr_steps) of the one before.", 1)
    define_number("score_init_scale", 1.0, "Largest absolute score at the start.", excluded=0)
    flags.DEFINE_enum(
        "fan_scaled_score_mode",
        "all",
        list(trs.sparsity.FAN_SCALED),
        "Whose scores are divided by the fan's root.",
    )
    flags.DEFINE_bool("freeze_weights", True, "Train scores alone; always so, but for the lottery trainers.")
    flags.DEFINE_string(
        "pretrained", None, "Directory of a run, .keras, .trs or PyTorch checkpoint to begin with, or to evaluate."
    )
    define_aliases({"connectivity": "prune_rate", "k": "prune_rate", "pc": "prune_rate"})


@section("Training")
def _define_trainer() -> None:
    flags.DEFINE_enum("trainer", "adv_step", ["default", *TRAINERS], "How it is trained; default is adv_step.")
    define_number("beta", 6.0, "Weight of the robust term of adv_trades.")
    define_number(
        "label_smoothing", 0.0, "Share of the loss that is that of all classes; not of adv_step_fast.", 0, 1, 1
    )
    flags.DEFINE_enum("reweight", None, list(trs.objectives.REWEIGHTINGS), "What examples are weighed by.")
    flags.DEFINE_integer("warmup_rw", 0, "Epochs without these weights.", 0)
    flags.DEFINE_bool(
        "drop_last", True, "Leave out the last, smaller batch of an epoch, which the published code trains on."
    )
    define_number("valid_ratio", None, "Held-out share of the training images.", 0, 1)
    flags.DEFINE_bool(
        "debug",
        False,
        "Write which connections and batch norms changed when held-out accuracy falls and recovers at once, and in the "
        "last two epochs.",
    )
    flags.DEFINE_bool(
        "test_every_epoch",
        False,
        "Measure the test images after every epoch too, clean and under the attack on held-out ones; no epoch is "
        "chosen by them.",
    )
    define_number("explode_th", 5.0, "--debug: by how many points it must fall and recover.")


@section("Training")
def _define_optimisation() -> None:
    flags.DEFINE_enum("optimizer", "sgd", ["sgd", "adam"], "Optimizer; weight decay is in its gradient.")
    define_number("learning_rate", 0.1, "Learning rate at the beginning.", excluded=0)
    flags.DEFINE_enum("lr_policy", "constant_lr", list(trs.training.POLICIES), "Course of the learning rate.")
    flags.DEFINE_integer("warmup_length", 0, "Epochs in which it rises, of all epochs.", 0)
    define_number("alpha", 0.0, "cosine_lr: share of the learning rate at the end.", 0, 1)
    flags.DEFINE_integer("lr_adjust", 30, "multistep_lr: epochs between two drops.", 1)
    define_number("lr_gamma", 0.1, "multistep_lr, manual_multistep_lr: factor of a drop.", excluded=0)
    flags.DEFINE_list("lr_epochs", None, "manual_multistep_lr: epochs of the drops.")
    define_number("slope", 0.0, "linear_lr: change per epoch.", -math.inf)
    define_number("power", 1.0, "exponential_lr, jump_lr: factor per interval.", excluded=0)
    flags.DEFINE_integer("interval", 1, "exponential_lr: epochs of an interval.", 1)
    flags.DEFINE_integer("min_jump_pt", 0, "jump_lr: epoch of the first jump.", 0)
    flags.DEFINE_integer("jump_freq", 1, "jump_lr: epochs between two jumps.", 1)
    define_number("min_v", None, "Least learning rate.")
    define_number("max_v", None, "Largest learning rate.")
    define_number("weight_decay", 1e-4, "Strength of the weight decay; scores decay too.", 0, 1)
    flags.DEFINE_bool("no_bn_decay", False, "Leave scale and shift of batch norm without decay.")
    define_number("momentum", 0.9, "Momentum of sgd.", 0, 1, excluded=1)
    flags.DEFINE_bool("nesterov", False, "Nesterov's momentum.")
    define_number("beta1", 0.9, "adam.", 0, 1, excluded=1)
    define_number("beta2", 0.999, "adam.", 0, 1, excluded=1)
    define_number("eps", 1e-8, "adam.", excluded=0)
    flags.DEFINE_bool("amsgrad", False, "adam: the AMSGrad variant.")
    define_aliases({"lr": "learning_rate", "wd": "weight_decay"})


@section("Training attack")
def _define_attacks() -> None:
    flags.DEFINE_enum(
        "attack_select", "best_visited", ["best_visited", "last"], "Point of PGD that adv_step trains on."
    )
    flags.DEFINE_enum(
        "attack_bn",
        None,
        ["train", "eval"],
        "Batch norm in the attacks of adv_step and adv_step_fast: by the batch, as published and by default on one "
        "replica, or by its statistics, as on several replicas.",
    )
    flags.DEFINE_string(
        "eps_schedule",
        None,
        "Radius of the training attack by epoch: name=linear,start_v=2,slope=0.5,max=8; see the documentation.",
    )
    flags.DEFINE_enum(
        "mix", None, list(trs.training.MIXES), "adv_step_fast: boxes of other images, one per image or per batch."
    )
    flags.DEFINE_bool("soft_targets", False, "adv_step_fast: aim at means of what the network said before.")
    flags.DEFINE_bool("carry", True, "adv_step_fast: keep perturbations for every image; else begin at random.")
    define_number("val_epsilon", None, "Radius of the attack on held-out images; by default --epsilon.")
    define_number("val_step_size", None, "Its step; by default a quarter of the radius.")
    flags.DEFINE_integer("val_num_steps", 10, "Its steps.", 1)


@section("Evaluation")
def _define_autoattack() -> None:
    flags.DEFINE_string(
        "autoattack",
        "standard",
        f"--evaluate: version of AutoAttack, {', '.join(VERSIONS)}, or names of its attacks, or none to leave it out.",
    )


def check() -> None:
    """Checks how the flags go together, before any work.

    Raises:
        BadFlag: naming the flags.
    """
    if not FLAGS["augmentation"].present and FLAGS.data not in trs.data.IN_FILES:
        FLAGS["augmentation"].value = "crop"
    if FLAGS.trainer in LOTTERY and not (FLAGS.pretrained or FLAGS.resume or FLAGS.load_model):
        raise BadFlag(f"--trainer={FLAGS.trainer}: expected --pretrained=DIR, the run that found it. Received: none")
    if FLAGS.trainer in LOTTERY and kernel("conv_type") != "subnet":
        raise BadFlag(f"--trainer={FLAGS.trainer}: expected --conv_type=SubnetConv. Received: {FLAGS.conv_type}")
    fixed = "FixedSubnetConv" in (layer_type("stem"), layer_type("classifier"), FLAGS.conv_type)
    if not FLAGS.freeze_weights and FLAGS.trainer not in LOTTERY and is_subnet() and not fixed:
        raise BadFlag(
            f"--nofreeze_weights: expected --trainer={' or '.join(LOTTERY)}, or --conv_type=FixedSubnetConv. "
            f"Received: --trainer={FLAGS.trainer}"
        )
    if FLAGS.pr_steps > 1 and FLAGS.trainer in LOTTERY:
        raise BadFlag(
            f"--pr_steps={FLAGS.pr_steps}: expected 1 with --trainer={FLAGS.trainer}, for the mask is found already"
        )
    for name, other in (("first_layer_type", "first_layer_dense"), ("last_layer_type", "last_layer_dense")):
        if FLAGS[other].value and FLAGS[name].value not in (None, "DenseConv"):
            raise BadFlag(f"--{name}={FLAGS[name].value} and --{other} say different things; pass one. Received: both")
    if FLAGS.pr_steps > 1 and not is_subnet():
        raise BadFlag(f"--pr_steps={FLAGS.pr_steps}: expected --conv_type=SubnetConv. Received: {FLAGS.conv_type}")
    if FLAGS.warmup_length >= FLAGS.epochs:
        raise BadFlag(f"--warmup_length={FLAGS.warmup_length}: expected fewer than --epochs={FLAGS.epochs}")
    if FLAGS.pr_steps > FLAGS.epochs - FLAGS.warmup_length:
        raise BadFlag(f"--pr_steps={FLAGS.pr_steps}: expected no more than the epochs after the warm-up")
    if FLAGS.trainer == "adv_step_fast" and FLAGS.norm != "linf":
        raise BadFlag(f"--trainer=adv_step_fast: expected --norm=linf. Received: --norm={FLAGS.norm}")
    if FLAGS.attack_bn == "train" and FLAGS.strategy != "none" and FLAGS.trainer != "adv_step_fast":
        raise BadFlag(f"--attack_bn=train: expected --strategy=none. Received: --strategy={FLAGS.strategy}")
    if FLAGS.strategy != "none":
        if FLAGS["drop_last"].present and not FLAGS.drop_last:
            raise BadFlag(f"--nodrop_last: expected --strategy=none. Received: --strategy={FLAGS.strategy}")
        FLAGS["drop_last"].value = True
    if not FLAGS.drop_last and training_run.odd_batches_may_crash():
        raise BadFlag(training_run.ODD_BATCHES)
    if FLAGS.reweight and "nat_max" in FLAGS.reweight and FLAGS.trainer != "adv_trades":
        raise BadFlag(f"--reweight={FLAGS.reweight}: expected --trainer=adv_trades. Received: {FLAGS.trainer}")
    if FLAGS.label_smoothing and FLAGS.trainer == "adv_step_fast":
        print(f"Note: --label_smoothing={FLAGS.label_smoothing:g} changes nothing, because adv_step_fast ignores it")
        FLAGS["label_smoothing"].value = 0.0
    for name in ("mix", "soft_targets", "carry"):
        if FLAGS[name].value != FLAGS[name].default and FLAGS.trainer != "adv_step_fast":
            raise BadFlag(f"--{name}: expected --trainer=adv_step_fast. Received: --trainer={FLAGS.trainer}")
    if FLAGS.mix and FLAGS.soft_targets:
        raise BadFlag("--soft_targets are of whole images; expected no --mix. Received: both")
    if FLAGS.debug and not is_subnet():
        raise BadFlag(f"--debug: expected --conv_type=SubnetConv. Received: --conv_type={FLAGS.conv_type}")
    if FLAGS.explode_th != FLAGS["explode_th"].default and not FLAGS.debug:
        raise BadFlag(f"--explode_th={FLAGS.explode_th:g}: expected --debug with it. Received: no such flag")
    if FLAGS.eps_schedule is not None:
        radii()
    unknown = [name for name in autoattack()[1] if name not in ATTACKS]
    if unknown:
        raise BadFlag(
            f"--autoattack={FLAGS.autoattack}: expected {', '.join(VERSIONS)}, none, or some of {', '.join(ATTACKS)}. "
            f"Received: {unknown[0]}"
        )
    if FLAGS.trainer == "adv_step_fast":  # it crops and mirrors together with the perturbations
        allowed = ("none", "crop", *(["resized_crop"] if FLAGS.data in trs.data.IN_FILES else []))
        if FLAGS["augmentation"].present and FLAGS.augmentation not in allowed:
            raise BadFlag(
                f"--augmentation={FLAGS.augmentation} does not go with --trainer=adv_step_fast, which crops images "
                f"together with their perturbations; pass --augmentation={' or '.join(allowed)}"
            )
        if FLAGS.augmentation != "resized_crop":
            FLAGS["augmentation"].value = "none"
    if FLAGS.pseudo_labels:
        raise BadFlag("--pseudo_labels: expected another script. Received: it")
    if (FLAGS.binconv_stochastic or FLAGS.binconv_freeze_rand) and kernel("conv_type") != "binary":
        raise BadFlag(f"--binconv_stochastic: expected --conv_type=BinConv. Received: --conv_type={FLAGS.conv_type}")


def deviations() -> list[str]:
    """Returns how this run differs from one of the published code with the same command line."""
    several = FLAGS.strategy != "none"
    every = {
        "masks, signs, crops and attacks are drawn from seeds of their own": True,
        "the test images are measured at the end alone; --test_every_epoch measures them after each epoch": (
            not FLAGS.test_every_epoch
        ),
        "training images are held out to choose an epoch by; there, without --valid_ratio, test images choose it": (
            FLAGS.valid_ratio is None and FLAGS.select.startswith("best")
        ),
        "images are normalized without --normalize too; pass --normalize=none": (
            FLAGS.normalize is None and FLAGS.model.endswith("_imagenet")
        ),
        "weights stand still without --freeze_weights too": (
            FLAGS["freeze_weights"].using_default_value and is_subnet() and FLAGS.trainer not in LOTTERY
        ),
        "batch norm takes its statistics over all replicas, not over those of the first": several,
        "the last, smaller batch of an epoch is left out; --nodrop_last trains on it": FLAGS.drop_last,
        "attacks use the moving statistics of batch norm, not those of the batch": (
            FLAGS.attack_bn == "eval" or (several and FLAGS.trainer not in ("adv_trades", "adv_step_fast"))
        ),
        "attacks start without the perturbation of the epoch before": not FLAGS.carry,
        "training aims at the last point of PGD": FLAGS.attack_select == "last" and FLAGS.trainer == "adv_step",
        "kept perturbations are float16": FLAGS.trainer == "adv_step_fast" and FLAGS.carry,
        "labels of mixed images are shared by area": FLAGS.mix is not None,
        "training aims at soft targets": FLAGS.soft_targets,
        "TRADES sees --eps_schedule": FLAGS.eps_schedule is not None and FLAGS.trainer == "adv_trades",
        "all layers keep 1 before the first stage of --pr_steps": FLAGS.pr_steps > 1 and FLAGS.warmup_length > 0,
        "TRADES sees --pr_steps": FLAGS.pr_steps > 1 and FLAGS.trainer == "adv_trades",
        "all layers get new weights, not the first and those of blocks alone": (
            FLAGS.trainer == "adv_step_lottery_retrain"
        ),
        "--prune_rate is what FixedSubnetConv keeps, not what it drops": FLAGS.conv_type == "FixedSubnetConv",
    }
    return [text for text, holds in every.items() if holds]


def run_name() -> str:
    """Returns the directory name of a run with these flags."""
    data = Path(FLAGS.data).expanduser().resolve().stem
    kind = {"SubnetConv": "binary", "FixedSubnetConv": "binary", "DenseConv": "dense", "BinConv": "bnn"}
    degree = f"{FLAGS.prune_rate!r}_p{FLAGS.pr_scale!r}" if is_subnet() else ""
    return f"{data}_{FLAGS.model}_{kind[FLAGS.conv_type]}_{FLAGS.trainer}{degree}"


def config() -> dict[str, Any]:
    """Returns what --resume cannot change."""
    # Runs from before --drop_last, which left that batch out, have no entry.
    return {name: FLAGS[name].value for name in IDENTITY} | {"drop_last": None if FLAGS.drop_last else False}


def autoattack() -> tuple[str | None, list[str]]:
    """Returns the version of AutoAttack, `None` to leave it out, and the attacks of a custom one."""
    if FLAGS.autoattack == "none":
        return None, []
    return (FLAGS.autoattack, []) if FLAGS.autoattack in VERSIONS else ("custom", FLAGS.autoattack.split(","))


def radii() -> list[float]:
    """Returns the radius of the training attack in each epoch that --eps_schedule stands for, in pixels of [0, 1].

    Raises:
        BadFlag: if it is none.
    """
    what = f"--eps_schedule={FLAGS.eps_schedule}"
    try:
        settings = dict(part.split("=", 1) for part in FLAGS.eps_schedule.split(","))
        course = settings.pop("name").lower().replace(" ", "_")
        segments, ratios = (
            [float(each) for each in settings.pop(name, "").split(":") if each] for name in ("segs", "seg_ratio")
        )
        numbers = {_SCHEDULE[name]: float(value) for name, value in settings.items()}
        found = trs.training.radius_course(
            _COURSES.get(course, course),
            epochs=FLAGS.epochs,
            segments=segments,
            segment_ratios=ratios,
            **numbers,
        )
    except KeyError as error:
        raise BadFlag(
            f"{what}: expected name=linear,start_v=2 and more of {', '.join(_SCHEDULE)}, segs, seg_ratio. "
            f"Received: {error.args[0]!r} is missing or unknown"
        ) from None
    except (ValueError, TypeError) as error:
        raise BadFlag(f"{what}: expected name=linear,start_v=2,slope=0.5,max=8. Reason: {error}") from None
    # Of the whole schedule, for within one that passes 1 the unit would change from pixels to 255ths of them.
    unit = 255 if max(found) >= 1 else 1
    if not 0 < max(found) / unit <= 1:
        raise BadFlag(f"{what}: expected radii of up to 255, and not all 0. Received: up to {max(found):g}")
    return [radius / unit for radius in found]


def kernel(flag: str) -> str | None:
    """Returns the kernel form that a flag stands for."""
    value = FLAGS[flag].value
    if value is None:
        return None
    frozen_signs = FLAGS.init in _SIGNS and FLAGS.trainer not in LOTTERY and value == "SubnetConv"
    return "signed" if frozen_signs else KERNELS[value]


def layer_type(name: str) -> str:
    """Returns the kind of kernel of a layer, `"stem"`, `"classifier"` or another one, as --conv_type says it."""
    for layer, which in (("stem", "first"), ("classifier", "last")):
        if name == layer:
            return (
                "DenseConv"
                if FLAGS[f"{which}_layer_dense"].value
                else FLAGS[f"{which}_layer_type"].value or FLAGS.conv_type
            )
    return FLAGS.conv_type


def is_subnet() -> bool:
    """Tells whether kernels are chosen by scores."""
    return kernel("conv_type") in ("subnet", "signed")
