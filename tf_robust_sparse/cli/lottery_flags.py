"""Flags of rounds of pruning, by the names of the published experiments, and the objects they stand for."""

import contextlib
import os
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from absl import flags

import tf_robust_sparse as trs
from tf_robust_sparse.cli import lottery_processes, settings
from tf_robust_sparse.cli.command_line import BadFlag, about, define_aliases, define_number, section
from tf_robust_sparse.cli.sections.data import Data
from tf_robust_sparse.cli.sections.machines import Machines

FLAGS = flags.FLAGS

DENSE = "dense-300-100"
DATASETS = {"digits": "mnist", "fashion": "fashion_mnist", "sample": "fashion_mnist_sample"}  # theirs -> ours
ATTACKS = ("fgsm", "pgd")
_NEVER_REWOUND = ("no_pruning", "reinit_rand", "reinit_none")
# New flags that change what a run is: name in the id -> flag. Their defaults leave the published id as it is.
_IN_THE_ID = {
    "rewind": "rewind_step",
    "cutoff": "cutoff",
    "label": "attack_label",
    "eps": "eps",
    "pgdsteps": "pgd_steps",
    "pgdstepsize": "pgd_step_size",
    "smoothing": "label_smoothing",
    "smoothvalid": "smooth_valid_labels",
    "percents": "percents",
    "seed": "seed",
}


@section("Experiment")
def define_experiment() -> None:
    """Defines what an experiment is called: where it is written, and where the analysis looks for it."""
    flags.DEFINE_enum("dataset", "digits", [*DATASETS, *trs.data.DATASETS], "Images, or --data.")
    flags.DEFINE_enum("model", DENSE, [DENSE, *trs.models.NETWORKS], "Network; the others are trained one by one.")
    flags.DEFINE_enum("attack", "fgsm", ATTACKS, "What is measured; with --adv_train also what is trained against.")
    flags.DEFINE_bool("adv_train", False, "Train on clean and attacked images, half and half; else on clean ones.")
    define_number("learning_rate", 0.0012, "Learning rate of Adam, constant.", excluded=0)
    define_number("l1_reg", 0.0, "Strength of the L1 penalty on the weights that are left.")
    flags.DEFINE_string("base_dir", "./output", "Folder of all experiments.")
    flags.DEFINE_bool("force", False, "Begin anew, removing what is there.")
    define_aliases({"lr": "learning_rate", "l1": "l1_reg"})


@section("Rounds")
def define_rounds() -> None:
    """Defines how often what is trained, pruned and rewound."""
    flags.DEFINE_enum(
        "experiment",
        "reinit_orig",
        trs.training.STRATEGIES,
        "Where a round begins: at the first weights, at new ones, or where the last one ended.",
    )
    flags.DEFINE_integer("trials", 10, "Independent repetitions.", 1)
    flags.DEFINE_integer("train_iters", 50000, "Optimisation steps per round.", 1)
    flags.DEFINE_integer("prune_iters", 20, "Prunings; there is one round more.", 0)
    flags.DEFINE_integer("eval_every", 500, "Steps between two measurements.", 1)
    flags.DEFINE_integer(
        "valid_size", 10000, "First training images, held out; 10000 is a fifth of fewer than 40000 images.", 1
    )
    flags.DEFINE_integer(
        "processes", None, "Processes of one thread that share the trials; by default many for small networks.", 1
    )
    flags.DEFINE_integer("stacked", None, "Trials a process trains together; by default all it has, if it can.", 1)
    flags.DEFINE_list("only_trials", None, "Internal: the trials of one of the processes that this script starts.")
    flags.DEFINE_integer(
        "eval_subset", None, "Measure during training on the first N held-out and test images; at the end on all.", 1
    )
    flags.DEFINE_bool("jit", False, "Compile the step with XLA; slower on CPUs.")
    flags.DEFINE_bool("resume", False, "Go on with what is there.")
    define_number("checkpoint_seconds", 60.0, "Least time between two checkpoints within a round.")


@section("Variants")
def define_variants() -> None:
    """Defines what may be otherwise than published; the name of an experiment tells."""
    flags.DEFINE_string(
        "rewind_step", "0", "Of reinit_orig: the step of round 0 to go back to, or trained for its end (the original)."
    )
    flags.DEFINE_enum(
        "cutoff", "inclusive", trs.sparsity.CUTOFFS, "Whether the weight at the cutoff goes too, as in the original."
    )
    flags.DEFINE_list(
        "percents",
        None,
        "Share that a pruning removes, layer=share; by default 0.2 of each layer and 0.1 of the last one.",
    )
    define_number("label_smoothing", 0.1, "Share of a training label spread over all classes.", 0, 1, excluded=1)
    flags.DEFINE_bool("smooth_valid_labels", True, "Smooth the labels of the held-out images too, as the original.")


@section("Attack")
def define_attack() -> None:
    """Defines the attack of training and measurement."""
    define_number("eps", 0.3, "Radius in pixels of [0, 1].", 0, 1)
    flags.DEFINE_integer("pgd_steps", 10, "Steps of PGD.", 1)
    define_number("pgd_step_size", 0.05, "Length of a step of PGD.")
    flags.DEFINE_enum(
        "attack_label", "predicted", ["predicted", "true"], "Lead away from the prediction, as the original, or truth."
    )


def define() -> None:
    """Defines all flags of a training run."""
    Data.define()
    for name, value in (("data", "mnist"), ("batch_size", 60), ("seed", 1234)):
        FLAGS.set_default(name, value)
    define_experiment()
    define_rounds()
    define_variants()
    define_attack()
    Machines.define()
    with section("Machines"):
        flags.DEFINE_string("devices", None, "GPUs that may be used, such as 0,1,2,3; by default all.")


def check() -> None:
    """Turns --dataset into --data, and checks combinations of flags before any work.

    Raises:
        BadFlag: naming the flags that do not go together.
    """
    translate_dataset()
    if FLAGS.strategy == "multi_worker":
        raise BadFlag(
            "--strategy=multi_worker: expected none or mirrored, because trials are split among the processes of "
            "one machine; on several machines run other experiments"
        )
    settings.check()
    if FLAGS.experiment == "no_pruning":
        if FLAGS["prune_iters"].present and FLAGS.prune_iters:
            raise BadFlag(f"--experiment=no_pruning: expected no --prune_iters. Received: {FLAGS.prune_iters}")
        FLAGS["prune_iters"].value = 0  # as it is recorded
    if FLAGS.force and FLAGS.resume:
        raise BadFlag("--resume goes on with a run and --force removes it; pass one of them. Received: both")
    if FLAGS.stacked is not None and FLAGS.stacked > 1 and FLAGS.strategy != "none":
        raise BadFlag(
            f"--stacked={FLAGS.stacked}: expected --strategy=none, for a stack has one device. Received: both"
        )
    only_trials()
    plan()
    percents()


def translate_dataset() -> None:
    """Sets --data by --dataset, and leaves --dataset without a value where --data alone is given.

    Raises:
        BadFlag: if both are given and differ.
    """
    value = DATASETS.get(FLAGS.dataset, FLAGS.dataset)
    if FLAGS["data"].present:
        if FLAGS["dataset"].present and FLAGS.data != value:
            raise BadFlag(
                f"--dataset={FLAGS.dataset} and --data={FLAGS.data} say the same; pass one of them. Received: both"
            )
        if not FLAGS["dataset"].present:
            FLAGS["dataset"].value = None  # its default is not what is run, and is not to be recorded
    else:
        FLAGS["data"].value = value


def dataset_name() -> str:
    """Returns what the data are called in paths: digits, fashion, sample, or our name."""
    ours = {value: name for name, value in DATASETS.items()}
    return ours.get(FLAGS.data, Path(FLAGS.data).expanduser().resolve().stem)


def rewind_step() -> int | str:
    """Returns the step of --rewind_step, or trained.

    Raises:
        BadFlag: if it is neither.
    """
    text = FLAGS.rewind_step
    if text != "trained" and not (text.isascii() and text.isdigit()):
        raise BadFlag(f"--rewind_step={text}: expected a step such as 0 or 500, or trained")
    return text if text == "trained" else int(text)


def only_trials() -> list[int] | None:
    """Returns the trials of --only_trials, or `None` without.

    Raises:
        BadFlag: if they are not trials of this run.
    """
    words = FLAGS.only_trials
    if words is None:
        return None
    numbers = [int(word) if word.isascii() and word.isdigit() else -1 for word in words]
    if not numbers or len(set(numbers)) < len(numbers) or any(not 0 <= each < FLAGS.trials for each in numbers):
        raise BadFlag(
            f"--only_trials: expected different trials from 0 to {FLAGS.trials - 1}, such as 0,1; the script passes it "
            f"to processes that it starts, leave it out. Received: {','.join(words)}"
        )
    return numbers


def plan() -> trs.training.RoundPlan:
    """Returns the plan of the flags."""
    with _as_flag():
        return trs.training.RoundPlan(
            train_iters=FLAGS.train_iters,
            prune_iters=FLAGS.prune_iters,
            eval_every=FLAGS.eval_every,
            batch_size=FLAGS.batch_size,
            strategy=FLAGS.experiment,
            rewind_step=rewind_step(),
            seed=FLAGS.seed,
        )


def percents() -> dict[str, float]:
    """Returns the shares of --percents by layer; empty without."""
    found = {}
    for word in FLAGS.percents or []:
        name, _, value = word.partition("=")
        try:
            found[name] = float(value)
        except ValueError:
            found[name] = -1.0
        if not 0 <= found[name] <= 1:
            raise BadFlag(
                f"--percents: expected layer=share with shares in [0, 1], such as output=0.1. Received: {word}"
            )
    return found


def rule(network: keras.Model) -> trs.sparsity.PruningRule:
    """Returns the pruning rule for the layers of `network`."""
    names = [kernel.name for kernel in trs.sparsity.masked_kernels.find(network)]
    shares = dict.fromkeys(names, 0.2) | {names[-1]: 0.1} | percents()
    if set(shares) != set(names):
        raise BadFlag(
            f"--percents: expected layers of {FLAGS.model}: {', '.join(names)}. "
            f"Received: {', '.join(sorted(set(shares) - set(names)))}"
        )
    return trs.sparsity.iterative_magnitude(shares, FLAGS.cutoff)


def network(images: trs.data.ImageDataset, seed: int) -> keras.Model:
    """Builds the network of --model with masked kernels."""
    shape = images.train_images.shape[1:]
    with about("model", "data"):
        if FLAGS.model == DENSE:
            return trs.models.unbiased_dense_300_100(images.num_classes, shape, seed=seed)
        return trs.models.build(
            FLAGS.model, num_classes=images.num_classes, input_shape=shape, kernel="masked", seed=seed
        )


def attack(name: str | None = None) -> trs.attacks.GradientAttack:
    """Returns the attack of --attack, or of another name."""
    found: trs.attacks.GradientAttack
    if (name or FLAGS.attack) == "fgsm":
        found = trs.attacks.LinfFGSM(FLAGS.eps, label=FLAGS.attack_label)
    else:
        found = trs.attacks.LinfPGD(FLAGS.eps, FLAGS.pgd_step_size, FLAGS.pgd_steps, label=FLAGS.attack_label)
    found.unrolled = FLAGS.model == DENSE and found.num_steps <= 50
    return found


def objective(attacked_by: trs.attacks.GradientAttack) -> trs.objectives.Objective:
    """Returns what training minimizes."""
    found: trs.objectives.Objective
    if FLAGS.adv_train:
        found = trs.objectives.CleanAndAdversarial(attacked_by, label_smoothing=FLAGS.label_smoothing)
    else:
        found = trs.objectives.Natural(FLAGS.label_smoothing)
    return trs.objectives.L1Penalty(found, FLAGS.l1_reg) if FLAGS.l1_reg else found


def optimizer() -> keras.optimizers.Optimizer:
    """Returns Adam with the published settings; as one operation per variable where there is one device."""
    kind = trs.training.FusedAdam if FLAGS.strategy == "none" else keras.optimizers.Adam
    return kind(FLAGS.learning_rate)


def processes(images: trs.data.ImageDataset) -> int:
    """Returns how many processes train; by default one for each trial of a small network, up to four per core."""
    if FLAGS.only_trials:
        return 1
    cores, small = os.cpu_count() or 1, _is_small(images)
    if FLAGS.processes is None and (cores == 1 or not small or tf.config.list_physical_devices("GPU")):
        return 1
    return min(FLAGS.processes or 4 * cores, FLAGS.trials)


def parts(images: trs.data.ImageDataset) -> list[list[int]]:
    """Returns the trials in groups: those of a process, which are trained together where the network allows it.

    Raises:
        BadFlag: if more are to be trained together than the network allows.
    """
    trials = only_trials() or list(range(FLAGS.trials))
    if (FLAGS.stacked or 1) > 1 and not _is_small(images):
        raise BadFlag(
            f"--stacked={FLAGS.stacked}: expected a network of masked dense layers without biases, {DENSE}. "
            f"Received: --model={FLAGS.model}"
        )
    number = processes(images)
    if number > 1:
        return lottery_processes.groups(trials, number)
    together = (FLAGS.stacked or len(trials)) if _is_small(images) else 1
    return lottery_processes.groups(trials, -(-len(trials) // min(together, len(trials))))


def _is_small(images: trs.data.ImageDataset) -> bool:
    return FLAGS.strategy == "none" and trs.models.can_be_stacked(network(images, 0))


def split(
    images: trs.data.ImageDataset,
) -> tuple[trs.training.LabeledImages, dict[str, trs.training.LabeledImages], trs.training.LabeledImages]:
    """Returns the images to train on, those that are measured during training by name, and all test images."""
    available, number = len(images.train_labels), FLAGS.valid_size
    if number == FLAGS["valid_size"].default and number > available // 4:
        number = available // 5
    if number >= available:
        raise BadFlag(f"--valid_size={number}: expected fewer than the training images. Received: {available} of them")
    x, y = images.train_images, images.train_labels
    if not isinstance(x, np.ndarray) or not isinstance(images.test_images, np.ndarray):
        raise BadFlag(f"--data={FLAGS.data}: expected images that fit into memory. Received: image files")
    train = trs.training.LabeledImages(x[number:], y[number:])
    smoothing = FLAGS.label_smoothing if FLAGS.smooth_valid_labels else 0.0
    some = min(FLAGS.eval_subset or number, number)
    valid = trs.training.LabeledImages(x[:some], y[:some], smoothing)
    test = trs.training.LabeledImages(images.test_images, images.test_labels)
    part = trs.training.LabeledImages(images.test_images[: FLAGS.eval_subset], images.test_labels[: FLAGS.eval_subset])
    return train, {"valid": valid, "test": part}, test


def directory(experiment: str | None = None, attack_name: str | None = None, adv_train: bool | None = None) -> Path:
    """Returns the directory of the experiment of the flags, or of another one beside it."""
    place = Path(FLAGS.base_dir).expanduser() / dataset_name() / FLAGS.model
    experiment = experiment or FLAGS.experiment
    return place / experiment / (attack_name or FLAGS.attack) / experiment_id(adv_train, experiment)


def experiment_id(adv_train: bool | None = None, experiment: str | None = None) -> str:
    """Returns `lr-0.0012_l1-0.0_advtrain-false`, and what else is not as published and belongs to the experiment."""
    adversarial = FLAGS.adv_train if adv_train is None else adv_train
    return "_".join([*_rates(), f"advtrain-{str(adversarial).lower()}", *_variants(experiment)])


def table_name() -> str:
    """Returns what tables of the flags are called: by the data, and what is not as published."""
    network = [] if FLAGS.model == DENSE else [FLAGS.model]
    rates = [rate for rate in _rates() if rate not in ("lr-0.0012", "l1-0.0")]
    return "_".join([dataset_name(), *network, *rates, *_variants("reinit_orig")])


def place_flags() -> list[str]:
    """Returns the arguments by which run_lottery_analysis.py finds the experiment of the flags."""
    names = ("model", "attack", "adv_train", "learning_rate", "l1_reg", "base_dir", *_IN_THE_ID.values())
    own = [FLAGS[name] for name in names if FLAGS[name].value != FLAGS[name].default]
    return [flag.serialize() for flag in [FLAGS["dataset" if FLAGS.dataset else "data"], *own]]


def _rates() -> list[str]:
    return [f"lr-{FLAGS.learning_rate!r}", f"l1-{FLAGS.l1_reg!r}"]


def _variants(experiment: str | None) -> list[str]:
    parts = []
    for key, name in _IN_THE_ID.items():
        value = FLAGS[name].value
        if value == FLAGS[name].default or (name == "rewind_step" and experiment in _NEVER_REWOUND):
            continue
        parts.append(f"{key}-{'+'.join(value) if isinstance(value, list) else str(value).lower()}")
    return parts


@contextlib.contextmanager
def _as_flag():
    try:
        yield
    except ValueError as error:
        raise BadFlag(str(error).replace("`", "--", 1).replace("`", "", 1)) from error
