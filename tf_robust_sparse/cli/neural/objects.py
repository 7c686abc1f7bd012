"""Neural pruning: the models that are trained, and what is measured of a finished network."""

from pathlib import Path
from typing import Any

import keras
import numpy as np

import tf_robust_sparse as trs
from tf_robust_sparse.cli import run_directory, training_run
from tf_robust_sparse.cli.command_line import about
from tf_robust_sparse.cli.neural.settings import Attack, Network, Optimizer, Training
from tf_robust_sparse.cli.sections import method
from tf_robust_sparse.cli.sections.data import Data
from tf_robust_sparse.evaluation.efficiency import gated_units
from tf_robust_sparse.evaluation.latency import median_latency
from tf_robust_sparse.evaluation.loss_surface import LossSurface
from tf_robust_sparse.evaluation.loss_surface import loss_surface as evaluation_loss_surface
from tf_robust_sparse.layers.beta_bernoulli import prior_divergence


def network(run: training_run.TrainingRun) -> keras.Model:
    """Builds the network, with the weights of the run it begins with."""
    settings = Network.read()
    built = settings.build(run.images, run.strategy.num_replicas_in_sync > 1)
    begins_with = settings.start()
    if begins_with is not None and not run.resuming:
        with about("init_from"):
            base = trs.load_network(begins_with)
            check_start(base, built, begins_with)
            trs.saving.copy_weights(base, built)
    return built


def check_start(base: keras.Model, built: keras.Model, where: Path) -> None:
    """Checks that a network can begin with what another one has learned, and lets it standardize images as that does.

    Raises:
        ValueError: if its images are normalized in another way, or it has gates and the new one has not.
    """
    norms = [
        [layer.name for layer in each.layers if layer.name in ("normalization", "standardization")] or ["none"]
        for each in (base, built)
    ]
    if norms[0] != norms[1]:
        raise ValueError(
            f"The source run has the input layer {norms[0][0]}, this one {norms[1][0]}; pass --input_norm "
            "as for that run"
        )
    for layer in built.layers:
        if layer.name == "standardization" and layer.epsilon != base.get_layer(layer.name).epsilon:
            print(f"Note: images are standardized with epsilon={base.get_layer(layer.name).epsilon:g}, as of {where}")
            layer.epsilon = base.get_layer(layer.name).epsilon
    if trs.layers.gates(base) and not trs.layers.gates(built):
        raise ValueError("The source run has gates, which --mode=base would drop; pass --mode=bbd, or its base")


def model(run: training_run.TrainingRun, built: keras.Model) -> trs.RobustModel:
    """Returns the compiled model that trains `built`."""
    network, training, images = Network.read(), Training.read(), len(run.images.train_labels)
    objective = training.objective(network.kind, images)
    settings: dict[str, Any] = {"seed": Data.read().seed, "shared_noise": training.vs_shared_noise, "log_terms": True}
    if training.adv_train and run.validation is not None:
        attack = Attack.read()
        monitor = trs.evaluation.VulnerabilityMonitor(attack.build(), network.kind.features)
        settings |= {"validation_attack": attack.build(), "validation_checks": {"vulnerability": monitor}}
    if network.is_gated:
        beta = training.beta_weight if training.adv_train else 1.0
        wrapped = trs.training.NeuralPruningModel(built, objective, beta / images, **settings)
    else:
        wrapped = trs.RobustModel(built, objective, **settings)
    wrapped.compile(method.scaled(Optimizer.read().build(network, run.total_steps)), metrics=["accuracy"])
    return wrapped


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
        if gates or Network.read().kind.is_bayesian:
            logs["divergence"] = float(prior_divergence(self._network))
        optimizer = self.model.optimizer
        rate, inner = float(optimizer.learning_rate), getattr(optimizer, "inner_optimizer", optimizer)
        if isinstance(inner, trs.training.GatedAdam):
            logs["gate_learning_rate"] = inner.gate_rate * rate
        logs["learning_rate"] = getattr(inner, "weight_rate", 1.0) * rate


def measure(found: keras.Model, images: trs.data.ImageDataset) -> dict[str, Any]:
    """Returns what is measured of a finished network besides accuracies, as entries of `results.json`."""
    return {
        "white_box": attacked(found, images, Attack.read().for_evaluation()),
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
        found, x, y, chosen_attack, Network.read().kind.features, source=source, progress=True
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


def loss_surface(found: keras.Model, images: trs.data.ImageDataset) -> LossSurface:
    """Returns the loss around the first 100 test images, up to --epsilon."""
    x, y = (part[:100] for part in _tested(images))
    return evaluation_loss_surface(found, x, y, Attack.read().epsilon, seed=Data.read().seed, progress=True)


def _tested(images: trs.data.ImageDataset) -> tuple[np.ndarray, np.ndarray]:
    batches = trs.data.test_dataset(images.test_images, images.test_labels, 256)
    x, y = (np.concatenate(parts) for parts in zip(*batches.as_numpy_iterator(), strict=True))
    return x, y


def efficiency(found: keras.Model) -> dict[str, Any]:
    """Returns the published figures of cost; of a network that draws its weights, twice the memory by definition.

    Of a residual network, for which nothing is published, only its open gates and the share of the closed ones.
    """
    kind = Network.read().kind
    if kind.is_bayesian:
        return {"memory": 200.0, "speed_up": 0.5, "sparsity": 0.0}
    if kind.is_residual:
        gates = trs.layers.gates(found)
        active, units = [int(gate.active_units()) for gate in gates], [gate.a_raw.shape[0] for gate in gates]
        return {
            "active_units": active,
            "units": units,
            "sparsity": 100 - 100 * sum(active) / sum(units) if gates else 0.0,
        }
    shape = found.input_shape[1:]
    whole = gated_units(kind.builder, shape)
    active = [int(layer.active_units()) for layer in trs.layers.gates(found)] or list(whole)
    cost = trs.evaluation.efficiency(kind.builder, active, found.output_shape[-1], shape)
    return {"active_units": active, "units": list(whole), **cost._asdict()}


def without_gates(found: keras.Model) -> dict[str, Any]:
    """Returns what is left when closed gates and all that only they read are taken out, and how fast that is.

    Shares are in per cent of the network without its gates; latencies are medians in ms.
    """
    small, done = trs.shrink(found, fold_batch_norm=True)
    plain = trs.saving.strip(found)
    latency = {size: median_latency({"before": plain, "after": small}, size) for size in (1, 64, 256)}
    return {
        "units": {name: len(kept) for name, kept in done.kept.items()},
        "parameters": 100 * done.after.parameters / done.before.parameters,
        "multiply_adds": 100 * done.after.multiply_adds / done.before.multiply_adds,
        "latency": {size: {name: 1e3 * seconds for name, seconds in each.items()} for size, each in latency.items()},
    }


def record(directory: Path, name: str, results: dict[str, Any]) -> None:
    """Writes what an evaluation found next to the run."""
    run_directory.write_results(directory / name, results)
