"""The flags of binary sub-networks, their checks, and the objects they stand for."""

import math
from pathlib import Path
from typing import Any

import keras
from absl import flags

import tf_robust_sparse as trs
from run_scripts import common_flags, training_run
from run_scripts.command_line import BadFlag, about, define_aliases, define_number, section

FLAGS = flags.FLAGS

KERNELS = {"SubnetConv": "subnet", "FixedSubnetConv": "subnet", "DenseConv": "plain", "BinConv": "binary"}
BATCH_NORMS = ("NonAffineBatchNorm", "LearnedBatchNorm")
LOTTERY = ("adv_step_lottery_finetune", "adv_step_lottery_retrain")
TRAINERS = ("adv_step", "adv_trades", "adv_step_fast", *LOTTERY)
RESIDUAL = tuple(name for name in trs.models.NETWORKS if name.startswith("resnet"))
_SIGNS = ("binary", "lottery_binary")
# What --resume cannot change, beside the flags of every run.
IDENTITY = (
    *("trainer", "prune_rate", "pr_scale", "pr_steps", "conv_type", "bn_type", "init", "end_with_bn", "mode"),
    *("score_init_scale", "fan_scaled_score_mode", "scale_fan", "lr_policy", "learning_rate", "reweight", "optimizer"),
    *("first_layer_type", "last_layer_type", "binconv_stochastic", "binconv_freeze_rand", "normalize", "warmup_length"),
    *("carry", "attack_bn", "attack_select", "label_smoothing", "leaky_relu_slope", "freeze_weights", "valid_ratio"),
)


def define() -> None:
    """Defines the network, how it is pruned and how it is trained."""
    _define_network()
    _define_pruning()
    common_flags.define_length(200)
    _define_trainer()
    _define_optimisation()
    common_flags.define_training_attack()
    _define_attacks()
    common_flags.define_augmentation()
    common_flags.define_machines()


@section("Network")
def _define_network() -> None:
    flags.DEFINE_enum("model", "resnet34", list(RESIDUAL), "Architecture; those called p... are the small dense ones.")
    flags.DEFINE_enum("padding_mode", "symmetric", ["tf_same", "symmetric"], "How strided convolutions pad.")
    flags.DEFINE_enum(
        "normalize", None, [*trs.models.NORMALIZATIONS, "none"], "Mean and deviation that pixels are normalised by."
    )
    flags.DEFINE_enum("conv_type", "SubnetConv", list(KERNELS), "Kernels: chosen by scores, dense, or trained signs.")
    flags.DEFINE_enum("bn_type", None, BATCH_NORMS, "Batch norm; by default without scale and shift for SubnetConv.")
    flags.DEFINE_enum("first_layer_type", None, list(KERNELS), "Kernel of the stem, if another.")
    flags.DEFINE_enum("last_layer_type", None, list(KERNELS), "Kernel of the classifier, if another.")
    flags.DEFINE_bool("first_layer_dense", False, "Short for --first_layer_type=DenseConv.")
    flags.DEFINE_bool("last_layer_dense", False, "Short for --last_layer_type=DenseConv.")
    flags.DEFINE_bool("end_with_bn", False, "Batch norm after the classifier; networks of signs need it.")
    flags.DEFINE_enum("nonlinearity", "relu", ["relu", "leaky_relu"], "Activation of basic blocks.")
    define_number("leaky_relu_slope", 0.0, "Slope of leaky_relu below 0.", 0, 1, excluded=1)
    flags.DEFINE_enum(
        "init", "kaiming_normal", list(trs.models.KERNEL_INITIALIZATIONS), "How kernels are drawn; binary is 1 and -1."
    )
    flags.DEFINE_enum("mode", "fan_in", list(trs.sparsity.FANS), "Which fan scales kernels and scores.")
    flags.DEFINE_bool("scale_fan", False, "Multiply the fan of kernels by --prune_rate; see the documentation.")
    flags.DEFINE_bool("binconv_stochastic", False, "BinConv: draw the signs anew in each step.")
    flags.DEFINE_bool("binconv_freeze_rand", False, "BinConv: keep the signs drawn first.")


@section("Pruning")
def _define_pruning() -> None:
    define_number("prune_rate", 0.01, "Fraction of all weights that stays.", 0, 1, excluded=0)
    define_number("pr_scale", 1.0, "Exponent p: a layer of n weights keeps in proportion to n**p; 1 is uniform.", 0, 1)
    flags.DEFINE_integer("pr_steps", 1, "Stages, each keeping prune_rate**(1/pr_steps) of the one before.", 1)
    define_number("score_init_scale", 1.0, "Largest absolute score at the start.", excluded=0)
    flags.DEFINE_enum(
        "fan_scaled_score_mode",
        "all",
        list(trs.sparsity.FAN_SCALED),
        "Whose scores are divided by the fan's root.",
    )
    flags.DEFINE_bool("freeze_weights", True, "Train scores alone; always so, but for the lottery trainers.")
    flags.DEFINE_string(
        "pretrained", None, "Directory of a run, .keras, .trs or PyTorch checkpoint to begin with, or to evaluate."
    )
    define_aliases({"connectivity": "prune_rate", "k": "prune_rate", "pc": "prune_rate"})


@section("Training")
def _define_trainer() -> None:
    flags.DEFINE_enum("trainer", "adv_step", ["default", *TRAINERS], "How it is trained; default is adv_step.")
    define_number("beta", 6.0, "Weight of the robust term of adv_trades.")
    define_number("label_smoothing", 0.0, "Of adv_step: share of the loss that is that of all classes.", 0, 1, 1)
    flags.DEFINE_enum("reweight", None, list(trs.objectives.REWEIGHTINGS), "What examples are weighed by.")
    flags.DEFINE_integer("warmup_rw", 0, "Epochs without these weights.", 0)
    define_number("valid_ratio", None, "Held-out share of the training images.", 0, 1)


@section("Training")
def _define_optimisation() -> None:
    flags.DEFINE_enum("optimizer", "sgd", ["sgd", "adam"], "Optimizer; weight decay is in its gradient.")
    define_number("learning_rate", 0.1, "Learning rate at the beginning.", excluded=0)
    flags.DEFINE_enum("lr_policy", "constant_lr", list(trs.training.POLICIES), "Course of the learning rate.")
    flags.DEFINE_integer("warmup_length", 0, "Epochs in which it rises, of all epochs.", 0)
    define_number("alpha", 0.0, "cosine_lr: share of the learning rate at the end.", 0, 1)
    flags.DEFINE_integer("lr_adjust", 30, "multistep_lr: epochs between two drops.", 1)
    define_number("lr_gamma", 0.1, "multistep_lr, manual_multistep_lr: factor of a drop.", excluded=0)
    flags.DEFINE_list("lr_epochs", None, "manual_multistep_lr: epochs of the drops.")
    define_number("slope", 0.0, "linear_lr: change per epoch.", -math.inf)
    define_number("power", 1.0, "exponential_lr, jump_lr: factor per interval.", excluded=0)
    flags.DEFINE_integer("interval", 1, "exponential_lr: epochs of an interval.", 1)
    flags.DEFINE_integer("min_jump_pt", 0, "jump_lr: epoch of the first jump.", 0)
    flags.DEFINE_integer("jump_freq", 1, "jump_lr: epochs between two jumps.", 1)
    define_number("min_v", None, "Least learning rate.")
    define_number("max_v", None, "Largest learning rate.")
    define_number("weight_decay", 1e-4, "Strength of the weight decay; scores decay too.", 0, 1)
    flags.DEFINE_bool("no_bn_decay", False, "Leave scale and shift of batch norm without decay.")
    define_number("momentum", 0.9, "Momentum of sgd.", 0, 1, excluded=1)
    flags.DEFINE_bool("nesterov", False, "Nesterov's momentum.")
    define_number("beta1", 0.9, "adam.", 0, 1, excluded=1)
    define_number("beta2", 0.999, "adam.", 0, 1, excluded=1)
    define_number("eps", 1e-8, "adam.", excluded=0)
    flags.DEFINE_bool("amsgrad", False, "adam: the AMSGrad variant.")
    define_aliases({"lr": "learning_rate", "wd": "weight_decay"})


@section("Training attack")
def _define_attacks() -> None:
    flags.DEFINE_enum(
        "attack_select", "best_visited", ["best_visited", "last"], "Point of PGD that adv_step trains on."
    )
    flags.DEFINE_enum(
        "attack_bn",
        None,
        ["train", "eval"],
        "Batch norm in the attacks of adv_step and adv_step_fast: by the batch, as published and by default on one "
        "replica, or by its statistics, as on several replicas.",
    )
    flags.DEFINE_bool("carry", True, "adv_step_fast: keep perturbations for every image; else begin at random.")
    define_number("val_epsilon", None, "Radius of the attack on held-out images; by default --epsilon.")
    define_number("val_step_size", None, "Its step; by default a quarter of the radius.")
    flags.DEFINE_integer("val_num_steps", 10, "Its steps.", 1)


def check() -> None:
    """Checks how the flags go together, before any work.

    Raises:
        BadFlag: naming the flags.
    """
    if FLAGS.trainer in LOTTERY and not (FLAGS.pretrained or FLAGS.resume):
        raise BadFlag(f"--trainer={FLAGS.trainer}: expected --pretrained=DIR, the run that found it. Received: none")
    if FLAGS.trainer in LOTTERY and _kernel("conv_type") != "subnet":
        raise BadFlag(f"--trainer={FLAGS.trainer}: expected --conv_type=SubnetConv. Received: {FLAGS.conv_type}")
    if not FLAGS.freeze_weights and FLAGS.trainer not in LOTTERY and _is_subnet():
        raise BadFlag(
            f"--nofreeze_weights: expected --trainer={' or '.join(LOTTERY)}. Received: --trainer={FLAGS.trainer}"
        )
    if FLAGS.pr_steps > 1 and not _is_subnet():
        raise BadFlag(f"--pr_steps={FLAGS.pr_steps}: expected --conv_type=SubnetConv. Received: {FLAGS.conv_type}")
    if FLAGS.warmup_length >= FLAGS.epochs:
        raise BadFlag(f"--warmup_length={FLAGS.warmup_length}: expected fewer than --epochs={FLAGS.epochs}")
    if FLAGS.pr_steps > FLAGS.epochs - FLAGS.warmup_length:
        raise BadFlag(f"--pr_steps={FLAGS.pr_steps}: expected no more than the epochs after the warm-up")
    if FLAGS.trainer == "adv_step_fast" and FLAGS.norm != "linf":
        raise BadFlag(f"--trainer=adv_step_fast: expected --norm=linf. Received: --norm={FLAGS.norm}")
    if FLAGS.norm != "linf" and FLAGS.attack_select == "best_visited" and FLAGS.trainer != "adv_trades":
        if FLAGS["attack_select"].present:
            raise BadFlag(f"--attack_select=best_visited: expected --norm=linf. Received: --norm={FLAGS.norm}")
        FLAGS["attack_select"].value = "last"
    if FLAGS.attack_bn == "train" and FLAGS.strategy != "none" and FLAGS.trainer != "adv_step_fast":
        raise BadFlag(f"--attack_bn=train: expected --strategy=none. Received: --strategy={FLAGS.strategy}")
    if FLAGS.reweight and "nat_max" in FLAGS.reweight and FLAGS.trainer != "adv_trades":
        raise BadFlag(f"--reweight={FLAGS.reweight}: expected --trainer=adv_trades. Received: {FLAGS.trainer}")
    if FLAGS["label_smoothing"].present and FLAGS.trainer not in ("default", "adv_step", *LOTTERY):
        raise BadFlag(f"--label_smoothing: expected --trainer=adv_step. Received: --trainer={FLAGS.trainer}")
    if FLAGS.trainer == "adv_step_fast":  # it crops and mirrors together with the perturbations
        FLAGS["augmentation"].value = "none"
    if FLAGS.pseudo_labels:
        raise BadFlag("--pseudo_labels: expected another script. Received: it")
    if (FLAGS.binconv_stochastic or FLAGS.binconv_freeze_rand) and _kernel("conv_type") != "binary":
        raise BadFlag(f"--binconv_stochastic: expected --conv_type=BinConv. Received: --conv_type={FLAGS.conv_type}")


def run_name() -> str:
    """Returns the directory name of a run with these flags."""
    data = Path(FLAGS.data).expanduser().resolve().stem
    kind = {"SubnetConv": "binary", "FixedSubnetConv": "binary", "DenseConv": "dense", "BinConv": "bnn"}
    degree = f"{FLAGS.prune_rate!r}_p{FLAGS.pr_scale!r}" if _is_subnet() else ""
    return f"{data}_{FLAGS.model}_{kind[FLAGS.conv_type]}_{FLAGS.trainer}{degree}"


def config() -> dict[str, Any]:
    """Returns what --resume cannot change."""
    return {name: FLAGS[name].value for name in IDENTITY}


def describe(network: keras.Model) -> dict[str, Any]:
    """Returns the entries of `results.json` that say what the network is."""
    names = ("trainer", "conv_type", "init", "prune_rate", "pr_scale", "end_with_bn", "score_init_scale")
    planned = {each.name: each.keep_fraction for each in _subnets(network)}
    return {**{name: FLAGS[name].value for name in names}, "keep_fractions": planned}


def _kernel(flag: str) -> str | None:
    """The kernel form of a flag."""
    value = FLAGS[flag].value
    if value is None:
        return None
    frozen_signs = FLAGS.init in _SIGNS and FLAGS.trainer not in LOTTERY and value == "SubnetConv"
    return "signed" if frozen_signs else KERNELS[value]


def _is_subnet() -> bool:
    return _kernel("conv_type") in ("subnet", "signed")


def _subnets(network: keras.Model) -> list[Any]:
    return [layer for layer in trs.layers.kernel_layers(network) if hasattr(layer, "scores")]


def _variant() -> trs.models.Variant:
    batch_norm = FLAGS.bn_type or ("NonAffineBatchNorm" if _is_subnet() else "LearnedBatchNorm")
    return trs.models.Variant(
        normalization=None if FLAGS.normalize == "none" else FLAGS.normalize,
        affine_batch_norm=batch_norm == "LearnedBatchNorm",
        classifier_bias=False,
        final_batch_norm=FLAGS.end_with_bn,
        leaky_relu_slope=FLAGS.leaky_relu_slope if FLAGS.nonlinearity == "leaky_relu" else 0.0,
        first_kernel="plain" if FLAGS.first_layer_dense else _kernel("first_layer_type"),
        last_kernel="plain" if FLAGS.last_layer_dense else _kernel("last_layer_type"),
        stochastic=FLAGS.binconv_stochastic or FLAGS.binconv_freeze_rand,
    )


def built(images: trs.data.ImageDataset, synchronized: bool = False, kernel: str | None = None) -> keras.Model:
    """Builds the network with kernels and scores as they are drawn, and its fractions."""
    with about("model", "data"):
        network = trs.models.build(
            FLAGS.model,
            num_classes=images.num_classes,
            input_shape=images.train_images.shape[1:],
            kernel=kernel or _kernel("conv_type"),
            padding_mode=FLAGS.padding_mode,
            seed=FLAGS.seed,
            synchronized_batch_norm=synchronized,
            variant=_variant(),
        )
    slope = FLAGS.leaky_relu_slope if FLAGS.nonlinearity == "leaky_relu" else 0.0
    scaled_by = FLAGS.prune_rate if FLAGS.scale_fan and _is_subnet() else None
    with about("init", "prune_rate"):
        trs.models.initialize_kernels(
            network, FLAGS.init, FLAGS.seed, FLAGS.mode, scaled_by, math.sqrt(2 / (1 + slope**2))
        )
    if _subnets(network):
        trs.sparsity.uniform_scores(
            network, FLAGS.score_init_scale, FLAGS.fan_scaled_score_mode, FLAGS.mode, FLAGS.seed
        )
        trs.sparsity.set_keep_fractions(network, _fractions(network, _rates()[0]))
    return network


def network(run: training_run.TrainingRun) -> keras.Model:
    """Builds the network that is trained, with the weights it begins with, and says which of them train."""
    found = built(run.images, run.strategy.num_replicas_in_sync > 1)
    if FLAGS.pretrained and not run.resuming:
        load_pretrained(found, run.images)
    if _is_subnet():
        trs.training.Phase("finetune" if FLAGS.trainer in LOTTERY else "prune").begin(found)
        for layer in trs.layers.kernel_layers(found):
            if not hasattr(layer, "scores"):  # a dense first or last layer
                for variable in layer.variables:
                    variable.trainable = variable.dtype != "bool"
    empty = trs.sparsity.statistics.empty_kernels(found)
    if empty:
        print(f"Warning: --prune_rate={FLAGS.prune_rate:g} leaves no connection in {', '.join(empty)}")
    return found


def load_pretrained(network: keras.Model, images: trs.data.ImageDataset) -> None:
    """Takes over the weights of --pretrained; for a retraining its mask alone."""
    path = Path(FLAGS.pretrained).expanduser()
    with about("pretrained"):
        if path.suffix not in trs.saving.PYTORCH_SUFFIXES:
            source = trs.load_network(path)
        elif FLAGS.trainer in LOTTERY:
            source = built(images, kernel="subnet")
            trs.saving.import_pytorch_weights(path, source)
        else:
            try:
                trs.saving.import_pytorch_weights(path, network)
            except ImportError as error:
                raise BadFlag(f"--pretrained={path}: {error}") from error
            return
        _check_fractions(source, network)
        if FLAGS.trainer == "adv_step_lottery_retrain":
            drawn = {layer.name: layer for layer in _subnets(network)}
            for layer in _subnets(source):
                drawn[layer.name].scores.assign(layer.scores)
            return
        trs.saving.copy_weights(source, network)


def _check_fractions(source: keras.Model, network: keras.Model) -> None:
    theirs = {layer.name: layer.kept for layer in _subnets(source)}
    for layer in _subnets(network):
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
        found.append(trs.training.GradualPruning(_rates(), lambda rate: _fractions(model.network, rate)))
    if isinstance(model.objective, trs.objectives.Reweighted):
        found.append(trs.training.Reweighting(model.objective, FLAGS.warmup_rw))
    if _is_subnet():
        found.append(trs.training.PhaseCheck(model.network))
    return tuple(found)


def end(model: trs.RobustModel) -> None:
    """Sets the fractions of the last stage, in which a run that was interrupted after it would not be otherwise."""
    if FLAGS.pr_steps > 1:
        trs.sparsity.set_keep_fractions(model.network, _fractions(model.network, FLAGS.prune_rate))


def model(run: training_run.TrainingRun, network: keras.Model) -> trs.RobustModel:
    """Returns the compiled model that trains `network`."""
    objective = _objective(run)
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
        return trs.objectives.TRADES(common_flags.attack(), FLAGS.beta, FLAGS.trades_start)
    if FLAGS.trainer == "adv_step_fast":
        return trs.training.StoredAT(
            len(run.images.train_labels),
            FLAGS.epsilon,
            FLAGS.step_size,
            flip=run.images.flip if FLAGS.flip is None else FLAGS.flip,
            carry=FLAGS.carry,
            batch_norm=batch_norm["train" if FLAGS.attack_bn is None else FLAGS.attack_bn],
        )
    kind = trs.attacks.LinfBestPGD if FLAGS.attack_select == "best_visited" else common_flags.ATTACKS[FLAGS.norm]
    attack = kind(FLAGS.epsilon, FLAGS.step_size, FLAGS.num_steps)
    return trs.objectives.AT(attack, FLAGS.label_smoothing, batch_norm[FLAGS.attack_bn])


def _validation_attack() -> trs.attacks.GradientAttack:
    epsilon = FLAGS.epsilon if FLAGS.val_epsilon is None else FLAGS.val_epsilon
    step_size = epsilon / 4 if FLAGS.val_step_size is None else FLAGS.val_step_size
    return common_flags.ATTACKS[FLAGS.norm](epsilon, step_size, FLAGS.val_num_steps)


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
