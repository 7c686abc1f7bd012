"""Flags that several scripts share, and the tables from a name to an object."""

import os
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from absl import flags

import tf_robust_sparse as trs
from run_scripts.command_line import BadFlag, define_aliases, define_number

FLAGS = flags.FLAGS

OBJECTIVES = {
    "natural": lambda attack, beta: trs.objectives.Natural(),
    "at": lambda attack, beta: trs.objectives.AT(attack),
    "mat": lambda attack, beta: trs.objectives.MAT(attack),
    "trades": trs.objectives.TRADES,
    "mart": trs.objectives.MART,
    "rst": trs.objectives.TRADES,  # on labelled and pseudo-labelled images
}
SPARSIFIERS = {"none": "plain", "connectivity_sampling": "rewiring", "magnitude": "masked"}  # -> kernel form
ATTACKS = {"linf": trs.attacks.LinfPGD, "l2": trs.attacks.L2PGD}


def define_data() -> None:
    """Defines which images are used."""
    flags.DEFINE_string(
        "data", "cifar10", f"One of {', '.join(trs.data.DATASETS)}; or a path: an .npz file, a folder of images."
    )
    flags.DEFINE_string("data_dir", None, "Folder that holds the official files of the data set.")
    flags.DEFINE_integer("image_size", None, "Height and width to which a folder of images is resized.", lower_bound=1)
    flags.DEFINE_integer("test_examples", None, "Use the first N test images only.", lower_bound=1)
    flags.DEFINE_integer("n_classes", None, "Checked against the data, which know it.", lower_bound=2)
    flags.DEFINE_integer("batch_size", 128, "Images per step, over all replicas.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Fixes every random draw.", lower_bound=0, upper_bound=2**31 - 1)
    define_aliases({"batch": "batch_size", "b": "batch_size"})


def define_network() -> None:
    """Defines the network and how sparse it is: together with the data, what a run is called."""
    flags.DEFINE_enum("model", "vgg16", sorted(trs.models.NETWORKS), "Architecture.")
    flags.DEFINE_enum("objective", "at", sorted(OBJECTIVES), "What training minimises.")
    flags.DEFINE_bool("sparse_train", False, "Train sparse from the first step, by --sparsifier.", short_name="s")
    flags.DEFINE_enum(
        "sparsifier",
        None,
        sorted(SPARSIFIERS),
        "How connections are chosen; connectivity_sampling with --sparse_train.",
    )
    define_number("connectivity", 0.01, "Fraction of the kernel entries kept.", 0, 1, excluded=0)
    define_aliases({"pc": "connectivity"})


def define_evaluation() -> None:
    """Defines the attack that the reported robust accuracy is measured with."""
    define_number(
        "pgd_epsilon", None, "Radius of the test attack in pixels of [0, 1]; by default --epsilon, or 8/255.", 0, 1
    )
    flags.DEFINE_integer("pgd_iters", 50, "Steps of the test attack, each 2.5 * epsilon / steps long.", lower_bound=1)
    flags.DEFINE_integer("pgd_restarts", 10, "Random starts of the test attack.", lower_bound=1)


def define_training() -> None:
    """Defines how a network is trained."""
    flags.DEFINE_integer("epochs", 200, "Passes over the training images.", lower_bound=1)
    flags.DEFINE_integer("train_examples", None, "Use N random training images only.", lower_bound=1)
    flags.DEFINE_integer(
        "validation_examples", None, "Training images held out for selection; 1000, or a tenth if fewer.", lower_bound=1
    )
    define_number(
        "learning_rate", 0.1, "Initial learning rate; falls tenfold after 1/2 and 3/4 of the steps.", excluded=0
    )
    define_number("weight_decay", 5e-4, "Initial weight decay per step, not multiplied by the learning rate.")
    define_number("momentum", 0.9, "Momentum of SGD.", 0, 1, excluded=1)
    flags.DEFINE_bool("decay_bias_and_bn", True, "Whether biases and batch norm parameters decay too.")
    flags.DEFINE_enum("norm", "linf", sorted(ATTACKS), "Norm of the training attack and of the test attack.")
    define_number("epsilon", 8 / 255, "Radius of the training attack in pixels of [0, 1].")
    define_number("step_size", 2 / 255, "Step of the training attack in pixels of [0, 1].")
    flags.DEFINE_integer("num_steps", 10, "Steps of the training attack.", lower_bound=0)
    define_number("beta", 6.0, "Weight of the robust term of TRADES and MART.")
    flags.DEFINE_string("pseudo_labels", None, "File of pseudo-labelled images for --objective=rst, .npz or pickle.")
    define_number("rst_frac", 0.5, "Share of pseudo-labelled images in a batch.", 0, 1, excluded=0)
    flags.DEFINE_enum(
        "augmentation",
        "shift",
        ["shift", "crop", "none"],
        "Random shifts of up to a tenth; or crops after padding by 4.",
    )
    flags.DEFINE_bool("flip", None, "Mirror training images at random; by default unless they are digits.")
    define_number("noise_scaling", 1e-6, "Connectivity sampling: noise in units of the learning rate.")
    define_number("l1", 0.0, "Connectivity sampling: strength of the L1 prior.")
    flags.DEFINE_enum(
        "dormant_policy", "freeze", ["freeze", "reference"], "Connectivity sampling: whether dormant entries may drift."
    )
    flags.DEFINE_enum(
        "init_policy", "reference", ["reference", "exact"], "Connectivity sampling: connections at the start."
    )
    flags.DEFINE_enum("layer_prior", "size", ["size", "target"], "Connectivity sampling: which layers grow.")
    flags.DEFINE_enum(
        "pruning_schedule", "polynomial", ["polynomial", "one_shot"], "Magnitude pruning: gradual, or at once."
    )
    define_number("pruning_begin", 0.0, "Magnitude pruning: begin, as a fraction of all steps.", 0, 1, excluded=1)
    define_number("pruning_end", 0.5, "Magnitude pruning: end, as a fraction of all steps.", 0, 1, excluded=0)
    flags.DEFINE_integer("pruning_frequency", 100, "Magnitude pruning: steps between two prunings.", lower_bound=1)
    flags.DEFINE_enum(
        "allocation", "uniform", ["uniform", "global"], "Magnitude pruning: per kernel, or over all kernels."
    )
    flags.DEFINE_enum(
        "padding_mode", "tf_same", ["tf_same", "symmetric"], "How convolutions pad; symmetric as in PyTorch."
    )
    flags.DEFINE_bool("mixed_precision", False, "Compute in float16; theta, masks and logits stay float32.")
    flags.DEFINE_enum("strategy", "none", ["none", "mirrored", "multi_worker"], "tf.distribute strategy.")
    flags.DEFINE_integer(
        "num_replicas", None, "Replicas of --strategy=mirrored; on a CPU, that many parts of it.", lower_bound=1
    )
    define_aliases(
        {
            "n_epochs": "epochs",
            "e": "epochs",
            "l_rate": "learning_rate",
            "lr": "learning_rate",
            "w_decay": "weight_decay",
            "wd": "weight_decay",
            "eps_iter": "step_size",
            "num_iter": "num_steps",
        }
    )


def check() -> None:
    """Checks combinations of flags, before any work.

    Raises:
        BadFlag: naming the flags that do not go together.
    """
    if FLAGS.sparse_train and FLAGS.sparsifier == "none":
        raise BadFlag(
            "--sparse_train asks for a sparse network and --sparsifier=none for a dense one; drop one of them"
        )
    if "sparsifier" in FLAGS and sparsifier_name() == "none" and FLAGS["connectivity"].present:
        raise BadFlag(
            f"--connectivity={FLAGS.connectivity:g} is given but the network is dense; add --sparse_train, or "
            "--sparsifier"
        )
    check_data_name()
    if "strategy" not in FLAGS:
        return
    if (FLAGS.pseudo_labels is None) == (FLAGS.objective == "rst"):
        raise BadFlag(
            "--objective=rst and --pseudo_labels=FILE go together. "
            f"Received: --objective={FLAGS.objective} --pseudo_labels={FLAGS.pseudo_labels}"
        )
    if FLAGS.objective == "rst" and not 1 <= int(FLAGS.batch_size * FLAGS.rst_frac) < FLAGS.batch_size:
        raise BadFlag(f"--rst_frac={FLAGS.rst_frac:g} leaves no image of one kind in a batch of {FLAGS.batch_size}")
    if FLAGS.norm == "linf" and FLAGS.epsilon > 1:
        raise BadFlag(f"--epsilon={FLAGS.epsilon:g}: expected pixels of [0, 1], such as 8/255")
    if sparsifier_name() == "magnitude" and not FLAGS.pruning_begin < FLAGS.pruning_end:
        raise BadFlag(f"--pruning_begin={FLAGS.pruning_begin:g} must be before --pruning_end={FLAGS.pruning_end:g}")
    for name, needed in (
        *(
            (name, "connectivity_sampling")
            for name in ("noise_scaling", "l1", "dormant_policy", "init_policy", "layer_prior")
        ),
        *((name, "magnitude") for name in ("pruning_schedule", "pruning_begin", "pruning_end", "allocation")),
    ):
        if FLAGS[name].present and sparsifier_name() not in (needed, "none"):
            raise BadFlag(f"--{name} belongs to --sparsifier={needed}. Received: --sparsifier={sparsifier_name()}")
    if FLAGS.strategy == "multi_worker" and "TF_CONFIG" not in os.environ:
        raise BadFlag(
            "--strategy=multi_worker needs the environment variable TF_CONFIG on every machine, such as "
            '\'{"cluster": {"worker": ["host1:2222", "host2:2222"]}, "task": {"type": "worker", "index": 0}}\''
        )
    if FLAGS.num_replicas is not None and FLAGS.strategy != "mirrored":
        raise BadFlag(f"--num_replicas belongs to --strategy=mirrored. Received: --strategy={FLAGS.strategy}")


def check_data_name() -> None:
    """Checks that --data names a data set or something on disk.

    Raises:
        BadFlag: if it does not.
    """
    if FLAGS.data in trs.data.DATASETS or FLAGS.data.endswith(".npz") or Path(FLAGS.data).expanduser().is_dir():
        return
    raise BadFlag(
        f"--data={FLAGS.data}: expected one of {', '.join(trs.data.DATASETS)}, an .npz file or a folder of images"
    )


def sparsifier_name() -> str:
    """Returns the sparsifier that --sparsifier and --sparse_train stand for."""
    return FLAGS.sparsifier or ("connectivity_sampling" if FLAGS.sparse_train else "none")


def run_name() -> str:
    """Returns the directory name of a run with these flags: data, model, objective and how sparse."""
    sparsifier = sparsifier_name()
    how = {"none": "dense", "connectivity_sampling": "sparse"}.get(sparsifier, sparsifier)
    degree = "" if sparsifier == "none" else repr(FLAGS.connectivity)
    return f"{Path(FLAGS.data).stem}_{FLAGS.model}_{FLAGS.objective}_{how}{degree}"


def default_directory() -> Path:
    """Returns where a run with these flags is written unless --output_dir says otherwise."""
    return Path("saved_models") / run_name()


def dataset() -> trs.data.ImageDataset:
    """Reads the data set of --data, cut down to --train_examples and --test_examples."""
    found = trs.data.load(FLAGS.data, FLAGS.data_dir, FLAGS.image_size)
    if FLAGS.n_classes is not None and FLAGS.n_classes != found.num_classes:
        raise BadFlag(f"--n_classes={FLAGS.n_classes}: {FLAGS.data} has {found.num_classes} classes; drop the flag")
    train_examples = FLAGS.train_examples if "train_examples" in FLAGS else None
    return found.take(train_examples, FLAGS.test_examples, seed=FLAGS.seed)


def attack() -> trs.attacks.GradientAttack:
    """Returns the training attack."""
    return ATTACKS[FLAGS.norm](FLAGS.epsilon, FLAGS.step_size, FLAGS.num_steps)


def objective() -> trs.objectives.Objective:
    """Returns the objective of --objective."""
    return OBJECTIVES[FLAGS.objective](attack(), FLAGS.beta)


def network(images: trs.data.ImageDataset, synchronized: bool = False) -> keras.Model:
    """Builds the network of --model for the data, with the kernel form its sparsifier needs."""
    kernel = SPARSIFIERS[sparsifier_name()]
    arguments: dict[str, Any] = {"connectivity": FLAGS.connectivity} if kernel == "rewiring" else {}
    return trs.models.build(
        FLAGS.model,
        num_classes=images.num_classes,
        input_shape=images.train_images.shape[1:],
        kernel=kernel,
        padding_mode=FLAGS.padding_mode,
        seed=FLAGS.seed,
        synchronized_batch_norm=synchronized,
        **arguments,
    )


def sparsifier(total_steps: int) -> trs.sparsity.Sparsifier | None:
    """Returns the sparsifier, or `None` for a dense network."""
    name = sparsifier_name()
    if name == "connectivity_sampling":
        return trs.sparsity.ConnectivitySampling(
            FLAGS.connectivity,
            noise_scaling=FLAGS.noise_scaling,
            l1=FLAGS.l1,
            dormant_policy=FLAGS.dormant_policy,
            init_policy=FLAGS.init_policy,
            layer_prior=FLAGS.layer_prior,
            seed=FLAGS.seed,
        )
    if name == "magnitude":
        schedule = None
        if FLAGS.pruning_schedule == "polynomial":
            begin = int(FLAGS.pruning_begin * total_steps)
            end = max(begin + 1, int(FLAGS.pruning_end * total_steps))
            # The last pruning must fall on the end, where the target is reached.
            frequency = max(1, min(FLAGS.pruning_frequency, end - begin))
            end = begin + (end - begin) // frequency * frequency
            schedule = trs.sparsity.schedules.polynomial(FLAGS.connectivity, end, begin_step=begin, frequency=frequency)
        return trs.sparsity.MagnitudePruning(FLAGS.connectivity, schedule, FLAGS.allocation)
    return None


def optimizer(total_steps: int) -> keras.optimizers.Optimizer:
    """Returns SGD with the paper's decay and schedule."""
    sgd = trs.training.sgdw(
        FLAGS.learning_rate, FLAGS.weight_decay, total_steps, FLAGS.momentum, FLAGS.decay_bias_and_bn
    )
    return keras.optimizers.LossScaleOptimizer(sgd) if FLAGS.mixed_precision else sgd


def strategy() -> tf.distribute.Strategy:
    """Returns the strategy of --strategy; must come before anything else that touches devices."""
    if FLAGS.strategy == "multi_worker":
        return tf.distribute.MultiWorkerMirroredStrategy()
    if FLAGS.strategy == "mirrored":
        kind = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
        number = FLAGS.num_replicas
        if kind == "CPU" and number is not None:
            tf.config.set_logical_device_configuration(
                tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * number
            )
        devices = [device.name for device in tf.config.list_logical_devices(kind)][:number]
        if number is not None and len(devices) < number:
            raise BadFlag(f"--num_replicas={number}: this machine has {len(devices)} devices of type {kind}")
        return tf.distribute.MirroredStrategy([name.replace("/device:", "") for name in devices])
    return tf.distribute.get_strategy()


def test_attack(norm: str = "linf") -> trs.attacks.GradientAttack:
    """Returns the attack that the reported robust accuracy is measured with."""
    epsilon = pgd_epsilon()
    return ATTACKS[norm](
        epsilon, 2.5 * epsilon / FLAGS.pgd_iters, FLAGS.pgd_iters, restarts=FLAGS.pgd_restarts, seed=FLAGS.seed
    )


def pgd_epsilon() -> float:
    """Returns the radius of the test attack."""
    if FLAGS.pgd_epsilon is not None:
        return FLAGS.pgd_epsilon
    return FLAGS.epsilon if "epsilon" in FLAGS else 8 / 255
