"""The flags of neural pruning and their checks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

import tf_robust_sparse as trs
from tf_robust_sparse.cli import run_directory
from tf_robust_sparse.cli.command_line import BadFlag, define_aliases, define_number, section
from tf_robust_sparse.cli.sections.data import Augmentation, TrainingImages
from tf_robust_sparse.cli.sections.machines import Machines

FLAGS = flags.FLAGS


class Network(NamedTuple):
    """A network of the scripts: what builds it, the form of its kernels, and how it is trained.

    Attributes:
        builder: Its name in `models.NETWORKS`.
        kernel: `"plain"` or `"bayesian"`.
        drops: After which shares of all steps the learning rate falls tenfold.
        features: Layers whose outputs count for the vulnerability; `None` for all that end in a ReLU.
    """

    builder: str
    kernel: str
    drops: tuple[float, float]
    features: tuple[str, ...] | None = None


_VGG_FEATURES = (*(f"relu{number}" for number in range(1, 14)), "dense14", "relu14")
NETWORKS = {
    "lenet_conv": Network("lenet_conv", "plain", (0.5, 0.7)),
    "lenet_conv_bayes": Network("lenet_conv", "bayesian", (0.5, 0.7)),
    "vgg16": Network("vgg16_dropout", "plain", (0.5, 0.8), _VGG_FEATURES),
    "vgg16_bayes": Network("vgg16_dropout", "bayesian", (0.5, 0.8), _VGG_FEATURES),
}
MODES = ("base", "bbd")
# Flags that mean nothing to some runs -> those they mean something to.
MEANINGFUL: dict[str, tuple[str, Callable[[], bool]]] = {
    "input_norm": ("--net=vgg16 or vgg16_bayes", lambda: chosen().builder.startswith("vgg")),
    "weight_decay": ("networks that do not draw their weights", lambda: chosen().kernel != "bayesian"),
    "kl_weight": ("networks that draw their weights", lambda: chosen().kernel == "bayesian"),
    "base_lr": ("--mode=base", lambda: FLAGS.mode == "base"),
    "init_lr": ("--mode=bbd", lambda: FLAGS.mode == "bbd"),
    "weight_rate": ("--mode=bbd", lambda: FLAGS.mode == "bbd"),
    "thres": ("--mode=bbd", lambda: FLAGS.mode == "bbd"),
    "joint_bn": ("--adv_train --robust_loss=at", lambda: FLAGS.adv_train and FLAGS.robust_loss == "at"),
    "vs_shared_noise": ("--adv_train", lambda: FLAGS.adv_train),
    "num_steps": ("--attack=pgd", lambda: FLAGS.attack == "pgd"),
    "eval_steps": ("--attack=pgd", lambda: FLAGS.attack == "pgd"),
    "step_size": ("--attack=pgd", lambda: FLAGS.attack == "pgd"),
    "attack_source": ("--eval_mode=attack --nowhite_box", lambda: FLAGS.eval_mode == "attack" and not FLAGS.white_box),
}
# What --resume cannot change, beside the flags of every run.
IDENTITY = (
    *("mode", "adv_train", "train_source", "robust_loss", "adv_weight", "trades_beta", "lambda_weight", "beta_weight"),
    *(
        "vulnerability",
        "vulnerability_type",
        "kl_weight",
        "thres",
        "init_lr",
        "weight_rate",
        "base_lr",
        "lr_schedule",
        "joint_bn",
    ),
    *("vs_shared_noise", "input_norm", "weight_decay"),
)


def define() -> None:
    """Defines the network, its gates, and how both are trained."""
    _define_network()
    TrainingImages.define_shared(epochs=200)
    _define_training()
    _define_attack()
    Augmentation.define()
    Machines.define()
    _define_gpu()


def set_defaults() -> None:
    """Gives flags that all scripts share the published values as defaults; comes after all are defined."""
    published = {"batch_size": 64, "validation_examples": 0, "select": "last", "pgd_iters": 40, "pgd_restarts": 1}
    for name, value in published.items():
        FLAGS.set_default(name, value)


@section("Network")
def _define_network() -> None:
    flags.DEFINE_enum("model", "lenet_conv", list(NETWORKS), "Architecture; those called bayes draw their weights.")
    flags.DEFINE_enum("mode", "base", MODES, "The network alone, or with gates on a trained one.")
    flags.DEFINE_string(
        "init_from",
        None,
        "Run whose weights are the start; by default of --mode=bbd the base run of the same network and data.",
    )
    define_number("thres", 1e-3, "Gates whose mean is at most this are closed.", 0, 1, excluded=1)
    flags.DEFINE_enum(
        "input_norm", "image", list(trs.models.INPUT_NORMS), "vgg16: how pixels are normalised inside the network."
    )
    define_aliases({"net": "model"})


@section("Training")
def _define_training() -> None:
    flags.DEFINE_bool("adv_train", False, "Train under attack.")
    flags.DEFINE_bool("train_source", False, "The independent network that black-box attacks are computed on.")
    flags.DEFINE_enum("robust_loss", "at", ["at", "trades"], "Of --adv_train: clean and attacked images, or TRADES.")
    define_number("adv_weight", 2.0, "Weight of attacked images beside clean ones.")
    define_number("trades_beta", 6.0, "Weight of the robust term of --robust_loss=trades.")
    flags.DEFINE_bool("vulnerability", True, "Of --adv_train: also suppress the vulnerability of hidden features.")
    flags.DEFINE_enum(
        "vulnerability_type", "expected", list(trs.objectives.VULNERABILITIES), "Mean over features, or the largest."
    )
    define_number("lambda_weight", 1e-4, "Weight of the vulnerability.")
    define_number("beta_weight", 1.0, "Weight of the divergence of the gates, divided by the number of images.")
    define_number("kl_weight", 100.0, "What the divergence of drawn weights is divided by.", excluded=0)
    define_number("init_lr", 1e-2, "Learning rate of the gates; --weight_rate says that of the weights.", excluded=0)
    define_number("weight_rate", 0.1, "Learning rate of the weights of --mode=bbd, as a share of the gates'.")
    define_number("base_lr", 1e-3, "Learning rate of --mode=base.", excluded=0)
    flags.DEFINE_enum("lr_schedule", "drops", ["drops", "constant"], "Two tenfold drops, or none.")
    define_number("weight_decay", 1e-4, "Strength of the weight decay, in the gradient; gates do not decay.", 0, 1)
    flags.DEFINE_bool("joint_bn", True, "Clean and attacked images pass as one batch.")
    flags.DEFINE_bool("vs_shared_noise", True, "Clean and attacked images see the same gates and dropout.")


@section("Training attack")
def _define_attack() -> None:
    flags.DEFINE_enum("attack", "pgd", ["pgd", "fgsm"], "In training and in --eval_mode=attack.")
    flags.DEFINE_enum("attack_ord", "inf", ["inf"], "Norm of the attack.")
    flags.DEFINE_enum("norm", "linf", ["linf"], "The same by its name in the other scripts.")
    define_number("epsilon", 0.03, "Radius in pixels of [0, 1].", 0, 1)
    define_number("step_size", 0.007, "Length of a step in pixels of [0, 1].", excluded=0)
    flags.DEFINE_integer("num_steps", 40, "Steps, in training and in --eval_mode=attack.", 1)
    flags.DEFINE_integer("eval_steps", None, "Steps in --eval_mode=attack, if they are others.", 1)
    define_aliases({"eps": "epsilon", "pgd_steps": "num_steps"})


@section("Machines")
def _define_gpu() -> None:
    flags.DEFINE_integer("gpuid", None, "Use this GPU alone; by default what --strategy takes.", 0)


def check() -> None:
    """Checks combinations of flags.

    Raises:
        BadFlag: naming the flags that do not go together.
    """
    if chosen().kernel == "bayesian" and FLAGS.mode == "bbd":
        raise BadFlag(f"--mode=bbd: expected --net=lenet_conv or vgg16. Received: --net={FLAGS.model}")
    if chosen().builder == "lenet_conv" and not FLAGS["data"].present:
        FLAGS["data"].value = "mnist"
    if not FLAGS["augmentation"].present and FLAGS.data not in trs.data.IN_FILES:
        FLAGS["augmentation"].value = "none" if chosen().builder == "lenet_conv" else "crop"
    for name, wanted in (("trades_beta", "trades"), ("adv_weight", "at")):
        if FLAGS[name].present and not (FLAGS.adv_train and FLAGS.robust_loss == wanted):
            raise BadFlag(f"--{name}: expected --adv_train --robust_loss={wanted}. Received: other ones")
        if not (FLAGS.adv_train and FLAGS.robust_loss == wanted):
            run_directory.leave_out(name)
    if FLAGS["vulnerability"].present and FLAGS.vulnerability and not FLAGS.adv_train:
        raise BadFlag("--vulnerability: expected --adv_train, for it compares with attacked images. Received: none")
    if not FLAGS.adv_train:
        run_directory.leave_out("vulnerability")
    if FLAGS.mixed_precision and chosen().kernel == "bayesian":
        raise BadFlag(f"--mixed_precision: expected float32 with --net={FLAGS.model}. Received: both")


def chosen() -> Network:
    """Returns the network of --net."""
    return NETWORKS[FLAGS.model]


def deviations() -> list[str]:
    """Returns how this run differs from one of the published code with the same command line."""
    vgg, suppresses = chosen().builder.startswith("vgg"), FLAGS.adv_train and FLAGS.vulnerability
    every = {
        "weights, gates and images are drawn from seeds of their own; kernels start He-normal, biases at 0": True,
        "attacks move pixels of [0, 1], which the network then standardizes; there they move standardized ones": (
            vgg and FLAGS.adv_train
        ),
        "the distortion of the first layer has a gradient": suppresses,
        "clean and attacked images see the same gates and dropout (--vs_shared_noise)": (
            suppresses and FLAGS.vs_shared_noise
        ),
        "clean and attacked images pass as one batch (--joint_bn)": (
            vgg and FLAGS.adv_train and FLAGS.joint_bn and FLAGS.robust_loss == "at"
        ),
        "batch norm begins with the statistics of the base": vgg and FLAGS.mode == "bbd",
        "FGSM stays in [0, 1]": FLAGS.adv_train and FLAGS.attack == "fgsm",
        "no layer has a ReLU on its logits": FLAGS.model == "lenet_conv_bayes",
        "all test images are measured, not full batches alone": True,
    }
    return [text for text, holds in every.items() if holds]


def directory(mode: str | None = None, source: bool | None = None, attacked: bool | None = None) -> Path:
    """Returns where a run with these flags, or other ones, is written by default."""
    attacked = FLAGS.adv_train if attacked is None else attacked
    source = FLAGS.train_source if source is None else source
    parts = [FLAGS.model, Path(FLAGS.data).stem, *(["adv_train"] if attacked else [])]
    return Path("saved_models", *parts, "attack_source" if source else "default", mode or FLAGS.mode)


def start() -> Path | None:
    """Returns the run that this one begins with.

    Raises:
        BadFlag: if gates have nothing to begin with.
    """
    if FLAGS.init_from:
        return Path(FLAGS.init_from).expanduser()
    if FLAGS.mode == "base":
        return None
    found = directory("base", attacked=False)
    if not (found / "network.keras").is_file() and not FLAGS.resume:
        raise BadFlag(
            f"--mode=bbd: expected a finished run of --mode=base in {found}, or --init_from=DIR of another one. "
            "Received: none"
        )
    return found


def config() -> dict[str, Any]:
    """Returns the settings that --resume cannot change."""
    return {name: FLAGS[name].value for name in IDENTITY}
