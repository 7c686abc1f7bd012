"""The networks that phases of pruning by learned scores begin with, and the sources they come from."""

from pathlib import Path

import keras

import tf_robust_sparse as trs
from tf_robust_sparse.cli import networks
from tf_robust_sparse.cli.command_line import BadFlag, about
from tf_robust_sparse.cli.hydra.rates import Rates
from tf_robust_sparse.cli.hydra.settings import Network, Phases, Scores
from tf_robust_sparse.cli.sections.data import Data
from tf_robust_sparse.cli.training_run import TrainingRun
from tf_robust_sparse.layers.learned_rates import LearnedRateKernel
from tf_robust_sparse.layers.normalization import use_unbiased_variance
from tf_robust_sparse.models.kernel_initialization import initialize_kernels
from tf_robust_sparse.saving.checkpoint import read_metadata
from tf_robust_sparse.sparsity.scores import random_scores, rescale_kernels, scored_layers


def build(run: TrainingRun, phase: trs.training.Phase, source: Path | None) -> keras.Model:
    """Builds the network of a phase with the weights, scores and fractions that it begins with."""
    settings, scores, seed = Network.read(), Scores.read(), Data.read().seed
    is_subnet = phase.name != "pretrain" or scores.from_the_start
    if phase.name != "pretrain" and source is None and not run.resuming:
        raise BadFlag(
            f"--exp_mode={phase.name} --resume: expected a run with a finished epoch in {run.directory}; there is "
            "none, pass --source_net=DIR in place of --resume"
        )
    synchronized = run.strategy.num_replicas_in_sync > 1
    kernel, more = "subnet" if is_subnet else "plain", {}
    if Rates.read().learned(phase.name):
        kernel, more = "learned_rate", {"connectivity": scores.k}
    built = settings.build(run.images, kernel, seed, synchronized, **more)
    use_unbiased_variance(built)  # as PyTorch's
    if settings.init_type and phase.name == "pretrain":
        initialize_kernels(built, settings.init_type, seed)
    found = None if source is None or run.resuming else load(source, run.images, masked=phase.name == "finetune")
    if found is not None:
        with about("source_net"):
            trs.saving.copy_weights(found, built)
    if is_subnet and run.resuming:  # scores and all come from the checkpoint
        with about("resume"):
            written = read_metadata(run.directory / "checkpoints" / "last.weights.h5")["config"]
            trs.sparsity.set_keep_fractions(built, written["keep_fractions"])
    elif is_subnet:
        _begin_scores(run, built, phase.name, found)
    phase.begin(built)
    return built


def _begin_scores(run: TrainingRun, built: keras.Model, phase: str, source: keras.Model | None) -> None:
    settings, data = Scores.read(), Data.read()
    scaled = settings.scaled_score_init if Phases.read().exp_mode != "all" else phase == "prune"
    if settings.scores_init_type and phase != "finetune":
        random_scores(built, settings.scores_init_type, data.seed)
    elif scaled and (source is not None or phase == "pretrain"):
        trs.sparsity.scaled_scores(built)
    elif phase == "finetune" and source is not None:
        trs.sparsity.set_keep_fractions(built, _fractions_of(source, settings.k))
        return
    if settings.snip_init:
        x, y = run.images.train_images[: data.batch_size], run.images.train_labels[: data.batch_size]
        trs.sparsity.snip_scores(built, list(trs.data.test_dataset(x, y, data.batch_size)))
    if Rates.read().learned(phase):
        Rates.read().begin(built)
        return
    trs.sparsity.set_keep_fractions(built, trs.sparsity.keep_fractions(built, settings.k, settings.allocation))
    if settings.scale_rand_init:
        rescale_kernels(built)
    empty = trs.sparsity.statistics.empty_kernels(built)
    if empty:
        print(f"Warning: --k={settings.k:g} leaves no connection in {', '.join(empty)}: nothing passes there")


def _fractions_of(source: keras.Model, k: float) -> dict[str, float]:
    """Returns the fractions that the prune phase kept of each kernel, after a look at their sum.

    Learned fractions may be less than k.
    """
    kernels = scored_layers(source)
    if not kernels:
        raise BadFlag(
            "--exp_mode=finetune: the network of --source_net is without scores; pass one that was pruned, or "
            "--scaled_score_init to prune it by magnitude"
        )
    entries = sum(int(layer.kernel.shape.num_elements()) for layer in kernels)
    kept = sum(layer.kept for layer in kernels)
    learned = any(isinstance(layer, LearnedRateKernel) for layer in kernels)
    if (kept - k * entries if learned else abs(kept - k * entries)) > len(kernels) + 1e-6 * entries:
        fraction = f"{kept / entries:.4g}"
        raise BadFlag(f"--k={k:g} does not match the prune phase, which kept {fraction}; pass --k={fraction}")
    return {layer.name: layer.keep_fraction for layer in kernels}


def load(path: Path, images: trs.data.ImageDataset, masked: bool) -> keras.Model:
    """Loads --source_net: a network of ours, or weights alone into one of --model.

    Args:
        path: Of the network, its run or the checkpoint.
        images: The data, whose size and classes an architecture is built for.
        masked: Whether the scores of a checkpoint leave --k of each kernel.
    """

    def build_it(kind: networks.Kind) -> keras.Model:
        found = Network.read().build(images, "subnet", Data.read().seed)
        if masked:
            trs.sparsity.set_keep_fractions(found, Scores.read().k)
        return found

    return networks.load(path, "source_net", build_it, ("model",), layers=True)
