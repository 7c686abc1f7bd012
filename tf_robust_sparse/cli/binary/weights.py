"""With which weights the network of a run begins, and which of them train."""

from pathlib import Path

import keras
import numpy as np
from absl import flags

import tf_robust_sparse as trs
from tf_robust_sparse.cli import run_directory, training_run
from tf_robust_sparse.cli.binary.network import OF_NETWORK, Network, Pruning, Trainer, built
from tf_robust_sparse.cli.command_line import BadFlag, about
from tf_robust_sparse.cli.sections.data import Data
from tf_robust_sparse.cli.sections.run import Run
from tf_robust_sparse.saving.pytorch_weights import PYTORCH_SUFFIXES, pytorch_modules
from tf_robust_sparse.sparsity.scores import scored_layers

FLAGS = flags.FLAGS


def network(run: training_run.TrainingRun) -> keras.Model:
    """Builds the network that is trained, with the weights it begins with, and says which of them train."""
    trainer = Trainer.read()
    if trainer.is_lottery and not (trainer.pretrained or run.resuming):
        raise BadFlag(
            f"--trainer={trainer.trainer}: {run.directory} holds no checkpoint to --resume from; pass "
            "--pretrained=DIR, the run that found the sub-network"
        )
    found = built(run.images, run.strategy.num_replicas_in_sync > 1)
    if trainer.pretrained and not run.resuming:
        load_pretrained(found, run.images)
    if scored_layers(found):
        _choose_what_trains(found)
    empty = trs.sparsity.statistics.empty_kernels(found)
    if empty:
        print(f"Warning: --prune_rate={Pruning.read().prune_rate:g} leaves no connection in {', '.join(empty)}")
    return found


def _choose_what_trains(network: keras.Model) -> None:
    """Lets scores train, or weights, by the kind of each layer and the trainer."""
    trainer, settings = Trainer.read(), Network.read()
    if settings.is_subnet:
        trs.training.Phase("finetune" if trainer.is_lottery else "prune").begin(network)
    scored = scored_layers(network)
    for layer in trs.layers.kernel_layers(network):
        fixed = settings.layer_type(layer.name) == "FixedSubnetConv"
        if layer not in scored:  # a dense first or last layer
            for variable in layer.variables:
                variable.trainable = variable.dtype != "bool"
        elif fixed or not settings.is_subnet:
            for variable in layer.variables:
                variable.trainable = fixed and not trainer.freeze_weights and variable.dtype != "bool"
            layer.scores.trainable = not fixed
    if not network.trainable_variables:
        raise BadFlag("--conv_type=FixedSubnetConv leaves nothing to train; pass --nofreeze_weights, or --evaluate")


def _source() -> Path:
    """Returns what --pretrained names; for a checkpoint in the folder of a run of ours, that run."""
    path = Path(Trainer.read().pretrained or "").expanduser()
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
    source = _source()
    recorded = run_directory.recorded(source) if source.is_dir() else {}
    for name in OF_NETWORK:
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
    trainer, path = Trainer.read(), _source()
    with about("pretrained"):
        if path.suffix not in PYTORCH_SUFFIXES:
            source = trs.load_network(path)
        elif trainer.is_lottery:
            source = built(images, kernel="subnet")
            _import(path, source)
        else:
            _import(path, network)
            return
        _check_fractions(source, network)
        if trainer.trainer == "adv_step_lottery_retrain" and not Run.read().load_model:
            _take_mask(source, network)
        else:
            trs.saving.copy_weights(source, network)


def _take_mask(source: keras.Model, network: keras.Model) -> None:
    drawn = {layer.name: layer for layer in scored_layers(network)}
    pairs = [(layer, drawn[layer.name]) for layer in scored_layers(source)]
    for old, new in pairs:
        new.scores.assign(old.scores)
    if all((np.sign(old.effective_kernel) == np.sign(new.effective_kernel)).all() for old, new in pairs):
        raise BadFlag(f"--seed={Data.read().seed} draws the signs of --pretrained again; pass another seed")


def _import(path: Path, network: keras.Model) -> None:
    try:
        last = "last" in pytorch_modules(path)
        if last != Network.read().end_with_bn:
            has, fix = ("has a", "pass") if last else ("has no", "leave out")
            raise BadFlag(f"--pretrained={path} {has} batch norm after the classifier; {fix} --end_with_bn")
        trs.saving.import_pytorch_weights(path, network)
    except ImportError as error:
        raise BadFlag(f"--pretrained={path}: {error}") from error


def _check_fractions(source: keras.Model, network: keras.Model) -> None:
    theirs = {layer.name: layer.kept for layer in scored_layers(source)}
    pruning = Pruning.read()
    for layer in scored_layers(network):
        if layer.name in theirs and theirs[layer.name] != layer.kept:
            raise BadFlag(
                f"--prune_rate={pruning.prune_rate:g} --pr_scale={pruning.pr_scale:g} keep {layer.kept} weights of "
                f"{layer.name}, and --pretrained keeps {theirs[layer.name]}; pass its --prune_rate and --pr_scale"
            )
