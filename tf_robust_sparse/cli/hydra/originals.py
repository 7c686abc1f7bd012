"""Names, values and defaults of HYDRA's published code as data; `translate` says a command line of it in our flags.

A command line with --configs, or with another flag that only HYDRA has and neither --model nor --data, is HYDRA's: a
flag that is not given has the value of --configs, or else of `DEFAULTS`, and words mean what they mean there. Any other
command line has the defaults of our own flags. `run.flags` holds ours.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import flags

import tf_robust_sparse as trs
from tf_robust_sparse.cli import command_line, devices, settings, settings_file, training_run
from tf_robust_sparse.cli.command_line import BadFlag, BadInput
from tf_robust_sparse.cli.hydra.directories import Place
from tf_robust_sparse.cli.hydra.settings import check_radii
from tf_robust_sparse.cli.hydra.trainers import BY_BOUNDS, Bounds, Trainer
from tf_robust_sparse.cli.sections.data import Data, TrainingImages
from tf_robust_sparse.cli.settings import Settings, setting

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
# Their flag -> ours, in addition to aliases, and the words that differ.
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
# Taken without effect: name -> what it says there.
IGNORED = {
    "print_freq": "Batches between two lines; here there is one line per epoch",
    "test_batch_size": "Images per step of an evaluation; --batch_size here",
    "mean": "Mean that freeadv takes off pixels",
    "std": "Deviation that freeadv divides pixels by",
    "image_dim": "Height and width of images, which the data know; of imagenet --image_size",
}
# Taken with one value alone: name -> that value, and why.
_FIXED: dict[str, tuple[float, str]] = {
    "clip_min": (0, "0, because pixels are in [0, 1]"),
    "clip_max": (1, "1, because pixels are in [0, 1]"),
    "start_epoch": (0, "--resume, which goes on after the last finished epoch"),
}


@dataclasses.dataclass
class Names(Settings):
    """What HYDRA's code calls otherwise."""

    title = Place.title

    configs: str | None = setting(None, "YAML file of HYDRA; flags win over what it says.", recorded=False)
    arch: str | None = setting(
        None, "--model, or HYDRA's name of one.", choices=(*NETWORKS, *trs.models.NETWORKS), recorded=False
    )
    dataset: str | None = setting(
        None, "--data, or HYDRA's name of it.", choices=(*DATA, *trs.data.DATASETS), recorded=False
    )
    distance: str | None = setting(None, "--norm.", choices=WORDS["distance"], recorded=False)
    is_semisup: bool | None = setting(
        None, "Add as many pseudo-labeled images (--semisup_data) to each batch.", recorded=False
    )
    gpu: str | None = setting(
        None, "Numbers of the GPUs to use, separated by commas; more than one are replicas.", recorded=False
    )
    no_cuda: bool = setting(False, "Use no GPU.", recorded=False)
    normalize: bool = setting(False, "Not taken, because networks and attacks are in pixels of [0, 1].", recorded=False)
    clip_min: float | None = setting(None, "Lowest value of a pixel, 0.", recorded=False)
    clip_max: float | None = setting(None, "Highest value of a pixel, 1.", recorded=False)
    start_epoch: int | None = setting(None, "First epoch, 0.", recorded=False)

    def check(self) -> None:
        """Checks what is taken with one value alone, and whether a radius grows in time."""
        if self.normalize:
            raise BadFlag("--normalize is not taken, because networks and attacks are in pixels of [0, 1]; drop it")
        for name, (value, why) in _FIXED.items():
            if getattr(self, name) not in (None, value):
                raise BadFlag(f"--{name}={getattr(self, name):g}: expected {why}")
        labels = TrainingImages.read().pseudo_labels
        if self.is_semisup is False and labels:
            raise BadFlag(f"--nois_semisup takes no pseudo-labeled images; drop it, or --pseudo_labels={labels}")
        try:
            check_radii()
        except BadFlag as error:
            if not given():
                raise
            print(f"Note: {error}")


_Ignored = settings.ignored(Names.title, IGNORED)
ONLY_THERE = tuple(field.name for group in (Names, Place, _Ignored) for field in dataclasses.fields(group))


def define() -> None:
    """Defines the names and the other spellings."""
    for group in (Names, Place, _Ignored):
        group.define()
    with command_line.section(Names.title):
        command_line.define_aliases(ALIASES)


def given() -> bool:
    """Returns whether the command line is HYDRA's: has --configs, or a flag only of its code without ours."""
    ours = FLAGS["model"].present or FLAGS["data"].present
    return bool(FLAGS.configs) or (not ours and any(FLAGS[name].present for name in ONLY_THERE))


def translate() -> None:
    """Sets our flags by those of HYDRA, before any check.

    Raises:
        BadFlag: if both are given, or a value cannot be meant.
        BadInput: if the configuration cannot be read.
    """
    for theirs, ours in NAMES.items():
        take_over(theirs, ours, WORDS[theirs])
    if given():
        _translate_all()
    if FLAGS.no_cuda:
        devices.hide_all()
    else:
        devices.choose("gpu", replicas=True, quiet=not FLAGS["gpu"].present)
    if given() and not FLAGS["drop_last"].present:  # once devices are chosen
        FLAGS.drop_last = Trainer.read().needs_full_batches or training_run.odd_batches_may_crash()


def take_over(theirs: str, ours: str, words: dict[str, Any]) -> None:
    """Sets a flag of ours by one of HYDRA, if that has a value.

    Raises:
        BadFlag: if both are given and differ.
    """
    if FLAGS[theirs].value is None:
        return
    value = words.get(FLAGS[theirs].value, FLAGS[theirs].value)
    if FLAGS[ours].present and FLAGS[ours].value != value:
        raise BadFlag(
            f"--{theirs}={FLAGS[theirs].value} and --{ours}={FLAGS[ours].value} say the same; pass one, not both"
        )
    FLAGS[ours].value = value


def _translate_all() -> None:
    by_file = _configuration()
    if FLAGS.exp_mode == "all" and not FLAGS["exp_mode"].present and FLAGS.source_net and not FLAGS.load_model:
        # Its README leaves --exp-mode out where it looks for a sub-network, and says that this prunes.
        by_file["exp_mode"] = "prune"
        print("Note: --source_net without --exp_mode is the prune phase, as HYDRA's README has it")
    if FLAGS.output_dir:
        by_file.pop("exp_name", None)
    defaults = dict(DEFAULTS)
    if not FLAGS["exp_mode"].present and "exp_mode" not in by_file:
        del defaults["k"]  # in a run of all phases --k is that of the last two
    for name, value in {**defaults, **by_file}.items():
        _set(name, value)
    FLAGS.lr_schedule = WORDS["lr_schedule"].get(FLAGS.lr_schedule, FLAGS.lr_schedule)
    if FLAGS.data_dir == DEFAULTS["data_dir"] and not FLAGS["data_dir"].present and not Path(FLAGS.data_dir).is_dir():
        FLAGS.data_dir = None  # there the data are fetched; here they may be elsewhere on this machine
    if FLAGS.image_dim and Data.read().is_in_files and FLAGS.image_size is None:
        FLAGS.image_size = int(FLAGS.image_dim)
    if FLAGS.data_fraction == 1:  # all of them, as without the flag
        FLAGS["data_fraction"].unparse()
    if FLAGS.lr_schedule == "step":  # whose rate there is the same in the warm-up
        FLAGS.warmup_lr = FLAGS.learning_rate
    moved = MOVED if FLAGS.data in MOVED_DATA else {}
    for name, value in {**moved, "undivided_schedule": FLAGS.trainer == "freeadv", "clean_updates": 3}.items():
        if not FLAGS[name].present:
            FLAGS[name].value = value
    _translate_initialization()
    _translate_semisup()
    # Flags that belong to other trainers and phases mean nothing there.
    of_bounds = (field.name for field in dataclasses.fields(Bounds))
    for name in {"clean_updates", "freeze_bn", "semisup_fraction", *of_bounds} & set(settings.meaningless()):
        FLAGS[name].unparse()


def _configuration() -> dict[str, Any]:
    if not FLAGS.configs:
        return {}
    found = settings_file.read(Path(FLAGS.configs).expanduser(), "configs")
    for name in found:
        if name not in FLAGS:
            raise BadInput(f"--configs={FLAGS.configs}: --help lists no setting {name}; correct or remove it")
    return {name: value for name, value in found.items() if value is not None}


def _set(name: str, value: Any) -> None:
    """Sets a flag by its name in HYDRA, and that of ours for which it stands, unless the command line does."""
    ours = NAMES.get(name, command_line.name_of(name))
    if FLAGS[ours].present or FLAGS[name].present:
        return
    said = WORDS.get(name, {}).get(str(value), value)
    for flag, text in ((FLAGS[name], value), (FLAGS[ours], said)):
        try:
            flag.value = flag.parser.parse(str(text))
        except ValueError as error:
            raise BadInput(f"--configs={FLAGS.configs}: {name}: {value!r}: {error}") from error
        flag.using_default_value = False


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
            "pseudo-labeled images; there is no such file"
        )
    FLAGS.pseudo_labels = str(found[0])
    if not FLAGS["rst_frac"].present:
        FLAGS.batch_size, FLAGS.rst_frac = 2 * FLAGS.batch_size, 0.5


# What is unlike HYDRA's code after all: name in docs/hydra.md -> to which runs, and how.
DEVIATIONS: dict[str, tuple[Callable[[], bool], str]] = {
    "held-out images": (
        lambda: FLAGS.validation_examples != 0,
        "1,000 training images, or a tenth, are held out and choose the epoch that is kept; there all are trained on, "
        "the test images choose, and the next phase takes the last epoch (--validation_examples=0 --select=last)",
    ),
    "full batches": (lambda: FLAGS.drop_last, "every batch is full; there the last one of an epoch may be smaller"),
    "boxes": (
        lambda: FLAGS.trainer in BY_BOUNDS,
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
    """Returns how the run differs from that of HYDRA's code, a sentence each; none of a command line of ours."""
    return [how for applies, how in DEVIATIONS.values() if applies()] if given() else []
