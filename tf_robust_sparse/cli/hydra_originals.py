"""Names, values and defaults of HYDRA's published code as data; `translate` says a command line of it in our flags.

A command line with --configs, or with one of `ONLY_THERE` and neither --model nor --data, is HYDRA's: a flag that is
not given has the value of --configs, or else of `DEFAULTS`, and words mean what they mean there. Any other command line
has the defaults of our own flags. `run.flags` holds ours.
"""

from pathlib import Path
from typing import Any

from absl import flags

import tf_robust_sparse as trs
from tf_robust_sparse.cli import (
    certified_flags,
    command_line,
    devices,
    hydra_directories,
    hydra_flags,
    run_directory,
    settings_file,
    training_run,
)
from tf_robust_sparse.cli.command_line import BadFlag, BadInput, define_aliases, define_number, section

FLAGS = flags.FLAGS

# HYDRA's initializations of a family of networks -> ours.
_VGG = {
    "kaiming_normal": "kaiming_normal_fan_out_vgg",
    "kaiming_uniform": "kaiming_uniform_fan_out_vgg",
    "signed_const": "signed_const",
}
_FAN_OUT = {"kaiming_normal": "kaiming_normal_fan_out"}
_WRN = {"kaiming_normal": "kaiming_normal_fan_out_wrn"}
_VGG_DEPTHS = (2, 4, 6, 8, 11, 13, 16)
_PYTORCH = {"kaiming_normal": "pytorch"}  # its code draws nothing there
NETWORKS = {  # --arch -> --model and the initializations
    **{f"vgg{depth}": (f"vgg{depth}_without_bn", _VGG) for depth in _VGG_DEPTHS},
    **{f"vgg{depth}_bn": (f"vgg{depth}_bn", _VGG) for depth in _VGG_DEPTHS},
    "vgg16_bn": ("vgg16", _VGG),
    **{f"resnet{depth}": (f"resnet{depth}", _PYTORCH) for depth in (18, 34, 50, 101, 152)},
    **{f"wrn_{size}": (f"wrn{size}", _WRN) for size in ("28_1", "28_4", "28_10", "34_10", "40_2")},
    "mnist_model": ("small_cnn", _PYTORCH),
    "mnist_model_large": ("large_cnn", _PYTORCH),
    "cifar_model": ("small_cnn", _FAN_OUT),
    "cifar_model_large": ("large_cnn", _FAN_OUT),
    "cifar_model_resnet": ("plain_resnet", _FAN_OUT),
    "vgg4_without_maxpool": ("vgg4", _FAN_OUT),
    **{f"ResNet{depth}": (f"resnet{depth}_imagenet", _FAN_OUT) for depth in (18, 34, 50)},
}
MODELS = {arch: model for arch, (model, _) in NETWORKS.items()}
DATA = {"CIFAR10": "cifar10", "CIFAR100": "cifar100", "SVHN": "svhn", "MNIST": "mnist"}
# Their flag -> ours, beside aliases, and the words that differ.
NAMES = {"arch": "model", "dataset": "data", "distance": "norm"}
ALIASES = {"num_classes": "n_classes", "semisup_data": "pseudo_labels", "evaluate": "load_model"}
WORDS = {
    "arch": MODELS,
    "dataset": DATA,
    "distance": {"l_inf": "linf", "l_2": "l2"},
    "lr_schedule": {"cosine": "cosine_ref"},
}
# Its argparse, where ours differ or may come to; the rest is given in every command line, or asked for.
DEFAULTS: dict[str, Any] = {
    **{"trainer": "base", "val_method": "base", "k": 1.0, "init_type": "kaiming_normal", "semisup_fraction": 0.25},
    **{"epochs": 100, "batch_size": 128, "optimizer": "sgd", "lr": 0.1, "lr_schedule": "cosine", "wd": 1e-4},
    **{"momentum": 0.9, "warmup_epochs": 0, "warmup_lr": 0.1, "n_repeats": 4, "noise_std": 0.25, "beta": 6.0},
    **{"epsilon": 8 / 255, "num_steps": 10, "step_size": 2 / 255, "distance": "l_inf", "data_dir": "./datasets"},
    **{"seed": 1234, "schedule_length": 0, "mixtraink": 1},
}
# What its loaders do to training images of these sets.
MOVED = {"augmentation": "crop", "flip": True}
MOVED_DATA = ("cifar10", "cifar100", "svhn", "imagenet")
_PSEUDO_LABELS = ("tiny_images/ti_top_50000_pred_v3.1.pickle", "tiny_images/ti_500K_pseudo_labeled.pickle")
# Flags without effect here -> what they say, and the only value that is taken, if it matters.
WITHOUT_EFFECT: dict[str, tuple[str, tuple[float, str] | None]] = {
    "print_freq": ("Batches between two lines; here there is a line for each epoch", None),
    "test_batch_size": ("Images per step of an evaluation; --batch_size here", None),
    "mean": ("Mean that freeadv takes off pixels", None),
    "std": ("Deviation that freeadv divides pixels by", None),
    "image_dim": ("Height and width of images, which the data know; of imagenet --image_size", None),
    "clip_min": ("Lowest value of a pixel", (0, "0, because pixels are in [0, 1]")),
    "clip_max": ("Highest value of a pixel", (1, "1, because pixels are in [0, 1]")),
    "start_epoch": ("First epoch", (0, "--resume, which goes on after the last finished epoch")),
}
ONLY_THERE = ("configs", *NAMES, "result_dir", "exp_name", "is_semisup", "gpu", "no_cuda", "normalize", *WITHOUT_EFFECT)


@section("As HYDRA says it")
def define() -> None:
    """Defines the names and the other spellings."""
    flags.DEFINE_string("configs", None, "YAML file of HYDRA; flags win over what it says.")
    flags.DEFINE_enum("arch", None, [*NETWORKS, *trs.models.NETWORKS], "--model, or HYDRA's name of one.")
    flags.DEFINE_enum("dataset", None, [*DATA, *trs.data.DATASETS], "--data, or HYDRA's name of it.")
    flags.DEFINE_enum("distance", None, list(WORDS["distance"]), "--norm.")
    flags.DEFINE_string("result_dir", None, "With --exp_name: folder of that folder; by default ./trained_models.")
    flags.DEFINE_string("exp_name", None, "Folder of a directory for each phase, with numbered runs in it.")
    define_number("data_fraction", None, "Use this part of the training images, drawn at random.", 0, 1, excluded=0)
    flags.DEFINE_bool("is_semisup", None, "Beside each batch as many pseudo-labeled images, those of --semisup_data.")
    define_number("semisup_fraction", 1.0, "Use this part of the pseudo-labeled images.", 0, 1, excluded=0)
    flags.DEFINE_enum(
        "val_method",
        None,
        ["base", "adv", "freeadv", *certified_flags.CHECKS],
        "How epochs are compared on the held-out images: base on clean ones alone, adv and freeadv under PGD too, "
        "mixtrain, crown-ibp and ibp by bounds, smooth by an estimate under noise. By default as --trainer trains.",
    )
    flags.DEFINE_bool("const_init", False, "The attack on held-out images starts at the image, not beside it.")
    flags.DEFINE_bool("save_dense", False, "Also write dense/network.keras, of plain kernels.")
    flags.DEFINE_string("gpu", None, "Numbers of the GPUs to use, separated by commas; more than one are replicas.")
    flags.DEFINE_bool("no_cuda", False, "Use no GPU.")
    flags.DEFINE_bool("normalize", False, "Not taken, because networks and attacks are in pixels of [0, 1].")
    for name, (what, _) in WITHOUT_EFFECT.items():
        flags.DEFINE_string(name, None, f"{what}; without effect.")
    define_aliases(ALIASES)


def given() -> bool:
    """Whether the command line is HYDRA's: has a flag that only its code has, and not our names of network and data."""
    ours = FLAGS["model"].present or FLAGS["data"].present
    return bool(FLAGS.configs) or (not ours and any(FLAGS[name].present for name in ONLY_THERE))


def translate() -> None:
    """Sets our flags by those of HYDRA, before any check.

    Raises:
        BadFlag: if both are given, or one lacks its other half.
        BadInput: if the configuration cannot be read.
    """
    for theirs, ours in NAMES.items():
        value = _said(theirs, FLAGS[theirs].value)
        if value is not None and FLAGS[ours].present and FLAGS[ours].value != value:
            raise BadFlag(
                f"--{theirs}={FLAGS[theirs].value} and --{ours}={FLAGS[ours].value} say the same; pass one. "
                "Received: both"
            )
        if value is not None:
            FLAGS[ours].value = value
    _refuse()
    if given():
        _translate_all()
    if FLAGS.no_cuda:
        devices.hide_all()
    else:
        devices.choose("gpu", replicas=True, quiet=not FLAGS["gpu"].present)
    if FLAGS.is_semisup is False and FLAGS.pseudo_labels:
        raise BadFlag("--nois_semisup: expected no --pseudo_labels with it. Received: both")
    if FLAGS["semisup_fraction"].present and not FLAGS.pseudo_labels and not given():
        raise BadFlag("--semisup_fraction: expected --pseudo_labels=FILE. Received: no such flag")
    if FLAGS.data_fraction is not None and FLAGS.train_examples is not None:
        raise BadFlag("--data_fraction and --train_examples both say how many; pass one. Received: both")
    hydra_directories.check()
    # Said in our words by now, and labels that are not there have no part to use.
    run_directory.leave_out(*ONLY_THERE)
    if not FLAGS.pseudo_labels:
        run_directory.leave_out("semisup_fraction")
    if given() and not FLAGS["drop_last"].present:  # once devices are chosen
        FLAGS.drop_last = hydra_flags.needs_full_batches() or training_run.odd_batches_may_crash()
    if FLAGS.val_method is None:
        FLAGS["val_method"].value = certified_flags.DEFAULT_CHECKS.get(FLAGS.trainer, "adv")
    _translate_selection()


def _translate_all() -> None:
    settings = _configuration()
    by_file = dict(settings)
    if FLAGS.exp_mode == "all" and not FLAGS["exp_mode"].present and FLAGS.source_net and not FLAGS.load_model:
        # Its README leaves --exp-mode out where it looks for a sub-network, and says that this prunes.
        by_file["exp_mode"] = "prune"
        print("Note: --source_net without --exp_mode is the prune phase, as HYDRA's README has it")
    if FLAGS.output_dir:
        by_file.pop("exp_name", None)
    whole = not FLAGS["exp_mode"].present and "exp_mode" not in by_file  # in all phases --k is that of the last two
    for name, value in {**DEFAULTS, **by_file}.items():
        if not (whole and name == "k" and name not in by_file):
            _set(name, value)
    FLAGS.lr_schedule = _said("lr_schedule", FLAGS.lr_schedule)
    for name, value in MOVED.items():
        if FLAGS.data in MOVED_DATA and not FLAGS[name].present:
            FLAGS[name].value = value
    if FLAGS.data_dir == DEFAULTS["data_dir"] and not FLAGS["data_dir"].present and not Path(FLAGS.data_dir).is_dir():
        FLAGS.data_dir = None  # there the data are fetched; here they may be elsewhere on this machine
    if FLAGS.image_dim and FLAGS.data in trs.data.IN_FILES and FLAGS.image_size is None:
        FLAGS.image_size = int(FLAGS.image_dim)
    if FLAGS.data_fraction == 1:  # all of them, as without the flag
        FLAGS["data_fraction"].unparse()
    if FLAGS.lr_schedule == "step":  # whose rate there is the same in the warm-up
        FLAGS.warmup_lr = FLAGS.learning_rate
    for name, value in {"undivided_schedule": FLAGS.trainer == "freeadv", "clean_updates": 3}.items():
        if not FLAGS[name].present:
            FLAGS[name].value = value
    if FLAGS.trainer != "adv":
        FLAGS["clean_updates"].unparse()
    # Flags that belong to other trainers and phases mean nothing there.
    for name in (*certified_flags.unused(), *(["freeze_bn"] if FLAGS.exp_mode not in ("prune", "all") else [])):
        FLAGS[name].unparse()
    _refuse()
    _translate_initialization()
    _translate_semisup()


def _configuration() -> dict[str, Any]:
    if not FLAGS.configs:
        return {}
    found = settings_file.read(Path(FLAGS.configs).expanduser(), "configs")
    for name in found:
        if name not in FLAGS:
            raise BadInput(f"--configs={FLAGS.configs}: expected settings that --help lists. Received: {name}")
    return {name: value for name, value in found.items() if value is not None}


def _said(theirs: str, value: Any) -> Any:
    """Returns a value in our words."""
    return WORDS.get(theirs, {}).get(str(value), value)


def _set(name: str, value: Any) -> None:
    """Sets a flag of HYDRA, and that of ours for which it stands, unless the command line does."""
    ours = NAMES.get(name, command_line.name_of(name))
    if FLAGS[ours].present or FLAGS[name].present:
        return
    for flag, said in ((FLAGS[name], value), (FLAGS[ours], _said(name, value))):
        try:
            flag.value = flag.parser.parse(str(said))
        except ValueError as error:
            raise BadInput(f"--configs={FLAGS.configs}: {name}: {value!r}: {error}") from error
        flag.using_default_value = False


def _refuse() -> None:
    if FLAGS.normalize:
        raise BadFlag("--normalize: expected no such flag, because networks and attacks are in pixels of [0, 1]")
    for name, (_, needed) in WITHOUT_EFFECT.items():
        try:
            fits = needed is None or FLAGS[name].value is None or float(FLAGS[name].value) == needed[0]
        except ValueError:
            fits = False
        if needed is not None and not fits:
            raise BadFlag(f"--{name}={FLAGS[name].value}: expected {needed[1]}")


def _translate_initialization() -> None:
    begins = FLAGS.arch in NETWORKS and not FLAGS.source_net and FLAGS.exp_mode in ("pretrain", "all")
    if not begins:
        if FLAGS.arch in NETWORKS or not FLAGS["init_type"].present:
            FLAGS["init_type"].unparse()
        return
    ours = NETWORKS[FLAGS.arch][1]
    if FLAGS.init_type not in ours and FLAGS.init_type not in ours.values():
        raise BadFlag(
            f"--init_type={FLAGS.init_type}: expected {' or '.join(ours)}, as HYDRA draws --arch={FLAGS.arch}"
        )
    FLAGS.init_type = ours.get(FLAGS.init_type, FLAGS.init_type)


def _translate_semisup() -> None:
    """Sets --pseudo_labels, and the batch that holds as many pseudo-labeled images as labeled ones."""
    if not FLAGS.is_semisup:
        if FLAGS.pseudo_labels in ("tinyimages", "splitgan") or not FLAGS["pseudo_labels"].present:
            FLAGS["pseudo_labels"].unparse()
            FLAGS["semisup_fraction"].unparse()
        return
    data_dir = Path(FLAGS.data_dir or DEFAULTS["data_dir"]).expanduser()
    places = [data_dir / name for name in _PSEUDO_LABELS]
    if FLAGS.pseudo_labels not in (None, "tinyimages", "splitgan"):
        found = [Path(FLAGS.pseudo_labels).expanduser()]
    else:
        found = places if FLAGS.pseudo_labels == "tinyimages" else []
    found = [place for place in found if place.is_file()]
    if not found:
        raise BadFlag(
            f"--semisup_data={FLAGS.pseudo_labels}: expected tinyimages with {places[0]}, or in its place the file of "
            "pseudo-labeled images. Received: no such file"
        )
    FLAGS.pseudo_labels = str(found[0])
    if not FLAGS["rst_frac"].present:
        FLAGS.batch_size, FLAGS.rst_frac = 2 * FLAGS.batch_size, 0.5


def _translate_selection() -> None:
    by_checks = FLAGS.val_method in certified_flags.CHECKS
    best = "best_certified" if by_checks else "best_clean" if FLAGS.val_method == "base" else "best_robust"
    if not FLAGS["select"].present:
        FLAGS["select"].value = best
    if FLAGS.select.startswith("best") and FLAGS.select not in ("best_clean", best):
        raise BadFlag(
            f"--val_method={FLAGS.val_method}: expected --select={best} or last. Received: --select={FLAGS.select}"
        )


# What is unlike HYDRA's code after all: name in docs/hydra.md -> to which runs, and how.
DEVIATIONS: dict[str, tuple[Any, str]] = {
    "held-out images": (
        lambda: FLAGS.validation_examples != 0,
        "1,000 training images, or a tenth, are held out and choose the epoch that is kept; there all are trained on, "
        "the test images choose, and the next phase takes the last epoch (--validation_examples=0 --select=last)",
    ),
    "full batches": (lambda: FLAGS.drop_last, "every batch is full; there the last one of an epoch may be smaller"),
    "boxes": (
        lambda: FLAGS.trainer in certified_flags.TRAINERS,
        "bounds hold within pixels of [0, 1]; there within the least and largest pixel of the batch",
    ),
    "free perturbation": (
        lambda: FLAGS.trainer == "freeadv",
        "the perturbation is kept from epoch to epoch, and networks take pixels of [0, 1]; there it begins each epoch "
        "at zero, and --mean and --std normalize",
    ),
    "pseudo-labeled images": (
        lambda: bool(FLAGS.pseudo_labels),
        "an epoch is a pass over the labeled images; there it ends with the pseudo-labeled ones, if they are fewer",
    ),
    "CIFAR-100": (
        lambda: FLAGS.data == "cifar100",
        "its own images are read; there, by mistake, the folder and the test images of CIFAR-10",
    ),
    "scale_rand_init": (
        lambda: FLAGS.scale_rand_init,
        "kernels are divided by the root of k once; there twice, by mistake",
    ),
    "scores_init_type": (
        lambda: bool(FLAGS.scores_init_type and FLAGS.source_net),
        "random scores are drawn after the source is read; there before, so that those of the source replace them",
    ),
}


def deviations() -> list[str]:
    """Returns how the run differs from that of HYDRA's code, a sentence each."""
    return [how for applies, how in DEVIATIONS.values() if applies()]
