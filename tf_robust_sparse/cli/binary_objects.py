"""What the flags of binary sub-networks stand for: networks, objectives, optimizers, callbacks."""

import math
from pathlib import Path
from typing import Any

import keras
import numpy as np
from absl import flags

import tf_robust_sparse as trs
from tf_robust_sparse.cli import binary_flags, run_directory, training_run
from tf_robust_sparse.cli.command_line import BadFlag, about
from tf_robust_sparse.cli.sections.attacks import ATTACKS, TrainingAttack
from tf_robust_sparse.cli.sections.data import Data

FLAGS = flags.FLAGS


def describe(network: keras.Model) -> dict[str, Any]:
    """Returns the entries of `results.json` that say what the network is."""
    names = ("trainer", "conv_type", "init", "prune_rate", "pr_scale", "end_with_bn", "score_init_scale")
    planned = {each.name: each.keep_fraction for each in trs.sparsity.scored_layers(network)}
    return {**{name: FLAGS[name].value for name in names}, "keep_fractions": planned}


def _variant() -> trs.models.Variant:
    batch_norm = FLAGS.bn_type or ("NonAffineBatchNorm" if binary_flags.is_subnet() else "LearnedBatchNorm")
    return trs.models.Variant(
        normalization=None if FLAGS.normalize == "none" else FLAGS.normalize,
        affine_batch_norm=batch_norm == "LearnedBatchNorm",
        classifier_bias=False,
        final_batch_norm=FLAGS.end_with_bn,
        leaky_relu_slope=FLAGS.leaky_relu_slope if FLAGS.nonlinearity == "leaky_relu" else 0.0,
        first_kernel="plain" if FLAGS.first_layer_dense else binary_flags.kernel("first_layer_type"),
        last_kernel="plain" if FLAGS.last_layer_dense else binary_flags.kernel("last_layer_type"),
        stochastic=FLAGS.binconv_stochastic or FLAGS.binconv_freeze_rand,
    )


def built(images: trs.data.ImageDataset, synchronized: bool = False, kernel: str | None = None) -> keras.Model:
    """Builds the network with kernels and scores as they are drawn, and its fractions."""
    with about("model", "data"):
        network = trs.models.build(
            FLAGS.model,
            num_classes=images.num_classes,
            input_shape=images.train_images.shape[1:],
            kernel=kernel or binary_flags.kernel("conv_type"),
            padding_mode=FLAGS.padding_mode,
            seed=FLAGS.seed,
            synchronized_batch_norm=synchronized,
            variant=_variant(),
        )
    trs.layers.use_unbiased_variance(network)
    slope = FLAGS.leaky_relu_slope if FLAGS.nonlinearity == "leaky_relu" else 0.0
    scaled_by = FLAGS.prune_rate if FLAGS.scale_fan and binary_flags.is_subnet() else None
    with about("init", "prune_rate"):
        trs.models.initialize_kernels(
            network, FLAGS.init, FLAGS.seed, FLAGS.mode, scaled_by, math.sqrt(2 / (1 + slope**2))
        )
    if trs.sparsity.scored_layers(network):
        trs.sparsity.uniform_scores(
            network, FLAGS.score_init_scale, FLAGS.fan_scaled_score_mode, FLAGS.mode, FLAGS.seed
        )
        trs.sparsity.set_keep_fractions(
            network, _fractions(network, FLAGS.prune_rate if FLAGS.load_model else _rates()[0])
        )
    return network


def network(run: training_run.TrainingRun) -> keras.Model:
    """Builds the network that is trained, with the weights it begins with, and says which of them train."""
    if FLAGS.trainer in binary_flags.LOTTERY and not (FLAGS.pretrained or run.resuming):
        raise BadFlag(
            f"--trainer={FLAGS.trainer}: expected --pretrained=DIR, the run that found it, for {run.directory} holds "
            "no checkpoint to --resume from. Received: none"
        )
    found = built(run.images, run.strategy.num_replicas_in_sync > 1)
    if FLAGS.pretrained and not run.resuming:
        load_pretrained(found, run.images)
    if trs.sparsity.scored_layers(found):
        _choose_what_trains(found)
    empty = trs.sparsity.statistics.empty_kernels(found)
    if empty:
        print(f"Warning: --prune_rate={FLAGS.prune_rate:g} leaves no connection in {', '.join(empty)}")
    return found


def _choose_what_trains(network: keras.Model) -> None:
    """Lets scores train, or weights, by the kind of each layer and the trainer."""
    if binary_flags.is_subnet():
        trs.training.Phase("finetune" if FLAGS.trainer in binary_flags.LOTTERY else "prune").begin(network)
    scored = trs.sparsity.scored_layers(network)
    for layer in trs.layers.kernel_layers(network):
        kind = binary_flags.layer_type(layer.name)
        if layer not in scored:  # a dense first or last layer
            for variable in layer.variables:
                variable.trainable = variable.dtype != "bool"
        elif kind == "FixedSubnetConv" or not binary_flags.is_subnet():
            fixed = kind == "FixedSubnetConv"
            for variable in layer.variables:
                variable.trainable = fixed and not FLAGS.freeze_weights and variable.dtype != "bool"
            layer.scores.trainable = not fixed
    if not network.trainable_variables:
        raise BadFlag(
            "--conv_type=FixedSubnetConv: expected --nofreeze_weights, or --evaluate. Received: nothing to train"
        )


def _pretrained() -> Path:
    """Returns what --pretrained names; for a checkpoint in the folder of a run of ours, that run."""
    path = Path(FLAGS.pretrained).expanduser()
    run = path.parent.parent
    if not path.exists() and path.parent.name == "checkpoints" and (run / "network.keras").is_file():
        print(f"Note: there is no {path.name} in {path.parent}; the network of the run in {run} is taken")
        return run
    return path


def adopt_flags() -> None:
    """Takes over what the run of --pretrained recorded of its network, where no flag says it.

    Raises:
        BadFlag: if a flag on the command line says something else.
    """
    source = _pretrained()
    recorded = run_directory.recorded(source) if source.is_dir() else {}
    for name in binary_flags.OF_NETWORK:
        if name not in recorded or recorded[name] == FLAGS[name].value:
            continue
        if FLAGS[name].present:
            raise BadFlag(
                f"--{name}={FLAGS[name].value} does not match the network in {source}; pass --{name}={recorded[name]} "
                "or leave it out"
            )
        FLAGS[name].value = recorded[name]


def load_pretrained(network: keras.Model, images: trs.data.ImageDataset) -> None:
    """Takes over the weights of --pretrained; for a retraining its mask alone."""
    path = _pretrained()
    with about("pretrained"):
        if path.suffix not in trs.saving.PYTORCH_SUFFIXES:
            source = trs.load_network(path)
        elif FLAGS.trainer in binary_flags.LOTTERY:
            source = built(images, kernel="subnet")
            _import(path, source)
        else:
            _import(path, network)
            return
        _check_fractions(source, network)
        if FLAGS.trainer == "adv_step_lottery_retrain" and not FLAGS.load_model:
            drawn = {layer.name: layer for layer in trs.sparsity.scored_layers(network)}
            pairs = [(layer, drawn[layer.name]) for layer in trs.sparsity.scored_layers(source)]
            for old, new in pairs:
                new.scores.assign(old.scores)
            if all((np.sign(old.effective_kernel) == np.sign(new.effective_kernel)).all() for old, new in pairs):
                raise BadFlag(f"--seed={FLAGS.seed}: expected another one than that of --pretrained, for new signs")
            return
        trs.saving.copy_weights(source, network)


def _import(path: Path, network: keras.Model) -> None:
    try:
        last = "last" in trs.saving.pytorch_modules(path)
        if last != FLAGS.end_with_bn:
            has, fix = ("has a", "pass") if last else ("has no", "leave out")
            raise BadFlag(f"--pretrained={path} {has} batch norm after the classifier; {fix} --end_with_bn")
        trs.saving.import_pytorch_weights(path, network)
    except ImportError as error:
        raise BadFlag(f"--pretrained={path}: {error}") from error


def _check_fractions(source: keras.Model, network: keras.Model) -> None:
    theirs = {layer.name: layer.kept for layer in trs.sparsity.scored_layers(source)}
    for layer in trs.sparsity.scored_layers(network):
        if layer.name in theirs and theirs[layer.name] != layer.kept:
            raise BadFlag(
                f"--prune_rate={FLAGS.prune_rate:g} --pr_scale={FLAGS.pr_scale:g}: expected those of --pretrained, "
                f"which keeps {theirs[layer.name]} weights of {layer.name}. Received: ones that keep {layer.kept}"
            )


def _fractions(network: keras.Model, rate: float) -> dict[str, float]:
    with about("prune_rate", "pr_scale"):
        return trs.sparsity.keep_fractions(network, rate, "adaptive", FLAGS.pr_scale)


def _rates() -> list[float]:
    return trs.training.gradual_rates(FLAGS.prune_rate, FLAGS.epochs, FLAGS.pr_steps, FLAGS.warmup_length)


def callbacks(run: training_run.TrainingRun, model: trs.RobustModel) -> tuple[keras.callbacks.Callback, ...]:
    """Returns what happens between the epochs."""
    found: list[keras.callbacks.Callback] = []
    if FLAGS.pr_steps > 1:
        masks = run.directory / "masks" if training_run.is_chief() else None
        found.append(trs.training.GradualPruning(_rates(), lambda rate: _fractions(model.network, rate), masks=masks))
    if isinstance(model.objective, trs.objectives.Reweighted):
        found.append(trs.training.Reweighting(model.objective, FLAGS.warmup_rw))
    if binary_flags.is_subnet():
        found.append(trs.training.PhaseCheck(model.network))
    if FLAGS.test_every_epoch:
        found.append(trs.training.TestMeasures(Data.read().test_batches(run.images)))
    if FLAGS.debug and training_run.is_chief():
        found.append(trs.training.MaskChanges(run.directory / "changes", FLAGS.explode_th / 100))
    return tuple(found)


def draw_curve(history: list[dict[str, float]], path: Path) -> None:
    """Draws losses and accuracies by epoch, if matplotlib is there."""
    try:
        trs.evaluation.check_matplotlib()
    except ValueError as error:
        print(f"Note: no learning curve is drawn, because {error}")
        return
    attacked = FLAGS.trainer != "adv_trades"
    trs.evaluation.draw_learning_curve(history, path, _validation_attack().describe(), attacked)


def end(model: trs.RobustModel) -> None:
    """Sets the fractions of the last stage, in which a run that was interrupted after it would not be otherwise."""
    if FLAGS.pr_steps > 1:
        trs.sparsity.set_keep_fractions(model.network, _fractions(model.network, FLAGS.prune_rate))


def model(run: training_run.TrainingRun, network: keras.Model) -> trs.RobustModel:
    """Returns the compiled model that trains `network`."""
    objective = _objective(run)
    if FLAGS.eps_schedule is not None:
        schedule = trs.objectives.TabledEpsilon(tuple(binary_flags.radii()), run.steps_per_epoch)
        objective = trs.objectives.ScheduledRadius(objective, schedule)
    if FLAGS.reweight:
        objective = trs.objectives.Reweighted(objective, FLAGS.reweight)
    sparsifier = trs.sparsity.StochasticBinarization(FLAGS.seed) if FLAGS.binconv_stochastic else None
    if FLAGS.binconv_freeze_rand:
        sparsifier = None
    kind = trs.training.StoredRobustModel if FLAGS.trainer == "adv_step_fast" else trs.RobustModel
    found = kind(network, objective, sparsifier, validation_attack=_validation_attack(), seed=FLAGS.seed)
    optimizer = _optimizer(run.steps_per_epoch)
    found.compile(
        keras.optimizers.LossScaleOptimizer(optimizer) if FLAGS.mixed_precision else optimizer, metrics=["accuracy"]
    )
    return found


def _objective(run: training_run.TrainingRun) -> trs.objectives.Objective:
    several = run.strategy.num_replicas_in_sync > 1
    batch_norm = {"train": "training", "eval": "inference", None: "inference" if several else "training"}
    if FLAGS.trainer == "adv_trades":
        return trs.objectives.TRADES(
            TrainingAttack.read().build(), FLAGS.beta, FLAGS.trades_start, FLAGS.label_smoothing, clean_updates=2
        )
    if FLAGS.trainer == "adv_step_fast":
        return trs.training.ATTA(
            len(run.images.train_labels),
            FLAGS.epsilon,
            FLAGS.step_size,
            flip=run.images.flip if FLAGS.flip is None else FLAGS.flip,
            carry=FLAGS.carry,
            batch_norm=batch_norm["train" if FLAGS.attack_bn is None else FLAGS.attack_bn],
            mix=FLAGS.mix,
            soft_targets=FLAGS.soft_targets,
        )
    keep_best = FLAGS.attack_select == "best_visited"
    attack = ATTACKS[FLAGS.norm](FLAGS.epsilon, FLAGS.step_size, FLAGS.num_steps, keep_best=keep_best)
    return trs.objectives.AT(attack, FLAGS.label_smoothing, batch_norm[FLAGS.attack_bn])


def _validation_attack() -> trs.attacks.GradientAttack:
    epsilon = FLAGS.epsilon if FLAGS.val_epsilon is None else FLAGS.val_epsilon
    step_size = epsilon / 4 if FLAGS.val_step_size is None else FLAGS.val_step_size
    return ATTACKS[FLAGS.norm](epsilon, step_size, FLAGS.val_num_steps, keep_best=True)


def _optimizer(steps_per_epoch: int) -> keras.optimizers.Optimizer:
    with about("lr_policy", "learning_rate", "lr_epochs"):
        rates = trs.training.policy_rates(
            FLAGS.lr_policy,
            FLAGS.learning_rate,
            FLAGS.epochs,
            FLAGS.warmup_length,
            FLAGS.pr_steps,
            alpha=FLAGS.alpha,
            interval=FLAGS.lr_adjust if FLAGS.lr_policy == "multistep_lr" else FLAGS.interval,
            gamma=FLAGS.lr_gamma,
            milestones=[int(epoch) for epoch in FLAGS.lr_epochs or ()],
            slope=FLAGS.slope,
            power=FLAGS.power,
            min_jump=FLAGS.min_jump_pt,
            jump_interval=FLAGS.jump_freq,
            lowest=FLAGS.min_v,
            highest=FLAGS.max_v,
        )
    settings: dict[str, Any] = {"l2": FLAGS.weight_decay, "decay_batch_norm": not FLAGS.no_bn_decay}
    schedule = trs.training.PerEpoch(rates, steps_per_epoch)
    if FLAGS.optimizer == "adam":
        more = {"beta_1": FLAGS.beta1, "beta_2": FLAGS.beta2, "epsilon": FLAGS.eps, "amsgrad": FLAGS.amsgrad}
        return trs.training.CoupledAdam(schedule, **more, **settings)
    return trs.training.CoupledSGD(schedule, momentum=FLAGS.momentum, nesterov=FLAGS.nesterov, **settings)
