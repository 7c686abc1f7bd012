"""Trains a robust network that is sparse from the first step to the last, or its dense twin.

    python run_scripts/run_connectivity_sampling.py --flagfile=flags/quickstart.flags

Leaves in the output directory: `network.keras` (for further training), `serve/` (a SavedModel from pixels in [0, 1] to
logits), `run.flags`, `results.json` and `checkpoints/` with the history of every epoch.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from run_scripts import command_line, common_flags, run_directory  # isort: skip

import json
import os
from typing import Any

import keras
import tensorflow as tf
from absl import flags

import tf_robust_sparse as trs

FLAGS = flags.FLAGS

common_flags.define_data()
common_flags.define_network()
common_flags.define_training()
common_flags.define_evaluation()
run_directory.define()
flags.DEFINE_enum(
    "select",
    "best_robust",
    ["best_robust", "best_clean", "last", "reference"],
    "Which state becomes the network: best robust or clean accuracy on held-out training images, the last, or, as in "
    "the original, best clean accuracy on the test images.",
)
flags.DEFINE_bool("tensorboard", False, "Also write TensorBoard logs; needs the extra tensorboard.")
flags.DEFINE_bool("load_model", False, "Do not train; evaluate the finished run in the output directory again.")


def main() -> None:
    """Trains, selects, saves, evaluates."""
    common_flags.check()
    directory = Path(FLAGS.output_dir) if FLAGS.output_dir else common_flags.default_directory()
    if FLAGS.load_model:
        evaluate_again(directory)
        return
    chief = worker_index() == 0  # worker 0 alone checks and writes the directory
    resuming = run_directory.check(directory) if chief else FLAGS.resume and checkpoint(directory, "last").exists()
    if resuming and (directory / "results.json").exists():
        print(f"{directory} holds the finished run; there is nothing to resume.")
        return
    keras.utils.set_random_seed(FLAGS.seed)
    if FLAGS.mixed_precision:
        keras.mixed_precision.set_global_policy("mixed_float16")
    strategy = common_flags.strategy()
    images = common_flags.dataset()
    auxiliary = trs.data.load_pseudo_labels(FLAGS.pseudo_labels, images.num_classes) if FLAGS.pseudo_labels else None
    images, validation = hold_out(images)
    steps = steps_per_epoch(images)
    with strategy.scope():
        network = common_flags.network(images, synchronized=strategy.num_replicas_in_sync > 1)
        model = trs.RobustModel(
            network,
            common_flags.objective(),
            common_flags.sparsifier(steps * FLAGS.epochs),
            validation_attack=common_flags.attack(),
            seed=FLAGS.seed,
        )
        model.compile(common_flags.optimizer(steps * FLAGS.epochs), metrics=["accuracy"])
    test = trs.data.test_dataset(images.test_images, images.test_labels, FLAGS.batch_size)
    connections = trs.training.Connections(network, model.sparsifier)
    checkpoints = trs.training.Checkpoints(
        directory / "checkpoints",
        {"best_robust": "val_robust_accuracy", "best_clean": "val_accuracy"},
        config=identity(),
        connections=connections,
        sparsifier=model.sparsifier,
        writes=chief,
    )
    first_epoch = checkpoints.restore(model) if resuming else 0
    callbacks: list[Any] = [trs.training.StopOnNaN(), connections, checkpoints]
    if FLAGS.select == "reference":
        callbacks.append(trs.training.ReferenceSelection(checkpoints, test))
    if FLAGS.tensorboard and chief:
        callbacks.append(tensorboard(directory))
    if chief:
        run_directory.begin(directory, resuming)
        describe(images, model, steps, directory)
    train = trs.data.train_dataset(
        images.train_images,
        images.train_labels,
        FLAGS.batch_size,
        seed=FLAGS.seed,
        augmentation=None if FLAGS.augmentation == "none" else FLAGS.augmentation,
        flip=images.flip if FLAGS.flip is None else FLAGS.flip,
        epochs=FLAGS.epochs,
        first_epoch=first_epoch,
        auxiliary=auxiliary,
        auxiliary_fraction=FLAGS.rst_frac,
    )
    if first_epoch < FLAGS.epochs:
        model.fit(
            train,
            validation_data=trs.data.test_dataset(*validation, FLAGS.batch_size),
            epochs=FLAGS.epochs,
            initial_epoch=first_epoch,
            steps_per_epoch=steps,
            callbacks=callbacks,
            verbose=2 if not sys.stdout.isatty() else 1,
        )
    if chief:
        finish(directory, model, checkpoints, images, steps)
    if FLAGS.strategy == "multi_worker":  # a worker that leaves early would take the others down
        strategy.reduce("SUM", strategy.run(lambda: tf.constant(1.0)), axis=None)


def finish(
    directory: Path,
    model: trs.RobustModel,
    checkpoints: trs.training.Checkpoints,
    images: trs.data.ImageDataset,
    steps: int,
) -> None:
    """Selects a state, writes the artefacts, evaluates on the test images and writes `results.json`."""
    state = checkpoints.state
    selected = state["best"].get(FLAGS.select, {"epoch": state["epoch"], "monitor": "last"})
    stem = FLAGS.select if FLAGS.select in state["best"] else "last"
    trs.saving.load_checkpoint(checkpoint(directory, stem), model)
    trs.save_network(model.network, directory)
    trs.export_network(model.network, directory / "serve")
    statistics = trs.sparsity.statistics.summary(model.network)
    report = evaluate(model.network, images)
    results = {
        **report,
        "connectivity": statistics["connectivity"],
        "nonzero": statistics["nonzero"],
        "prunable": statistics["prunable"],
        "epochs": state["epoch"],
        "seconds": state["seconds"],
        "images_per_second": state["epoch"] * steps * FLAGS.batch_size / state["training_seconds"],
        "seed": FLAGS.seed,
        "selected": {"by": FLAGS.select, **selected},
        "data": {"name": images.name, "origin": images.origin, "train": len(images.train_labels)},
        "model": FLAGS.model,
        "objective": model.objective.describe(),
        "sparsifier": model.sparsifier.describe() if model.sparsifier else None,
        "layers": statistics["layers"],
        "versions": run_directory.versions(),
    }
    run_directory.write_json(directory / "results.json", results)
    print_report(results, directory)


def evaluate(network: keras.Model, images: trs.data.ImageDataset) -> dict[str, Any]:
    """Returns clean and robust accuracy on the test images, with what the attack was."""
    attack = common_flags.test_attack(FLAGS.norm)
    test = trs.data.test_dataset(images.test_images, images.test_labels, FLAGS.batch_size)
    report = trs.evaluation.evaluate_robustness(trs.saving.strip(network), test, attack)
    ((name, details),) = report["attacks"].items()
    return {
        "clean_accuracy": report["clean_accuracy"],
        "robust_accuracy": report["robust_accuracy"],
        "attack": {"name": name, **details, "images": report["images"]},
        "warnings": report["flags"],
    }


def evaluate_again(directory: Path) -> None:
    """Evaluates the network of a finished run and prints the table; `results.json` stays as it is."""
    network = trs.load_network(directory)
    images = common_flags.dataset()
    report = evaluate(network, images)
    statistics = trs.sparsity.statistics.summary(network)
    print_report({**report, **statistics, "images_per_second": None}, directory)


def hold_out(images: trs.data.ImageDataset) -> tuple[trs.data.ImageDataset, tuple[Any, Any]]:
    """Splits off the training images by which the best state is chosen."""
    available = len(images.train_labels)
    number = FLAGS.validation_examples or min(1000, available // 10)
    if not 1 <= number < available:
        raise command_line.BadFlag(
            f"--validation_examples={number}: expected at least 1 and fewer than the {available} training images"
        )
    images, x, y = images.split_validation(number, seed=FLAGS.seed)
    return images, (x, y)


def steps_per_epoch(images: trs.data.ImageDataset) -> int:
    """Returns the number of full batches of labelled images in an epoch."""
    auxiliary = trs.data.auxiliary_batch_size(FLAGS.batch_size, FLAGS.rst_frac) if FLAGS.pseudo_labels else 0
    steps = trs.data.steps_per_epoch(len(images.train_labels), FLAGS.batch_size, auxiliary)
    if steps < 1:
        raise command_line.BadFlag(
            f"--batch_size={FLAGS.batch_size} is more than the {len(images.train_labels)} training images"
        )
    return steps


def identity() -> dict[str, Any]:
    """Returns the flags that make a run what it is, by which a resumed run is checked."""
    names = (
        *("data", "train_examples", "validation_examples", "batch_size", "augmentation", "flip", "rst_frac", "seed"),
        *("model", "padding_mode", "mixed_precision", "objective", "connectivity", "epochs"),
    )
    return {**{name: FLAGS[name].value for name in names}, "sparsifier": common_flags.sparsifier_name()}


def checkpoint(directory: Path, stem: str) -> Path:
    """Returns the path of a checkpoint of the run."""
    return directory / "checkpoints" / f"{stem}.weights.h5"


def worker_index() -> int:
    """Returns which worker this process is; 0 if it is alone."""
    if FLAGS.strategy != "multi_worker":
        return 0
    return json.loads(os.environ["TF_CONFIG"]).get("task", {}).get("index", 0)


def tensorboard(directory: Path) -> keras.callbacks.Callback:
    """Returns the callback that writes TensorBoard logs."""
    try:
        import tensorboard  # noqa: F401
    except ImportError:
        raise command_line.BadFlag(
            "--tensorboard needs TensorBoard: pip install 'tf_robust_sparse[tensorboard]'"
        ) from None
    return keras.callbacks.TensorBoard(directory / "tensorboard", write_graph=False)


def describe(images: trs.data.ImageDataset, model: trs.RobustModel, steps: int, directory: Path) -> None:
    """Says what is about to happen."""
    statistics = trs.sparsity.statistics.summary(model.network)
    sparse = model.sparsifier.describe() if model.sparsifier else {"sparsifier": "none, dense"}
    print(f"Data:      {images.name}, {len(images.train_labels)} images ({images.origin})")
    print(f"Network:   {FLAGS.model}, {statistics['nonzero']} of {statistics['prunable']} connections at the start")
    print(f"Sparsity:  {sparse}")
    print(f"Objective: {model.objective.describe()}")
    print(f"Training:  {FLAGS.epochs} epochs of {steps} steps; Ctrl-C and --resume lose no finished epoch")
    print(f"Output:    {directory}", flush=True)


def print_report(results: dict[str, Any], directory: Path) -> None:
    """Prints the robustness table and where everything is."""
    attack = results["attack"]
    print()
    print(f"Clean accuracy      {100 * results['clean_accuracy']:6.2f} %   on {attack['images']} test images")
    print(
        f"Robust accuracy     {100 * results['robust_accuracy']:6.2f} %   {attack['name']}, epsilon {attack['epsilon']:.4f}"
    )
    print(f"Connectivity        {100 * results['connectivity']:6.2f} %   {results['nonzero']} of {results['prunable']}")
    if results["images_per_second"]:
        print(f"Training speed      {results['images_per_second']:6.0f} images/s")
    for warning in results["warnings"]:
        print(f"Warning: {warning}")
    print(f"Network to train on {directory / 'network.keras'}")
    print(f"SavedModel          {directory / 'serve'}")
    print(f"Record              {directory}: results.json, run.flags, checkpoints/")


if __name__ == "__main__":
    command_line.run(main)
