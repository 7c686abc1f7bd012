"""The flags of neural pruning, their checks, and the objects they stand for."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
from absl import flags

import tf_robust_sparse as trs
from run_scripts import common_flags, run_directory, training_run
from run_scripts.command_line import BadFlag, about, define_aliases, define_number, section

FLAGS = flags.FLAGS


class Network(NamedTuple):
    """A network of the scripts: what builds it, the form of its kernels, and how it is trained.

    Attributes:
        builder: Its name in `models.NETWORKS`.
        kernel: `"plain"` or `"bayesian"`.
        drops: After which shares of all steps the learning rate falls tenfold.
        features: Layers whose outputs count for the vulnerability; `None` for all that end in a ReLU.
    """

    builder: str
    kernel: str
    drops: tuple[float, float]
    features: tuple[str, ...] | None = None


_VGG_FEATURES = (*(f"relu{number}" for number in range(1, 14)), "dense14", "relu14")
NETWORKS = {
    "lenet_conv": Network("lenet_conv", "plain", (0.5, 0.7)),
    "lenet_conv_bayes": Network("lenet_conv", "bayesian", (0.5, 0.7)),
    "vgg16": Network("vgg16_dropout", "plain", (0.5, 0.8), _VGG_FEATURES),
    "vgg16_bayes": Network("vgg16_dropout", "bayesian", (0.5, 0.8), _VGG_FEATURES),
}
MODES = ("base", "bbd")
# Flags that mean nothing to some runs -> those they mean something to.
MEANINGFUL: dict[str, tuple[str, Callable[[], bool]]] = {
    "input_norm": ("--net=vgg16 or vgg16_bayes", lambda: chosen().builder.startswith("vgg")),
    "weight_decay": ("networks that do not draw their weights", lambda: chosen().kernel != "bayesian"),
    "kl_weight": ("networks that draw their weights", lambda: chosen().kernel == "bayesian"),
    "base_lr": ("--mode=base", lambda: FLAGS.mode == "base"),
    "init_lr": ("--mode=bbd", lambda: FLAGS.mode == "bbd"),
    "weight_rate": ("--mode=bbd", lambda: FLAGS.mode == "bbd"),
    "thres": ("--mode=bbd", lambda: FLAGS.mode == "bbd"),
    "joint_bn": ("--adv_train --robust_loss=at", lambda: FLAGS.adv_train and FLAGS.robust_loss == "at"),
    "vs_shared_noise": ("--adv_train", lambda: FLAGS.adv_train),
    "num_steps": ("--attack=pgd", lambda: FLAGS.attack == "pgd"),
    "eval_steps": ("--attack=pgd", lambda: FLAGS.attack == "pgd"),
    "step_size": ("--attack=pgd", lambda: FLAGS.attack == "pgd"),
    "attack_source": ("--eval_mode=attack --nowhite_box", lambda: FLAGS.eval_mode == "attack" and not FLAGS.white_box),
}
# What --resume cannot change, beside the flags of every run.
IDENTITY = (
    *("mode", "adv_train", "train_source", "robust_loss", "adv_weight", "trades_beta", "lambda_weight", "beta_weight"),
    *(
        "vulnerability",
        "vulnerability_type",
        "kl_weight",
        "thres",
        "init_lr",
        "weight_rate",
        "base_lr",
        "lr_schedule",
        "joint_bn",
    ),
    *("vs_shared_noise", "input_norm", "weight_decay"),
)


def define() -> None:
    """Defines the network, its gates, and how both are trained."""
    _define_network()
    common_flags.define_length(200)
    _define_training()
    _define_attack()
    common_flags.define_augmentation()
    common_flags.define_machines()
    _define_gpu()


def set_defaults() -> None:
    """Gives flags that all scripts share the published values as defaults; comes after all are defined."""
    published = {"batch_size": 64, "validation_examples": 0, "select": "last", "pgd_iters": 40, "pgd_restarts": 1}
    for name, value in published.items():
        FLAGS.set_default(name, value)


@section("Network")
def _define_network() -> None:
    flags.DEFINE_enum("model", "lenet_conv", list(NETWORKS), "Architecture; those called bayes draw their weights.")
    flags.DEFINE_enum("mode", "base", MODES, "The network alone, or with gates on a trained one.")
    flags.DEFINE_string(
        "init_from",
        None,
        "Run whose weights are the start; by default of --mode=bbd the base run of the same network and data.",
    )
    define_number("thres", 1e-3, "Gates whose mean is at most this are closed.", 0, 1, excluded=1)
    flags.DEFINE_enum(
        "input_norm", "image", list(trs.models.INPUT_NORMS), "vgg16: how pixels are normalised inside the network."
    )
    define_aliases({"net": "model"})


@section("Training")
def _define_training() -> None:
    flags.DEFINE_bool("adv_train", False, "Train under attack.")
    flags.DEFINE_bool("train_source", False, "The independent network that black-box attacks are computed on.")
    flags.DEFINE_enum("robust_loss", "at", ["at", "trades"], "Of --adv_train: clean and attacked images, or TRADES.")
    define_number("adv_weight", 2.0, "Weight of attacked images beside clean ones.")
    define_number("trades_beta", 6.0, "Weight of the robust term of --robust_loss=trades.")
    flags.DEFINE_bool("vulnerability", True, "Of --adv_train: also suppress the vulnerability of hidden features.")
    flags.DEFINE_enum(
        "vulnerability_type", "expected", list(trs.objectives.VULNERABILITIES), "Mean over features, or the largest."
    )
    define_number("lambda_weight", 1e-4, "Weight of the vulnerability.")
    define_number("beta_weight", 1.0, "Weight of the divergence of the gates, divided by the number of images.")
    define_number("kl_weight", 100.0, "What the divergence of drawn weights is divided by.", excluded=0)
    define_number("init_lr", 1e-2, "Learning rate of the gates; --weight_rate says that of the weights.", excluded=0)
    define_number("weight_rate", 0.1, "Learning rate of the weights of --mode=bbd, as a share of the gates'.")
    define_number("base_lr", 1e-3, "Learning rate of --mode=base.", excluded=0)
    flags.DEFINE_enum("lr_schedule", "drops", ["drops", "constant"], "Two tenfold drops, or none.")
    define_number("weight_decay", 1e-4, "Strength of the weight decay, in the gradient; gates do not decay.", 0, 1)
    flags.DEFINE_bool("joint_bn", True, "Clean and attacked images pass as one batch.")
    flags.DEFINE_bool("vs_shared_noise", True, "Clean and attacked images see the same gates and dropout.")


@section("Training attack")
def _define_attack() -> None:
    flags.DEFINE_enum("attack", "pgd", ["pgd", "fgsm"], "In training and in --eval_mode=attack.")
    flags.DEFINE_enum("attack_ord", "inf", ["inf"], "Norm of the attack.")
    flags.DEFINE_enum("norm", "linf", ["linf"], "The same by its name in the other scripts.")
    define_number("epsilon", 0.03, "Radius in pixels of [0, 1].", 0, 1)
    define_number("step_size", 0.007, "Length of a step in pixels of [0, 1].", excluded=0)
    flags.DEFINE_integer("num_steps", 40, "Steps, in training and in --eval_mode=attack.", 1)
    flags.DEFINE_integer("eval_steps", None, "Steps in --eval_mode=attack, if they are others.", 1)
    define_aliases({"eps": "epsilon", "pgd_steps": "num_steps"})


@section("Machines")
def _define_gpu() -> None:
    flags.DEFINE_integer("gpuid", None, "Use this GPU alone; by default what --strategy takes.", 0)


def check() -> None:
    """Checks combinations of flags.

    Raises:
        BadFlag: naming the flags that do not go together.
    """
    if chosen().kernel == "bayesian" and FLAGS.mode == "bbd":
        raise BadFlag(f"--mode=bbd: expected --net=lenet_conv or vgg16. Received: --net={FLAGS.model}")
    if chosen().builder == "lenet_conv" and not FLAGS["data"].present:
        FLAGS["data"].value = "mnist"
    if not FLAGS["augmentation"].present and FLAGS.data not in trs.data.IN_FILES:
        FLAGS["augmentation"].value = "none" if chosen().builder == "lenet_conv" else "crop"
    for name, wanted in (("trades_beta", "trades"), ("adv_weight", "at")):
        if FLAGS[name].present and not (FLAGS.adv_train and FLAGS.robust_loss == wanted):
            raise BadFlag(f"--{name}: expected --adv_train --robust_loss={wanted}. Received: other ones")
        if not (FLAGS.adv_train and FLAGS.robust_loss == wanted):
            run_directory.leave_out(name)
    if FLAGS["vulnerability"].present and FLAGS.vulnerability and not FLAGS.adv_train:
        raise BadFlag("--vulnerability: expected --adv_train, for it compares with attacked images. Received: none")
    if not FLAGS.adv_train:
        run_directory.leave_out("vulnerability")
    if FLAGS.mixed_precision and chosen().kernel == "bayesian":
        raise BadFlag(f"--mixed_precision: expected float32 with --net={FLAGS.model}. Received: both")


def chosen() -> Network:
    """Returns the network of --net."""
    return NETWORKS[FLAGS.model]


def directory(mode: str | None = None, source: bool | None = None, attacked: bool | None = None) -> Path:
    """Returns where a run with these flags, or other ones, is written by default."""
    attacked = FLAGS.adv_train if attacked is None else attacked
    source = FLAGS.train_source if source is None else source
    parts = [FLAGS.model, Path(FLAGS.data).stem, *(["adv_train"] if attacked else [])]
    return Path("saved_models", *parts, "attack_source" if source else "default", mode or FLAGS.mode)


def network(run: training_run.TrainingRun) -> keras.Model:
    """Builds the network, with the weights of the run it begins with."""
    settings: dict[str, Any] = {"input_norm": FLAGS.input_norm} if chosen().builder.startswith("vgg") else {}
    with about("model", "data"):
        built = trs.models.build(
            chosen().builder,
            num_classes=run.images.num_classes,
            input_shape=run.images.train_images.shape[1:],
            kernel=chosen().kernel,
            seed=FLAGS.seed + (1 << 20) * FLAGS.train_source,  # the source is independent of what it attacks
            synchronized_batch_norm=run.strategy.num_replicas_in_sync > 1,
            gates=FLAGS.mode == "bbd",
            threshold=FLAGS.thres,
            **settings,
        )
    begins_with = start()
    if begins_with is not None and not run.resuming:
        with about("init_from"):
            base = trs.load_network(begins_with)
            check_start(base, built)
            trs.saving.copy_weights(base, built)
    return built


def check_start(base: keras.Model, built: keras.Model) -> None:
    """Checks that a network can begin with what another one has learnt.

    Raises:
        ValueError: if its images are normalised in another way, or it has gates and the new one has not.
    """
    norms = [
        [layer.name for layer in each.layers if layer.name in ("normalization", "standardization")] or ["none"]
        for each in (base, built)
    ]
    if norms[0] != norms[1]:
        raise ValueError(
            f"The run to begin with has the input layer {norms[0][0]}, this one {norms[1][0]}; pass --input_norm "
            "as for that run"
        )
    if trs.layers.gates(base) and not trs.layers.gates(built):
        raise ValueError("The run to begin with has gates, which --mode=base would drop; pass --mode=bbd, or its base")


def start() -> Path | None:
    """Returns the run that this one begins with.

    Raises:
        BadFlag: if gates have nothing to begin with.
    """
    if FLAGS.init_from:
        return Path(FLAGS.init_from).expanduser()
    if FLAGS.mode == "base":
        return None
    found = directory("base", attacked=False)
    if not (found / "network.keras").is_file() and not FLAGS.resume:
        raise BadFlag(
            f"--mode=bbd: expected a finished run of --mode=base in {found}, or --init_from=DIR of another one. "
            "Received: none"
        )
    return found


def attack(steps: int | None = None, seed: int = 0) -> trs.attacks.GradientAttack:
    """Returns the attack, of `steps` steps or else of --num_steps."""
    if FLAGS.attack == "fgsm":
        return trs.attacks.LinfFGSM(FLAGS.epsilon, seed=seed)
    return trs.attacks.LinfPGD(FLAGS.epsilon, FLAGS.step_size, steps or FLAGS.num_steps, seed=seed)


def evaluation_attack() -> trs.attacks.GradientAttack:
    """Returns the attack of --eval_mode=attack."""
    return attack(FLAGS.eval_steps, FLAGS.seed)


def model(run: training_run.TrainingRun, built: keras.Model) -> trs.RobustModel:
    """Returns the compiled model that trains `built`."""
    images = len(run.images.train_labels)
    found: trs.objectives.Objective = trs.objectives.Natural()
    if FLAGS.adv_train:
        found = (
            trs.objectives.TRADES(attack(), FLAGS.trades_beta)
            if FLAGS.robust_loss == "trades"
            else trs.objectives.CleanAndAdversarial(
                attack(), FLAGS.adv_weight / (1 + FLAGS.adv_weight), joint=FLAGS.joint_bn
            )
        )
        if FLAGS.vulnerability and FLAGS.lambda_weight:
            found = trs.objectives.VulnerabilitySuppression(
                found, FLAGS.lambda_weight, chosen().features, FLAGS.vulnerability_type
            )
    if chosen().kernel == "bayesian":
        found = trs.objectives.KLPenalty(found, 1 / (images * FLAGS.kl_weight))
    settings: dict[str, Any] = {"seed": FLAGS.seed, "shared_noise": FLAGS.vs_shared_noise, "log_terms": True}
    if FLAGS.adv_train and run.validation is not None:
        settings["validation_attack"] = attack()
        settings["validation_checks"] = {
            "vulnerability": trs.evaluation.VulnerabilityMonitor(attack(), chosen().features)
        }
    if FLAGS.mode == "base":
        wrapped = trs.RobustModel(built, found, **settings)
    else:
        beta = FLAGS.beta_weight if FLAGS.adv_train else 1.0
        wrapped = trs.training.NeuralPruningModel(built, found, beta / images, **settings)
    own = optimizer(run)
    wrapped.compile(keras.optimizers.LossScaleOptimizer(own) if FLAGS.mixed_precision else own, metrics=["accuracy"])
    return wrapped


def optimizer(run: training_run.TrainingRun) -> keras.optimizers.Optimizer:
    """Returns Adam with the published rates; of gates and weights with a rate for each."""
    rate = FLAGS.base_lr if FLAGS.mode == "base" else FLAGS.init_lr
    schedule: Any = rate
    if FLAGS.lr_schedule == "drops":
        boundaries = [int(run.total_steps * share) for share in chosen().drops]
        schedule = keras.optimizers.schedules.PiecewiseConstantDecay(boundaries, [rate, rate / 10, rate / 100])
    decay = 0.0 if chosen().kernel == "bayesian" else FLAGS.weight_decay
    if FLAGS.mode == "base":
        return trs.training.CoupledAdam(schedule, l2=decay, corrected_epsilon=False)  # as TensorFlow's
    return trs.training.GatedAdam(schedule, gate_rate=1.0, weight_rate=FLAGS.weight_rate, l2=decay)


def config() -> dict[str, Any]:
    """Returns the settings that --resume cannot change."""
    return {name: FLAGS[name].value for name in IDENTITY}


class PruningRecord(keras.callbacks.Callback):
    """Adds active units, divergence and learning rates to the logs of each epoch, before callbacks that record.

    The divergence is that of gates, or of weights that are drawn, from their priors.
    """

    def __init__(self, network: keras.Model) -> None:
        super().__init__()
        self._network = network

    def on_epoch_end(self, epoch, logs=None):
        """Counts."""
        gates = trs.layers.gates(self._network)
        active = {f"active_{layer.name}": int(layer.active_units()) for layer in gates}
        logs.update(active)
        if gates:
            logs["zero_units"] = 100 - 100 * sum(active.values()) / sum(layer.a_raw.shape[0] for layer in gates)
        if gates or chosen().kernel == "bayesian":
            logs["divergence"] = float(trs.layers.prior_divergence(self._network))
        optimizer = self.model.optimizer
        rate, inner = float(optimizer.learning_rate), getattr(optimizer, "inner_optimizer", optimizer)
        if isinstance(inner, trs.training.GatedAdam):
            logs["gate_learning_rate"] = inner.gate_rate * rate
        logs["learning_rate"] = getattr(inner, "weight_rate", 1.0) * rate


def measure(found: keras.Model, images: trs.data.ImageDataset) -> dict[str, Any]:
    """Returns what is measured of a finished network beside accuracies, as entries of `results.json`."""
    chosen_attack = evaluation_attack()
    return {
        "white_box": attacked(found, images, chosen_attack),
        "efficiency": efficiency(found),
    }


def attacked(
    found: keras.Model,
    images: trs.data.ImageDataset,
    chosen_attack: trs.attacks.GradientAttack,
    source: keras.Model | None = None,
) -> dict[str, Any]:
    """Returns accuracy and vulnerability under an attack of the network itself, or of another one."""
    x, y = _tested(images)
    moved = trs.evaluation.vulnerability(found, x, y, chosen_attack, chosen().features, source=source, progress=True)
    return {
        "attack": chosen_attack.describe(),
        "images": len(y),
        "clean_accuracy": moved.clean_accuracy,
        "robust_accuracy": moved.robust_accuracy,
        "vulnerability": moved.expected,
        "largest_vulnerability": moved.largest,
        "vulnerability_per_layer": moved.per_layer,
        "vulnerability_per_channel": {name: values.tolist() for name, values in moved.per_channel.items()},
    }


def loss_surface(found: keras.Model, images: trs.data.ImageDataset) -> trs.evaluation.LossSurface:
    """Returns the loss around the first 100 test images, up to --epsilon."""
    x, y = (part[:100] for part in _tested(images))
    return trs.evaluation.loss_surface(found, x, y, FLAGS.epsilon, seed=FLAGS.seed, progress=True)


def _tested(images: trs.data.ImageDataset) -> tuple[np.ndarray, np.ndarray]:
    batches = trs.data.test_dataset(images.test_images, images.test_labels, 256)
    x, y = (np.concatenate(parts) for parts in zip(*batches.as_numpy_iterator(), strict=True))
    return x, y


def efficiency(found: keras.Model) -> dict[str, Any]:
    """Returns the published figures of cost; of a network that draws its weights, twice the memory by definition."""
    if chosen().kernel == "bayesian":
        return {"memory": 200.0, "speed_up": 0.5, "sparsity": 0.0}
    shape = found.input_shape[1:]
    whole = trs.evaluation.gated_units(chosen().builder, shape)
    active = [int(layer.active_units()) for layer in trs.layers.gates(found)] or list(whole)
    cost = trs.evaluation.efficiency(chosen().builder, active, found.output_shape[-1], shape)
    return {"active_units": active, "units": list(whole), **cost._asdict()}


def materialised(found: keras.Model) -> dict[str, Any]:
    """Returns what is left when closed gates and all that only they read are taken out, and how fast that is.

    Shares are in per cent of the network without its gates; latencies are medians in ms.
    """
    small, done = trs.shrink(found, fold_batch_norm=True)
    plain = trs.saving.strip(found)
    latency = {size: trs.evaluation.median_latency({"before": plain, "after": small}, size) for size in (1, 64, 256)}
    return {
        "units": {name: len(kept) for name, kept in done.kept.items()},
        "parameters": 100 * done.after.parameters / done.before.parameters,
        "multiply_adds": 100 * done.after.multiply_adds / done.before.multiply_adds,
        "latency": {size: {name: 1e3 * seconds for name, seconds in each.items()} for size, each in latency.items()},
    }


def record(directory: Path, name: str, results: dict[str, Any]) -> None:
    """Writes what an evaluation found beside the run."""
    run_directory.write_json(directory / name, {**results, "versions": run_directory.versions()})
