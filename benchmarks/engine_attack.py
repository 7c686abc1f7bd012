"""Runs AutoAttack on one sparse network with the engine and without it: times, and the verdict on every image.

    python -m benchmarks.engine_attack --data=cifar10 --data_dir=DIR --images=16
    python -m benchmarks.engine_attack --model=small_cnn --data=fashion_mnist_sample --images=64 --epsilon=0.05
    python -m benchmarks.engine_attack --network=pretrained:NAME --data=fashion_mnist_sample --images=200 --epsilon=0.1

Without --network, one is trained adversarially for a few steps first, on images of the training set. The attack is the
standard version, on the first test images. Printed are the times, tracing included, after each attack the robust
accuracy, and the images whose verdicts differ, with their margin: the difference between the highest logits of the
example at which one contender stopped and the other did not. Rounding alone may move images whose margin is tiny.
"""

import json
import os
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_string("network", None, "A trained network: a directory, a file, or pretrained:NAME.")
flags.DEFINE_string("model", "resnet18", "Network to train without --network.")
flags.DEFINE_float("connectivity", 0.01, "Fraction of connections.", 0, 1)
flags.DEFINE_string("data", "cifar10", "Data set.")
flags.DEFINE_string("data_dir", None, "Folder of its files.")
flags.DEFINE_string("epsilon", "8/255", "Radius in pixels of [0, 1].")
flags.DEFINE_string("train_epsilon", "2/255", "Radius of the perturbations that it is trained on.")
flags.DEFINE_integer("train_steps", 60, "Steps of training.", 0)
flags.DEFINE_integer("images", 16, "Number of test images.", 1)
flags.DEFINE_integer("batch_size", 64, "Images in a batch.", 1)
flags.DEFINE_float("learning_rate", 0.05, "Of training.", 0)
flags.DEFINE_integer("seed", 0, "Seed of everything.")
flags.DEFINE_string("results_file", None, "Where to write everything as JSON.")

SETTINGS = {"engine": "1", "TensorFlow": "0"}  # of TRS_ENGINE
TINY = 1e-4


def main(argv: list[str]) -> None:
    """Trains, attacks twice, prints the table."""
    if argv[1:]:
        raise app.UsageError(f"Unexpected positional arguments: {argv[1:]}")
    import tf_robust_sparse as trs
    from tf_robust_sparse.cli import networks

    images = trs.data.load(FLAGS.data, FLAGS.data_dir)
    network = networks.load(FLAGS.network, "network", layers=True) if FLAGS.network else trained(images)
    x = images.test_images[: FLAGS.images].astype("float32")
    x = x / 255 if images.test_images.dtype == np.uint8 else x
    y = images.test_labels[: FLAGS.images].astype("int64")
    found = {}
    for name, setting in SETTINGS.items():
        os.environ["TRS_ENGINE"] = setting
        found[name] = attacked(network, x, y)
        after = ", ".join(f"{attack} {100 * row:.2f}" for attack, row in found[name]["after"].items())
        print(f"{name:12s}{found[name]['seconds']:8.1f} s  clean {100 * found[name]['clean']:.2f}; {after}", flush=True)
    one, two = found.values()
    moved = np.flatnonzero(one["robust"] != two["robust"])
    margins = [margin(network, (one if one["broken"][i] else two)["x_adv"][i]) for i in moved]
    print(f"The engine is {two['seconds'] / one['seconds']:.2f} times faster.")
    print(
        f"{len(moved)} of {len(x)} verdicts differ; their margins: {', '.join(f'{m:.2g}' for m in margins) or 'none'}"
    )
    if FLAGS.results_file:
        record = {
            name: {k: np.asarray(v).tolist() for k, v in each.items() if k != "x_adv"} for name, each in found.items()
        }
        Path(FLAGS.results_file).write_text(json.dumps(record | {"margins": margins}, indent=1))
    if max(margins, default=0) > TINY:
        raise SystemExit(f"Verdicts differ where the margin is more than {TINY:g}.")


def trained(images: Any) -> Any:
    """A network after a few steps of adversarial training."""
    import tensorflow as tf

    import tf_robust_sparse as trs

    x, y = images.train_images, images.train_labels.astype("int64")
    network = trs.models.build(
        FLAGS.model, input_shape=x.shape[1:], kernel="rewiring", connectivity=FLAGS.connectivity, seed=FLAGS.seed
    )
    epsilon = float(Fraction(FLAGS.train_epsilon))
    objective = trs.objectives.AT(trs.attacks.LinfPGD(epsilon, epsilon / 2, 3))
    model = trs.RobustModel(network, objective, trs.sparsity.ConnectivitySampling(FLAGS.connectivity))
    model.compile(trs.training.sgdw(FLAGS.learning_rate, 5e-4))
    size = min(len(x), FLAGS.train_steps * FLAGS.batch_size)
    pixels = x[:size].astype("float32") / (255 if x.dtype == np.uint8 else 1)
    data = tf.data.Dataset.from_tensor_slices((pixels, y[:size])).shuffle(size, FLAGS.seed).repeat()
    if FLAGS.train_steps:
        model.fit(data.batch(FLAGS.batch_size), steps_per_epoch=FLAGS.train_steps, verbose=2)
    return network


def attacked(network: Any, x: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    """The standard evaluation, tracing included in the time."""
    import tf_robust_sparse as trs

    begin = time.perf_counter()
    epsilon = float(Fraction(FLAGS.epsilon))
    attack = trs.evaluation.AutoAttack(
        network, "Linf", epsilon, seed=FLAGS.seed, batch_size=FLAGS.batch_size, verbose=False
    )
    result = attack.run_standard_evaluation(x, y)
    return {
        "seconds": time.perf_counter() - begin,
        "clean": result["clean_accuracy"],
        "after": {name: row["robust_accuracy"] for name, row in result["attacks"].items()},
        "seconds_of": [row["seconds"] for row in result["attacks"].values()],
        "robust": result["broken_by"] == -1,
        "broken": result["broken_by"] >= 0,
        "x_adv": result["x_adv"],
    }


def margin(network: Any, x: np.ndarray) -> float:
    """The difference between the two highest logits of an image."""
    logits = np.sort(np.ravel(network(x[None], training=False)))
    return float(logits[-1] - logits[-2])


if __name__ == "__main__":
    app.run(main)
