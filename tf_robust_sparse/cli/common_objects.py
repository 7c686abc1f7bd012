"""What the shared flags stand for: images, attacks, objectives, networks, sparsifiers, optimizers, strategies."""

import contextlib
import math
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import flags

import tf_robust_sparse as trs
from tf_robust_sparse.cli import common_flags, sparsity_flags, workers
from tf_robust_sparse.cli.command_line import BadFlag, about

FLAGS = flags.FLAGS


def dataset() -> trs.data.ImageDataset:
    """Reads the data set of --data, cut down to --train_examples and --test_examples."""
    with about("data", "data_dir", "image_size"), _notes():
        found = trs.data.load(FLAGS.data, FLAGS.data_dir, FLAGS.image_size)
    if FLAGS.n_classes is not None and FLAGS.n_classes != found.num_classes:
        raise BadFlag(f"--n_classes={FLAGS.n_classes}: expected {found.num_classes}, the classes of {FLAGS.data}")
    for name, available in (("train_examples", len(found.train_labels)), ("test_examples", len(found.test_labels))):
        if name in FLAGS and (FLAGS[name].value or 0) > available:
            raise BadFlag(f"--{name}={FLAGS[name].value}: expected at most the {available} that {FLAGS.data} has")
    train_examples = FLAGS.train_examples if "train_examples" in FLAGS else None
    if "data_fraction" in FLAGS and FLAGS.data_fraction is not None:
        train_examples = max(1, int(FLAGS.data_fraction * len(found.train_labels)))
    found = found.take(train_examples, FLAGS.test_examples, seed=FLAGS.seed)
    check_memory(found)
    return found


@contextlib.contextmanager
def _notes() -> Iterator[None]:
    """Prints what readers warn of, such as files that they skip, as notes."""
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always", UserWarning)
        try:
            yield
        finally:
            for note in notes:
                print(f"Note: {note.message}")


def check_memory(images: trs.data.ImageDataset) -> None:
    """Checks that the test images, which evaluations hold decoded and twice, fit into memory.

    Raises:
        BadFlag: if they do not.
    """
    needed = 2 * 4 * math.prod(images.test_images.shape)
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        fitting = int(len(images.test_labels) * there / needed / 2)
        raise BadFlag(
            f"--test_examples: expected as many as fit into memory, such as {fitting}, for attacks hold them all. "
            f"Received: {len(images.test_labels)} images of {needed / 2**30:.0f} GiB, {there / 2**30:.0f} GiB of memory"
        )


def test_batches(images: trs.data.ImageDataset) -> tf.data.Dataset:
    """Returns the test images in batches."""
    return trs.data.test_dataset(images.test_images, images.test_labels, FLAGS.batch_size)


def attack() -> trs.attacks.GradientAttack:
    """Returns the training attack."""
    return common_flags.ATTACKS[FLAGS.norm](FLAGS.epsilon, FLAGS.step_size, FLAGS.num_steps)


def objective() -> trs.objectives.Objective:
    """Returns the objective of --objective."""
    return common_flags.OBJECTIVES[FLAGS.objective](attack(), FLAGS.beta, FLAGS.trades_start)


def network(images: trs.data.ImageDataset, synchronized: bool = False, kernel: str | None = None) -> keras.Model:
    """Builds the network of --model for the data, with the kernel form its sparsifier needs or another one."""
    kernel = kernel or sparsity_flags.SPARSIFIERS[sparsity_flags.sparsifier_name()]
    arguments: dict[str, Any] = {"connectivity": FLAGS.connectivity} if kernel == "rewiring" else {}
    with about("model", "data"):
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


def load_source(network: keras.Model) -> None:
    """Gives the network the weights of --source_net, if there is one."""
    if FLAGS.source_net:
        with about("source_net"):
            trs.saving.copy_weights(trs.load_network(FLAGS.source_net), network)


def pruning_images(
    images: trs.data.ImageDataset, network: keras.Model, objective: trs.objectives.Objective
) -> np.ndarray:
    """Returns --obs_images training images as `objective` trains on them, attacked or not."""
    some = images.train_images[: FLAGS.obs_images], images.train_labels[: FLAGS.obs_images]
    batches = trs.data.test_dataset(*some, FLAGS.batch_size)
    with trs.layers.cached_for_inference(network):
        parts = [objective.perturb(network, x, y, seed=FLAGS.seed) for x, y in batches]
    return np.concatenate(parts)


def sparsifier(total_steps: int, images: Callable[[], np.ndarray] | None = None) -> trs.sparsity.Sparsifier | None:
    """Returns the sparsifier, or `None` for a dense network; `images` returns those that obs prunes by."""
    name = sparsity_flags.sparsifier_name()
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
    if name in ("magnitude", "channel_magnitude", "block"):
        schedule = None
        if FLAGS.pruning_schedule == "polynomial":
            begin = int(FLAGS.pruning_begin * total_steps)
            end = max(begin + 1, int(FLAGS.pruning_end * total_steps))
            # The last pruning must fall on the end, where the target is reached.
            frequency = max(1, min(FLAGS.pruning_frequency, end - begin))
            end = begin + (end - begin) // frequency * frequency
            schedule = trs.sparsity.schedules.polynomial(FLAGS.connectivity, end, begin_step=begin, frequency=frequency)
        arguments = (FLAGS.connectivity, schedule, FLAGS.allocation)
        if name == "magnitude":
            return trs.sparsity.MagnitudePruning(*arguments)
        if name == "block":
            sides, pooling = sparsity_flags.block(), FLAGS.block_pooling
            return trs.sparsity.BlockPruning(FLAGS.connectivity, sides, pooling, schedule, FLAGS.allocation)
        return trs.sparsity.ChannelMagnitudePruning(*arguments, FLAGS.pruning_criterion)
    if name == "static":
        return trs.sparsity.SET(FLAGS.connectivity, drop_fraction=0.0, allocation=FLAGS.allocation, seed=FLAGS.seed)
    if name == "obs":
        return trs.sparsity.OBS(
            images() if images else None, FLAGS.connectivity, allocation=FLAGS.allocation, seed=FLAGS.seed
        )
    if name == "n_m":
        return trs.sparsity.NM(*sparsity_flags.n_m(), decay=FLAGS.n_m_decay, fixed=FLAGS.n_m_fixed)
    given = {"interval": FLAGS.move_interval, "drop_fraction": FLAGS.drop_fraction}
    settings = {key: value for key, value in given.items() if value is not None}
    settings |= {"allocation": FLAGS.allocation, "seed": FLAGS.seed}
    if name in ("set", "rigl"):
        kind = {"set": trs.sparsity.SET, "rigl": trs.sparsity.RigL}[name]
        return kind(FLAGS.connectivity, end_step=max(1, int(FLAGS.move_end * total_steps)), **settings)
    if name in ("flying_bird", "flying_bird_plus"):
        if FLAGS.move_interval is not None:
            settings["late_interval"] = FLAGS.move_interval * 4 // 3
        settings |= {"end_step": total_steps, "growth": FLAGS.growth}
        if name == "flying_bird":
            return trs.sparsity.FlyingBird(FLAGS.connectivity, **settings)
        first = int(FLAGS.adapt_from * FLAGS.epochs)
        return trs.sparsity.FlyingBirdPlus(FLAGS.connectivity, start_epoch=first, **settings)
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
        return workers.connect()
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
        # Parts of one CPU that wait for each other in collective operations may starve each other of threads.
        reduction = tf.distribute.ReductionToOneDevice() if kind == "CPU" else None
        return tf.distribute.MirroredStrategy([name.replace("/device:", "") for name in devices], reduction)
    return tf.distribute.get_strategy()


def test_attack(norm: str = "linf") -> trs.attacks.GradientAttack:
    """Returns the attack that the reported robust accuracy is measured with."""
    epsilon = common_flags.pgd_epsilon()
    return common_flags.ATTACKS[norm](
        epsilon, 2.5 * epsilon / FLAGS.pgd_iters, FLAGS.pgd_iters, restarts=FLAGS.pgd_restarts, seed=FLAGS.seed
    )
