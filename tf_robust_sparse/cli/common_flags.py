"""Flags that several scripts share, their checks, and what their names stand for."""

import functools
import json
import os
from pathlib import Path

from absl import flags

import tf_robust_sparse as trs
from tf_robust_sparse.cli import sparsity_flags
from tf_robust_sparse.cli.command_line import BadFlag, define_aliases, define_number, note_unused, section
from tf_robust_sparse.cli.sparsity_flags import sparsifier_name

FLAGS = flags.FLAGS

OBJECTIVES = {
    "natural": lambda attack, beta, start: trs.objectives.Natural(),
    "at": lambda attack, beta, start: trs.objectives.AT(attack),
    "mat": lambda attack, beta, start: trs.objectives.MAT(attack),
    "trades": trs.objectives.TRADES,
    "mart": lambda attack, beta, start: trs.objectives.MART(attack, beta),
    "rst": trs.objectives.TRADES,  # on labelled and pseudo-labelled images
}
OBJECTIVE_FLAGS = {  # -> the objectives that use it
    "beta": ("trades", "mart", "rst"),
    "trades_start": ("trades", "rst"),
    "rst_frac": ("rst",),
}
_TAKEN_ANYWAY = ("beta", "rst_frac")  # by the published code with every objective, most of which ignore them
ATTACKS = {"linf": trs.attacks.LinfPGD, "l2": trs.attacks.L2PGD}


@section("Data")
def define_data() -> None:
    """Defines which images are used."""
    flags.DEFINE_string(
        "data", "cifar10", f"Images: {', '.join(trs.data.DATASETS)}, or a path of an .npz file or a folder of images."
    )
    flags.DEFINE_string(
        "data_dir", None, "Folder that holds the official files of the data set, or a folder of its name with them."
    )
    flags.DEFINE_integer(
        "image_size", None, "Height and width to resize a folder of images to, or to crop ImageNet to.", 1
    )
    flags.DEFINE_integer("test_examples", None, "Use only the first N test images.", 1)
    flags.DEFINE_integer("n_classes", None, "Not needed, for the data know it; checked if given.", 2)
    flags.DEFINE_integer("batch_size", 128, "Images per step, over all replicas.", 1)
    flags.DEFINE_integer("seed", 0, "Integer that fixes every random draw.", 0, 2**31 - 1)
    define_aliases({"batch": "batch_size", "b": "batch_size"})


@section("Network")
def define_network() -> None:
    """Defines the network and how sparse it is: together with the data, what a run is called."""
    flags.DEFINE_enum("model", "vgg16", list(trs.models.NETWORKS), "Architecture.")
    flags.DEFINE_enum("objective", "at", list(OBJECTIVES), "What training minimizes; rst needs --pseudo_labels.")
    flags.DEFINE_bool("sparse_train", False, "Train sparse from the first step, by --sparsifier.", short_name="s")
    flags.DEFINE_enum(
        "sparsifier",
        None,
        list(sparsity_flags.SPARSIFIERS),
        "How connections are chosen; by default connectivity_sampling with --sparse_train and none without.",
    )
    define_number(
        "connectivity",
        0.01,
        "Fraction of the kernel entries kept, 0.01 is 99 % sparse; of channels with --sparsifier=channel_magnitude.",
        *(0, 1),
        excluded=0,
    )
    flags.DEFINE_enum(
        "padding_mode",
        "tf_same",
        ["tf_same", "symmetric"],
        "How strided convolutions pad: as TensorFlow and the original do, or symmetric as PyTorch does.",
    )
    define_aliases({"pc": "connectivity"})


@section("Test attack")
def define_evaluation() -> None:
    """Defines the attack that the reported robust accuracy is measured with."""
    define_number("pgd_epsilon", None, "Its radius, in pixels of [0, 1]; by default that of training, or else 8/255.")
    flags.DEFINE_integer("pgd_iters", 50, "Its steps, each 2.5 * epsilon / steps long.", 1)
    flags.DEFINE_integer("pgd_restarts", 10, "Its random starts; an image is robust if it withstands all.", 1)


def define_training() -> None:
    """Defines how a network is trained by connectivity sampling, magnitude pruning or dense."""
    define_length(200)
    _define_optimisation()
    define_training_attack()
    define_augmentation()
    sparsity_flags.define()
    define_machines()


@section("Training")
def define_length(epochs: int, letter: bool = True) -> None:
    """Defines on how many images a network is trained how often; `letter` tells whether -e is short for --epochs."""
    flags.DEFINE_integer("epochs", epochs, "Passes over the training images.", 1)
    flags.DEFINE_integer("train_examples", None, "Use only N training images, drawn at random.", 1)
    flags.DEFINE_integer(
        "validation_examples",
        None,
        "Training images held out, by which the best epoch is chosen; by default 1000, or a tenth if that is less; 0 "
        "trains on all of them, with --select=last or reference.",
        0,
    )
    flags.DEFINE_string(
        "pseudo_labels", None, "File of pseudo-labelled images for --objective=rst: an .npz or the published pickle."
    )
    define_number("rst_frac", 0.5, "Share of pseudo-labelled images in a batch.", 0, 1, excluded=0)
    flags.DEFINE_bool("mixed_precision", False, "Compute in float16; theta, masks and logits stay float32.")
    define_aliases({"n_epochs": "epochs", **({"e": "epochs"} if letter else {})})


@section("Training")
def _define_optimisation() -> None:
    define_number(
        "learning_rate", 0.1, "Initial learning rate; falls tenfold after 1/2 and 3/4 of all steps.", excluded=0
    )
    define_number(
        "weight_decay", 5e-4, "Initial share of each weight taken off per step; falls as the learning rate does.", 0, 1
    )
    define_number("momentum", 0.9, "Momentum of SGD.", 0, 1, excluded=1)
    flags.DEFINE_bool("decay_bias_and_bn", True, "Let biases and batch norm parameters decay too.")
    define_number("beta", 6.0, "Weight of the robust term of trades, rst and mart.")
    define_aliases(
        {
            "l_rate": "learning_rate",
            "lr": "learning_rate",
            "w_decay": "weight_decay",
            "wd": "weight_decay",
        }
    )


@section("Training attack")
def define_training_attack() -> None:
    """Defines the attack that images are trained on."""
    flags.DEFINE_enum("norm", "linf", list(ATTACKS), "Norm of the training attack and of the test attack.")
    define_number("epsilon", 8 / 255, "Radius in pixels of [0, 1]; at most 1 with --norm=linf.")
    define_number("step_size", 2 / 255, "Length of a step in pixels of [0, 1].")
    flags.DEFINE_integer("num_steps", 10, "Number of steps; 0 trains on the random starts.", 0)
    flags.DEFINE_enum(
        "trades_start",
        "gaussian",
        ["gaussian", "uniform"],
        "Where the attack of TRADES starts: a thousandth beside the image as published, or anywhere in the ball.",
    )
    define_aliases({"eps_iter": "step_size", "num_iter": "num_steps"})


@section("Augmentation")
def define_augmentation() -> None:
    """Defines how training images are varied."""
    flags.DEFINE_enum(
        "augmentation",
        "shift",
        ["shift", "crop", "resized_crop", "none"],
        "Random shifts of up to a tenth of the size; random crops after padding by 4 pixels; or, of imagenet only and "
        "its default, random parts of 8 to 100 % of the image.",
    )
    flags.DEFINE_bool(
        "flip",
        None,
        "Mirror training images at random; by default for fashion_mnist and cifar, not for digits and your own images.",
    )


@section("Machines")
def define_machines() -> None:
    """Defines which devices and machines train."""
    flags.DEFINE_enum("strategy", "none", ["none", "mirrored", "multi_worker"], "tf.distribute strategy.")
    flags.DEFINE_integer("num_replicas", None, "Replicas of --strategy=mirrored; on a CPU, parts of it.", 1)


def check() -> None:
    """Checks combinations of flags, before any work.

    Raises:
        BadFlag: naming the flags that do not go together.
    """
    if "sparsifier" in FLAGS:
        _check_sparsity()
    _check_data_name()
    if "augmentation" in FLAGS:
        _check_augmentation()
    if "pgd_epsilon" in FLAGS:
        _check_radius("pgd_epsilon")
    if "epochs" in FLAGS:
        _check_radius("epsilon")
        check_machines()
    if "objective" in FLAGS and "epochs" in FLAGS:
        _check_training()


def _check_sparsity() -> None:
    if FLAGS.sparse_train and FLAGS.sparsifier == "none":
        raise BadFlag(
            "--sparse_train asks for a sparse network, --sparsifier=none for a dense one; drop one. Received: both"
        )
    if sparsifier_name() == "none" and FLAGS["connectivity"].present:
        raise BadFlag(
            f"--connectivity={FLAGS.connectivity:g}: expected --sparse_train or --sparsifier with it. "
            "Received: the flags of a dense network"
        )


def _check_training() -> None:
    if (FLAGS.pseudo_labels is None) == (FLAGS.objective == "rst"):
        raise BadFlag(
            "--objective=rst and --pseudo_labels=FILE go together. "
            f"Received: --objective={FLAGS.objective} --pseudo_labels={FLAGS.pseudo_labels}"
        )
    if FLAGS.objective == "rst" and not 1 <= int(FLAGS.batch_size * FLAGS.rst_frac) < FLAGS.batch_size:
        raise BadFlag(
            f"--rst_frac={FLAGS.rst_frac:g}: expected images of both kinds in a batch. "
            f"Received: --batch_size={FLAGS.batch_size}, of which {int(FLAGS.batch_size * FLAGS.rst_frac)} are "
            "pseudo-labelled"
        )
    sparsity_flags.check()
    for name, objectives in OBJECTIVE_FLAGS.items():
        owners = f"--objective={' or '.join(objectives)}"
        if name in _TAKEN_ANYWAY:
            note_unused({name: (owners, functools.partial(objectives.__contains__, FLAGS.objective))})
        elif FLAGS[name].present and FLAGS.objective not in objectives:
            raise BadFlag(f"--{name} belongs to {owners}. Received: --objective={FLAGS.objective}")


def _check_augmentation() -> None:
    in_files = FLAGS.data in trs.data.IN_FILES
    if in_files and not FLAGS["augmentation"].present:
        FLAGS["augmentation"].value = "resized_crop"
    if FLAGS.augmentation == "resized_crop" and not in_files:
        raise BadFlag(
            f"--augmentation=resized_crop: expected --data={' or '.join(trs.data.IN_FILES)}. "
            f"Received: --data={FLAGS.data}"
        )
    fast = "trainer" in FLAGS and FLAGS.trainer == "adv_step_fast"  # mirrors by itself
    if FLAGS.flip and FLAGS.augmentation == "none" and not fast:
        raise BadFlag("--flip: expected an --augmentation that moves images, such as shift. Received: none")
    if in_files and "pseudo_labels" in FLAGS and FLAGS.pseudo_labels:
        raise BadFlag(f"--pseudo_labels: expected data in memory. Received: --data={FLAGS.data}")


def check_machines() -> None:
    """Checks the flags of devices and machines.

    Raises:
        BadFlag: if they do not go together, or with the environment.
    """
    if FLAGS.strategy == "multi_worker" and "TF_CONFIG" not in os.environ:
        raise BadFlag(
            "--strategy=multi_worker needs the environment variable TF_CONFIG on every machine, such as "
            '\'{"cluster": {"worker": ["host1:2222", "host2:2222"]}, "task": {"type": "worker", "index": 0}}\'. '
            "Received: no such variable"
        )
    if FLAGS.strategy == "multi_worker":
        try:
            cluster = json.loads(os.environ["TF_CONFIG"])
        except json.JSONDecodeError as error:
            cluster = error
        if not isinstance(cluster, dict) or not {"cluster", "task"} <= set(cluster):
            raise BadFlag(
                f"--strategy=multi_worker: expected TF_CONFIG as JSON with cluster and task. Received: {cluster}"
            )
    if FLAGS.num_replicas is not None and FLAGS.strategy != "mirrored":
        raise BadFlag(f"--num_replicas belongs to --strategy=mirrored. Received: --strategy={FLAGS.strategy}")


def _check_radius(name: str) -> None:
    norm = FLAGS.norm if "norm" in FLAGS else "linf"
    if norm == "linf" and (FLAGS[name].value or 0) > 1:
        raise BadFlag(f"--{name}={FLAGS[name].value:g}: expected pixels of [0, 1], such as 8/255")


def unused() -> set[str]:
    """Returns the names of flags that mean nothing to the chosen sparsifier and objective."""
    others = set(sparsity_flags.flags_of_others())
    if "objective" in FLAGS:
        others |= {flag for flag, objectives in OBJECTIVE_FLAGS.items() if FLAGS.objective not in objectives}
    return others | ({"connectivity"} if sparsifier_name() == "none" else set())


def _check_data_name() -> None:
    """Checks that --data names a data set or something on disk.

    Raises:
        BadFlag: if it does not.
    """
    if FLAGS.data in trs.data.DATASETS or FLAGS.data.endswith(".npz") or Path(FLAGS.data).expanduser().is_dir():
        return
    raise BadFlag(
        f"--data={FLAGS.data}: expected one of {', '.join(trs.data.DATASETS)}, an .npz file or a folder of images"
    )


def run_name() -> str:
    """Returns the directory name of a run with these flags: data, model, objective and how sparse."""
    sparsifier = sparsifier_name()
    how = {"none": "dense", "connectivity_sampling": "sparse"}.get(sparsifier, sparsifier)
    degree = sparsity_flags.degree()
    data = Path(FLAGS.data).expanduser().resolve().stem
    return f"{data}_{FLAGS.model}_{FLAGS.objective}_{how}{degree}"


def default_directory() -> Path:
    """Returns where a run with these flags is written, relative to the working directory."""
    return Path("saved_models") / run_name()


def published_weights() -> Path:
    """Returns where the published code of connectivity sampling keeps the weights of a run with these flags.

    As there, the degree is the connectivity in percent, cut to a whole number; below 1 a zero and its thousandths.
    """
    degree = "full"
    if sparsifier_name() == "connectivity_sampling":
        percent = FLAGS.connectivity * 100
        degree = f"sparse{int(percent)}" if percent >= 1 else f"sparse0{int(FLAGS.connectivity * 1000)}"
    return Path("results", FLAGS.data, FLAGS.model, f"{degree}_{FLAGS.objective}_best_weights.pickle")


def pgd_epsilon() -> float:
    """Returns the radius of the test attack."""
    if FLAGS.pgd_epsilon is not None:
        return FLAGS.pgd_epsilon
    return FLAGS.epsilon if "epsilon" in FLAGS else 8 / 255
