"""What the flags of neural pruning stand for: networks, attacks, models, and what is measured of a finished one."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
from absl import flags

import tf_robust_sparse as trs
from tf_robust_sparse.cli import neural_flags, run_directory, training_run
from tf_robust_sparse.cli.command_line import about

FLAGS = flags.FLAGS


def network(run: training_run.TrainingRun) -> keras.Model:
    """Builds the network, with the weights of the run it begins with."""
    settings: dict[str, Any] = (
        {"input_norm": FLAGS.input_norm} if neural_flags.chosen().builder.startswith("vgg") else {}
    )
    with about("model", "data"):
        built = trs.models.build(
            neural_flags.chosen().builder,
            num_classes=run.images.num_classes,
            input_shape=run.images.train_images.shape[1:],
            kernel=neural_flags.chosen().kernel,
            seed=FLAGS.seed + (1 << 20) * FLAGS.train_source,  # the source is independent of what it attacks
            synchronized_batch_norm=run.strategy.num_replicas_in_sync > 1,
            gates=FLAGS.mode == "bbd",
            threshold=FLAGS.thres,
            **settings,
        )
    begins_with = neural_flags.start()
    if begins_with is not None and not run.resuming:
        with about("init_from"):
            base = trs.load_network(begins_with)
            check_start(base, built, begins_with)
            trs.saving.copy_weights(base, built)
    return built


def check_start(base: keras.Model, built: keras.Model, where: Path) -> None:
    """Checks that a network can begin with what another one has learnt, and lets it standardize images as that does.

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
    for layer in built.layers:
        if layer.name == "standardization" and layer.epsilon != base.get_layer(layer.name).epsilon:
            print(f"Note: images are standardized with epsilon={base.get_layer(layer.name).epsilon:g}, as of {where}")
            layer.epsilon = base.get_layer(layer.name).epsilon
    if trs.layers.gates(base) and not trs.layers.gates(built):
        raise ValueError("The run to begin with has gates, which --mode=base would drop; pass --mode=bbd, or its base")


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
                found, FLAGS.lambda_weight, neural_flags.chosen().features, FLAGS.vulnerability_type
            )
    if neural_flags.chosen().kernel == "bayesian":
        found = trs.objectives.KLPenalty(found, 1 / (images * FLAGS.kl_weight))
    settings: dict[str, Any] = {"seed": FLAGS.seed, "shared_noise": FLAGS.vs_shared_noise, "log_terms": True}
    if FLAGS.adv_train and run.validation is not None:
        settings["validation_attack"] = attack()
        settings["validation_checks"] = {
            "vulnerability": trs.evaluation.VulnerabilityMonitor(attack(), neural_flags.chosen().features)
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
        boundaries = [int(run.total_steps * share) for share in neural_flags.chosen().drops]
        schedule = keras.optimizers.schedules.PiecewiseConstantDecay(boundaries, [rate, rate / 10, rate / 100])
    decay = 0.0 if neural_flags.chosen().kernel == "bayesian" else FLAGS.weight_decay
    if FLAGS.mode == "base":
        return trs.training.CoupledAdam(schedule, l2=decay, corrected_epsilon=False)  # as TensorFlow's
    return trs.training.GatedAdam(schedule, gate_rate=1.0, weight_rate=FLAGS.weight_rate, l2=decay)


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
        if gates or neural_flags.chosen().kernel == "bayesian":
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
    moved = trs.evaluation.vulnerability(
        found, x, y, chosen_attack, neural_flags.chosen().features, source=source, progress=True
    )
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
    if neural_flags.chosen().kernel == "bayesian":
        return {"memory": 200.0, "speed_up": 0.5, "sparsity": 0.0}
    shape = found.input_shape[1:]
    whole = trs.evaluation.gated_units(neural_flags.chosen().builder, shape)
    active = [int(layer.active_units()) for layer in trs.layers.gates(found)] or list(whole)
    cost = trs.evaluation.efficiency(neural_flags.chosen().builder, active, found.output_shape[-1], shape)
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
