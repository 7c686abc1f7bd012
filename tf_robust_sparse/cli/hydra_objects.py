"""What the flags of pruning by learned scores stand for: networks with their sources, models, objectives."""

from pathlib import Path
from typing import Any

import keras
from absl import flags

import tf_robust_sparse as trs
from tf_robust_sparse.cli import certified_flags, hydra_flags, training_run
from tf_robust_sparse.cli.command_line import BadFlag, about
from tf_robust_sparse.cli.sections.attacks import ATTACKS, TrainingAttack
from tf_robust_sparse.cli.sections.method import Network

FLAGS = flags.FLAGS


def network(run: training_run.TrainingRun, phase: trs.training.Phase, source: Path | None) -> keras.Model:
    """Builds the network of a phase with the weights, scores and fractions that it begins with."""
    is_subnet = phase.name != "pretrain" or hydra_flags.starts_sparse()
    if phase.name != "pretrain" and source is None and not run.resuming:
        raise BadFlag(
            f"--exp_mode={phase.name} --resume: expected a run with a finished epoch in {run.directory}, or "
            "--source_net=DIR in place of --resume. Received: neither"
        )
    kernel, synchronized = "subnet" if is_subnet else "plain", run.strategy.num_replicas_in_sync > 1
    built = Network.read().build(run.images, kernel, FLAGS.seed, synchronized)
    trs.layers.use_unbiased_variance(built)  # as PyTorch's
    if FLAGS.init_type and phase.name == "pretrain":
        trs.models.initialize_kernels(built, FLAGS.init_type, FLAGS.seed)
    found = loaded(source, run.images, phase.name == "finetune") if source is not None and not run.resuming else None
    if found is not None:
        with about("source_net"):
            trs.saving.copy_weights(found, built)
    if is_subnet and run.resuming:  # scores and all come from the checkpoint
        with about("resume"):
            written = trs.saving.read_metadata(run.directory / "checkpoints" / "last.weights.h5")["config"]
            trs.sparsity.set_keep_fractions(built, written["keep_fractions"])
    elif is_subnet:
        _begin_scores(run, built, phase, found)
    phase.begin(built)
    return built


def _begin_scores(
    run: training_run.TrainingRun, built: keras.Model, phase: trs.training.Phase, source: keras.Model | None
) -> None:
    scaled = FLAGS.scaled_score_init if FLAGS.exp_mode != "all" else phase.name == "prune"
    if FLAGS.scores_init_type and phase.name != "finetune":
        trs.sparsity.random_scores(built, FLAGS.scores_init_type, FLAGS.seed)
    elif scaled and (source is not None or phase.name == "pretrain"):
        trs.sparsity.scaled_scores(built)
    elif phase.name == "finetune" and source is not None:
        trs.sparsity.set_keep_fractions(built, _fractions_of(source))
        return
    if FLAGS.snip_init:
        x, y = run.images.train_images[: FLAGS.batch_size], run.images.train_labels[: FLAGS.batch_size]
        trs.sparsity.snip_scores(built, list(trs.data.test_dataset(x, y, FLAGS.batch_size)))
    trs.sparsity.set_keep_fractions(built, trs.sparsity.keep_fractions(built, FLAGS.k, FLAGS.allocation))
    if FLAGS.scale_rand_init:
        trs.sparsity.rescale_kernels(built)
    empty = trs.sparsity.statistics.empty_kernels(built)
    if empty:
        print(f"Warning: --k={FLAGS.k:g} leaves no connection in {', '.join(empty)}: nothing passes there")


def _fractions_of(source: keras.Model) -> dict[str, float]:
    """Returns the fractions that the prune phase kept of each kernel, after a look at their sum."""
    kernels = trs.sparsity.scored_layers(source)
    if not kernels:
        raise BadFlag(
            "--exp_mode=finetune: expected a --source_net that was pruned, or --scaled_score_init to prune it by "
            "magnitude. Received: a network without scores"
        )
    entries = [int(layer.kernel.shape.num_elements()) for layer in kernels]
    kept = sum(layer.kept for layer in kernels)
    if abs(kept - FLAGS.k * sum(entries)) > len(kernels) + 1e-6 * sum(entries):
        fraction = f"{kept / sum(entries):.4g}"
        raise BadFlag(f"--k={FLAGS.k:g} does not match the prune phase, which kept {fraction}; pass --k={fraction}")
    return {layer.name: layer.keep_fraction for layer in kernels}


def loaded(path: Path, images: trs.data.ImageDataset, masked: bool) -> keras.Model:
    """Loads --source_net: a network of ours, or a PyTorch checkpoint into one of the same architecture.

    Args:
        path: Of the network, its run or the checkpoint.
        images: The data, whose size and classes an architecture is built for.
        masked: Whether the scores of a checkpoint leave --k of each kernel.
    """
    with about("source_net"):
        if path.suffix not in trs.saving.PYTORCH_SUFFIXES:
            return trs.load_network(path)
        found = Network.read().build(images, "subnet", FLAGS.seed)
        if masked:
            trs.sparsity.set_keep_fractions(found, FLAGS.k)
        try:
            trs.saving.import_pytorch_weights(path, found)
        except ImportError as error:
            raise BadFlag(f"--source_net={path}: {error}") from error
        return found


def model(run: training_run.TrainingRun, built: keras.Model, phase: str) -> trs.RobustModel:
    """Returns the compiled model that trains `built` in a phase."""
    certified_flags.check_network(built)
    settings: dict[str, Any] = {
        **{"validation_attack": _validation_attack(), "seed": FLAGS.seed},
        "validation_checks": certified_flags.validation_checks(),
    }
    steps = run.steps_per_epoch
    if FLAGS.trainer == "freeadv":
        objective = trs.training.FreeAT(FLAGS.batch_size, FLAGS.epsilon, FLAGS.n_repeats)
        found: trs.RobustModel = trs.training.FreeRobustModel(built, objective, **settings)
        steps *= FLAGS.n_repeats
    else:
        found = trs.RobustModel(built, _objective(run, phase), **settings)
    rates = hydra_flags.rates(phase)
    optimizer = trs.training.coupled(
        FLAGS.optimizer, trs.training.PerEpoch(rates, steps), FLAGS.weight_decay, FLAGS.momentum
    )
    found.compile(
        keras.optimizers.LossScaleOptimizer(optimizer) if FLAGS.mixed_precision else optimizer, metrics=["accuracy"]
    )
    return found


def measure(network: keras.Model, images: trs.data.ImageDataset) -> dict[str, Any]:
    """Returns what a trainer measures on the test images beside accuracies, as entries of `results.json`.

    Where nothing is trained, what --val_method measures counts too.
    """
    by_bounds = FLAGS.trainer in certified_flags.TRAINERS
    by_bounds |= bool(FLAGS.load_model) and FLAGS.val_method in certified_flags.BOUNDS
    return certified_flags.verified(network, images) if by_bounds else {}


def _validation_attack() -> trs.attacks.GradientAttack | None:
    if not hydra_flags.attacks_held_out():
        return None
    kind = ATTACKS[FLAGS.norm]
    return kind(FLAGS.epsilon, FLAGS.step_size, FLAGS.num_steps, random_start=not FLAGS.const_init)


def _objective(run: training_run.TrainingRun, phase: str) -> trs.objectives.Objective:
    if FLAGS.trainer in certified_flags.TRAINERS:
        return certified_flags.objective(run.steps_per_epoch, hydra_flags.schedule_length(phase))
    if FLAGS.trainer == "base":
        return trs.objectives.Natural()
    if FLAGS.trainer == "adv":
        return trs.objectives.TRADES(
            TrainingAttack.read().build(), FLAGS.beta, FLAGS.trades_start, clean_updates=FLAGS.clean_updates
        )
    return trs.objectives.Stability(FLAGS.noise_std, FLAGS.beta)
