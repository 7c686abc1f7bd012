"""Flags by which HYDRA's published code says otherwise what the flags here say; `translate` turns them into ours."""

from pathlib import Path

from absl import flags

import tf_robust_sparse as trs
from run_scripts import certified_flags, run_directory
from run_scripts.command_line import BadFlag, define_aliases, define_number, section

FLAGS = flags.FLAGS

MODELS = {
    **{f"vgg{depth}": f"vgg{depth}_without_bn" for depth in (2, 4, 6, 8, 11, 13, 16)},
    "vgg16_bn": "vgg16",
    "wrn_28_1": "wrn28_1",
    "wrn_28_4": "wrn28_4",
    "wrn_28_10": "wrn28_10",
    "wrn_34_10": "wrn34_10",
    "wrn_40_2": "wrn40_2",
    "cifar_model": "small_cnn",
    "cifar_model_large": "large_cnn",
    "cifar_model_resnet": "plain_resnet",
    "mnist_model": "small_cnn",
    "mnist_model_large": "large_cnn",
    "vgg4_without_maxpool": "vgg4",
    "ResNet18": "resnet18_imagenet",
    "ResNet34": "resnet34_imagenet",
    "ResNet50": "resnet50_imagenet",
}
DATA = {"CIFAR10": "cifar10", "CIFAR100": "cifar100", "SVHN": "svhn", "MNIST": "mnist"}
NORMS = {"l_inf": "linf", "l_2": "l2"}


@section("As the original says it")
def define() -> None:
    """Defines the names and the other spellings."""
    flags.DEFINE_enum("arch", None, [*MODELS, *trs.models.NETWORKS], "--model, or the original's name of one.")
    flags.DEFINE_enum("dataset", None, [*DATA, *trs.data.DATASETS], "--data, or the original's name of it.")
    flags.DEFINE_enum("distance", None, list(NORMS), "--norm.")
    flags.DEFINE_string("result_dir", None, "With --exp_name: folder of the run's directory.")
    flags.DEFINE_string("exp_name", None, "With --result_dir: name of the run's directory.")
    define_number("data_fraction", None, "Use this part of the training images, drawn at random.", 0, 1, excluded=0)
    flags.DEFINE_bool("is_semisup", None, "Batches are half pseudo-labelled; needs --pseudo_labels.")
    define_number("semisup_fraction", 1.0, "Use this part of the pseudo-labelled images.", 0, 1, excluded=0)
    flags.DEFINE_enum(
        "val_method",
        None,
        ["base", "adv", "freeadv", *certified_flags.CHECKS],
        "How epochs are compared on the held-out images: base on clean ones alone, adv and freeadv under PGD too, "
        "mixtrain, crown-ibp and ibp by bounds, smooth by an estimate under noise. By default as --trainer trains.",
    )
    flags.DEFINE_bool("const_init", False, "The attack on held-out images starts at the image, not beside it.")
    flags.DEFINE_bool("save_dense", False, "Also write dense/network.keras, of plain kernels.")
    define_aliases({"num_classes": "n_classes", "semisup_data": "pseudo_labels", "evaluate": "load_model"})


def translate() -> None:
    """Sets our flags by those of the original, before any check.

    Raises:
        BadFlag: if both are given, or one lacks its other half.
    """
    for theirs, ours, names in (("arch", "model", MODELS), ("dataset", "data", DATA), ("distance", "norm", NORMS)):
        given = FLAGS[theirs].value
        if given is None:
            continue
        value = names.get(given, given)
        if FLAGS[ours].present and FLAGS[ours].value != value:
            raise BadFlag(f"--{theirs}={given} and --{ours}={FLAGS[ours].value} say the same; pass one. Received: both")
        FLAGS[ours].value = value
    if bool(FLAGS.result_dir) != bool(FLAGS.exp_name):
        raise BadFlag("--result_dir and --exp_name go together, as the folder and the name. Received: one of them")
    if FLAGS.exp_name:
        if FLAGS.output_dir:
            raise BadFlag("--output_dir and --exp_name both say where to write; pass one. Received: both")
        FLAGS.output_dir = str(Path(FLAGS.result_dir) / FLAGS.exp_name)
    if FLAGS.is_semisup is not None and FLAGS.is_semisup != bool(FLAGS.pseudo_labels):
        raise BadFlag(f"--is_semisup={FLAGS.is_semisup}: expected --pseudo_labels=FILE with it, and only with it")
    if FLAGS["semisup_fraction"].present and not FLAGS.pseudo_labels:
        raise BadFlag("--semisup_fraction: expected --pseudo_labels=FILE. Received: no such flag")
    if FLAGS.data_fraction is not None and FLAGS.train_examples is not None:
        raise BadFlag("--data_fraction and --train_examples both say how many; pass one. Received: both")
    # Said in our words by now, and labels that are not there have no part to use.
    run_directory.leave_out("arch", "dataset", "distance", "result_dir", "exp_name")
    if not FLAGS.pseudo_labels:
        run_directory.leave_out("semisup_fraction")
    if FLAGS.val_method is None:
        FLAGS["val_method"].value = certified_flags.DEFAULT_CHECKS.get(FLAGS.trainer, "adv")
    _translate_selection()


def _translate_selection() -> None:
    by_checks = FLAGS.val_method in certified_flags.CHECKS
    best = "best_certified" if by_checks else "best_clean" if FLAGS.val_method == "base" else "best_robust"
    if not FLAGS["select"].present:
        FLAGS["select"].value = best
    if FLAGS.select.startswith("best") and FLAGS.select not in ("best_clean", best):
        raise BadFlag(
            f"--val_method={FLAGS.val_method}: expected --select={best} or last. Received: --select={FLAGS.select}"
        )
