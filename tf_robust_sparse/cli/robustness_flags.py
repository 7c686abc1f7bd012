"""The flags of the robustness evaluation, their checks, and the objects they stand for."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from absl import flags

import tf_robust_sparse as trs
from tf_robust_sparse.cli import leaderboard_flags, run_directory
from tf_robust_sparse.cli.command_line import BadFlag, about, define_aliases, define_number, define_numbers, section
from tf_robust_sparse.cli.sections import method
from tf_robust_sparse.evaluation.attack_versions import VERSIONS
from tf_robust_sparse.evaluation.ensemble_run import examples_path
from tf_robust_sparse.evaluation.examples import check_image_shape

FLAGS = flags.FLAGS

ATTACKS = ("clean", "fgsm", "pgd", "autoattack", "square", "transfer", "corruptions")
EPSILONS = {"Linf": 8 / 255, "L2": 0.5, "L1": 12.0}  # of the usual leaderboards on CIFAR-10
GRADIENT_ATTACKS = {
    "Linf": (trs.attacks.LinfFGSM, trs.attacks.LinfPGD),
    "L2": (trs.attacks.L2FGSM, trs.attacks.L2PGD),
}
# A flag that means nothing without one of these attacks.
BELONGS_TO = {
    "version": ("autoattack",),
    "individual": ("autoattack",),
    "state_file": ("autoattack",),
    "log_file": ("autoattack",),
    "save_adversarials": ("autoattack",),
    "robustbench_file": ("autoattack",),
    "transfer_from": ("transfer",),
    "corruptions_dir": ("corruptions",),
    "foolbox_check": ("pgd",),
    "pgd_iters": ("pgd", "transfer"),
    "pgd_restarts": ("pgd", "transfer"),
}
# A flag that means nothing without one of these flags.
GOES_WITH = {
    "title": ("robustbench_file", "report"),
    **dict.fromkeys(("authors", "link", "venue", "architecture", "additional_data"), ("robustbench_file",)),
}
# Of AutoAttack as a sequence, which --individual takes apart.
OF_THE_SEQUENCE = ("state_file", "save_adversarials", "robustbench_file")
OUTPUTS = ("results_file", "state_file", "log_file", "save_adversarials", "robustbench_file", "report")


def define() -> None:
    """Defines which network is attacked how, and what is written."""
    _define_attacks()
    _define_files()
    leaderboard_flags.define()


@section("Attacks")
def _define_attacks() -> None:
    flags.DEFINE_list(
        "attacks",
        None,
        f"What to measure, in this order, of {', '.join(ATTACKS)}; by default clean,fgsm,pgd,autoattack, and "
        "clean,autoattack with --norm=L1.",
    )
    flags.DEFINE_enum("norm", "Linf", list(EPSILONS), "Norm of the ball around each image.")
    define_number(
        "epsilon", None, "Its radius, in pixels of [0, 1]; by default 8/255, 0.5 for L2, 12 for L1.", excluded=0
    )
    flags.DEFINE_integer("pgd_iters", 50, "Steps of PGD, each 2.5 * epsilon / steps long.", 1)
    flags.DEFINE_integer("pgd_restarts", 10, "Random starts of PGD; an image is robust if it withstands all.", 1)
    flags.DEFINE_enum("version", "standard", list(VERSIONS), "Version of AutoAttack; rand for randomised networks.")
    flags.DEFINE_bool(
        "individual",
        False,
        "Run every attack of AutoAttack alone on all images, not one after the other on what stands.",
    )
    flags.DEFINE_string(
        "transfer_from", None, "SavedModel, or .keras file of ours, that the attack transfer finds its examples on."
    )
    flags.DEFINE_string("corruptions_dir", None, "Folder with the files of CIFAR-10-C; otherwise they are computed.")
    define_numbers("epsilons", "Radii for a curve of the accuracy under PGD, such as 2/255,4/255,8/255.", excluded=0)
    flags.DEFINE_bool("foolbox_check", False, "Repeat PGD with Foolbox, and say where it disagrees with ours.")
    define_aliases({"pgd_epsilon": "epsilon"})


@section("Files")
def _define_files() -> None:
    flags.DEFINE_string("saved_model", None, "Directory of a SavedModel from images in [0, 1] to logits.")
    flags.DEFINE_string("network", None, "A network.keras of ours, instead; sparse kernels make its gradients faster.")
    flags.DEFINE_bool("strip_softmax", False, "Take the softmax off the end of the network: attacks need logits.")
    define_pixel_range()
    flags.DEFINE_string("results_file", None, "Where to write; by default robustness.json beside the network.")
    flags.DEFINE_string("state_file", None, "File by which an interrupted AutoAttack goes on where it was.")
    flags.DEFINE_string("log_file", None, "File that AutoAttack appends its log to.")
    flags.DEFINE_string("save_adversarials", None, "Where to write the examples that AutoAttack found, an .npz file.")
    flags.DEFINE_string("report", None, "Where to write a page with tables, a .md file; its figures lie beside it.")


def define_pixel_range() -> None:
    """Defines what pixels the network expects."""
    define_number(
        "pixel_range",
        1.0,
        "The largest pixel that the network expects: 255 if it divides by 255 itself. Radii stay in pixels of [0, 1].",
        excluded=0,
    )


def check() -> None:
    """Checks these flags and how they go together, before any work.

    Raises:
        BadFlag: naming the flag.
    """
    _check_attacks()
    _check_company()
    for radius in ([epsilon()], FLAGS.epsilons or []):
        if FLAGS.norm == "Linf" and max(radius, default=0) > 1:
            name = "epsilons" if radius is FLAGS.epsilons else "epsilon"
            raise BadFlag(f"--{name}={max(radius):g}: expected pixels of [0, 1], such as 8/255")
    if FLAGS.saved_model and FLAGS.network:
        raise BadFlag("--saved_model and --network both name the network; pass one of them. Received: both")
    if FLAGS.corruptions_dir and not Path(FLAGS.corruptions_dir).expanduser().is_dir():
        raise BadFlag(f"--corruptions_dir={FLAGS.corruptions_dir}: expected a folder with the files of CIFAR-10-C")
    if FLAGS.report:
        try:
            trs.evaluation.check_matplotlib()
        except ValueError as error:
            raise BadFlag(f"--report={FLAGS.report}: {error}") from error


def _check_attacks() -> None:
    found = attacks()
    unknown = [name for name in found if name not in ATTACKS]
    if unknown or not found:
        raise BadFlag(
            f"--attacks: expected some of {', '.join(ATTACKS)}. Received: {', '.join(unknown) or 'an empty list'}"
        )
    twice = [name for name in found if found.count(name) > 1]
    if twice:
        raise BadFlag(f"--attacks: expected each attack once. Received: {twice[0]} {found.count(twice[0])} times")
    if FLAGS.norm not in GRADIENT_ATTACKS:
        for name in ("fgsm", "pgd", "transfer"):
            if name in found:
                raise BadFlag(
                    f"--norm={FLAGS.norm}: expected Linf or L2 with {name}; autoattack and square take all norms. "
                    f"Received: --attacks={','.join(found)}"
                )
        if FLAGS.epsilons:
            raise BadFlag(f"--epsilons are radii of PGD, which takes Linf or L2. Received: --norm={FLAGS.norm}")
    if "transfer" in found and not FLAGS.transfer_from:
        raise BadFlag(
            "--attacks=transfer: expected --transfer_from=DIR, the network to find examples on. Received: none"
        )


def _check_company() -> None:
    """Refuses flags that nothing would use."""
    for name, owners in BELONGS_TO.items():
        of_the_curve = name.startswith("pgd_") and FLAGS.epsilons
        if _is_given(name) and not of_the_curve and not set(owners) & set(attacks()):
            raise BadFlag(
                f"--{name}: expected {' or '.join(owners)} among --attacks. Received: --attacks={','.join(attacks())}"
            )
    for name, others in GOES_WITH.items():
        if _is_given(name) and not any(FLAGS[other].value for other in others):
            raise BadFlag(f"--{name}: expected --{' or --'.join(others)} with it. Received: --{name} without")
    check_padding_mode()
    for name in OF_THE_SEQUENCE:
        if FLAGS.individual and FLAGS[name].value:
            raise BadFlag(
                f"--{name} is of AutoAttack's attacks one after the other; drop it or --individual. Received: both"
            )


def check_padding_mode() -> None:
    """Refuses --padding_mode, which only matters to a network that is built.

    Raises:
        BadFlag: if it is given.
    """
    if FLAGS["padding_mode"].present:
        raise BadFlag(
            "--padding_mode: expected no such flag, for the network is read from its file and pads as it was trained. "
            f"Received: --padding_mode={FLAGS.padding_mode}"
        )


def _is_given(name: str) -> bool:
    flag = FLAGS[name]
    return flag.present > 0 and (
        flag.value is not None if name == "additional_data" else flag.value not in (None, False)
    )


def check_outputs(default: Path) -> Path:
    """Checks that every file can be written, before any work; of the flags that the script has.

    Args:
        default: Where the results go without --results_file.

    Returns:
        Where the results go.

    Raises:
        BadFlag: naming the flag.
    """
    results = Path(FLAGS.results_file).expanduser() if FLAGS.results_file else default
    taken: dict[Path, str] = {}
    for name in OUTPUTS:
        if name == "results_file":
            path = results
        elif name in FLAGS and FLAGS[name].value:
            path = Path(FLAGS[name].value).expanduser()
        else:
            continue
        run_directory.check_file(name, path)
        for file in (path, *_beside(name, path)):
            run_directory.check_file(name, file)
            other = taken.setdefault(file.resolve(), name)
            if other != name:
                raise BadFlag(f"--{name}={path}: expected a file of its own. Received: that of --{other}, {file}")
    return results


def _beside(name: str, path: Path) -> list[Path]:
    """The files that are written beside the one that a flag names."""
    if name == "state_file":
        return [examples_path(path)]
    if name == "robustbench_file":
        return [pruning_file(path)]
    parts = ("curve", "examples") if name == "report" else ()
    return [path.with_name(f"{path.stem}_{part}.{form}") for part in parts for form in ("png", "pdf")]


def pruning_file(path: Path) -> Path:
    """Returns where the row for the pruning benchmark goes, beside that for RobustBench."""
    return path.with_name(f"{path.stem}.pruning_benchmark.json")


def attacks() -> list[str]:
    """Returns the attacks of --attacks, in their order."""
    if FLAGS.attacks is None:
        return ["clean", "autoattack"] if FLAGS.norm not in GRADIENT_ATTACKS else list(ATTACKS[:4])
    return [name.strip() for name in FLAGS.attacks]


def epsilon() -> float:
    """Returns the radius of --epsilon, or the usual one of the norm."""
    return EPSILONS[FLAGS.norm] if FLAGS.epsilon is None else FLAGS.epsilon


def network_flag() -> str:
    """Returns the flag that names the network."""
    return "network" if FLAGS.network else "saved_model"


def network_path() -> Path:
    """Returns where the network is.

    Raises:
        BadFlag: if there is nothing.
    """
    given = FLAGS.network or FLAGS.saved_model
    path = Path(given).expanduser() if given else method.default_directory() / "serve"
    if not path.exists():
        what = "a network.keras" if FLAGS.network else "the directory of a SavedModel"
        raise BadFlag(
            f"--{network_flag()}: expected {what}, or the flags that a finished run was trained with. "
            f"Received: {path}, which does not exist"
        )
    return path


def results_file(network: Path) -> Path:
    """Returns where the results go.

    Raises:
        BadFlag: if they or another file cannot be written.
    """
    beside = network if FLAGS.network and network.is_dir() else network.parent
    return check_outputs(beside / "robustness.json")


def load(path: Path) -> Callable[..., Any]:
    """Loads the network under attack."""
    with about(network_flag()):
        if not FLAGS.network:
            network: Callable[..., Any] = trs.evaluation.load_saved_model(path)
        else:
            network = trs.load_network(path)
    if FLAGS.strip_softmax:
        with about("strip_softmax", network_flag()):
            network = trs.evaluation.without_softmax(network)
    return trs.evaluation.with_pixel_range(network, FLAGS.pixel_range)


def source(images: trs.data.ImageDataset) -> Callable[..., Any] | None:
    """Loads the network of --transfer_from, if it is given, and tries it on an image.

    Raises:
        BadFlag: if there is nothing.
        BadInput: if it is damaged, or made for other images or classes.
    """
    if not FLAGS.transfer_from:
        return None
    path = Path(FLAGS.transfer_from).expanduser()
    if not path.exists():
        raise BadFlag(
            f"--transfer_from={path}: expected the directory of a SavedModel, or a .keras file of ours. "
            "Received: a path that does not exist"
        )
    with about("transfer_from"):
        is_ours = path.suffix == ".keras" or (path / "network.keras").is_file()
        model = trs.load_network(path) if is_ours else trs.evaluation.load_saved_model(path)
        one = np.asarray(images.test_images[:1], np.float32)
        check_image_shape(model, one)
        classes = trs.attacks.inference_forward(model)(tf.constant(one)).shape[-1]
        if classes != images.num_classes:
            raise ValueError(f"expected one logit per class, {images.num_classes}. Received: {classes}")
    return model


def fgsm() -> trs.attacks.GradientAttack:
    """Returns the one-step attack."""
    return GRADIENT_ATTACKS[FLAGS.norm][0](epsilon())


def pgd() -> trs.attacks.GradientAttack:
    """Returns PGD with its settings."""
    return GRADIENT_ATTACKS[FLAGS.norm][1](
        epsilon(), num_steps=FLAGS.pgd_iters, restarts=FLAGS.pgd_restarts, seed=FLAGS.seed
    )


def auto_attack(model: Callable[..., Any]) -> trs.evaluation.AutoAttack:
    """Returns AutoAttack in the version of --version."""
    return trs.evaluation.AutoAttack(
        model,
        FLAGS.norm,
        epsilon(),
        FLAGS.version,
        seed=FLAGS.seed,
        batch_size=FLAGS.batch_size,
        log_path=_path("log_file"),
        state_path=_path("state_file"),
    )


def square(model: Callable[..., Any]) -> trs.evaluation.AutoAttack:
    """Returns the Square Attack alone."""
    return trs.evaluation.AutoAttack(
        model, FLAGS.norm, epsilon(), "custom", ["square"], seed=FLAGS.seed, batch_size=FLAGS.batch_size, verbose=False
    )


def _path(name: str) -> Path | None:
    return Path(FLAGS[name].value).expanduser() if FLAGS[name].value else None
