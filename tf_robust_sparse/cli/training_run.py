"""One training run from its flags to its results: what every training script shares around building its model."""

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from absl import flags

import tf_robust_sparse as trs
from tf_robust_sparse.cli import command_line, report, run_directory, settings, workers
from tf_robust_sparse.cli.sections import method, sparsity
from tf_robust_sparse.cli.sections.data import Augmentation, Data, TrainingImages
from tf_robust_sparse.cli.sections.machines import Machines
from tf_robust_sparse.cli.sections.recipe import Averages, Views
from tf_robust_sparse.cli.sections.run import CertifiedRun, Run
from tf_robust_sparse.cli.workers import is_chief
from tf_robust_sparse.sparsity.scores import scored_layers
from tf_robust_sparse.training.callbacks import ReferenceSelection
from tf_robust_sparse.training.gradual_pruning import GradualPruning

FLAGS = flags.FLAGS

# Writes one file or directory of a finished network.
Writer = Callable[[keras.Model, Path], object]

ODD_BATCHES = (
    "--nodrop_last changes the batch size within an epoch, where TensorFlow may crash on CPUs; set "
    "TF_ENABLE_ONEDNN_OPTS=0 in the environment with it, or leave it out"
)
IF_INTERRUPTED = "no finished epoch is lost, run the same command with --resume to go on"


class TrainingRun(NamedTuple):
    """What is settled before the model is built."""

    directory: Path
    images: trs.data.ImageDataset
    validation: tuple[trs.data.ImageFiles | np.ndarray, np.ndarray] | None
    auxiliary: tuple[np.ndarray, np.ndarray] | None
    strategy: tf.distribute.Strategy
    epochs: int
    steps_per_epoch: int
    resuming: bool
    files: Mapping[str, Writer]

    @property
    def total_steps(self) -> int:
        """Optimisation steps of the whole run."""
        return self.steps_per_epoch * self.epochs


def prepare(
    directory: Path,
    epochs: int | None = None,
    before: TrainingRun | None = None,
    files: Mapping[str, Writer] | None = None,
) -> TrainingRun | None:
    """Reads the data and counts the steps; of a finished run only writes the files that are not there.

    Args:
        directory: Where the run is written.
        epochs: Its length; `None` for --epochs.
        before: A run of the same process, of which data and devices are taken over.
        files: Name -> writer of files that the script leaves, in addition to `network.keras` and `serve/`.

    Returns:
        The run, or `None` if it is finished already.
    """
    amount, data = TrainingImages.read(), Data.read()
    amount.check_files()
    files = {**report.FILES, **(files or {})}
    # Worker 0 alone checks and writes the directory.
    resuming = run_directory.check(directory, Run.read().resume) if is_chief() else _has_checkpoint(directory)
    if resuming and (directory / "results.json").exists() and (directory / "network.keras").exists():
        print(f"{directory} holds the finished run; there is nothing to resume.")
        if is_chief():
            _complete(directory, files)
        return None
    keras.utils.set_random_seed(data.seed)
    epochs = amount.epochs if epochs is None else epochs
    if before is not None:
        return before._replace(directory=directory, epochs=epochs, resuming=resuming, files=files)
    if amount.mixed_precision:
        keras.mixed_precision.set_global_policy("mixed_float16")
    strategy = Machines.read().build()
    if data.batch_size % strategy.num_replicas_in_sync:
        raise command_line.BadFlag(
            f"--batch_size={data.batch_size}: expected a multiple of the {strategy.num_replicas_in_sync} replicas"
        )
    images = data.load()
    auxiliary = amount.load_auxiliary(images.num_classes, data.seed)
    validation = None
    number = amount.held_out(len(images.train_labels), Run.read().select)
    if number:
        images, some, labels = images.split_validation(number, seed=data.seed)
        validation = (some, labels)
    steps = amount.steps_per_epoch(len(images.train_labels), data.batch_size)
    return TrainingRun(directory, images, validation, auxiliary, strategy, epochs, steps, resuming, files)


def train(
    run: TrainingRun,
    model: trs.RobustModel,
    config: dict[str, Any] | None = None,
    more: tuple[keras.callbacks.Callback, ...] = (),
    first_validation: int = 0,
) -> dict[str, Any]:
    """Trains to the last epoch, from the last finished one if the run resumes.

    Args:
        run: What `prepare` returned.
        model: What is trained, compiled.
        config: Settings that --resume cannot change, in addition to the usual flags.
        more: Callbacks that come before a checkpoint is written.
        first_validation: First epoch, counted from 0, after which the held-out images are looked at.

    Returns:
        The state of the run: `epoch`, `best`, `seconds` and more.
    """
    how, data = Run.read(), Data.read()
    connections = trs.training.ConnectivityLogger(model.network, model.sparsifier)
    checkpoints = trs.training.Checkpoints(
        run.directory / "checkpoints",
        _monitored(model),
        config={
            **{name: FLAGS[name].value for name in settings.identity()},
            **{"epochs": run.epochs, "sparsifier": sparsity.chosen(), **(config or {})},
        },
        connections=connections,
        sparsifier=model.sparsifier,
        writes=is_chief(),
        every=how.save_every if how.save_every > 0 else None,
    )
    for callback in more:
        if isinstance(callback, GradualPruning):
            callback.checkpoints = checkpoints
    callbacks = [trs.training.StopOnNaN(), connections, *more, checkpoints]
    if how.select == "reference":
        callbacks.append(ReferenceSelection(checkpoints, data.test_batches(run.images)))
    if how.tensorboard and is_chief():
        callbacks.append(_tensorboard(run.directory))
    first_epoch = 0
    if run.resuming:
        with command_line.about("resume"):
            first_epoch = checkpoints.restore(model)
    train_images = _train_batches(run, first_epoch, isinstance(model, trs.training.StoredRobustModel))
    if is_chief():
        run_directory.begin(run.directory, run.resuming)
    _describe(run, model, first_epoch)
    if first_epoch < run.epochs:
        _fit(
            model,
            train_images,
            validation_data=trs.data.test_dataset(*run.validation, data.batch_size) if run.validation else None,
            epochs=run.epochs,
            initial_epoch=first_epoch,
            steps_per_epoch=run.steps_per_epoch,
            validation_freq=list(range(first_validation + 1, run.epochs + 1)),
            callbacks=callbacks,
            verbose=1 if sys.stdout.isatty() else 2,
        )
    return checkpoints.state


def _fit(model: trs.RobustModel, *arguments: Any, **settings: Any) -> None:
    with workers.about_the_lost():
        model.fit(*arguments, **settings)


def finish(
    run: TrainingRun,
    model: trs.RobustModel,
    state: dict[str, Any],
    more: dict[str, Any] | None = None,
    measure: Callable[[keras.Model, trs.data.ImageDataset], dict[str, Any]] = lambda *_: {},
    trains_on_attacked: bool = False,
) -> None:
    """Selects an epoch, saves its network, evaluates it on the test images and, last of all, writes `results.json`.

    `more` are further entries of it, `measure` returns some from the network and the images. `trains_on_attacked` says
    whether the training accuracy is that of attacked images, for the learning curve.
    """
    select, data = Run.read().select, Data.read()
    if is_chief():
        stem = select if select in state["best"] else "last"
        trs.saving.load_checkpoint(_checkpoint(run.directory, stem), model)
        if model.sparsifier is not None:
            model.sparsifier.settle()
        if model.average is not None and Averages.read().export_weights == "averaged":
            model.average.load()
        for name, write in run.files.items():
            write(model.network, run.directory / name)
        results = {
            **report.evaluate(model.network, run.images),
            **measure(model.network, run.images),
            "epochs": state["epoch"],
            "seconds": state["seconds"],
            "images_per_second": state["epoch"] * run.steps_per_epoch * data.batch_size / state["training_seconds"],
            "seed": data.seed,
            "selected": {"by": stem, **state["best"].get(stem, {"epoch": state["epoch"]})},
            "data": {"name": run.images.name, "origin": run.images.origin, "train": len(run.images.train_labels)},
            "model": method.Network.read().model,
            "objective": model.objective.describe(),
            "sparsifier": model.sparsifier.describe() if model.sparsifier else None,
            **(
                {"average": model.average.describe(), "weights": Averages.read().export_weights}
                if model.average
                else {}
            ),
            **({"guard": model.guard.describe()} if model.guard else {}),
            **report.robust_overfitting(state["history"]),
            **(more or {}),
        }
        curve = run.directory / "learning_curve.png"
        report.draw_curve(state["history"], curve, model.validation_attack, trains_on_attacked)
        run_directory.write_results(run.directory / "results.json", results)
        report.show(results, run.directory)
        if stem != select:
            print(f"Note: no epoch was within the budget for --select={select}; the network is that of the last")
    if Machines.read().strategy == "multi_worker":  # a worker that leaves early would take the others down
        if not is_chief():
            print(f"Trained:   {workers.cluster().workers[0].name} measures and writes the network", flush=True)
        with workers.about_the_lost():
            run.strategy.reduce("SUM", run.strategy.run(lambda: tf.constant(1.0)), axis=None)
        if not is_chief():
            print(f"Finished:  {workers.cluster().workers[0].name} has written {run.directory}", flush=True)


def _complete(directory: Path, files: Mapping[str, Writer]) -> None:
    """Writes what a finished run lacks: a later --save_dense, or what was removed."""
    missing = [name for name in files if not (directory / name).exists()]
    if missing:
        with command_line.about("resume"):
            network = trs.load_network(directory)
        for name in missing:
            files[name](network, directory / name)
        print(f"Completed:          {', '.join(missing)}")


def evaluate_again(directory: Path, names: tuple[str, ...] = ("model",)) -> None:
    """Evaluates the network of a finished run and prints the table; `results.json` stays as it is.

    What the flags do not say of the attack is as in training.

    Args:
        directory: Of the run.
        names: Flags that say what the network is; where they are given, they are compared with those of the run.
    """
    if not (directory / "network.keras").is_file():
        raise command_line.BadFlag(
            f"--load_model: expected the directory of a finished run, named by --output_dir or by the flags it was "
            f"trained with. Received: {directory}, which holds no network.keras"
        )
    recorded = run_directory.recorded(directory)
    for name in names:
        if name in FLAGS and FLAGS[name].present and name in recorded and recorded[name] != FLAGS[name].value:
            raise command_line.BadFlag(
                f"--{name}={FLAGS[name].value}: expected {recorded[name]}, as the network in {directory} was trained"
            )
    for name in ("norm", "epsilon", "pgd_epsilon"):
        if name in FLAGS and not FLAGS[name].present and name in recorded:
            FLAGS[name].value = recorded[name]
    with command_line.about("load_model"):
        network = trs.load_network(directory)
    report.show(report.evaluate(network, Data.read().load()), directory)


def _checkpoint(directory: Path, stem: str) -> Path:
    return directory / "checkpoints" / f"{stem}.weights.h5"


def _has_checkpoint(directory: Path) -> bool:
    return Run.read().resume and _checkpoint(directory, "last").exists()


def _monitored(model: trs.RobustModel) -> dict[str, str]:
    """Returns what an epoch may be the best by, and the logged quantity that tells it."""
    monitored = {"best_robust": "val_robust_accuracy", "best_clean": "val_accuracy"}
    for name in model.validation_checks if settings.has(CertifiedRun) else ():
        monitored["best_certified"] = f"val_{name}"
    return monitored


def _train_batches(run: TrainingRun, first_epoch: int, with_index: bool = False) -> tf.data.Dataset:
    data, augmentation, amount = Data.read(), Augmentation.read(), TrainingImages.read()
    return trs.data.train_dataset(
        run.images.train_images,
        run.images.train_labels,
        data.batch_size,
        seed=data.seed,
        # Consistency augments in the step.
        augmentation=None if Views.read().consistency else augmentation.kind,
        flip=augmentation.flips(run.images),
        epochs=run.epochs,
        first_epoch=first_epoch,
        auxiliary=run.auxiliary,
        auxiliary_fraction=amount.auxiliary_fraction or 0.5,
        with_index=with_index,
        parts=run.strategy.num_replicas_in_sync if with_index else 1,
        drop_remainder=amount.drop_last,
    )


def odd_batches_may_crash() -> bool:
    """Whether training may crash where a batch is smaller than the one before.

    On CPUs TensorFlow 2.21 corrupts its heap then, in plain residual networks of Keras too, unless oneDNN is off.
    """
    return os.environ.get("TF_ENABLE_ONEDNN_OPTS") != "0" and not tf.config.list_physical_devices("GPU")


def _tensorboard(directory: Path) -> keras.callbacks.Callback:
    try:
        import tensorboard  # noqa: F401
    except ImportError:
        raise command_line.BadFlag(
            "--tensorboard: expected pip install 'tf_robust_sparse[tensorboard]'. Received: no package tensorboard"
        ) from None
    return keras.callbacks.TensorBoard(directory / "tensorboard", write_graph=False)


def _describe(run: TrainingRun, model: trs.RobustModel, first_epoch: int) -> None:
    """Says what is about to happen."""
    images, statistics = run.images, trs.sparsity.statistics.summary(model.network)
    held_out = len(run.validation[1]) if run.validation else 0
    size = "x".join(str(length) for length in images.train_images.shape[1:])
    left = f", {run.epochs - first_epoch} of them left" if first_epoch else ""
    print(f"Data:      {images.name}, images of {size}, {images.num_classes} classes, from {images.origin}")
    print(
        f"Split:     {len(images.train_labels)} images to train on, {held_out} to select by, "
        f"{len(images.test_labels)} to test"
    )
    connected = f"{statistics['nonzero']} of {statistics['prunable']} kernel entries connected"
    print(f"Network:   {method.Network.read().model}, {connected}")
    print(f"Sparsity:  {_sparsity(model)}")
    print(f"Objective: {report.words(model.objective.describe())}")
    print(f"Training:  {run.epochs} epochs of {run.steps_per_epoch} steps{left}; after Ctrl-C, --resume goes on")
    print(f"Output:    {run.directory}", flush=True)


def _sparsity(model: trs.RobustModel) -> str:
    """Returns in words how connections are chosen."""
    if model.sparsifier is not None:
        return report.words(model.sparsifier.describe())
    by_scores = scored_layers(model.network)
    if by_scores:
        entries = sum(int(np.prod(layer.scores.shape)) for layer in by_scores)
        return f"by scores, the largest {sum(layer.kept for layer in by_scores)} of {entries}"
    gates = trs.layers.gates(model.network)
    if gates:
        return f"gates on {sum(gate.a_raw.shape[0] for gate in gates)} channels and units"
    found = trs.sparsity.statistics.summary(model.network)
    return "none, a dense network" if found["nonzero"] == found["prunable"] else "connections as they are"
