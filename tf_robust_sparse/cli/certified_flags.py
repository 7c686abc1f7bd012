"""The flags of training by bounds, and the objectives, checks and measurements they stand for."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import flags

import tf_robust_sparse as trs
from tf_robust_sparse.cli.command_line import BadFlag, about, define_number, section
from tf_robust_sparse.evaluation.progress import Progress

FLAGS = flags.FLAGS

TRAINERS = ("mixtrain", "crown-ibp", "ibp")
# How held-out images are judged -> the bounds that do; smooth judges by an estimate.
BOUNDS = {"ibp": "ibp", "crown-ibp": "crown-ibp", "mixtrain": "zonotope"}
CHECKS = (*BOUNDS, "smooth")
DEFAULT_CHECKS = {"base": "base", "mixtrain": "mixtrain", "crown-ibp": "ibp", "ibp": "ibp", "smooth": "smooth"}
# What --resume cannot change.
IDENTITY = (
    *("schedule_length", "prune_schedule_length", "finetune_schedule_length", "schedule_start", "starting_epsilon"),
    *("epsilon_schedule", "final_beta", "final_kappa", "interval_weight", "mixtraink"),
)
_OWN = {
    "final_beta": ("crown-ibp",),
    "final_kappa": ("crown-ibp", "ibp"),
    "epsilon_schedule": ("crown-ibp", "ibp"),
    "schedule_start": ("crown-ibp", "ibp"),
    "interval_weight": ("mixtrain",),
    "mixtraink": ("mixtrain",),
    **dict.fromkeys(("schedule_length", "prune_schedule_length", "finetune_schedule_length"), TRAINERS),
    "starting_epsilon": TRAINERS,
}


@section("Training by bounds")
def define() -> None:
    """Defines how radius and weights go while a network is trained by bounds."""
    flags.DEFINE_integer("schedule_length", 0, "Epochs in which the radius grows to --epsilon; 0 for at once.", 0)
    flags.DEFINE_integer(
        "prune_schedule_length",
        0,
        "The same in the prune phase; of that phase alone --schedule_length if it is not given.",
        0,
    )
    flags.DEFINE_integer("finetune_schedule_length", 0, "The same in the finetune phase, likewise.", 0)
    flags.DEFINE_integer("schedule_start", 0, "Epochs of crown-ibp and ibp before the radius grows.", 0)
    define_number("starting_epsilon", 0.0, "Radius that it grows from, at most --epsilon.", 0, 1)
    flags.DEFINE_enum(
        "epsilon_schedule", "linear", ["linear", "smoothed"], "How it grows in crown-ibp and ibp, step by step."
    )
    define_number("final_beta", 0.0, "Weight of linear bounds against intervals at the last radius of crown-ibp.", 0, 1)
    define_number(
        "final_kappa",
        None,
        "Weight of the clean loss of crown-ibp and ibp at the last radius, 1 at radius 0; by default there is none.",
        0,
        1,
    )
    flags.DEFINE_integer("mixtraink", 1, "Images of a batch that mixtrain bounds: 1 of large networks, 5 of small.", 1)
    define_number("interval_weight", 0.1, "Weight of the bounds of mixtrain at first.")
    flags.DEFINE_integer("bound_chunk", 4096, "Rows of a backward pass of bounds; fewer take less memory.", 1)


def check() -> None:
    """Checks how the flags go together, before any work.

    Raises:
        BadFlag: naming the flags.
    """
    for name, trainers in _OWN.items():
        if FLAGS[name].present and FLAGS.trainer not in trainers:
            raise BadFlag(f"--{name}: expected --trainer={' or '.join(trainers)}. Received: --trainer={FLAGS.trainer}")
    if FLAGS["bound_chunk"].present and "bound_chunk" in unused():
        raise BadFlag(
            f"--bound_chunk: expected --trainer=mixtrain or --val_method=mixtrain. Received: --trainer={FLAGS.trainer}"
        )
    if FLAGS.val_method == "smooth" and FLAGS.noise_std == 0:
        raise BadFlag("--noise_std=0: expected noise, or --val_method=base or adv. Received: --val_method=smooth")
    by_bounds = {"trainer": FLAGS.trainer in TRAINERS, "val_method": FLAGS.val_method in BOUNDS}
    for name in [name for name, wanted in by_bounds.items() if wanted][:1]:
        _check_bounds(f"--{name}={FLAGS[name].value}")


def unused() -> set[str]:
    """Returns the names of flags that mean nothing to --trainer and --val_method."""
    others = {name for name, trainers in _OWN.items() if FLAGS.trainer not in trainers}
    return others | (set() if "mixtrain" in (FLAGS.trainer, FLAGS.val_method) else {"bound_chunk"})


def check_length(name: str, length: int, epochs: int, phase: str) -> None:
    """Checks that the radius reaches --epsilon within a phase, and that an epoch is compared then.

    Args:
        name: The flag that says for how many epochs the radius grows.
        length: These epochs.
        epochs: Those of the phase.
        phase: Its name.

    Raises:
        BadFlag: if the phase is too short.
    """
    if FLAGS.trainer == "mixtrain":
        # From the epoch after the last increment on; --val_method=mixtrain looks at the ones after that.
        needed = length + (2 if FLAGS.val_method == "mixtrain" and FLAGS.select.startswith("best") else 1)
        needed = needed if length else 0
    else:
        needed = FLAGS.schedule_start + length if length > 1 else 0
    if needed > epochs:
        start = f" --schedule_start={FLAGS.schedule_start}" if FLAGS.schedule_start else ""
        raise BadFlag(
            f"--{name}={length}{start}: expected a {phase} phase of at least {needed} epochs, for the radius to reach "
            f"--epsilon and stay there for one. Received: {epochs}"
        )


def _check_bounds(who: str) -> None:
    """Checks what bounds need, whoever needs them."""
    if FLAGS.norm != "linf":
        raise BadFlag(f"{who}: expected --norm=linf. Received: --norm={FLAGS.norm}")
    if FLAGS.mixed_precision:
        raise BadFlag(f"{who}: expected float32, for bounds. Received: --mixed_precision")
    if not 0 < FLAGS.epsilon < 1:
        raise BadFlag(f"--epsilon={FLAGS.epsilon:g}: expected a radius above 0 and below 1, such as 2/255")
    if FLAGS.starting_epsilon > FLAGS.epsilon:
        raise BadFlag(
            f"--starting_epsilon={FLAGS.starting_epsilon:g}: expected at most --epsilon. "
            f"Received: --epsilon={FLAGS.epsilon:g}"
        )
    if FLAGS.data in trs.data.IN_FILES:
        raise BadFlag(f"{who}: expected data in memory. Received: --data={FLAGS.data}")


def check_network(network: keras.Model) -> None:
    """Bounds an image, where training or validation will bound many, so that a layer without bounds is named first."""
    if FLAGS.trainer in TRAINERS or FLAGS.val_method in BOUNDS:
        image = tf.zeros((1, *network.input_shape[1:]))
        with about("model"):
            trs.certify.margins(network, image, tf.zeros(1, tf.int64), FLAGS.epsilon, "ibp")


def objective(steps_per_epoch: int, schedule_length: int) -> trs.objectives.Objective:
    """Returns the objective of --trainer for a phase whose radius grows for so many epochs."""
    if FLAGS.trainer == "mixtrain":
        growing = trs.objectives.EpochwiseEpsilon(
            FLAGS.epsilon, schedule_length, steps_per_epoch, FLAGS.starting_epsilon
        )
        return trs.objectives.MixTrain(growing, FLAGS.mixtraink, FLAGS.interval_weight, chunk=FLAGS.bound_chunk)
    schedule = _schedule(steps_per_epoch, schedule_length)
    if FLAGS.trainer == "ibp":
        return trs.objectives.IBP(schedule, FLAGS.final_kappa)
    return trs.objectives.CrownIBP(schedule, FLAGS.final_beta, FLAGS.final_kappa)


def _schedule(steps_per_epoch: int, length: int) -> trs.objectives.EpsilonSchedule:
    """The radius step by step: at its last value once the epoch before the last one of the schedule is over."""
    if length < 2:
        return trs.objectives.EpsilonSchedule(FLAGS.epsilon)
    kind = {"linear": trs.objectives.LinearEpsilon, "smoothed": trs.objectives.SmoothedEpsilon}[FLAGS.epsilon_schedule]
    begin = FLAGS.schedule_start * steps_per_epoch
    return kind(FLAGS.epsilon, begin, begin + (length - 1) * steps_per_epoch, FLAGS.starting_epsilon)


def validation_checks() -> dict[str, Callable[..., Any]]:
    """Returns what --val_method judges held-out images by, other than attacks."""
    if FLAGS.val_method == "smooth":
        return {"smoothed_accuracy": trs.certify.SmoothingMonitor(FLAGS.noise_std)}
    if FLAGS.val_method in BOUNDS:
        verifier = trs.certify.Verifier(FLAGS.epsilon, BOUNDS[FLAGS.val_method], tight=False, chunk=FLAGS.bound_chunk)
        return {"verified_accuracy": verifier}
    return {}


def verified(network: keras.Model, images: trs.data.ImageDataset) -> dict[str, Any]:
    """Returns the share of the test images verified by each kind of bounds, as an entry of `results.json`."""
    methods = ["ibp", "crown-ibp", *(["zonotope"] if "mixtrain" in (FLAGS.trainer, FLAGS.val_method) else [])]
    batches = trs.data.test_dataset(images.test_images, images.test_labels, FLAGS.batch_size)
    x, y = (np.concatenate(parts) for parts in zip(*batches.as_numpy_iterator(), strict=True))
    shares = {method: _verified_share(network, x, y, method) for method in methods}
    return {"verified": {"epsilon": FLAGS.epsilon, "norm": "Linf", "images": len(y), "accuracy": shares}}


def _verified_share(network: keras.Model, x: np.ndarray, y: np.ndarray, method: str) -> float:
    with about("model"), Progress(f"Verified by {method}", len(y), shown=True) as bar:
        rows = trs.certify.verify_images(
            network,
            x,
            y,
            FLAGS.epsilon,
            method,
            tight=False,
            chunk=FLAGS.bound_chunk,
            batch_size=FLAGS.batch_size,
            progress=lambda _: bar.advance(1),
        )
    return float(np.mean([row.verified for row in rows]))
